#include "control/oci/engine_config.h"

#include <nlohmann/json.hpp>
#include <string_view>

#define TOML_HEADER_ONLY 1
#define TOML_EXCEPTIONS 0
#define TOML_ENABLE_FORMATTERS 0
#include <toml++/toml.h>

namespace sluice::oci {
namespace {

using nlohmann::ordered_json;

constexpr char kMade[] = "# Made by sluice install";

bool IsBlank(const std::string& text) { return text.find_first_not_of(" \t\r\n") == std::string::npos; }

Status ParseToml(const std::string& text, toml::table* out) {
  toml::parse_result result = toml::parse(text);
  if (!result) {
    return Status::Error(
        Format("line %u: %s", result.error().source().begin.line, std::string(result.error().description()).c_str()));
  }
  *out = std::move(result).table();
  return {};
}

std::string Quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

// Where the CRI plug-in's runtimes stand, by the version of the file.
Status CriPlugin(const toml::table& config, std::string* out) {
  constexpr const char* kPlugins[] = {"cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"};
  const int64_t version = config["version"].value_or(int64_t{1});
  if (version < 1 || version > 3)
    return Status::Error(Format("version = %d is not known (1 to 3 are)", static_cast<int>(version)));
  *out = kPlugins[version - 1];
  return {};
}

std::string ContainerdBlock(const toml::table& config, const std::string& plugin, const std::string& name,
                            const std::string& path) {
  const std::string table = "plugins." + Quoted(plugin) + ".containerd.runtimes." + Quoted(name);
  // What the kubelet wants of runc it wants of us.
  const bool systemd = config["plugins"][plugin]["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"].value_or(false);
  return "[" + table + "]\n  runtime_type = \"io.containerd.runc.v2\"\n  pod_annotations = [\"dev.sluice.flag.*\"]\n  [" + table +
         ".options]\n    BinaryName = " + Quoted(path) + "\n" + (systemd ? "    SystemdCgroup = true\n" : "");
}

// The lines from `begin` to `end`, both included; npos where they are not there.
struct Block {
  size_t start = std::string::npos, length = 0;
};
Block FindBlock(const std::string& text, const std::string& begin, const std::string& end) {
  Block out;
  for (size_t at = text.find(begin); at != std::string::npos && out.start == std::string::npos; at = text.find(begin, at + 1)) {
    const size_t last = text.find(end, at);
    if ((at != 0 && text[at - 1] != '\n') || last == std::string::npos) continue;
    out = {at, last + end.size() - at};
  }
  return out;
}

}  // namespace

Status EditDockerConfig(const std::string& text, const std::string& name, const std::string& path,
                        const std::vector<std::string>& flags, std::string* out) {
  ordered_json config = ordered_json::object();
  if (!IsBlank(text)) config = ordered_json::parse(text, nullptr, false);
  if (!config.is_object()) return Status::Error("not a JSON object: correct it first");
  if (config.contains("runtimes") && !config["runtimes"].is_object())
    return Status::Error("\"runtimes\" is not an object: correct it first");
  ordered_json wanted = config.contains("runtimes") ? config["runtimes"] : ordered_json::object();
  if (path.empty()) {
    wanted.erase(name);
  } else {
    // What else is set for it stays.
    ordered_json& runtime = wanted[name];
    if (!runtime.is_object()) runtime = ordered_json::object();
    runtime["path"] = path;
    if (flags.empty())
      runtime.erase("runtimeArgs");
    else
      runtime["runtimeArgs"] = flags;
  }
  if (wanted == config.value("runtimes", ordered_json::object())) {
    *out = text;
    return {};
  }
  config["runtimes"] = std::move(wanted);
  if (config["runtimes"].empty()) config.erase("runtimes");
  *out = config.dump(2) + "\n";
  return {};
}

Status EditContainerdConfig(const std::string& text, const std::string& name, const std::string& path, std::string* out) {
  const std::string begin = std::string(kMade) + ": runtime " + name + " {\n", end = "# } runtime " + name + "\n";
  const Block ours = FindBlock(text, begin, end);
  std::string rest = text;
  if (ours.start != std::string::npos) rest.erase(ours.start, ours.length);
  toml::table config;
  Status parsed = ParseToml(rest, &config);
  if (!parsed.ok()) return Status::Error(parsed.line() + ": correct it first");
  if (path.empty() && ours.start == std::string::npos && IsBlank(text)) {
    *out = text;
    return {};
  }
  if (IsBlank(rest) && !path.empty()) {
    rest = "version = 2\n\n";
    SLUICE_RETURN_IF_ERROR(ParseToml(rest, &config));
  }
  std::string plugin;
  SLUICE_RETURN_IF_ERROR(CriPlugin(config, &plugin));
  if (config["plugins"][plugin]["containerd"]["runtimes"][name])
    return Status::Error("has a runtime " + name + " that sluice install did not make: take it out by hand" +
                         (path.empty() ? "" : ", or choose another name by --runtime"));
  *out = rest;
  if (path.empty()) return {};
  std::string block = begin + ContainerdBlock(config, plugin, name, path) + end;
  const size_t place = ours.start == std::string::npos ? rest.size() : ours.start;
  if (place > 0 && rest[place - 1] != '\n') block.insert(0, "\n");
  out->insert(place, block);
  parsed = ParseToml(*out, &config);
  return parsed.ok() ? Status()
                     : Status::Error("takes no further table (" + parsed.line() + "): add the runtime by hand:\n" + block);
}

Status EditPodmanConfig(const std::string& text, const std::string& name, const std::string& path, std::string* out) {
  if (!IsBlank(text) && text.rfind(kMade, 0) != 0) return Status::Error("was not made by sluice install: take it away by hand");
  *out = path.empty() ? "" : std::string(kMade) + ".\n[engine.runtimes]\n" + Quoted(name) + " = [" + Quoted(path) + "]\n";
  return {};
}

std::string CriIsDisabled(const std::string& containerd_config) {
  toml::table config;
  if (!ParseToml(containerd_config, &config).ok()) return "";
  const toml::array* disabled = config["disabled_plugins"].as_array();
  if (disabled == nullptr) return "";
  for (const toml::node& one : *disabled) {
    const std::string plugin = one.value_or(std::string());
    if (plugin == "cri" || plugin.find(".cri") != std::string::npos) return "disabled_plugins has \"" + plugin + "\"";
  }
  return "";
}

}  // namespace sluice::oci
