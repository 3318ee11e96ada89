// The privileged half of the packet port: makes the AF_PACKET socket that an unprivileged PacketPort then uses.
// Needs CAP_NET_RAW and CAP_NET_ADMIN (buffers, mark) over the namespace of the calling thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/errno.h"
#include "dataplane/device_facts.h"
#include "netstack/wire/steering.h"
#include "xdp/unique_fd.h"

namespace sluice {

struct PacketSocketOptions {
  bool vnet_header = true;       // false: --gso=false; no offload metadata passes the socket
  uint32_t mark = 0;             // SO_MARK of what is sent; the egress silencing program lets it out
  int receive_buffer = 8 << 20;  // bytes as SO_RCVBUF takes them (the kernel doubles it)
  int send_buffer = 4 << 20;
  int filter = -1;  // a BPF program (descriptor) that says which frames are received; stays, whoever holds the socket
};

// Plain values: they are passed to the process that uses the socket beside the descriptor.
struct PacketSocketFacts {
  IfIndex ifindex = 0;
  uint32_t mtu = 1500;
  uint32_t gso_max_size = 65536;     // of the device; the kernel segments what is above it in software
  bool vnet_header = false;          // what was reached
  bool vnet_header_refused = false;  // wanted, and the kernel has none for this socket
  bool device_tso = false;           // the device cuts segments itself: whole frames pass a veth
  int receive_buffer = 0;            // what was reached, as getsockopt gives it
  int send_buffer = 0;
};

struct PacketSocket {
  UniqueFd fd;  // non-blocking, close-on-exec, bound
  PacketSocketFacts facts;
};

// On failure `error` says what was tried and what to do about it.
Errno OpenPacketSocket(IfIndex ifindex, const PacketSocketOptions& options, PacketSocket* out, std::string* error);

// `queues` sockets of one device, one per worker: a received frame, super-segments included, comes to one of them, as
// wire::SteeringHash of it says (PACKET_FANOUT_EBPF; needs CAP_BPF). They see nothing before all are joined. While the device
// goes down and up again the kernel leaves the group and joins it socket by socket, so that frames may come to another one:
// SteeredPort (steered_port.h) sends those home.
Errno OpenPacketQueues(IfIndex ifindex, const PacketSocketOptions& options, uint32_t queues, const wire::SteeringKey& key,
                       std::vector<PacketSocket>* out, std::string* error);

}  // namespace sluice
