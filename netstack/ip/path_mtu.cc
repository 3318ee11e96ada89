#include "netstack/ip/path_mtu.h"

#include <algorithm>

namespace sluice {

std::optional<uint32_t> PathMtuCache::Find(const IpAddress& destination) const {
  if (entries_.empty()) return std::nullopt;
  const auto it = entries_.find(destination);
  if (it == entries_.end()) return std::nullopt;
  return it->second.mtu;
}

bool PathMtuCache::Update(const IpAddress& destination, uint32_t mtu, uint32_t current, Instant now) {
  mtu = std::max(mtu, kMinimum);
  if (mtu >= current) return false;
  auto it = entries_.find(destination);
  if (it == entries_.end()) {
    if (entries_.size() >= kMaxEntries) {
      entries_.erase(std::min_element(entries_.begin(), entries_.end(),
                                      [](const auto& a, const auto& b) { return a.second.expires < b.second.expires; }));
    }
    it = entries_.emplace(destination, Entry{}).first;
  }
  it->second = Entry{mtu, now + kLifetime};
  if (!timer_.pending()) timers_.Schedule(timer_, it->second.expires);
  return true;
}

void PathMtuCache::OnTimer(void* self) { static_cast<PathMtuCache*>(self)->Expire(); }

void PathMtuCache::Expire() {
  // The timer ran for its deadline, which is not later than now.
  const Instant now = timer_.deadline();
  Instant next = Instant::Max();
  for (auto it = entries_.begin(); it != entries_.end();) {
    auto entry = it++;
    if (entry->second.expires <= now) {
      entries_.erase(entry);
    } else {
      next = std::min(next, entry->second.expires);
    }
  }
  if (!entries_.empty()) timers_.Schedule(timer_, next);
  expired_(context_);
}

}  // namespace sluice
