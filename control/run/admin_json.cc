#include "control/run/admin_json.h"

#include <sys/resource.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "control/run/admin_protocol.h"

namespace sluice {
namespace {

using nlohmann::json;

json CountersJson(Worker& worker, bool drops_only) {
  const Counters& counters = worker.stack().counters();
  json out = json::object();
  for (size_t i = 0; i < kCounterInfo.size(); ++i) {
    const bool drop = kCounterInfo[i].name.substr(0, 4) == "Drop";
    if (drops_only && !drop) continue;
    out[std::string(kCounterInfo[i].name)] = counters.Get(static_cast<Counter>(i));
  }
  for (const QdiscDrop& drop : kQdiscDrops) {
    uint64_t sum = 0;  // of all devices
    for (const auto& port : worker.ports()) sum += port->qdisc().value_or(QdiscStats()).*drop.count;
    out[std::string(drop.name)] = sum;
  }
  return out;
}

std::string DeviceName(const NetConfig& config, IfIndex index) {
  for (const LinkConfig& link : config.links) {
    if (link.index == index) return link.name;
  }
  return std::to_string(index);
}

// Of the whole sentry.
int64_t ProcessorTime() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto nanoseconds = [](const timeval& t) { return t.tv_sec * int64_t{1000000000} + t.tv_usec * int64_t{1000}; };
  return nanoseconds(usage.ru_utime) + nanoseconds(usage.ru_stime);
}

// How often the worker, whose thread this is, had to leave its core to others while it had work.
uint64_t CoreTaken() {
  rusage usage{};
  getrusage(RUSAGE_THREAD, &usage);
  return static_cast<uint64_t>(usage.ru_nivcsw);
}

// As `tc -s qdisc` has it. The stack's own queue of the device is fifo, or none where nothing waits.
json QdiscJson(Worker& worker, const Port& port) {
  const std::optional<QdiscStats> q = port.qdisc();
  if (!q) {
    const Stack::LinkCounters c = worker.stack().link_counters(port.ifindex());
    return {{"kind", port.features().queues ? "fifo" : "none"},
            {"sent_frames", c.tx_packets},
            {"sent_bytes", c.tx_bytes},
            {"dropped", c.tx_dropped},
            {"overlimits", 0},
            {"requeues", 0},
            {"backlog_frames", c.tx_waiting},
            {"backlog_bytes", c.tx_waiting_bytes}};
  }
  return {{"kind", std::string(q->kind)},        {"sent_frames", q->sent_frames},
          {"sent_bytes", q->sent_bytes},         {"dropped", q->dropped()},
          {"overlimits", q->overlimits},         {"requeues", q->requeues},
          {"backlog_frames", q->backlog_frames}, {"backlog_bytes", q->backlog_bytes}};
}

json FaultsJson(const AdminContext& c, const Port& port) {
  json out = json::object();
  const PortFaults own = port.faults();
  for (const PortFault& fault : kPortFaults) out[std::string(fault.name)] = own.*fault.count;
  const auto device = c.device_faults.find(port.ifindex());
  for (const DeviceFault& fault : kDeviceFaults)
    out[std::string(fault.name)] = device == c.device_faults.end() ? 0 : device->second.*fault.count;
  return out;
}

json PortsJson(const AdminContext& c) {
  Worker& worker = c.worker;
  json out = json::array();
  for (const auto& port : worker.ports()) {
    const PortStats s = port->stats();
    json one{{"ifindex", port->ifindex()},
             {"device", DeviceName(worker.stack().config(), port->ifindex())},
             {"kind", std::string(port->kind())},
             {"dead", port->dead()},
             {"rx_frames", s.rx_frames},
             {"rx_bytes", s.rx_bytes},
             {"rx_dropped", s.rx_dropped},
             {"rx_syscalls", s.rx_syscalls},
             {"tx_frames", s.tx_frames},
             {"tx_bytes", s.tx_bytes},
             {"tx_dropped", s.tx_dropped},
             {"tx_syscalls", s.tx_syscalls},
             {"software_gso_frames", s.software_gso_frames},
             {"faults", FaultsJson(c, *port)},
             {"qdisc", QdiscJson(worker, *port)},
             {"facts", port->describe()}};
    out.push_back(std::move(one));
  }
  return out;
}

const char* PollName(PollMode mode) {
  return mode == PollMode::kBusy ? "busy" : mode == PollMode::kInterrupt ? "interrupt" : "adaptive";
}

json ContainersJson(const CallServer& calls) {
  json out = json::array();
  for (const ContainerUse& use : calls.Containers()) {
    out.push_back({{"id", use.id},
                   {"sockets", use.sockets},
                   {"held_bytes", use.held_bytes},
                   {"refused_sockets", use.refused_sockets},
                   {"refused_calls", use.refused_calls}});
  }
  return out;
}

json StatsJson(const AdminContext& c) {
  const WorkerStats w = c.worker.stats();
  const CallServer::Stats s = c.calls.stats();
  return {{"counters", CountersJson(c.worker, false)},
          {"ports", PortsJson(c)},
          {"worker",
           {{"turns", w.turns},
            {"busy_turns", w.busy_turns},
            {"sleeps", w.sleeps},
            {"wakeups", w.wakeups},
            {"spin_ns", w.spin_ns},
            {"sleep_ns", w.sleep_ns},
            {"wake_cost_ns", w.wake_cost.ns()},
            {"preempted_spins", w.preempted_spins},
            {"core_taken", CoreTaken()},
            {"spin_limit_ns", w.spin_limit.ns()},
            {"spins", w.spins},
            {"poll", PollName(w.poll)}}},
          {"calls",
           {{"calls", s.calls},
            {"answered", s.answered},
            {"undone", s.undone},
            {"held", s.held},
            {"fetches", s.fetches},
            {"streams", s.streams},
            {"datagrams", s.datagrams},
            {"listeners", s.listeners},
            {"netlinks", s.netlinks},
            {"stream_bytes_in", s.stream_bytes_in},
            {"stream_bytes_out", s.stream_bytes_out},
            {"datagrams_in", s.datagrams_in},
            {"datagrams_out", s.datagrams_out},
            {"datagrams_dropped", s.datagrams_dropped},
            {"native_options", s.native_options},
            {"options_native", s.options_native}}},
          {"tcp", {{"established", c.worker.stack().EstablishedConnections()}}},
          {"process", {{"cpu_ns", ProcessorTime()}}},
          {"containers", ContainersJson(c.calls)},
          {"memory",
           {{"packet_bytes_in_use", c.pool.bytes_in_use()},
            {"packet_bytes_held", c.pool.bytes_held()},
            {"tcp_bytes", c.worker.stack().stream_memory().held()},
            {"tcp_pressure", c.worker.stack().stream_memory().pressure()},
            {"datagram_bytes", c.worker.stack().datagram_memory().held()},
            {"unread_bytes", s.unread_bytes}}}};
}

const char* ProtocolName(uint8_t protocol) {
  switch (protocol) {
    case 1:
      return "icmp";
    case 6:
      return "tcp";
    case 17:
      return "udp";
    case 58:
      return "icmp6";
    default:
      return "raw";
  }
}

json SocketsJson(const AdminContext& c) {
  json out = json::array();
  for (const SocketInfo& s : c.worker.stack().Sockets(true)) {
    json one{{"family", s.family == Family::kIpv6 ? "inet6" : "inet"},
             {"protocol", ProtocolName(s.protocol)},
             {"state", s.state},
             {"local", ToString(s.local)},
             {"remote", ToString(s.remote)},
             {"receive_queue", s.receive_queue},
             {"send_queue", s.send_queue},
             {"backlog", s.backlog},
             {"retransmits", s.retransmits},
             {"owner", s.owner}};
    for (const CallServer::Owner& owner : c.calls.Owners()) {
      if (owner.cookie == s.owner) one["tid"] = owner.tid, one["fd"] = owner.fd;
    }
    out.push_back(std::move(one));
  }
  return {{"sockets", std::move(out)}};
}

json RoutesJson(const AdminContext& c) {
  const NetConfig& config = c.worker.stack().config();
  json out = json::array();
  for (const RouteConfig& r : config.routes) {
    json hops = json::array();
    for (const NextHop& hop : r.next_hops) {
      hops.push_back({{"via", hop.gateway ? ToString(hop.gateway) : ""},
                      {"dev", DeviceName(config, hop.ifindex)},
                      {"weight", hop.weight},
                      {"flags", hop.flags}});
    }
    out.push_back({{"dst", r.prefix_len == 0 ? "default" : ToString(r.dst) + "/" + std::to_string(r.prefix_len)},
                   {"table", r.table},
                   {"type", r.type},
                   {"scope", r.scope},
                   {"metric", r.priority},
                   {"src", r.prefsrc ? ToString(r.prefsrc) : ""},
                   {"next_hops", std::move(hops)}});
  }
  return {{"routes", std::move(out)}};
}

json NeighborsJson(const AdminContext& c) {
  const NetConfig& config = c.worker.stack().config();
  json out = json::array();
  for (const NeighborInfo& n : c.worker.stack().Neighbors()) {
    out.push_back({{"address", ToString(n.address)},
                   {"dev", DeviceName(config, n.ifindex)},
                   {"mac", ToString(n.mac)},
                   {"state", n.state},
                   {"probes", n.probes}});
  }
  return {{"neighbors", std::move(out)}};
}

std::string Line(json answer) {
  answer["protocol"] = kAdminProtocol;
  answer["version"] = VersionNumber();
  return answer.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
}

}  // namespace

std::string AdminGreeting() { return Line(json::object()); }
std::string AdminError(const std::string& text) { return Line({{"error", text}}); }

std::string UnknownDevice(const std::vector<std::string>& names, const AdminContext& context) {
  std::string all;
  const auto& links = context.worker.stack().config().links;
  for (const LinkConfig& link : links) all += (all.empty() ? "" : ", ") + link.name;
  for (const std::string& name : names) {
    if (std::ranges::find(links, name, &LinkConfig::name) == links.end())
      return "--device=" + name + ": no such device in the sandbox (there are: " + all + ")";
  }
  return {};
}

std::string AdminAnswer(std::string_view request, const AdminContext& context) {
  json answer;
  if (request == "stats") {
    answer = StatsJson(context);
  } else if (request == "sockets") {
    answer = SocketsJson(context);
  } else if (request == "routes") {
    answer = RoutesJson(context);
  } else if (request == "neigh") {
    answer = NeighborsJson(context);
  } else if (request == "drops") {
    answer = {{"counters", CountersJson(context.worker, true)}};
  } else {
    return AdminError("unknown request");
  }
  return Line(std::move(answer));
}

}  // namespace sluice
