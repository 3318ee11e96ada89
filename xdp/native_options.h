// Socket options that the kernel answers in the caller's own system call, by a BPF program that writes them where the sentry
// finds them (bpf/options.bpf.c), in two halves. The privileged half loads the program and attaches it to the control group in
// which the sentry makes the program's sockets. The unprivileged half, the sentry's worker, marks those sockets and takes what
// was set on them.
//
// Order with the data is kept: a value is in its slot before the system call that set it returns, so whoever reads bytes first
// and looks at the slot then has every value that was set before they were written.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/errno.h"
#include "xdp/option_slot.h"
#include "xdp/unique_fd.h"

struct ring_buffer;

namespace sluice {

// Descriptors of the maps, which the sentry inherits.
struct NativeOptionMaps {
  UniqueFd slots, marks, posted;
};

// Needs CAP_BPF and CAP_NET_ADMIN; Linux 5.18. `sockets`: how many stand-ins can be marked at a time. `program`: for the calls
// below.
Errno LoadNativeOptions(uint32_t sockets, UniqueFd* program, NativeOptionMaps* maps, std::string* error);
// Gives a socket its slot, as Add does; `marks`: of the maps.
Errno MarkSocket(int marks, int socket, const sluice_mark& mark);
// Until the control group is gone and the last socket that was made in it.
Errno AttachNativeOptions(int program, int control_group, std::string* error);

// The numbers of option `i` of enum sluice_option.
struct OptionName {
  int level, name;
};
inline constexpr std::array<OptionName, SLUICE_OPTIONS> kNativeOptions = {{
    {6, 1},
    {6, 3},
    {6, 12},
    {6, 4},
    {6, 5},
    {6, 6},
    {6, 18},
    {1, 9},
}};

// The sentry's half. A slot belongs to one thread; Add and Remove are one thread's at a time, Posted and PrepareSleep one
// thread's.
class NativeOptions {
 public:
  enum class Kind : uint32_t { kStream = SLUICE_KIND_STREAM, kDatagram = SLUICE_KIND_DATAGRAM, kOther = SLUICE_KIND_OTHER };

  // Null, with a line in `error`, where the maps cannot be mapped. Takes the descriptors.
  static std::unique_ptr<NativeOptions> Open(NativeOptionMaps maps, std::string* error);
  ~NativeOptions();
  NativeOptions(const NativeOptions&) = delete;
  NativeOptions& operator=(const NativeOptions&) = delete;

  uint32_t slots() const { return count_; }  // numbers below this

  // Marks a socket. Its slot, or 0 where there is none left or the kernel has no memory.
  uint32_t Add(int socket, Kind kind);
  // A slot of its own for a socket that whoever gets it marks (MarkSocket); slot 0 where there is none left.
  sluice_mark Reserve(Kind kind);
  // The slot belongs to nobody from here on; what the socket's holders still set goes nowhere.
  void Remove(uint32_t slot);

  // What was set since the last call: bits 1 << option, and SLUICE_PUSH.
  uint32_t Take(uint32_t slot);
  int value(uint32_t slot, size_t option) const;
  // How soon the sentry wants to hear: kLazy, when it looks; kPush, at once of what sends waiting bytes; kAlways.
  enum class Interest : uint32_t { kLazy = 0, kPush = SLUICE_WAITING, kAlways = SLUICE_ALWAYS };
  void SetInterest(uint32_t slot, Interest interest);

  // Becomes readable when something is to be taken and the sentry sleeps.
  int wake_fd() const { return maps_.posted.get(); }
  // Slots with something to take; valid until the next call. At most a few hundred: call again at the next turn.
  const std::vector<uint32_t>& Posted();
  // Before sleeping: asks to be woken. True where something was posted before that: do not sleep.
  bool PrepareSleep();

 private:
  NativeOptions() = default;
  static int OnRecord(void* self, void* data, size_t size);
  sluice_slot& at(uint32_t slot) const { return slots_[slot]; }
  void Collect();

  NativeOptionMaps maps_;
  sluice_slot* slots_ = nullptr;
  size_t slots_size_ = 0;  // bytes
  uint32_t count_ = 0;     // slots, the first included
  uint32_t fresh_ = 1;     // first slot that was never used
  std::vector<uint32_t> free_;
  ring_buffer* ring_ = nullptr;
  std::vector<uint32_t> collected_, given_;
};

}  // namespace sluice
