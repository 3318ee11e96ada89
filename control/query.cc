#include "control/query.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "control/log.h"
#include "control/namespaces.h"
#include "control/oci/container.h"
#include "control/registry.h"

namespace sluice {
namespace {

using nlohmann::json;

// The namespace meant: --netns, a container's id or the beginning of it, a name of ip netns, the guard's process id, or that of
// any process inside.
Status FindSandbox(const CommandLine& line, NamespaceId* out) {
  const std::string& target = line.query.target;
  oci::Container container;
  if (!target.empty() && oci::FindContainer(target, &container)) {
    *out = container.netns;
    return {};
  }
  const bool is_pid = !target.empty() && target.find_first_not_of("0123456789") == std::string::npos;
  UniqueFd fd;
  std::string name;
  if (is_pid) {
    for (const Registration& r : ListRegistrations(line.flags)) {
      if (r.guard_pid == atoi(target.c_str())) {
        *out = r.id;
        return {};
      }
    }
    fd.Reset(open(("/proc/" + target + "/ns/net").c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd)
      return Status::Error(line.command + " " + target + ": no such process" +
                           (errno == EACCES ? " that may be looked at: run it as root" : ""));
  } else {
    SLUICE_RETURN_IF_ERROR(OpenNetns(target.empty() ? line.query.netns : target, &fd, &name));
  }
  const auto id = IdOfNamespace(fd.get());
  if (!id) return Status::Error("cannot identify the namespace" + ErrnoText(errno));
  *out = *id;
  return {};
}

Status Ask(const CommandLine& line, const NamespaceId& id, json* answer) {
  const std::string path = SocketPath(line.flags, id);
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (!fd || path.size() >= sizeof address.sun_path)
    return Status::Error("--root=" + line.flags.root + ": the path is too long for a socket");
  std::memcpy(address.sun_path, path.c_str(), path.size());
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) < 0) {
    const std::string target = line.query.target.empty() ? line.query.netns : line.query.target;
    if (errno == EACCES) return Status::Error(line.command + " " + target + ": permission denied: run it as root");
    return Status::Error(line.command + " " + target + ": no sandbox of sluice with a stack of its own runs there");
  }
  const std::string request = line.command + "\n";
  std::string text;
  char buffer[65536];
  bool ok = WriteAll(fd.get(), request.data(), request.size());
  while (ok) {
    const ssize_t n = read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    ok = n >= 0;
    if (n <= 0) break;
    text.append(buffer, static_cast<size_t>(n));
  }
  *answer = json::parse(text, nullptr, false);
  if (!ok || !answer->is_object()) return Status::Error("the sandbox ended while it was asked");
  if (answer->contains("error"))
    return Status::Error(answer->at("error").is_string() ? answer->at("error").get<std::string>() : "the sandbox refused");
  return {};
}

// A sentry that was taken over may answer anything: no control characters reach the terminal, and the printing below throws
// json::exception where a part is missing or of another type.
std::string Clean(std::string text) {
  std::replace_if(text.begin(), text.end(), [](unsigned char c) { return c < ' ' || c == 0x7f; }, '?');
  return text;
}

std::string Plain(const json& value) { return Clean(value.is_string() ? value.get<std::string>() : value.dump()); }

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
  const auto all = ListRegistrations(line.flags);
  if (line.query.json) {
    json out = json::array();
    for (const Registration& r : all) {
      out.push_back({{"pid", r.guard_pid},
                     {"init", r.init_pid},
                     {"netns", r.netns_name},
                     {"inode", r.id.inode},
                     {"network", r.network},
                     {"command", r.command}});
    }
    std::printf("%s\n", out.dump().c_str());
    return 0;
  }
  std::printf("%-8s %-16s %-8s %s\n", "PID", "NETNS", "NETWORK", "COMMAND");
  for (const Registration& r : all) {
    std::printf("%-8d %-16s %-8s %s\n", r.guard_pid, r.netns_name.empty() ? "-" : r.netns_name.c_str(), r.network.c_str(),
                r.command.c_str());
  }
  return 0;
}

}  // namespace

int RunQuery(const CommandLine& line) {
  if (line.command == "sandboxes") return List(line);
  NamespaceId id;
  json answer;
  Status status = FindSandbox(line, &id);
  if (status.ok()) status = Ask(line, id, &answer);
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
