// A bundle's config.json, edited as JSON so that members we do not know survive, and put back when runc has read it.
#pragma once

#include <sys/types.h>

#include <nlohmann/json.hpp>
#include <string>

#include "base/unique_fd.h"
#include "control/status.h"

namespace sluice::oci {

enum class NetworkNamespace { kNew, kPath, kHost };

// What the config says of the container's network namespace; `path`: for kPath.
NetworkNamespace NetworkOf(const nlohmann::json& config, std::string* path);
bool HasOwnPids(const nlohmann::json& config);
// A container of a Kubernetes pod, as containerd marks it: its sandbox (which opens the network) or one that joins it.
bool IsOfPod(const nlohmann::json& config);

class Bundle {
 public:
  // Reads DIRECTORY/config.json; what an earlier run that was killed left is put back first. From here to Restore (or the end of
  // this process) no other of ours edits the bundle: it waits.
  Status Read(const std::string& directory);
  // Replaces it atomically by config(); the original is kept beside it until Restore. Refuses where it is not what was read.
  Status Write();
  // Puts the original back, unless somebody else has replaced ours meanwhile. May be called twice.
  void Restore();
  // After a front end that was killed: puts back what it left, where nobody works on the bundle now.
  static void Recover(const std::string& directory);

  nlohmann::json& config() { return config_; }

 private:
  struct Identity {
    uint64_t device = 0, inode = 0;
    int64_t size = 0, seconds = 0, nanoseconds = 0;
    bool operator==(const Identity&) const = default;
  };
  static bool Identify(const std::string& path, Identity* out);

  Status Lock(int flags);
  void PutBack();
  std::string path() const { return directory_ + "/config.json"; }
  std::string kept() const { return directory_ + "/config.json.before-sluice"; }
  std::string fresh() const { return directory_ + "/config.json.sluice-new"; }

  std::string directory_;
  UniqueFd lock_;
  Identity read_, written_;
  nlohmann::json config_;
};

}  // namespace sluice::oci
