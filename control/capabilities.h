// Capabilities of the calling thread, by libcap-ng. Where a change fails, nothing is certain: end the process. errno tells why.
#pragma once

#include <span>

namespace sluice {

bool HasCapability(int capability);  // effective
// Takes these from every set, the bounding set included, and all from the ambient set. Needs CAP_SETPCAP.
bool DropCapabilities(std::span<const int> capabilities);
// The whole bounding set; needs CAP_SETPCAP.
bool DropBoundingSet();
// All that the thread holds; the bounding set stays. Opens no file.
bool DropHeldCapabilities();

}  // namespace sluice
