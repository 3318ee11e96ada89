#include "control/capabilities.h"

#include <cap-ng.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace sluice {
namespace {

// libcap-ng remembers the thread that it was used in first, and the roles are cloned without the C library's fork handlers.
void ForThisThread() { capng_setpid(static_cast<int>(syscall(SYS_gettid))); }

}  // namespace

bool HasCapability(int capability) {
  ForThisThread();
  return capng_get_caps_process() == 0 && capng_have_capability(CAPNG_EFFECTIVE, static_cast<unsigned>(capability)) == 1;
}

bool DropCapabilities(std::span<const int> capabilities) {
  ForThisThread();
  if (capng_get_caps_process() != 0) return false;
  constexpr auto kSets = static_cast<capng_type_t>(CAPNG_EFFECTIVE | CAPNG_PERMITTED | CAPNG_INHERITABLE | CAPNG_BOUNDING_SET);
  // False only for one that this kernel does not know.
  for (const int capability : capabilities) capng_update(CAPNG_DROP, kSets, static_cast<unsigned>(capability));
  capng_clear(CAPNG_SELECT_AMBIENT);
  if (capng_apply(CAPNG_SELECT_ALL) != 0) return false;
  // It calls it a success where the bounding set may not be changed.
  errno = EPERM;
  return capng_get_caps_process() == 0 && std::ranges::none_of(capabilities, [](int c) {
           return capng_have_capability(CAPNG_BOUNDING_SET, static_cast<unsigned>(c)) == 1;
         });
}

bool DropBoundingSet() {
  ForThisThread();
  capng_clear(CAPNG_SELECT_BOUNDS);
  if (capng_apply(CAPNG_SELECT_BOUNDS) != 0) return false;
  errno = EPERM;  // as above
  return capng_get_caps_process() == 0 && capng_have_capabilities(CAPNG_SELECT_BOUNDS) == CAPNG_NONE;
}

bool DropHeldCapabilities() {
  ForThisThread();
  capng_clear(CAPNG_SELECT_CAPS);
  return capng_apply(CAPNG_SELECT_CAPS) == 0;
}

}  // namespace sluice
