// What the admin socket answers.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "control/run/admin.h"

namespace sluice {

// In the thread of `worker`: its part of the answer; null for a request that is not known.
nlohmann::json AdminPart(std::string_view request, const AdminContext& context, uint32_t worker);
// Any thread. Of the parts of all workers: one JSON object with a newline; {"error": ...} for a request that is not known.
std::string AdminAnswer(std::string_view request, std::vector<nlohmann::json> parts);
// Any thread. The answer's line that says nothing but the protocol, or that it was refused.
std::string AdminGreeting();
std::string AdminError(const std::string& text);
// In the first worker's thread: why these devices cannot be captured; empty where they can.
std::string UnknownDevice(const std::vector<std::string>& names, const AdminContext& context);

}  // namespace sluice
