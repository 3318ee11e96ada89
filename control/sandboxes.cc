#include "control/sandboxes.h"

#include "control/oci/container.h"

namespace sluice {

std::string RunningSandbox::name() const {
  if (!registration.netns_name.empty()) return registration.netns_name;
  std::string out;
  for (const std::string& id : containers) out += (out.empty() ? "" : ",") + id.substr(0, 12);
  return out.empty() ? std::to_string(registration.guard_pid) : out;
}

std::vector<RunningSandbox> ListSandboxes(const Flags& flags) {
  const std::vector<oci::Container> containers = oci::ListContainers();
  std::vector<RunningSandbox> out;
  for (Registration& r : ListRegistrations(flags)) {
    RunningSandbox one{std::move(r), {}};
    for (const oci::Container& c : containers) {
      if (c.netns == one.registration.id) one.containers.push_back(c.id);
    }
    out.push_back(std::move(one));
  }
  return out;
}

}  // namespace sluice
