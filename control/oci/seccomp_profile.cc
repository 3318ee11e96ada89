#include "control/oci/seccomp_profile.h"

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "sentry/filter_table.h"

namespace sluice::oci {
namespace {

using filter::Test;
using filter::Tests;
using nlohmann::json;

constexpr uint64_t kAllBits = ~uint64_t{0};
// Of conditions on one call, once they exclude each other. A kernel's filter has 4096 instructions.
constexpr size_t kMaxAlternatives = 300;

Status Refuse(const std::string& what) { return Status::Error("config.json: linux.seccomp: " + what); }

bool Permits(const std::string& action) { return action == "SCMP_ACT_ALLOW" || action == "SCMP_ACT_LOG"; }

uint64_t Number(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_number_integer() ? it->get<uint64_t>() : 0;
}

std::string Text(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

// `base` for the one call under these conditions.
json RuleFor(json base, const std::string& name, const Tests& tests) {
  json args = json::array();
  for (const Test& t : tests) {
    json arg{{"index", t.arg}};
    if (t.differs || t.mask == kAllBits) {
      arg["op"] = t.differs ? "SCMP_CMP_NE" : "SCMP_CMP_EQ";
      arg["value"] = t.value;
    } else {
      arg["op"] = "SCMP_CMP_MASKED_EQ";
      arg["value"] = t.mask;
      arg["valueTwo"] = t.value;
    }
    args.push_back(std::move(arg));
  }
  base["names"] = json::array({name});
  base.erase("args");
  if (!args.empty()) base["args"] = std::move(args);
  return base;
}

bool ParseCondition(const json& arg, Test* out) {
  if (!arg.is_object() || !arg.contains("index") || Number(arg, "index") > 5) return false;
  out->arg = static_cast<unsigned>(Number(arg, "index"));
  const std::string op = Text(arg, "op");
  out->differs = op == "SCMP_CMP_NE";
  out->mask = op == "SCMP_CMP_MASKED_EQ" ? Number(arg, "value") : out->differs ? 0 : kAllBits;
  out->value = op == "SCMP_CMP_MASKED_EQ" ? Number(arg, "valueTwo") : Number(arg, "value");
  // A value outside of the mask never compares equal.
  return op == "SCMP_CMP_EQ" || op == "SCMP_CMP_NE" || (op == "SCMP_CMP_MASKED_EQ" && (out->value & ~out->mask) == 0);
}

// Two conditions on one argument are alternatives to runc, as are then all of the rule.
Status ParseConditions(const std::string& name, const json& rule, std::vector<Tests>* alternatives) {
  Tests all;
  std::set<unsigned> seen;
  bool repeated = false;
  const json args = rule.contains("args") && rule["args"].is_array() ? rule["args"] : json::array();
  for (const json& arg : args) {
    Test test;
    if (!ParseCondition(arg, &test))
      return Refuse("a condition on " + name + " cannot be merged with the interception: " + arg.dump());
    repeated |= !seen.insert(test.arg).second;
    all.push_back(test);
  }
  if (!repeated) {
    alternatives->push_back(all);
  } else {
    for (const Test& test : all) alternatives->push_back({test});
  }
  return {};
}

class Merger {
 public:
  explicit Merger(json* profile) : profile_(*profile) {}

  Status Run() {
    default_ = Text(profile_, "defaultAction");
    if (default_.empty()) return Refuse("defaultAction is missing");
    if (default_ == "SCMP_ACT_NOTIFY") return Refuse("SCMP_ACT_NOTIFY cannot be the default action");
    SLUICE_RETURN_IF_ERROR(TakeRules());
    std::set<std::string> done;
    for (const filter::Rule& rule : filter::ProgramRules()) {
      if (done.insert(rule.name).second) SLUICE_RETURN_IF_ERROR(Merge(rule.name));
    }
    profile_["syscalls"] = std::move(out_);
    return {};
  }

 private:
  // Splits the profile: what concerns intercepted calls goes to rules_, the rest stays.
  Status TakeRules() {
    std::set<std::string> intercepted;
    for (const filter::Rule& rule : filter::ProgramRules()) intercepted.insert(rule.name);
    for (json rule : profile_.value("syscalls", json::array())) {
      if (!rule.is_object() || !rule.contains("names") || !rule["names"].is_array()) return Refuse("a rule without names");
      if (Text(rule, "action") == "SCMP_ACT_NOTIFY")
        return Refuse(
            "the profile has a notifier (SCMP_ACT_NOTIFY) of its own: run the container without that profile, or with runc");
      json names = std::move(rule["names"]), others = json::array();
      rule.erase("names");
      std::set<std::string> ours;
      for (json& name : names) {
        if (name.is_string() && intercepted.count(name.get<std::string>()) != 0) {
          ours.insert(name.get<std::string>());
        } else {
          others.push_back(std::move(name));
        }
      }
      for (const std::string& name : ours) rules_[name].push_back(rule);
      if (others.empty()) continue;
      rule["names"] = std::move(others);
      out_.push_back(std::move(rule));
    }
    return {};
  }

  // What is refused under some rule is so whatever the others allow.
  Status Merge(const std::string& name) {
    std::vector<Tests> allowed, refused;
    if (Permits(default_)) allowed.emplace_back();
    std::string action = default_;
    for (const json& rule : rules_[name]) {
      const std::string says = Text(rule, "action");
      if (Permits(says) && Permits(default_)) continue;
      std::vector<Tests> alternatives;
      SLUICE_RETURN_IF_ERROR(ParseConditions(name, rule, &alternatives));
      for (const Tests& tests : alternatives) {
        std::vector<Tests> fresh;
        if (!AddDisjoint(tests, Permits(says) ? &allowed : &refused, &fresh)) return TooMany(name);
        if (Permits(says)) continue;
        for (const Tests& t : fresh) out_.push_back(RuleFor(rule, name, t));
      }
      if (Permits(says)) action = says;
    }
    for (const Tests& tests : refused) {
      if (!Subtract(tests, &allowed)) return TooMany(name);
    }
    return Emit(name, std::move(allowed), action) ? Status() : TooMany(name);
  }

  static Status TooMany(const std::string& name) {
    return Refuse("the conditions on " + name + " are too many to be merged with the interception");
  }

  // What of each of `from` is outside of `known`; false where that becomes too many.
  static bool Subtract(const Tests& known, std::vector<Tests>* from) {
    std::vector<Tests> next;
    for (const Tests& tests : *from) {
      for (Tests& piece : filter::AndNot(tests, known)) next.push_back(std::move(piece));
      if (next.size() > kMaxAlternatives) return false;
    }
    *from = std::move(next);
    return true;
  }

  // `fresh`: what of `tests` the set did not have.
  static bool AddDisjoint(const Tests& tests, std::vector<Tests>* set, std::vector<Tests>* fresh) {
    *fresh = {tests};
    for (const Tests& known : *set) {
      if (!Subtract(known, fresh)) return false;
    }
    set->insert(set->end(), fresh->begin(), fresh->end());
    return set->size() <= kMaxAlternatives;
  }

  // Rules that exclude each other: libseccomp need not choose between them.
  bool Emit(const std::string& name, std::vector<Tests> allowed, const std::string& action) {
    for (const filter::Rule& rule : filter::ProgramRules()) {
      if (rule.name != name) continue;
      json base{{"action", rule.error == 0 ? "SCMP_ACT_NOTIFY" : "SCMP_ACT_ERRNO"}};
      if (rule.error != 0) base["errnoRet"] = rule.error;
      for (const Tests& tests : allowed) {
        for (const Tests& hit : filter::And(tests, rule.tests)) out_.push_back(RuleFor(base, name, hit));
      }
      if (!Subtract(rule.tests, &allowed)) return false;
    }
    if (action == default_) return true;
    for (const Tests& tests : allowed) out_.push_back(RuleFor({{"action", action}}, name, tests));
    return true;
  }

  json& profile_;
  std::string default_;
  std::map<std::string, std::vector<json>> rules_;  // of intercepted calls
  json out_ = json::array();
};

Status CheckArchitecture(json* profile) {
  constexpr const char* kNative = "SCMP_ARCH_X86_64";
  const json named = profile->value("architectures", json::array());
  if (!named.empty() && std::find(named.begin(), named.end(), kNative) == named.end())
    return Refuse("the profile is for another architecture than x86_64");
  // i386 and x32 calls would be ways around the interception: without their architectures they end the caller.
  (*profile)["architectures"] = json::array({kNative});
  return {};
}

}  // namespace

Status MergeProfile(json* config, const std::string& listener) {
  if (!config->contains("linux") || (*config)["linux"].is_null()) (*config)["linux"] = json::object();
  json& linux_part = (*config)["linux"];
  if (!linux_part.is_object()) return Status::Error("config.json: linux is not an object");
  if (!linux_part.contains("seccomp") || linux_part["seccomp"].is_null())
    linux_part["seccomp"] = {{"defaultAction", "SCMP_ACT_ALLOW"}};
  json& profile = linux_part["seccomp"];
  if (!profile.is_object()) return Refuse("not an object");
  if (!Text(profile, "listenerPath").empty())
    return Refuse("the profile has a listener of its own (listenerPath): run the container without that profile, or with runc");
  SLUICE_RETURN_IF_ERROR(CheckArchitecture(&profile));
  SLUICE_RETURN_IF_ERROR(Merger(&profile).Run());
  profile["listenerPath"] = listener;
  return {};
}

}  // namespace sluice::oci
