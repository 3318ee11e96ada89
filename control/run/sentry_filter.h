// The sentry's own seccomp filter: what it still needs once it runs; anything else ends it (and with it the sandbox).
#pragma once

#include <string>

namespace sluice {

// For all threads of the process.
bool InstallSentryFilter(std::string* error);
// Of a process that serves connections and does nothing else (--metrics).
bool InstallServerFilter(std::string* error);

}  // namespace sluice
