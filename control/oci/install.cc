#include "control/oci/install.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "control/log.h"
#include "control/os.h"

namespace sluice::oci {
namespace {

using nlohmann::ordered_json;

std::string OwnPath() {
  char buffer[PATH_MAX];
  const ssize_t n = readlink("/proc/self/exe", buffer, sizeof buffer);
  return n > 0 ? std::string(buffer, static_cast<size_t>(n)) : "/usr/bin/sluice";
}

Status MakeParents(const std::string& path) {
  for (size_t at = 1; (at = path.find('/', at)) != std::string::npos; ++at) {
    if (mkdir(path.substr(0, at).c_str(), 0755) < 0 && errno != EEXIST)
      return Status::Error("cannot make " + path.substr(0, at) + ErrnoText(errno));
  }
  return {};
}

Status WriteFile(const std::string& path, const std::string& text, mode_t mode) {
  const std::string fresh = path + ".sluice-new";
  UniqueFd fd(open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode));
  if (fd && fchmod(fd.get(), mode) == 0 && WriteAll(fd.get(), text.data(), text.size()) && fsync(fd.get()) == 0 &&
      rename(fresh.c_str(), path.c_str()) == 0)
    return {};
  const int error = errno;
  unlink(fresh.c_str());
  return Status::Error("cannot write " + path + ErrnoText(error));
}

// Checks them before an engine meets them: the parser of every start is the judge.
Status CheckFlags(const std::vector<std::string>& flags) {
  for (const std::string& flag : flags) {
    if (flag.find_first_of(" \t\n'\"\\$`") != std::string::npos)
      return Status::Error("install: " + flag + ": Docker passes runtimeArgs through a shell: no space or quote may be in one");
  }
  std::vector<std::string> line = flags;
  line.push_back("features");
  CommandLine ignored;
  const Status status = ParseCommandLine(line, &ignored);
  return status.ok() && ignored.command != "features" ? Status::Error("install: only flags may stand behind --") : status;
}

Status Install(const CommandLine& line) {
  const InstallOptions& options = line.install;
  const bool remove = line.command == "uninstall";
  SLUICE_RETURN_IF_ERROR(CheckFlags(options.flags));
  struct stat st{};
  const bool exists = stat(options.config.c_str(), &st) == 0;
  const std::string before = exists ? ReadSmallFile(options.config).value_or("") : "";
  std::string after;
  SLUICE_RETURN_IF_ERROR(EditDockerConfig(before, options.runtime, remove ? "" : OwnPath(), options.flags, &after));
  if (options.dry_run) {
    std::printf("%s", after.c_str());
    return {};
  }
  if (after == before || (remove && !exists)) {
    std::printf("%s is as it should be; nothing was changed\n", options.config.c_str());
    return {};
  }
  SLUICE_RETURN_IF_ERROR(MakeParents(options.config));
  const std::string backup = options.config + ".before-sluice";
  if (exists && access(backup.c_str(), F_OK) < 0) SLUICE_RETURN_IF_ERROR(WriteFile(backup, before, st.st_mode & 0777));
  SLUICE_RETURN_IF_ERROR(WriteFile(options.config, after, exists ? st.st_mode & 0777 : 0644));
  std::printf("%s: runtime \"%s\" %s%s\nRestart Docker, or have it read its configuration: kill -HUP $(pidof dockerd)\n",
              options.config.c_str(), options.runtime.c_str(), remove ? "is taken out" : "is set",
              exists ? (" (as it was before: " + backup + ")").c_str() : "");
  return {};
}

}  // namespace

Status EditDockerConfig(const std::string& text, const std::string& name, const std::string& path,
                        const std::vector<std::string>& flags, std::string* out) {
  ordered_json config = ordered_json::object();
  if (text.find_first_not_of(" \t\r\n") != std::string::npos) config = ordered_json::parse(text, nullptr, false);
  if (!config.is_object()) return Status::Error("the configuration is not a JSON object: correct it first");
  if (config.contains("runtimes") && !config["runtimes"].is_object())
    return Status::Error("\"runtimes\" in the configuration is not an object: correct it first");
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

int RunInstall(const CommandLine& line) {
  const Status status = Install(line);
  if (!status.ok()) LogLine(LogLevel::kError, status.line());
  return status.exit_code();
}

}  // namespace sluice::oci
