// The value of --metrics.
#pragma once

#include <sys/socket.h>

#include <optional>
#include <string>
#include <string_view>

#include "base/unique_fd.h"
#include "control/status.h"

namespace sluice {

struct MetricsAddress {
  sockaddr_storage address{};
  socklen_t length = 0;
  std::string path;  // of a UNIX socket; else empty
};

// "127.0.0.1:9464", "[::1]:9464" or "unix:/absolute/path".
std::optional<MetricsAddress> ParseMetricsAddress(std::string_view text);
// A listener there. A socket file that is in the way is one that somebody left: the caller has the address to itself.
Status ListenForMetrics(const std::string& flag_value, UniqueFd* out);

}  // namespace sluice
