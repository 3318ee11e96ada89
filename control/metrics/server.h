// The process that serves --metrics: HTTP towards scrapers, and the sentries' answers. It has no rights, no files and no way to
// make a socket; the guard gives it a connection to each sandbox's admin socket when somebody asks.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "base/unique_fd.h"

namespace sluice {

// Records on the channel between it and the guard (SOCK_SEQPACKET), JSON each.
//   server -> guard   {"scrape": true}      the sandboxes, please
//                     {"error": TEXT}       for the log; it ends
//   guard -> server   {"sandbox": NAME, "container": IDS} with a connection, for each; then {}
bool SendMetricsRecord(int channel, const nlohmann::json& record, int fd = -1);
bool ReceiveMetricsRecord(int channel, nlohmann::json* record, UniqueFd* fd);

// Answers one HTTP request: the whole response. `request`: up to the empty line. `scrape` gives the metrics where they are asked
// for.
std::string MetricsResponse(const std::string& request, const std::function<std::string()>& scrape);

// Never returns: ends with the channel.
[[noreturn]] void ServeMetrics(UniqueFd listener, UniqueFd channel);

}  // namespace sluice
