#include "control/admin_client.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "control/namespaces.h"
#include "control/oci/container.h"
#include "control/registry.h"
#include "control/run/admin_protocol.h"

namespace sluice {
namespace {

using nlohmann::json;

constexpr size_t kMaxAnswer = 64 << 20;
// A sentry that was taken over may say nothing at all.
constexpr timeval kPatience{10, 0};

bool MakeAddress(const Flags& flags, const NamespaceId& id, sockaddr_un* out) {
  const std::string path = SocketPath(flags, id);
  out->sun_family = AF_UNIX;
  if (path.size() >= sizeof out->sun_path) return false;
  std::memcpy(out->sun_path, path.c_str(), path.size());
  return true;
}

std::string Who(const CommandLine& line) {
  return line.command + " " + (line.query.target.empty() ? line.query.netns : line.query.target);
}

bool GuardHas(const CommandLine& line, NamespaceId* out) {
  for (const Registration& r : ListRegistrations(line.flags)) {
    if (std::to_string(r.guard_pid) != line.query.target) continue;
    *out = r.id;
    return true;
  }
  return false;
}

}  // namespace

Status FindSandbox(const CommandLine& line, NamespaceId* out) {
  const std::string& target = line.query.target;
  oci::Container container;
  if (!target.empty() && oci::FindContainer(target, &container)) {
    *out = container.netns;
    return {};
  }
  const bool is_pid = !target.empty() && target.find_first_not_of("0123456789") == std::string::npos;
  if (is_pid && GuardHas(line, out)) return {};
  UniqueFd fd;
  std::string name;
  if (is_pid) {
    fd.Reset(open(("/proc/" + target + "/ns/net").c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd)
      return Status::Error(Who(line) + ": no such process" + (errno == EACCES ? " that may be looked at: run it as root" : ""));
  } else {
    SLUICE_RETURN_IF_ERROR(OpenNetns(target.empty() ? line.query.netns : target, &fd, &name));
  }
  const auto id = IdOfNamespace(fd.get());
  if (!id) return Status::Error("cannot identify the namespace" + ErrnoText(errno));
  *out = *id;
  return {};
}

UniqueFd ConnectAdmin(const Flags& flags, const NamespaceId& id) {
  sockaddr_un address{};
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd || !MakeAddress(flags, id, &address) || connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) < 0)
    return UniqueFd();
  return fd;
}

Status AdminClient::Connect(const CommandLine& line) {
  NamespaceId id;
  SLUICE_RETURN_IF_ERROR(FindSandbox(line, &id));
  return Connect(line.flags, id, Who(line));
}

Status AdminClient::Connect(const Flags& flags, const NamespaceId& id, const std::string& who) {
  who_ = who;
  rest_.clear();
  sockaddr_un address{};
  if (!MakeAddress(flags, id, &address)) return Status::Error("--root=" + flags.root + ": the path is too long for a socket");
  fd_.Reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  for (const int way : {SO_RCVTIMEO, SO_SNDTIMEO}) setsockopt(fd_.get(), SOL_SOCKET, way, &kPatience, sizeof kPatience);
  if (connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) return {};
  if (errno == EAGAIN) return Status::Error(who_ + ": the sandbox does not answer");
  if (errno == EACCES) return Status::Error(who_ + ": permission denied: run it as root");
  return Status::Error(who_ + ": no sandbox of sluice with a stack of its own runs there");
}

Status AdminClient::Ask(const std::string& request, json* answer) {
  const Status ended = Status::Error(who_ + ": the sandbox ended while it was asked");
  if (!WriteAll(fd_.get(), (request + "\n").data(), request.size() + 1)) return ended;
  size_t end;
  char buffer[65536];
  while ((end = rest_.find('\n')) == std::string::npos) {
    const ssize_t n = read(fd_.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return Status::Error(who_ + ": the sandbox does not answer");
    if (n < 0 || rest_.size() > kMaxAnswer) return ended;
    if (n == 0) break;
    rest_.append(buffer, static_cast<size_t>(n));
  }
  *answer = json::parse(rest_.substr(0, end), nullptr, false);
  rest_.erase(0, end == std::string::npos ? end : end + 1);
  if (!answer->is_object()) return ended;
  const auto protocol = answer->find("protocol");
  if (protocol != answer->end() && *protocol != kAdminProtocol) {
    return Status::Error(who_ + ": the sandbox was started by sluice " + Plain(answer->value("version", json("?"))) +
                         ", which answers in another form; ask with that version");
  }
  if (answer->contains("error")) return Status::Error(Plain(answer->at("error")));
  return {};
}

std::string Clean(std::string text) {
  std::replace_if(text.begin(), text.end(), [](unsigned char c) { return c < ' ' || c == 0x7f; }, '?');
  return text;
}

std::string Plain(const json& value) { return Clean(value.is_string() ? value.get<std::string>() : value.dump()); }

}  // namespace sluice
