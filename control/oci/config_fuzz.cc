// A config.json of somebody else's: text as it comes, or a profile built from parts. What the merge makes of it allows nothing
// that the profile refuses, lets no intercepted call reach the kernel, and leaves the rest of the file as it was.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "control/oci/bundle.h"
#include "control/oci/config_reader.h"
#include "control/oci/seccomp_profile.h"
#include "sentry/filter_table.h"

namespace sluice::oci {
namespace {

using nlohmann::json;
using Values = std::vector<uint64_t>;

void Require(bool holds) {
  if (!holds) std::abort();
}

uint8_t Take(Bytes* data) {
  if (data->empty()) return 0;
  const uint8_t value = (*data)[0];
  *data = data->subspan(1);
  return value;
}

const char* Pick(Bytes* data, std::initializer_list<const char*> words) { return words.begin()[Take(data) % words.size()]; }

json Condition(Bytes* data) {
  constexpr uint64_t kNumbers[] = {0, 1, 2, 8, 9, 16, 24, 0x20, 0x2000, 0x5411, 0xffffffff, 0xffffff00, 0x8900, ~uint64_t{0}};
  const auto number = [&] { return kNumbers[Take(data) % std::size(kNumbers)] ^ (Take(data) & 1); };
  json out{{"index", Take(data) % 7}, {"value", number()}, {"valueTwo", number()}};
  out["op"] = Pick(data, {"SCMP_CMP_EQ", "SCMP_CMP_NE", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_EQ", "SCMP_CMP_GE"});
  return out;
}

json Profile(Bytes* data) {
  json profile{{"defaultAction", Pick(data, {"SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_KILL"})}};
  for (int rules = Take(data) % 8; rules > 0; --rules) {
    json rule{{"names", json::array()},
              {"action", Pick(data, {"SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_LOG", "SCMP_ACT_KILL"})}};
    for (int names = Take(data) % 4; names >= 0; --names)
      rule["names"].push_back(Pick(data, {"socket", "connect", "recvfrom", "ioctl", "seccomp", "sendmsg", "bpf", "read"}));
    for (int conditions = Take(data) % 4; conditions > 0; --conditions) rule["args"].push_back(Condition(data));
    profile["syscalls"].push_back(std::move(rule));
  }
  return profile;
}

uint64_t Number(const json& object, const char* key) {
  return object.contains(key) && object[key].is_number() ? object[key].get<uint64_t>() : 0;
}

// Of the rules that cannot be merged only those remain that change nothing.
bool Matches(const json& condition, const Values& args) {
  if (Number(condition, "index") >= args.size()) return false;
  const uint64_t arg = args[Number(condition, "index")], value = Number(condition, "value");
  const std::string op = condition.value("op", "");
  if (op == "SCMP_CMP_EQ") return arg == value;
  if (op == "SCMP_CMP_NE") return arg != value;
  return (arg & value) == Number(condition, "valueTwo");
}

// As runc reads a rule: two conditions on one argument are alternatives.
bool Applies(const json& rule, const Values& args) {
  if (!rule.contains("args") || rule["args"].empty()) return true;
  std::set<uint64_t> seen;
  bool repeated = false;
  for (const json& c : rule["args"]) repeated |= !seen.insert(Number(c, "index")).second;
  const auto matches = [&](const json& c) { return Matches(c, args); };
  const auto& all = rule["args"];
  return repeated ? std::any_of(all.begin(), all.end(), matches) : std::all_of(all.begin(), all.end(), matches);
}

bool Permits(const json& action) { return action == "SCMP_ACT_ALLOW" || action == "SCMP_ACT_LOG"; }

// The rules of a profile by the call that they name.
using Rules = std::map<std::string, std::vector<const json*>>;

Rules ByName(const json& profile) {
  Rules out;
  if (!profile.contains("syscalls")) return out;
  for (const json& rule : profile["syscalls"]) {
    for (const json& name : rule["names"]) {
      auto& rules = out[name.get<std::string>()];
      if (rules.empty() || rules.back() != &rule) rules.push_back(&rule);
    }
  }
  return out;
}

// "": the profile refuses the call; else what is to become of it.
std::string Expected(const json& initial, const std::vector<const json*>& rules, const std::string& name, const Values& args) {
  bool allowed = Permits(initial);
  for (const json* rule : rules) {
    if (!Applies(*rule, args)) continue;
    if (!Permits(rule->value("action", json()))) return "";
    allowed = true;
  }
  if (!allowed) return "";
  for (const filter::Rule& rule : filter::ProgramRules()) {
    if (rule.name == name && filter::Holds(rule.tests, args))
      return rule.error == 0 ? "SCMP_ACT_NOTIFY" : "SCMP_ACT_ERRNO " + std::to_string(rule.error);
  }
  return "allow";
}

void CheckCall(const std::string& expected, const json& initial, const std::vector<const json*>& rules, const Values& args) {
  json action = initial;
  int found = 0;
  uint64_t error = 0;
  for (const json* rule : rules) {
    if (!Applies(*rule, args)) continue;
    ++found;
    action = rule->value("action", json());
    error = Number(*rule, "errnoRet");
  }
  Require(found <= 1);
  if (expected.empty()) {
    Require(!Permits(action) && action != "SCMP_ACT_NOTIFY");
  } else if (expected == "allow") {
    Require(Permits(action));
  } else if (expected == "SCMP_ACT_NOTIFY") {
    Require(action == expected);
  } else {
    Require(action == "SCMP_ACT_ERRNO" && expected == "SCMP_ACT_ERRNO " + std::to_string(error));
  }
}

// Values around those that rules name.
Values InterestingValues(const json& profile) {
  Values out{0, 1, 2, 9, 16, 24, 28, 0x20, 0x2000, 0x5411, 0x8912, 0x400454ca, uint64_t{1} << 32};
  for (const json& rule : profile.value("syscalls", json::array())) {
    if (!rule.contains("args") || !rule["args"].is_array()) continue;
    for (const json& c : rule["args"]) {
      for (const char* key : {"value", "valueTwo"}) out.insert(out.end(), {Number(c, key), Number(c, key) ^ 1});
    }
    if (out.size() > 64) break;
  }
  return out;
}

void CheckMerged(const json& before, const json& after) {
  Rules old_rules = ByName(before), new_rules = ByName(after);
  std::set<std::string> names;
  for (const filter::Rule& rule : filter::ProgramRules()) names.insert(rule.name);
  const Values values = InterestingValues(before);
  for (const std::string& name : names) {
    for (const json* rule : new_rules[name]) {
      // Two conditions on one argument would be alternatives.
      std::set<uint64_t> seen;
      if (!rule->contains("args")) continue;
      for (const json& c : (*rule)["args"]) Require(seen.insert(Number(c, "index")).second);
    }
    for (size_t i = 0; i < std::min<size_t>(values.size(), 24); ++i) {
      Values args(6);
      for (size_t k = 0; k < args.size(); ++k) args[k] = values[(i * (k + 1) + k * 5) % values.size()];
      const json& initial = before["defaultAction"];
      CheckCall(Expected(initial, old_rules[name], name, args), after["defaultAction"], new_rules[name], args);
    }
  }
}

void Merge(json config) {
  const json before = config;
  std::string path;
  static_cast<void>(NetworkOf(config, &path));
  static_cast<void>(HasOwnPids(config));
  const Status status = MergeProfile(&config, "/l");
  if (!status.ok()) {
    Require(!status.line().empty() && status.line().size() < 4096);
    return;
  }
  json profile{{"defaultAction", "SCMP_ACT_ALLOW"}};
  if (before.contains("linux") && before["linux"].is_object() && before["linux"].contains("seccomp") &&
      before["linux"]["seccomp"].is_object())
    profile = before["linux"]["seccomp"];
  if (profile.value("syscalls", json()).is_null()) profile.erase("syscalls");
  CheckMerged(profile, config["linux"]["seccomp"]);
  // The rest is as it was, also through its text.
  json again;
  Require(ParseConfig(config.dump(-1, ' ', false, json::error_handler_t::replace), &again).ok() && again == config);
  json rest = before;
  if (!rest.contains("linux") || rest["linux"].is_null()) rest["linux"] = json::object();
  rest["linux"].erase("seccomp");
  config["linux"].erase("seccomp");
  Require(rest == config);
}

}  // namespace
}  // namespace sluice::oci

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sluice::oci;  // NOLINT(google-build-using-namespace)
  if (size == 0) return 0;
  sluice::Bytes rest{data + 1, size - 1};
  nlohmann::json config;
  if (data[0] == 'p') {
    config["linux"]["seccomp"] = Profile(&rest);
  } else {
    const sluice::Status status = ParseConfig({reinterpret_cast<const char*>(rest.data()), rest.size()}, &config);
    if (!status.ok()) {
      Require(!status.line().empty() && status.line().size() < 4096);
      return 0;
    }
  }
  Merge(std::move(config));
  return 0;
}
