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
    std::printf("port of device %s (%s%s)\n", Plain(port.at("ifindex")).c_str(), Plain(port.at("kind")).c_str(),
                port.at("dead") == true ? ", dead" : "");
    for (const auto& [name, value] : port.items()) {
      if (value.is_number() && name != "ifindex") std::printf("  %-32s %s\n", Clean(name).c_str(), Plain(value).c_str());
    }
    for (const json& fact : port.at("facts")) std::printf("  %s\n", Plain(fact).c_str());
  }
  for (const char* part : {"worker", "calls", "memory"}) {
    std::printf("%s\n", part);
    PrintNonZero(a.at(part), "  ");
  }
}

void PrintTable(const json& rows, std::initializer_list<const char*> columns) {
  for (const char* column : columns) std::printf("%-24s", column);
  std::printf("\n");
  for (const json& row : rows) {
    for (const char* column : columns) std::printf("%-24s", row.contains(column) ? Plain(row.at(column)).c_str() : "-");
    std::printf("\n");
  }
}

// As ss names them.
const char* StateName(int state) {
  constexpr const char* kNames[] = {"UNKNOWN",   "ESTAB",  "SYN-SENT",   "SYN-RECV", "FIN-WAIT-1", "FIN-WAIT-2",
                                    "TIME-WAIT", "UNCONN", "CLOSE-WAIT", "LAST-ACK", "LISTEN",     "CLOSING"};
  return state >= 0 && state < 12 ? kNames[state] : "UNKNOWN";
}

void PrintSockets(const json& sockets) {
  std::printf("%-6s %-11s %8s %8s  %-28s %-28s %s\n", "Netid", "State", "Recv-Q", "Send-Q", "Local Address:Port",
              "Peer Address:Port", "Process");
  for (const json& s : sockets) {
    std::string process;
    if (s.contains("tid")) process = "tid=" + Plain(s.at("tid")) + ",fd=" + Plain(s.at("fd"));
    std::printf("%-6s %-11s %8s %8s  %-28s %-28s %s\n", Plain(s.at("protocol")).c_str(), StateName(s.at("state").get<int>()),
                Plain(s.at("receive_queue")).c_str(), Plain(s.at("send_queue")).c_str(), Plain(s.at("local")).c_str(),
                Plain(s.at("remote")).c_str(), process.c_str());
  }
}

void PrintRoutes(const json& routes) {
  for (const json& r : routes) {
    std::string line = Plain(r.at("dst")) + " table " + Plain(r.at("table")) + " type " + Plain(r.at("type"));
    for (const json& hop : r.at("next_hops")) {
      if (Plain(hop.at("via")) != "") line += " via " + Plain(hop.at("via"));
      line += " dev " + Plain(hop.at("dev"));
    }
    if (Plain(r.at("src")) != "") line += " src " + Plain(r.at("src"));
    std::printf("%s metric %s\n", line.c_str(), Plain(r.at("metric")).c_str());
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
    PrintTable(answer.at("neighbors"), {"address", "dev", "mac", "state", "probes"});
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
