// The sentry's ends of connections to come, made where there is nothing else to do: a connection is offered the sooner.
#pragma once

#include <vector>

#include "base/unique_fd.h"

namespace sluice {

// Descriptors that the program sends by SCM_RIGHTS must not gather in `end` (6.16; before, they are closed when the bytes are
// read).
void RefuseDescriptors(int end);

class SpareEnds {
 public:
  // An unconnected AF_UNIX stream socket; invalid where there are no descriptors.
  UniqueFd Take();
  // Makes one for later, unless there are enough.
  void Refill();

 private:
  static constexpr size_t kMost = 8;
  static UniqueFd Make();
  std::vector<UniqueFd> ends_;
};

}  // namespace sluice
