// Merges the interception with the seccomp profile that an engine put into config.json. What a rule of the profile refuses stays
// refused, whatever another rule says of it; what it allows is notified, refused or allowed as the table of sentry/filter_table.h
// says.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "control/status.h"

namespace sluice::oci {

// `config`: the whole of config.json; its linux.seccomp is changed, or made. `listener`: path of the socket to which runc sends
// the descriptor. Refuses profiles that cannot be merged: one with a listener of its own, one whose conditions on an intercepted
// call are ranges, one for another architecture.
Status MergeProfile(nlohmann::json* config, const std::string& listener);

}  // namespace sluice::oci
