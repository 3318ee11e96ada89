// What the admin socket answers.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "control/run/admin.h"

namespace sluice {

// On the worker's thread. One JSON object with a newline; {"error": ...} for a request that is not known.
std::string AdminAnswer(std::string_view request, const AdminContext& context);
// Any thread. The answer's line that says nothing but the protocol, or that it was refused.
std::string AdminGreeting();
std::string AdminError(const std::string& text);
// On the worker's thread: why these devices cannot be captured; empty where they can.
std::string UnknownDevice(const std::vector<std::string>& names, const AdminContext& context);

}  // namespace sluice
