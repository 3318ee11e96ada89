// What the sentry may say on the control channel, and when. It may be hostile: whatever no sentry says ends the sandbox, by name.
#pragma once

#include <set>
#include <string_view>
#include <utility>

#include "base/bytes.h"
#include "control/run/control_protocol.h"

namespace sluice {

class SentryConduct {
 public:
  // Takes a record apart. nullptr where it may be acted on; else what is wrong with it, in words. `truncated`: it was longer than
  // a record is, or had descriptors.
  const char* Judge(Bytes record, bool truncated, control::Header* header, std::string_view* body);
  // What the sentry was asked, each with one answer: kSynchronize (kReady), kDrain (kDrained).
  void OnAsked(control::Type type);
  // It may tell once more where it listens (kListening). False where it may already.
  bool LetTellListening() { return !std::exchange(may_tell_listening_, true); }

 private:
  static constexpr size_t kMaxPorts = 256;

  bool may_tell_listening_ = true;
  int ready_due_ = 1, drained_due_ = 0;  // that it is ready it says once by itself
  std::set<int32_t> ports_;              // asked for and not closed since
};

}  // namespace sluice
