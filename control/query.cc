#include "control/query.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "control/admin_client.h"
#include "control/log.h"
#include "control/sandboxes.h"

namespace sluice {
namespace {

using nlohmann::json;

void PrintNonZero(const json& counters, const char* indent) {
  for (const auto& [name, value] : counters.items()) {
    if (value != 0) std::printf("%s%-32s %s\n", indent, Clean(name).c_str(), Plain(value).c_str());
  }
}

void PrintStats(const json& a) {
  std::printf("counters\n");
  PrintNonZero(a.at("counters"), "  ");
  for (const json& port : a.at("ports")) {
    std::printf("port of device %s (%s%s)\n", Plain(port.value("device", port.at("ifindex"))).c_str(),
                Plain(port.at("kind")).c_str(), port.at("dead") == true ? ", dead" : "");
    for (const auto& [name, value] : port.items()) {
      if (value.is_number() && name != "ifindex") std::printf("  %-32s %s\n", Clean(name).c_str(), Plain(value).c_str());
    }
    if (const json faults = port.value("faults", json::object()); !faults.empty()) {
      std::printf("  faults\n");
      PrintNonZero(faults, "    ");
    }
    if (const json q = port.value("qdisc", json::object()); !q.empty()) {
      std::printf("  qdisc %s\n", Plain(q.at("kind")).c_str());
      for (const auto& [name, value] : q.items()) {
        if (value.is_number()) std::printf("    %-30s %s\n", Clean(name).c_str(), Plain(value).c_str());
      }
    }
    for (const json& fact : port.at("facts")) std::printf("  %s\n", Plain(fact).c_str());
  }
  size_t number = 0;
  for (const json& worker : a.value("workers", json::array())) {
    std::printf("worker %zu\n", number++);
    PrintNonZero(worker, "  ");
  }
  for (const char* part : {"worker", "calls", "memory"}) {
    std::printf("%s\n", part);
    PrintNonZero(a.at(part), "  ");
  }
}

// As ss names them.
const char* StateName(int state) {
  constexpr const char* kNames[] = {"UNKNOWN",   "ESTAB",  "SYN-SENT",   "SYN-RECV", "FIN-WAIT-1", "FIN-WAIT-2",
                                    "TIME-WAIT", "UNCONN", "CLOSE-WAIT", "LAST-ACK", "LISTEN",     "CLOSING"};
  return state >= 0 && state < 12 ? kNames[state] : "UNKNOWN";
}

std::string Peer(const json& socket) {
  const std::string remote = Plain(socket.at("remote"));
  return remote != "none:0" ? remote : socket.at("family") == "inet6" ? "[::]:*" : "0.0.0.0:*";
}

void PrintSockets(const json& sockets) {
  size_t local = 18, remote = 17;
  for (const json& s : sockets) {
    local = std::max(local, Plain(s.at("local")).size());
    remote = std::max(remote, Peer(s).size());
  }
  const auto print = [&](const std::string& netid, const char* state, const std::string& in, const std::string& out,
                         const std::string& from, const std::string& to, const std::string& process) {
    std::printf("%-5s %-10s %8s %8s  %-*s  %-*s%s\n", netid.c_str(), state, in.c_str(), out.c_str(), static_cast<int>(local),
                from.c_str(), static_cast<int>(remote), to.c_str(), process.c_str());
  };
  print("Netid", "State", "Recv-Q", "Send-Q", "Local Address:Port", "Peer Address:Port", "  Process");
  for (const json& s : sockets) {
    std::string process;
    if (s.contains("tid")) process = "  tid=" + Plain(s.at("tid")) + ",fd=" + Plain(s.at("fd"));
    print(Plain(s.at("protocol")), StateName(s.at("state").get<int>()), Plain(s.at("receive_queue")), Plain(s.at("send_queue")),
          Plain(s.at("local")), Peer(s), process);
  }
}

// A name for a number that has one.
std::string Named(const json& value, std::initializer_list<std::pair<int, const char*>> names) {
  for (const auto& [number, name] : names) {
    if (value == number) return name;
  }
  return Plain(value);
}

std::string Part(const char* word, const json& value) {
  const std::string text = Plain(value);
  return text.empty() ? "" : std::string(" ") + word + " " + text;
}

// As `ip route show table all` prints them.
void PrintRoutes(const json& routes) {
  for (const json& r : routes) {
    const std::string type = Named(r.at("type"), {{1, ""},
                                                  {2, "local "},
                                                  {3, "broadcast "},
                                                  {4, "anycast "},
                                                  {5, "multicast "},
                                                  {6, "blackhole "},
                                                  {7, "unreachable "},
                                                  {8, "prohibit "},
                                                  {9, "throw "}});
    const std::string scope = Named(r.at("scope"), {{0, ""}, {253, "link"}, {254, "host"}, {255, ""}});
    const std::string table = Named(r.at("table"), {{253, "default"}, {254, ""}, {255, "local"}});
    const json& hops = r.at("next_hops");
    std::string line = type + Plain(r.at("dst"));
    if (hops.size() == 1) line += Part("via", hops.at(0).at("via")) + Part("dev", hops.at(0).at("dev"));
    line += Part("table", table) + Part("scope", scope) + Part("src", r.at("src"));
    if (r.at("metric") != 0) line += Part("metric", r.at("metric"));
    std::printf("%s\n", line.c_str());
    for (size_t i = 0; hops.size() > 1 && i < hops.size(); ++i) {
      const json& hop = hops.at(i);
      std::printf("\tnexthop%s%s%s\n", Part("via", hop.at("via")).c_str(), Part("dev", hop.at("dev")).c_str(),
                  Part("weight", hop.at("weight")).c_str());
    }
  }
}

// As `ip neigh` prints them.
void PrintNeighbors(const json& neighbors) {
  for (const json& n : neighbors) {
    const json& state = n.at("state");
    const std::string name = Named(state, {{0, "NONE"},
                                           {1, "INCOMPLETE"},
                                           {2, "REACHABLE"},
                                           {4, "STALE"},
                                           {8, "DELAY"},
                                           {16, "PROBE"},
                                           {32, "FAILED"},
                                           {64, "NOARP"},
                                           {128, "PERMANENT"}});
    const bool unknown = state == 0 || state == 1 || state == 32;
    std::printf("%s%s%s %s\n", Plain(n.at("address")).c_str(), Part("dev", n.at("dev")).c_str(),
                unknown ? "" : Part("lladdr", n.at("mac")).c_str(), name.c_str());
  }
}

void Print(const CommandLine& line, const json& answer) {
  if (line.query.json) {
    std::printf("%s\n", answer.dump().c_str());
  } else if (line.command == "stats") {
    PrintStats(answer);
  } else if (line.command == "sockets") {
    PrintSockets(answer.at("sockets"));
  } else if (line.command == "routes") {
    PrintRoutes(answer.at("routes"));
  } else if (line.command == "neigh") {
    PrintNeighbors(answer.at("neighbors"));
  } else {
    PrintNonZero(answer.at("counters"), "");
  }
}

int List(const CommandLine& line) {
  const auto all = ListSandboxes(line.flags);
  json out = json::array();
  size_t width = 7;
  for (const RunningSandbox& s : all) {
    const Registration& r = s.registration;
    out.push_back({{"pid", r.guard_pid},
                   {"init", r.init_pid},
                   {"netns", r.netns_name},
                   {"inode", r.id.inode},
                   {"network", r.network},
                   {"command", r.command},
                   {"containers", s.containers}});
    width = std::max(width, s.name().size());
  }
  if (line.query.json) {
    std::printf("%s\n", out.dump().c_str());
    return 0;
  }
  const auto w = static_cast<int>(width);
  std::printf("%-*s  %7s  %-7s  %s\n", w, "SANDBOX", "PID", "NETWORK", "COMMAND");
  for (const RunningSandbox& s : all) {
    const Registration& r = s.registration;
    std::printf("%-*s  %7d  %-7s  %s\n", w, s.name().c_str(), r.guard_pid, r.network.c_str(), Clean(r.command).c_str());
  }
  return 0;
}

}  // namespace

int RunQuery(const CommandLine& line) {
  if (line.command == "sandboxes") return List(line);
  AdminClient client;
  json answer;
  Status status = client.Connect(line);
  if (status.ok()) status = client.Ask(line.command, &answer);
  if (!status.ok()) {
    LogLine(LogLevel::kError, status.line());
    return status.exit_code();
  }
  try {
    Print(line, answer);
  } catch (const json::exception& e) {
    LogLine(LogLevel::kError, line.command + ": the sandbox's answer is not one of sluice's: " + e.what());
    return 1;
  }
  return 0;
}

}  // namespace sluice
