#include "netstack/counters.h"

namespace sluice {

const std::array<CounterInfo, static_cast<size_t>(Counter::kCount)> kCounterInfo = {{
#define SLUICE_COUNTER(name, help) {#name, help},
#include "netstack/counters.inc"
#undef SLUICE_COUNTER
}};

}  // namespace sluice
