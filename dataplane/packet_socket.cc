#include "dataplane/packet_socket.h"

#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "xdp/steering.h"

namespace sluice {
namespace {

#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif
#ifndef PACKET_FANOUT_FLAG_IGNORE_OUTGOING
#define PACKET_FANOUT_FLAG_IGNORE_OUTGOING 0x4000
#endif

Errno Fail(std::string* error, const std::string& what, int saved_errno) {
  if (error != nullptr) *error = what + ": " + std::strerror(saved_errno);
  return static_cast<Errno>(saved_errno);
}

bool SetInt(int fd, int level, int option, int value) { return setsockopt(fd, level, option, &value, sizeof value) == 0; }

int GetInt(int fd, int level, int option) {
  int value = 0;
  socklen_t len = sizeof value;
  if (getsockopt(fd, level, option, &value, &len) != 0) return 0;
  return value;
}

// The forced form passes net.core.*mem_max; without CAP_NET_ADMIN the plain form gives what the limit allows.
void SetBuffer(int fd, int forced, int plain, int bytes) {
  if (!SetInt(fd, SOL_SOCKET, forced, bytes)) SetInt(fd, SOL_SOCKET, plain, bytes);
}

Errno ReadEthernetFacts(IfIndex ifindex, DeviceFacts* device, std::string* error) {
  if (Errno e = ReadDeviceFacts(ifindex, device, error); e != Errno::kOk) return e;
  if (device->arp_type == 1) return Errno::kOk;
  return Fail(error, "device " + device->name + " carries no Ethernet frames (type " + std::to_string(device->arp_type) + ")",
              EOPNOTSUPP);
}

// Not bound yet: it receives nothing.
Errno MakeSocket(const DeviceFacts& device, const PacketSocketOptions& options, PacketSocket* out, std::string* error) {
  // Protocol 0: nothing is queued before bind names device and protocol together.
  out->fd = UniqueFd(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int fd = out->fd.get();
  if (fd < 0) return Fail(error, "AF_PACKET socket (needs CAP_NET_RAW)", errno);
  PacketSocketFacts& facts = out->facts;
  facts.ifindex = device.ifindex;
  facts.mtu = device.mtu;
  facts.gso_max_size = device.gso_max_size;
  facts.device_tso = device.tso;
  if (options.vnet_header) {
    facts.vnet_header = SetInt(fd, SOL_PACKET, PACKET_VNET_HDR, 1);
    facts.vnet_header_refused = !facts.vnet_header;
  }
  // Before 4.20 there is no such option: the port then drops frames of type PACKET_OUTGOING itself.
  SetInt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
  if (!SetInt(fd, SOL_PACKET, PACKET_AUXDATA, 1)) return Fail(error, "PACKET_AUXDATA on " + device.name, errno);
  if (options.mark != 0 && !SetInt(fd, SOL_SOCKET, SO_MARK, static_cast<int>(options.mark))) {
    return Fail(error, "SO_MARK on the socket of " + device.name + " (needs CAP_NET_ADMIN)", errno);
  }
  SetBuffer(fd, SO_RCVBUFFORCE, SO_RCVBUF, options.receive_buffer);
  SetBuffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, options.send_buffer);
  facts.receive_buffer = GetInt(fd, SOL_SOCKET, SO_RCVBUF);
  facts.send_buffer = GetInt(fd, SOL_SOCKET, SO_SNDBUF);
  return Errno::kOk;
}

Errno BindTo(const DeviceFacts& device, int fd, std::string* error) {
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_ALL);
  address.sll_ifindex = device.ifindex;
  if (bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return Errno::kOk;
  return Fail(error, "bind of the packet socket to " + device.name, errno);
}

// In the place of what filter there is; it stays, whoever gets the socket.
bool LockFilter(int fd, int program) {
  return SetInt(fd, SOL_SOCKET, SO_ATTACH_BPF, program) && SetInt(fd, SOL_SOCKET, SO_LOCK_FILTER, 1);
}

// A filter that takes nothing.
bool Silence(int fd) {
  sock_filter nothing[] = {{BPF_RET | BPF_K, 0, 0, 0}};
  const sock_fprog program{1, nothing};
  return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0;
}

// The first socket finds a number that no group has.
bool JoinGroup(int fd, bool first, uint16_t* group) {
  const unsigned unique = first ? PACKET_FANOUT_FLAG_UNIQUEID : 0;
  const auto join = [&](unsigned flags) {
    return SetInt(fd, SOL_PACKET, PACKET_FANOUT, static_cast<int>(*group | (PACKET_FANOUT_EBPF | flags | unique) << 16));
  };
  // In a group the option of the socket does not count. Before 5.17 there is no such flag: the port drops what we sent itself.
  if (!join(PACKET_FANOUT_FLAG_IGNORE_OUTGOING) && !join(0)) return false;
  *group = static_cast<uint16_t>(GetInt(fd, SOL_PACKET, PACKET_FANOUT));
  return true;
}

}  // namespace

Errno OpenPacketSocket(IfIndex ifindex, const PacketSocketOptions& options, PacketSocket* out, std::string* error) {
  DeviceFacts device;
  if (Errno e = ReadEthernetFacts(ifindex, &device, error); e != Errno::kOk) return e;
  PacketSocket result;
  if (Errno e = MakeSocket(device, options, &result, error); e != Errno::kOk) return e;
  if (options.filter >= 0 && !LockFilter(result.fd.get(), options.filter))
    return Fail(error, "SO_ATTACH_BPF on the socket of " + device.name, errno);
  if (Errno e = BindTo(device, result.fd.get(), error); e != Errno::kOk) return e;
  *out = std::move(result);
  return Errno::kOk;
}

Errno OpenPacketQueues(IfIndex ifindex, const PacketSocketOptions& options, uint32_t queues, const wire::SteeringKey& key,
                       std::vector<PacketSocket>* out, std::string* error) {
  DeviceFacts device;
  if (Errno e = ReadEthernetFacts(ifindex, &device, error); e != Errno::kOk) return e;
  UniqueFd program;
  if (Errno e = LoadSteeringProgram(SteeringHook::kFanout, key, &program, error); e != Errno::kOk) return e;
  std::vector<PacketSocket> result(queues);
  uint16_t group = 0;
  for (PacketSocket& socket : result) {
    if (Errno e = MakeSocket(device, options, &socket, error); e != Errno::kOk) return e;
    const int fd = socket.fd.get();
    // Between bind and joining a socket would get every frame.
    if (!Silence(fd)) return Fail(error, "SO_ATTACH_FILTER on the socket of " + device.name, errno);
    if (Errno e = BindTo(device, fd, error); e != Errno::kOk) return e;
    const bool first = &socket == &result.front();
    if (!JoinGroup(fd, first, &group)) return Fail(error, "PACKET_FANOUT on " + device.name, errno);
    if (first && !SetInt(fd, SOL_PACKET, PACKET_FANOUT_DATA, program.get()))
      return Fail(error, "PACKET_FANOUT_DATA (the steering program) on " + device.name, errno);
  }
  for (const PacketSocket& socket : result) {
    const int fd = socket.fd.get();
    const bool opened = options.filter >= 0 ? LockFilter(fd, options.filter) : SetInt(fd, SOL_SOCKET, SO_DETACH_FILTER, 0);
    if (!opened) return Fail(error, "the filter of the socket of " + device.name, errno);
  }
  *out = std::move(result);
  return Errno::kOk;
}

}  // namespace sluice
