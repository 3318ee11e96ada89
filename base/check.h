// CHECK ends the process where it cannot go on; DCHECK states an invariant in debug builds. Neither is ever applied to what a
// peer or a program sent.
#pragma once

#include <cstdio>
#include <cstdlib>

#define SLUICE_CHECK(cond)                                                                    \
  do {                                                                                        \
    if (!(cond)) [[unlikely]] {                                                               \
      std::fprintf(stderr, "sluice: check failed: %s at %s:%d\n", #cond, __FILE__, __LINE__); \
      std::abort();                                                                           \
    }                                                                                         \
  } while (false)

#ifdef NDEBUG
#define SLUICE_DCHECK(cond) \
  do {                      \
  } while (false && (cond))
#else
#define SLUICE_DCHECK(cond) SLUICE_CHECK(cond)
#endif
