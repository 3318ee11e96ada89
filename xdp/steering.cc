#include "xdp/steering.h"

#include <bpf/libbpf.h>
#include <fcntl.h>

#include <cerrno>
#include <cstring>

#include "steering.skel.h"
#include "xdp/bpf_calls.h"

namespace sluice {

Errno LoadSteeringProgram(SteeringHook hook, const sluice_steering_key& key, UniqueFd* program, std::string* error) {
  bpf::QuietLibbpf();
  sluice_steering_bpf* programs = sluice_steering_bpf__open();
  if (programs != nullptr) std::memcpy(&programs->rodata->sluice_key, &key, sizeof key);
  if (programs == nullptr || sluice_steering_bpf__load(programs) != 0) {
    const int saved = errno;
    sluice_steering_bpf__destroy(programs);
    if (error != nullptr) *error = std::string("loading the steering program (needs CAP_BPF): ") + std::strerror(saved);
    return static_cast<Errno>(saved);
  }
  const bpf_program* chosen = hook == SteeringHook::kFanout ? programs->progs.sluice_fanout : programs->progs.sluice_tap;
  *program = UniqueFd(fcntl(bpf_program__fd(chosen), F_DUPFD_CLOEXEC, 0));
  const int saved = errno;
  sluice_steering_bpf__destroy(programs);
  return *program ? Errno::kOk : static_cast<Errno>(saved);
}

}  // namespace sluice
