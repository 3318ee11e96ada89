// Answers to "stats" as Prometheus metrics.
#pragma once

#include <prometheus/metric_family.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace sluice {

struct SandboxStats {
  std::string sandbox;    // label values
  std::string container;  // empty: no label
  nlohmann::json stats;   // null: it did not answer
};

// Every metric there is, also those without a value. What an answer has beyond them is left out, so a sentry that was taken over
// adds no names.
std::vector<prometheus::MetricFamily> MetricFamilies(const std::vector<SandboxStats>& sandboxes);
// The text format, version 0.0.4.
std::string Exposition(const std::vector<SandboxStats>& sandboxes);

}  // namespace sluice
