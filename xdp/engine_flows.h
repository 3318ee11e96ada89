// Engine flows: what a container engine's resolver asks its servers by sockets of the kernel passes a device that is silenced
// else (bpf/engine_flows.h says what and when). Four parts:
//   - whoever makes the sandbox makes the maps (CAP_BPF);
//   - the broker loads the programs, which take the place of the silencing ones, and gives the packet socket its filter;
//   - the relay to the resolver opens the gate with every question (FlowGate): without one nothing passes;
//   - the sentry says which local ports its stack holds (HeldPortMap), and can do no more with that than give flows up.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/errno.h"
#include "xdp/engine_flow.h"
#include "xdp/unique_fd.h"

struct bpf_object;

namespace sluice {

struct EngineFlowMaps {
  UniqueFd gate, held, table, fragments, resolutions;
  explicit operator bool() const { return static_cast<bool>(gate); }
};
struct EngineFlowPrograms {
  UniqueFd in, out;  // of TC
  UniqueFd tap;      // a socket filter: drops what belongs to a flow
  explicit operator bool() const { return static_cast<bool>(in); }
};

// On failure there is nothing, and `error` says what was tried.
Errno CreateEngineFlowMaps(EngineFlowMaps* out, std::string* error);
// `mark`: of the sandbox's own packet sockets.
Errno LoadEngineFlowPrograms(const EngineFlowMaps& maps, uint32_t mark, EngineFlowPrograms* out, std::string* error);
// An object that includes bpf/engine_flows.h gets these maps; before it is loaded. Without `maps` it gets none, and must load no
// program that uses them.
Errno UseEngineFlowMaps(bpf_object* object, const EngineFlowMaps* maps);

// One process may use it without the right to BPF, once it is open.
class FlowGate {
 public:
  FlowGate() = default;
  ~FlowGate();
  FlowGate(const FlowGate&) = delete;
  FlowGate& operator=(const FlowGate&) = delete;
  Errno Open(int map);
  // The sandbox asks the resolver something. Nothing happens where it is not open.
  void Ask();

 private:
  sluice_gate* gate_ = nullptr;
};

// The bits as the stack publishes them (Stack::PublishHeldPorts); mapped until the process ends. Empty where that fails.
std::span<uint64_t> MapHeldPorts(int map);

}  // namespace sluice
