// Network namespaces: found by name or path, made, and the private one in which stand-ins live.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "control/os.h"
#include "control/status.h"
#include "dataplane/tap_device.h"

namespace sluice {

// NAME as of `ip netns`, or a path (/proc/PID/ns/net, a bind mount). `name` gets NAME where there is one.
Status OpenNetns(const std::string& name_or_path, UniqueFd* out, std::string* name);
// The processes whose network namespace it is.
std::vector<pid_t> ProcessesIn(const NamespaceId& netns);
// A new, empty network namespace; the calling thread stays in its own.
Status MakeNetns(UniqueFd* out);
// The private namespace of the stand-ins: datagram queues of AF_UNIX are bounded by the sentry's own buffers there, not by the
// kernel's default of 10. `cookie` is its SO_NETNS_COOKIE.
Status MakeStandinNetns(UniqueFd* out, uint64_t* cookie);

// What joins the host and a namespace of our own: a veth pair or, with --link=tap, a TAP device of the host whose frames the
// sentry moves. The namespace then holds the configuration (address, MTU, routes) on a second TAP device, through which no frame
// passes.
struct OwnLink {
  std::string host_name;
  std::string inside_name = "eth0";
  std::string host_address;    // "10.x.y.1"
  std::string inside_address;  // "10.x.y.2"
  int inside_index = 0;
  TapQueues tap;     // of the host's device; empty with a veth pair
  TapQueues holder;  // of the device inside: open, so that it has a carrier
};
enum class OwnLinkKind : uint8_t { kVeth, kTap, kTapWithoutHeader };
// Makes it with a /30 that nothing on the host uses; the device inside stays down so that it can be silenced first. Called in the
// host's namespace. A pair goes with the namespace, a TAP device with its descriptors.
// `queues`: of a TAP device; several are steered by `key`.
Status MakeOwnLink(int netns_fd, OwnLinkKind kind, uint32_t queues, const wire::SteeringKey& key, OwnLink* out);
// In the namespace: sets the device up, adds the default route.
Status StartOwnLink(const OwnLink& link);
// In the namespace: its kernel loopback up (network mode host).
Status SetLinkUp(const std::string& name);

}  // namespace sluice
