#include "control/oci/bundle.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "control/oci/config_reader.h"
#include "control/os.h"

namespace sluice::oci {
namespace {

using nlohmann::json;

constexpr int64_t kMaxConfig = 16 << 20;

json Namespaces(const json& config) {
  const auto linux_part = config.find("linux");
  if (linux_part == config.end() || !linux_part->is_object()) return json::array();
  const auto namespaces = linux_part->find("namespaces");
  return namespaces != linux_part->end() && namespaces->is_array() ? *namespaces : json::array();
}

}  // namespace

bool Bundle::Identify(const std::string& path, Identity* out) {
  struct stat st{};
  if (stat(path.c_str(), &st) < 0) return false;
  *out = {st.st_dev, st.st_ino, st.st_size, st.st_mtim.tv_sec, st.st_mtim.tv_nsec};
  return true;
}

Status Bundle::Lock(int flags) {
  lock_.Reset(open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  while (lock_ && flock(lock_.get(), flags) < 0) {
    if (errno != EINTR) lock_.Reset();
  }
  if (lock_) return {};
  // In runc's words.
  if (errno == ENOENT) return Status::Error("chdir " + directory_ + ": no such file or directory");
  return Status::Error("cannot open the bundle " + directory_ + ErrnoText(errno));
}

// Renaming one link of a file to another does nothing, hence the unlink.
void Bundle::PutBack() {
  unlink(fresh().c_str());
  if (rename(kept().c_str(), path().c_str()) == 0) unlink(kept().c_str());
}

void Bundle::Recover(const std::string& directory) {
  Bundle bundle;
  bundle.directory_ = directory;
  if (bundle.Lock(LOCK_EX | LOCK_NB).ok()) bundle.PutBack();
}

Status Bundle::Read(const std::string& directory) {
  directory_ = directory;
  SLUICE_RETURN_IF_ERROR(Lock(LOCK_EX));
  PutBack();
  struct stat st{};
  if (stat(path().c_str(), &st) < 0) {
    return Status::Error(errno == ENOENT ? "JSON specification file config.json not found"
                                         : "cannot read " + path() + ErrnoText(errno));
  }
  if (!S_ISREG(st.st_mode)) return Status::Error(path() + ": not a regular file");
  if (st.st_size > kMaxConfig) return Status::Error(path() + ": longer than 16 MiB");
  Identify(path(), &read_);
  const auto text = ReadSmallFile(path(), kMaxConfig + 1);
  if (!text) return Status::Error("cannot read " + path() + ErrnoText(errno));
  const Status status = ParseConfig(*text, &config_);
  return status.ok() ? status : Status::Error(directory_ + "/" + status.line());
}

Status Bundle::Write() {
  struct stat st{};
  const std::string text = config_.dump(-1, ' ', false, json::error_handler_t::replace);
  UniqueFd fd(open(fresh().c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  const bool written = fd && stat(path().c_str(), &st) == 0 && fchmod(fd.get(), st.st_mode & 07777) == 0 &&
                       fchown(fd.get(), st.st_uid, st.st_gid) == 0 && WriteAll(fd.get(), text.data(), text.size()) &&
                       link(path().c_str(), kept().c_str()) == 0;
  const int error = errno;
  Identity now;
  const bool same = Identify(path(), &now) && now == read_;
  if (written && same && rename(fresh().c_str(), path().c_str()) == 0 && Identify(path(), &written_)) return {};
  unlink(fresh().c_str());
  unlink(kept().c_str());
  if (!same) return Status::Error(path() + ": somebody else changed it while the container was made");
  return Status::Error("cannot change " + path() + ErrnoText(written ? errno : error));
}

void Bundle::Restore() {
  if (!lock_) return;
  Identity now;
  if (Identify(path(), &now) && now == written_) {
    PutBack();
  } else {
    unlink(kept().c_str());
  }
  lock_.Reset();
}

bool HasOwnPids(const json& config) {
  for (const json& one : Namespaces(config)) {
    // One with a path is somebody else's: that of a pod, say.
    if (one.is_object() && one.contains("type") && one["type"] == "pid") return !one.contains("path") || one["path"] == "";
  }
  return false;
}

bool IsOfPod(const json& config) {
  const auto annotations = config.find("annotations");
  return annotations != config.end() && annotations->is_object() && annotations->contains("io.kubernetes.cri.container-type");
}

NetworkNamespace NetworkOf(const json& config, std::string* path) {
  for (const json& one : Namespaces(config)) {
    if (!one.is_object() || !one.contains("type") || one["type"] != "network") continue;
    if (!one.contains("path") || !one["path"].is_string() || one["path"] == "") return NetworkNamespace::kNew;
    *path = one["path"];
    return NetworkNamespace::kPath;
  }
  return NetworkNamespace::kHost;
}

}  // namespace sluice::oci
