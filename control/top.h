// `sluice top`: what running sandboxes do now, as a table that is drawn anew every second.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "control/flags.h"

namespace sluice {

int RunTop(const CommandLine& line);  // the exit status

// One look at a sandbox. Counts since its start, but for connections.
struct TopSample {
  uint64_t time_ns = 0;
  uint64_t rx_frames = 0, rx_bytes = 0, tx_frames = 0, tx_bytes = 0;
  uint64_t connections = 0, retransmits = 0, drops = 0, cpu_ns = 0;
};
// Of an answer to "stats"; none where it is not one.
std::optional<TopSample> SampleOf(const nlohmann::json& stats, uint64_t time_ns);

// What happened between two looks, per second.
struct TopRates {
  double rx_frames = 0, rx_bytes = 0, tx_frames = 0, tx_bytes = 0, retransmits = 0, drops = 0;
  double cpu_percent = 0;  // of one core
  uint64_t connections = 0;
};
TopRates RatesOf(const TopSample& before, const TopSample& now);

struct TopRow {
  std::string name;
  std::optional<TopRates> rates;  // none: it does not answer
};
std::string TopTable(const std::vector<TopRow>& rows);

}  // namespace sluice
