// What routers told about paths that are narrower than their first link (RFC 1191, 8201). Bounded; entries expire.
#pragma once

#include <optional>

#include "absl/container/flat_hash_map.h"
#include "base/timer_wheel.h"
#include "netstack/ip/address.h"

namespace sluice {

class PathMtuCache {
 public:
  static constexpr size_t kMaxEntries = 4096;
  static constexpr uint32_t kMinimum = 552;  // linux ip_rt_min_pmtu: smaller claims are likelier an attack than a path
  static constexpr Duration kLifetime = Duration::Seconds(600);

  // `expired` is called when entries went, so that cached routes are looked up anew.
  PathMtuCache(TimerWheel& timers, void (*expired)(void*), void* context)
      : timers_(timers), expired_(expired), context_(context) {}

  std::optional<uint32_t> Find(const IpAddress& destination) const;
  // Only ever lowers. True where the answer for the destination changed.
  bool Update(const IpAddress& destination, uint32_t mtu, uint32_t current, Instant now);
  size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    uint32_t mtu;
    Instant expires;
  };
  static void OnTimer(void* self);
  void Expire();

  TimerWheel& timers_;
  void (*expired_)(void*);
  void* context_;
  absl::flat_hash_map<IpAddress, Entry> entries_;
  Timer timer_{&PathMtuCache::OnTimer, this};
};

}  // namespace sluice
