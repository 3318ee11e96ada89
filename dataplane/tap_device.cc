#include "dataplane/tap_device.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "xdp/steering.h"

namespace sluice {
namespace {

// Linux 6.2.
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

Errno Fail(std::string* error, const std::string& what, int saved_errno) {
  if (error != nullptr) *error = what + ": " + std::strerror(saved_errno);
  return static_cast<Errno>(saved_errno);
}

Errno OpenQueue(const TapOptions& options, UniqueFd* out, std::string* error) {
  UniqueFd fd(open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!fd)
    return Fail(error, errno == ENOENT ? "/dev/net/tun (the kernel's module tun is missing: modprobe tun)" : "/dev/net/tun",
                errno);
  ifreq request{};
  std::strncpy(request.ifr_name, options.name.c_str(), IFNAMSIZ - 1);
  int flags = IFF_TAP | IFF_NO_PI;
  if (options.vnet_header) flags |= IFF_VNET_HDR;
  // Of several queues only the first makes the device.
  if (options.queues > 1) flags |= IFF_MULTI_QUEUE;
  request.ifr_flags = static_cast<short>(flags);
  if (ioctl(fd.get(), TUNSETIFF, &request) != 0)
    return Fail(error, "the tap device " + options.name + " (needs CAP_NET_ADMIN)", errno);
  *out = std::move(fd);
  return Errno::kOk;
}

// What the kernel may leave for us to do: checksums, and cutting super-segments.
bool AcceptOffloads(int fd, TapFacts* facts) {
  constexpr unsigned kTcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
  facts->udp_gso = ioctl(fd, TUNSETOFFLOAD, kTcp | TUN_F_USO4 | TUN_F_USO6) == 0;
  return facts->udp_gso || ioctl(fd, TUNSETOFFLOAD, kTcp) == 0;
}

// The device keeps the program.
Errno Steer(int fd, const TapOptions& options, std::string* error) {
  UniqueFd program;
  if (Errno e = LoadSteeringProgram(SteeringHook::kTap, *options.steering, &program, error); e != Errno::kOk) return e;
  int value = program.get();
  if (ioctl(fd, TUNSETSTEERINGEBPF, &value) == 0) return Errno::kOk;
  return Fail(error, "TUNSETSTEERINGEBPF (the steering program) on " + options.name, errno);
}

Errno ReadFacts(const TapOptions& options, TapFacts* facts, std::string* error) {
  UniqueFd control(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!control) return Fail(error, "socket", errno);
  ifreq request{};
  std::strncpy(request.ifr_name, options.name.c_str(), IFNAMSIZ - 1);
  if (ioctl(control.get(), SIOCGIFINDEX, &request) != 0) return Fail(error, "index of " + options.name, errno);
  facts->ifindex = request.ifr_ifindex;
  if (ioctl(control.get(), SIOCGIFMTU, &request) != 0) return Fail(error, "MTU of " + options.name, errno);
  facts->mtu = static_cast<uint32_t>(request.ifr_mtu);
  std::strncpy(facts->name, options.name.c_str(), sizeof facts->name - 1);
  facts->vnet_header = options.vnet_header;
  return Errno::kOk;
}

}  // namespace

Errno OpenTap(const TapOptions& options, TapQueues* out, std::string* error) {
  if (options.name.empty() || options.name.size() >= IFNAMSIZ)
    return Fail(error, "tap device name '" + options.name + "'", EINVAL);
  // TUNSETIFF would attach to a persistent tap of somebody else.
  if (if_nametoindex(options.name.c_str()) != 0) return Fail(error, "the tap device " + options.name, EEXIST);
  TapQueues result;
  for (uint32_t i = 0; i < options.queues; ++i) {
    UniqueFd fd;
    if (Errno e = OpenQueue(options, &fd, error); e != Errno::kOk) return e;
    result.fds.push_back(std::move(fd));
  }
  if (result.fds.empty()) return Fail(error, "a tap device without queues", EINVAL);
  if (options.vnet_header && !AcceptOffloads(result.fds[0].get(), &result.facts))
    return Fail(error, "TUNSETOFFLOAD on " + options.name, errno);
  if (options.steering) {
    if (Errno e = Steer(result.fds[0].get(), options, error); e != Errno::kOk) return e;
  }
  if (Errno e = ReadFacts(options, &result.facts, error); e != Errno::kOk) return e;
  *out = std::move(result);
  return Errno::kOk;
}

}  // namespace sluice
