// The kernel's side of steering: programs that choose a frame's queue by base/steering.h. Loading needs CAP_BPF (CAP_NET_ADMIN
// before 5.8).
#pragma once

#include <string>

#include "base/errno.h"
#include "base/steering.h"
#include "xdp/unique_fd.h"

namespace sluice {

enum class SteeringHook : uint8_t { kFanout, kTap };

// A program for PACKET_FANOUT_DATA or TUNSETSTEERINGEBPF. The hook that takes it holds it, the descriptor may be closed then.
Errno LoadSteeringProgram(SteeringHook hook, const sluice_steering_key& key, UniqueFd* program, std::string* error);

}  // namespace sluice
