// What the admin socket answers.
#pragma once

#include <string>
#include <string_view>

#include "control/run/admin.h"

namespace sluice {

// On the worker's thread. One JSON object with a newline; {"error": ...} for a request that is not known.
std::string AdminAnswer(std::string_view request, const AdminContext& context);

}  // namespace sluice
