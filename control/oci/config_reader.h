// The text of a config.json, read so that what we judge is what runc will see.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "control/status.h"

namespace sluice::oci {

// Refuses what is no JSON object, repeats a key, is nested deeper than any real one, has a member that the interception looks at
// with another type, or spelt so that runc would take it for such a member (Go's decoder ignores case).
// The error's line is cut to a readable length whatever the input.
Status ParseConfig(std::string_view text, nlohmann::json* out);

}  // namespace sluice::oci
