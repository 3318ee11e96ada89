// The front end's side of a sandbox's admin socket (run/admin_protocol.h). Commands about running sandboxes stand on it. The
// sentry may have been taken over: everything that it says is checked or cleaned before it is shown.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/unique_fd.h"
#include "control/flags.h"
#include "control/os.h"
#include "control/status.h"

namespace sluice {

// The namespace that a command's target means: --netns, a container's id or the beginning of it, a name of ip netns, the guard's
// process id, or that of any process inside.
Status FindSandbox(const CommandLine& line, NamespaceId* out);

// Does not wait; invalid where nobody is there or too many are.
UniqueFd ConnectAdmin(const Flags& flags, const NamespaceId& id);

class AdminClient {
 public:
  // To the sandbox that the command line names.
  Status Connect(const CommandLine& line);
  // To the sandbox of a namespace; `who` begins the line of an error.
  Status Connect(const Flags& flags, const NamespaceId& id, const std::string& who);
  // One request per connection. `request`: a word, and options behind a space. An error where the sandbox refuses.
  Status Ask(const std::string& request, nlohmann::json* answer);

  // For what follows the answer: the connection, and what was read of it already.
  int fd() const { return fd_.get(); }
  std::string& rest() { return rest_; }

 private:
  UniqueFd fd_;
  std::string who_, rest_;
};

// A value as text, without control characters.
std::string Plain(const nlohmann::json& value);
std::string Clean(std::string text);

}  // namespace sluice
