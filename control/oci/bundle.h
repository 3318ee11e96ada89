// A bundle's config.json, edited as JSON so that members we do not know survive, and put back when runc has read it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "control/status.h"

namespace sluice::oci {

enum class NetworkNamespace { kNew, kPath, kHost };

class Bundle {
 public:
  // Reads DIRECTORY/config.json; what an earlier run that was killed left is put back first.
  Status Read(const std::string& directory);
  // Replaces it atomically by config(); the original is kept beside it until Restore.
  Status Write();
  void Restore();

  nlohmann::json& config() { return config_; }
  NetworkNamespace network(std::string* path) const;
  bool own_pids() const { return HasNamespace("pid"); }

 private:
  bool HasNamespace(const char* type) const;
  nlohmann::json Namespaces() const;
  std::string path() const { return directory_ + "/config.json"; }
  std::string kept() const { return directory_ + "/config.json.before-sluice"; }

  std::string directory_;
  nlohmann::json config_;
};

}  // namespace sluice::oci
