// What the seccomp filter says about each system call it looks at: one table for `sluice do` (filter.cc, libseccomp) and for
// containers, whose profile in config.json is merged with it (control/oci/seccomp_profile.h).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace sluice::filter {

// A condition on one argument.
struct Test {
  unsigned arg = 0;
  bool differs = false;  // argument != value (all 64 bits), else argument & mask == value
  uint64_t mask = 0;
  uint64_t value = 0;
  bool operator==(const Test&) const = default;
};
using Tests = std::vector<Test>;  // all of them hold; empty: always

struct Rule {
  int nr = 0;
  const char* name = nullptr;  // of the call
  int error = 0;               // the errno it is refused with; 0: notified
  Tests tests;
};

// Several rules for one call: any of them, the first that holds. A call that none names, or none of whose rules holds, is
// allowed.
std::span<const Rule> ProgramRules();

// The algebra that a profile with a default of refusing needs, where what stays allowed has to be said as well.
// Both hold; none where they never do. An alternative is a disjunction of Tests that exclude each other.
std::vector<Tests> And(const Tests& a, const Tests& b);
// `a` holds and `b` does not.
std::vector<Tests> AndNot(const Tests& a, const Tests& b);
bool Holds(const Tests& tests, std::span<const uint64_t> args);

}  // namespace sluice::filter
