#include "control/metrics/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>

namespace sluice {
namespace {

constexpr std::string_view kUnix = "unix:";

std::optional<MetricsAddress> ParseUnix(std::string_view path) {
  MetricsAddress out;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path[0] != '/' || path.size() >= sizeof address.sun_path) return std::nullopt;
  std::memcpy(address.sun_path, path.data(), path.size());
  std::memcpy(&out.address, &address, sizeof address);
  out.length = sizeof address;
  out.path = path;
  return out;
}

}  // namespace

std::optional<MetricsAddress> ParseMetricsAddress(std::string_view text) {
  if (text.starts_with(kUnix)) return ParseUnix(text.substr(kUnix.size()));
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return std::nullopt;
  const std::string_view number = text.substr(colon + 1);
  uint16_t port = 0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), port);
  if (error != std::errc() || end != number.data() + number.size() || port == 0) return std::nullopt;
  MetricsAddress out;
  std::string host(text.substr(0, colon));
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    sockaddr_in6 address{.sin6_family = AF_INET6, .sin6_port = htons(port)};
    if (inet_pton(AF_INET6, host.substr(1, host.size() - 2).c_str(), &address.sin6_addr) != 1) return std::nullopt;
    std::memcpy(&out.address, &address, sizeof address);
    out.length = sizeof address;
    return out;
  }
  sockaddr_in address{.sin_family = AF_INET, .sin_port = htons(port)};
  if (inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1) return std::nullopt;
  std::memcpy(&out.address, &address, sizeof address);
  out.length = sizeof address;
  return out;
}

Status ListenForMetrics(const std::string& flag_value, UniqueFd* out) {
  const auto parsed = ParseMetricsAddress(flag_value);
  if (!parsed) return Status::Error("--metrics=" + flag_value + ": not a valid value");
  struct stat st{};
  if (!parsed->path.empty() && lstat(parsed->path.c_str(), &st) == 0 && S_ISSOCK(st.st_mode)) unlink(parsed->path.c_str());
  UniqueFd fd(socket(parsed->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int on = 1;
  // Connections of a server that ended may still be in TIME_WAIT.
  if (fd && parsed->path.empty()) setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (!fd || bind(fd.get(), reinterpret_cast<const sockaddr*>(&parsed->address), parsed->length) < 0 || listen(fd.get(), 16) < 0)
    return Status::Error("--metrics=" + flag_value + ": cannot listen there" + ErrnoText(errno));
  *out = std::move(fd);
  return {};
}

}  // namespace sluice
