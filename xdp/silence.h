// Silence: the host kernel's stack neither receives from a device nor sends on it, whoever dies. A BPF program at the head of the
// device's ingress drops every frame for the kernel, one on egress lets out only frames with our mark (SO_MARK of packet sockets;
// AF_XDP passes by egress). The one exception, where it is asked for, are engine flows (engine_flows.h).
//
// By a clsact qdisc with direct-action filters of preference 1, which belong to the device: attached and taken off at once. Or,
// from Linux 6.6 on, by TCX links, pinned on a bpffs so that they outlive every process. The kernel runs TCX before clsact, so
// links are used where somebody else has programs there, which ours have to precede, where clsact cannot be, and where they are
// asked for. They stay in front of what is attached later, but each waits for a grace period of the kernel, under its lock of all
// devices, when it is attached and when it ends. Both kinds end with the device; clsact also when it leaves the namespace.
//
// Needs root, in the device's network namespace (calling thread). Not thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "base/errno.h"
#include "xdp/engine_flows.h"
#include "xdp/unique_fd.h"

namespace sluice {

inline constexpr char kSilenceDirectory[] = "/run/sluice/bpf";

struct SilenceOptions {
  uint32_t mark = 0;                          // what the sandbox's own packet sockets carry; not 0
  std::string directory = kSilenceDirectory;  // a bpffs is mounted there where there is none, and removed with its last pin
  std::string name;  // identifies the namespace on this host (no / . :); pins are NAME:IFINDEX:in and :out
  bool tcx = false;  // by TCX links, where the kernel has them
  const EngineFlowPrograms* flows = nullptr;  // let these flows of the kernel pass; loaded with the same mark
};

enum class SilenceKind : uint8_t { kNone, kTcx, kClsact };

// What is attached to one device. Closing it leaves the device silent: only LiftSilence ends that.
class Silence {
 public:
  SilenceKind kind() const { return kind_; }
  int ifindex() const { return ifindex_; }

  // kOk: in place and first. kENOENT: taken off. kEEXIST: somebody put a program in front (with clsact: a TCX program anywhere).
  // kENODEV: the device is gone. kEAGAIN: it could not be asked (no memory, no descriptor), which says nothing about it.
  // `reason` says it in words.
  Errno Check(std::string* reason) const;

 private:
  friend Errno SilenceDevice(int ifindex, const SilenceOptions& options, Silence* out, std::string* error);
  // By TCX links (kEINVAL: the kernel has none), or by filters of clsact.
  Errno AttachPinned(int in_program, int out_program, const SilenceOptions& options, std::string* error);
  Errno AttachFilters(int in_program, int out_program, std::string* error);

  SilenceKind kind_ = SilenceKind::kNone;
  int ifindex_ = 0;
  uint32_t in_id_ = 0, out_id_ = 0;            // link identifiers (TCX) or program identifiers (clsact)
  uint32_t in_program_ = 0, out_program_ = 0;  // TCX: identifiers of the programs in the links
  UniqueFd in_, out_;
};

// Silences a device. What a dead sandbox of the same name left there is replaced without a gap. On failure nothing of ours is
// left.
Errno SilenceDevice(int ifindex, const SilenceOptions& options, Silence* out, std::string* error);

// Gives the device back to the kernel, from the pins alone: any process of the namespace may call it, also when nothing is
// attached (kOk) or the device is gone (its pins are removed). At once: taking a program off waits for grace periods of the
// kernel, so a program that lets everything pass takes its place, and the kernel takes that off once nobody holds the link any
// more.
Errno LiftSilence(int ifindex, const SilenceOptions& options, std::string* error);

// Programs on a device's TCX hook (bpf::kTcxIngress, kTcxEgress), but for those that let everything pass: a lifted silence leaves
// one for a moment.
int CountTcx(int ifindex, uint32_t hook);

// Lifts every device of this name that pins are left of; for the start of a sandbox and for the guard of a dead one. TCX only:
// works from any network namespace.
Errno LiftAllPinned(const SilenceOptions& options, std::string* error);
// Every device of the calling thread's namespace that our clsact filters are left on.
Errno LiftAllClsact(std::string* error);

}  // namespace sluice
