#include "control/oci/bundle.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "base/unique_fd.h"
#include "control/os.h"

namespace sluice::oci {
namespace {

using nlohmann::json;

constexpr size_t kMaxConfig = 16 << 20;

}  // namespace

Status Bundle::Read(const std::string& directory) {
  directory_ = directory;
  rename(kept().c_str(), path().c_str());
  const auto text = ReadSmallFile(path(), kMaxConfig + 1);
  if (!text)
    return Status::Error(errno == ENOENT ? "JSON specification file config.json not found"
                                         : "cannot read " + path() + ErrnoText(errno));
  if (text->size() > kMaxConfig) return Status::Error(path() + ": longer than 16 MiB");
  try {
    config_ = json::parse(*text);
  } catch (const json::exception& e) {
    return Status::Error(path() + ": not valid JSON: " + e.what());
  }
  if (!config_.is_object()) return Status::Error(path() + ": not a JSON object");
  return {};
}

Status Bundle::Write() {
  struct stat st{};
  const std::string fresh = directory_ + "/config.json.sluice-new";
  const std::string text = config_.dump(-1, ' ', false, json::error_handler_t::replace);
  UniqueFd fd(open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  const bool written = fd && stat(path().c_str(), &st) == 0 && fchmod(fd.get(), st.st_mode & 07777) == 0 &&
                       fchown(fd.get(), st.st_uid, st.st_gid) == 0 && WriteAll(fd.get(), text.data(), text.size()) &&
                       link(path().c_str(), kept().c_str()) == 0 && rename(fresh.c_str(), path().c_str()) == 0;
  if (written) return {};
  const int error = errno;
  unlink(fresh.c_str());
  unlink(kept().c_str());
  return Status::Error("cannot change " + path() + ErrnoText(error));
}

void Bundle::Restore() { rename(kept().c_str(), path().c_str()); }

json Bundle::Namespaces() const {
  const auto linux_part = config_.find("linux");
  if (linux_part == config_.end() || !linux_part->is_object()) return json::array();
  const auto namespaces = linux_part->find("namespaces");
  return namespaces != linux_part->end() && namespaces->is_array() ? *namespaces : json::array();
}

bool Bundle::HasNamespace(const char* type) const {
  for (const json& one : Namespaces()) {
    if (one.is_object() && one.contains("type") && one["type"] == type) return true;
  }
  return false;
}

NetworkNamespace Bundle::network(std::string* path) const {
  for (const json& one : Namespaces()) {
    if (!one.is_object() || !one.contains("type") || one["type"] != "network") continue;
    if (!one.contains("path") || !one["path"].is_string() || one["path"] == "") return NetworkNamespace::kNew;
    *path = one["path"];
    return NetworkNamespace::kPath;
  }
  return NetworkNamespace::kHost;
}

}  // namespace sluice::oci
