// Settings of one container: annotations dev.sluice.flag.NAME of config.json.
#pragma once

#include <nlohmann/json.hpp>

#include "control/flags.h"
#include "control/status.h"

namespace sluice::oci {

// Sets them, as far as `flags`, which are the administrator's, allow it (AnnotationRule). A setting that is not taken is an error
// that says why.
Status ApplyAnnotations(const nlohmann::json& config, Flags* flags);

}  // namespace sluice::oci
