// Every counter of a stack shard, by name. Names are the kernel's where it has one (/proc/net/snmp, /proc/net/netstat); a dropped
// frame or segment always counts in exactly one Drop* counter. One list makes the enum, the names and the documentation.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace sluice {

// SLUICE_COUNTER(enumerator, "what is counted")
enum class Counter : uint16_t {
#define SLUICE_COUNTER(name, help) k##name,
#include "netstack/counters.inc"
#undef SLUICE_COUNTER
  kCount
};

struct CounterInfo {
  std::string_view name;
  std::string_view help;
};
extern const std::array<CounterInfo, static_cast<size_t>(Counter::kCount)> kCounterInfo;

class Counters {
 public:
  void Add(Counter c, uint64_t n = 1) { v_[static_cast<size_t>(c)] += n; }
  uint64_t Get(Counter c) const { return v_[static_cast<size_t>(c)]; }

 private:
  std::array<uint64_t, static_cast<size_t>(Counter::kCount)> v_{};
};

}  // namespace sluice
