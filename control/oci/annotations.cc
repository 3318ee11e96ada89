#include "control/oci/annotations.h"

#include <optional>
#include <string>
#include <string_view>

namespace sluice::oci {
namespace {

using nlohmann::json;

constexpr std::string_view kOurs = "dev.sluice.";
constexpr std::string_view kPrefix = "dev.sluice.flag.";

// Where in the rule's list the flag stands now.
std::optional<size_t> Strictness(const AnnotationRule& rule, const FlagSpec& flag, const Flags& flags) {
  std::string_view list = rule.tighter;
  for (size_t place = 0; !list.empty(); ++place) {
    const size_t comma = list.find(", ");
    Flags changed = flags;
    if (SetFlag(flag, list.substr(0, comma), &changed).ok() && changed == flags) return place;
    list.remove_prefix(comma == std::string_view::npos ? list.size() : comma + 2);
  }
  return std::nullopt;
}

bool OnlyTightens(const AnnotationRule& rule, const FlagSpec& flag, const Flags& before, const Flags& after) {
  if (before == after) return true;
  const auto from = Strictness(rule, flag, before), to = Strictness(rule, flag, after);
  return from && to && *from < *to;
}

Status Apply(const std::string& key, const json& value, Flags* flags) {
  const std::string name = key.compare(0, kPrefix.size(), kPrefix) == 0 ? key.substr(kPrefix.size()) : "";
  const FlagSpec* flag = FindFlag(name);
  if (flag == nullptr) return Status::Error("unknown setting (dev.sluice.flag.NAME, see sluice flags)");
  const AnnotationRule* rule = FindAnnotationRule(name);
  if (rule == nullptr) return Status::Error("--" + name + " is the administrator's: no annotation may set it");
  if (!value.is_string()) return Status::Error("not a string");
  Flags changed = *flags;
  SLUICE_RETURN_IF_ERROR(SetFlag(*flag, value.get<std::string>(), &changed));
  if (!flags->allow_flag_override && !OnlyTightens(*rule, *flag, *flags, changed)) {
    return Status::Error("--" + name + "=" + value.get<std::string>() +
                         (rule->tighter.empty() ? " needs" : " loosens what the runtime is set to, which needs") +
                         " a runtime with --allow-flag-override");
  }
  *flags = changed;
  return {};
}

}  // namespace

Status ApplyAnnotations(const json& config, Flags* flags) {
  const auto annotations = config.find("annotations");
  if (annotations == config.end() || !annotations->is_object()) return CheckFlagsTogether(*flags);  // runc judges the rest
  for (const auto& [key, value] : annotations->items()) {
    if (key.compare(0, kOurs.size(), kOurs) != 0) continue;
    const Status status = Apply(key, value, flags);
    if (!status.ok()) return Status::Error("annotation " + key + ": " + status.line());
  }
  return CheckFlagsTogether(*flags);
}

}  // namespace sluice::oci
