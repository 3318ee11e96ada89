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

// How often others ran on the core of the worker, whose thread this is, although it did not sleep: preemptions, and the turns of
// a spin that gave way (sched_yield) to somebody.
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

// Those of the device are told by the first worker.
json FaultsJson(const AdminContext& c, const Port& port, uint32_t worker) {
  json out = json::object();
  const PortFaults own = port.faults();
  for (const PortFault& fault : kPortFaults) out[std::string(fault.name)] = own.*fault.count;
  if (worker != 0) return out;
  const auto device = c.device_faults.find(port.ifindex());
  for (const DeviceFault& fault : kDeviceFaults)
    out[std::string(fault.name)] = device == c.device_faults.end() ? 0 : device->second.*fault.count;
  return out;
}

json PortsJson(const AdminContext& c, uint32_t number) {
  Worker& worker = c.group.worker(number);
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
             {"faults", FaultsJson(c, *port, number)},
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
  for (const auto& use : calls.Containers()) {
    out.push_back({{"id", use->id},
                   {"sockets", use->sockets.load()},
                   {"held_bytes", use->held_bytes.load()},
                   {"refused_sockets", use->refused_sockets.load()},
                   {"refused_calls", use->refused_calls.load()}});
  }
  return out;
}

// Of one worker; what is of the whole sandbox is told by the first.
json StatsJson(const AdminContext& c, uint32_t worker) {
  const WorkerStats w = c.group.worker(worker).stats();
  const CallServer::Stats s = c.calls.stats(worker);
  const Stack& stack = c.group.stack(worker);
  const auto& pool = static_cast<const HeapBlockPool&>(c.group.pool(worker));
  json out{{"counters", CountersJson(c.group.worker(worker), false)},
           {"ports", PortsJson(c, worker)},
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
             {"threads", w.own_thread ? 1 : 0},
             {"handovers", c.group.handovers(worker)},
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
             {"options_native", s.options_native}}},
           {"tcp", {{"established", stack.EstablishedConnections()}}},
           {"memory",
            {{"packet_bytes_in_use", pool.bytes_in_use()},
             {"packet_bytes_held", pool.bytes_held()},
             {"tcp_bytes", stack.stream_memory().held()},
             {"tcp_pressure", stack.stream_memory().pressure()},
             {"datagram_bytes", stack.datagram_memory().held()},
             {"unread_bytes", s.unread_bytes}}}};
  if (worker != 0) return out;
  out["calls"]["native_options"] = s.native_options;
  out["process"] = {{"cpu_ns", ProcessorTime()}};
  out["containers"] = ContainersJson(c.calls);
  return out;
}

// Adds the numbers of another worker. Its queues of the devices come in the same order.
void AddTo(json& sum, const json& more) {
  if (sum.is_number() && more.is_number()) {
    sum = sum.get<uint64_t>() + more.get<uint64_t>();
  } else if (sum.is_boolean() && more.is_boolean()) {
    sum = sum.get<bool>() || more.get<bool>();
  } else if (sum.is_array() && more.is_array()) {
    for (size_t i = 0; i < std::min(sum.size(), more.size()); ++i) AddTo(sum[i], more[i]);
  } else if (sum.is_object() && more.is_object()) {
    for (const auto& [name, value] : more.items()) {
      if (name != "ifindex" && name != "wake_cost_ns" && name != "spin_limit_ns" && sum.contains(name)) AddTo(sum[name], value);
    }
  }
}

json SumOf(std::vector<json> parts) {
  json sum = parts[0];
  for (size_t i = 1; i < parts.size(); ++i) AddTo(sum, parts[i]);
  if (parts.size() == 1 || !sum.contains("worker")) return sum;
  for (json& part : parts) {
    json one = std::move(part["worker"]);
    one["streams"] = part["calls"]["streams"];
    for (const json& port : part["ports"]) {
      for (const char* name : {"rx_frames", "tx_frames"}) one[name] = one.value(name, uint64_t{0}) + port[name].get<uint64_t>();
    }
    sum["workers"].push_back(std::move(one));
  }
  return sum;
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

// A listening socket is told of by the first worker, whatever others have a part in it.
json SocketsJson(const AdminContext& c, uint32_t worker) {
  constexpr int kListen = 10;
  json out = json::array();
  const std::vector<CallServer::Owner> owners = c.calls.Owners(worker);
  for (const SocketInfo& s : c.group.stack(worker).Sockets(true)) {
    if (worker != 0 && s.state == kListen) continue;
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
    for (const CallServer::Owner& owner : owners) {
      if (owner.cookie == s.owner) one["tid"] = owner.tid, one["fd"] = owner.fd;
    }
    out.push_back(std::move(one));
  }
  return out;
}

json AllSockets(const std::vector<json>& parts) {
  json all = json::array();
  for (const json& part : parts) all.insert(all.end(), part.begin(), part.end());
  return {{"sockets", std::move(all)}};
}

json RoutesJson(const AdminContext& c) {
  const NetConfig& config = c.group.stack(0).config();
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
  const NetConfig& config = c.group.stack(0).config();
  json out = json::array();
  for (const NeighborInfo& n : c.group.stack(0).Neighbors()) {
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
  const auto& links = context.group.stack(0).config().links;
  for (const LinkConfig& link : links) all += (all.empty() ? "" : ", ") + link.name;
  for (const std::string& name : names) {
    if (std::ranges::find(links, name, &LinkConfig::name) == links.end())
      return "--device=" + name + ": no such device in the sandbox (there are: " + all + ")";
  }
  return {};
}

json AdminPart(std::string_view request, const AdminContext& context, uint32_t worker) {
  if (request == "stats") return StatsJson(context, worker);
  if (request == "sockets") return SocketsJson(context, worker);
  if (request == "drops") return {{"counters", CountersJson(context.group.worker(worker), true)}};
  // The same in all, or nearly.
  if (worker != 0) return {};
  if (request == "routes") return RoutesJson(context);
  if (request == "neigh") return NeighborsJson(context);
  return {};
}

std::string AdminAnswer(std::string_view request, std::vector<json> parts) {
  if (parts[0].is_null()) return AdminError("unknown request");
  if (request == "sockets") return Line(AllSockets(parts));
  return Line(SumOf(std::move(parts)));
}

}  // namespace sluice
