// What the runtime remembers of a container between its commands: a folder per container under kRunDirectory, named by a hash of
// runc's
// --root and the container's id (engines give each of their namespaces a root of its own; socket paths must be short). 0700,
// root's.
#pragma once

#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "control/os.h"
#include "control/status.h"

namespace sluice::oci {

// Where sandboxes of containers are registered, whatever --root says: that is runc's.
inline constexpr char kRunDirectory[] = "/run/sluice";

struct Container {
  std::string id;
  std::string root;        // --root as given, may be empty: runc's default
  NamespaceId netns;       // inode 0: no sandbox serves it (yet)
  std::string netns_path;  // as config.json names it; empty: runc makes it
  pid_t maker = 0;         // the front end that makes, or made it
  std::string bundle;
  std::string log;  // --log of create
  bool log_json = false;
  bool own_pids = true;  // a pid namespace of its own: it ends with its init

  std::string key() const;
  std::string folder() const { return std::string(kRunDirectory) + "/oci/" + key(); }
  std::string listener_path() const { return folder() + "/listener"; }
};

// Makes the folder and holds it until `hold` is closed; `was_there`: it was left by a container, or by a front end that was
// killed. An error in runc's words where another front end is making such a container.
Status HoldFolder(const Container& container, UniqueFd* hold, bool* was_there);
Status SaveContainer(const Container& container);

enum class Kept {
  kNone,  // it was made by runc, in host mode, or not at all
  kReadable,
  kBroken,  // there was one; of `out` only id and root are set
};
Kept LoadContainer(const std::string& root, const std::string& id, Container* out);
void RemoveFolder(const Container& container);
// The ids of all containers begin so? Empty where none does or several do.
bool FindContainer(const std::string& id_prefix, Container* out);
std::vector<Container> ListContainers();
// An AF_UNIX listener at `path`, 0600.
Status ListenAt(const std::string& path, int type, UniqueFd* out);
// Invalid where nobody listens.
UniqueFd ConnectTo(const std::string& path, int type);

}  // namespace sluice::oci
