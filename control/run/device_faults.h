// What happened to a device of the sandbox from outside, and was followed.
#pragma once

#include <cstdint>
#include <map>
#include <string_view>

#include "netstack/ip/address.h"

namespace sluice {

struct DeviceFaults {
  uint64_t downs = 0;
  uint64_t mtu_changes = 0;
  uint64_t queue_changes = 0;          // of the receive queues that an AF_XDP device uses; looked at once a second
  uint64_t xdp_programs_restored = 0;  // somebody had taken the program off
};

// They by the names of stats and metrics.
struct DeviceFault {
  std::string_view name, help;
  uint64_t DeviceFaults::* count;
};
inline constexpr DeviceFault kDeviceFaults[] = {
    {"device_down", "times the device went down", &DeviceFaults::downs},
    {"mtu_changed", "times its MTU changed", &DeviceFaults::mtu_changes},
    {"queues_changed", "times the number of its receive queues changed (AF_XDP)", &DeviceFaults::queue_changes},
    {"xdp_program_restored", "times the XDP program was put back that somebody had taken off",
     &DeviceFaults::xdp_programs_restored},
};

}  // namespace sluice
