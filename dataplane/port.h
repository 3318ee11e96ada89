// A Port moves bursts of Ethernet frames between a device queue and a worker. It is a Link for the stack's output; the worker
// polls it for input. One thread: the worker's.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dataplane/qdisc.h"
#include "netstack/link/link.h"

namespace sluice {

// What went wrong at a port and was got over.
struct PortFaults {
  uint64_t rx_ring_full = 0;    // frames lost because the worker did not come in time: the ring or the socket's queue was full
  uint64_t rx_no_buffer = 0;    // times the kernel found no chunk to receive into (AF_XDP's fill ring was empty)
  uint64_t rx_no_memory = 0;    // frames lost because memory of packets is at its bound
  uint64_t tx_no_buffer = 0;    // times a frame found neither chunk nor room in the device's queue, and waited
  uint64_t rx_beside_ring = 0;  // frames that came by the socket beside an AF_XDP ring (XdpPort::HearBeside)
};

// They by the names of stats and metrics.
struct PortFault {
  std::string_view name, help;
  uint64_t PortFaults::* count;
};
inline constexpr PortFault kPortFaults[] = {
    {"rx_ring_full", "frames lost because the worker did not come in time", &PortFaults::rx_ring_full},
    {"rx_no_buffer", "times the kernel had no buffer to receive into", &PortFaults::rx_no_buffer},
    {"rx_no_memory", "frames lost because memory of packets is at its bound", &PortFaults::rx_no_memory},
    {"tx_no_buffer", "times a frame waited for a buffer of the device", &PortFaults::tx_no_buffer},
    {"rx_beside_ring", "frames that came beside AF_XDP: by a queue without a socket, or while its program was off",
     &PortFaults::rx_beside_ring},
};

struct PortStats {
  uint64_t rx_frames = 0, rx_bytes = 0,
           rx_dropped = 0;  // rx_dropped: by the kernel before us (socket queue full) or malformed metadata
  uint64_t tx_frames = 0, tx_bytes = 0, tx_dropped = 0;  // tx_dropped: refused by the device for good
  uint64_t rx_syscalls = 0, tx_syscalls = 0;
  uint64_t software_gso_frames = 0;  // frames cut here
};

// Middlewares (pcap, impairment) wrap a Port and are Ports.
class Port : public Link {
 public:
  virtual IfIndex ifindex() const = 0;
  virtual std::string_view kind() const = 0;  // "packet", "xdp", "pipe" ...
  // Fills the front of `out`, returns how many. Offload, ifindex, link_type and VLAN are set; Packet::received is the caller's.
  virtual size_t Receive(std::span<Packet> out) = 0;
  // Descriptors that become readable when frames wait (for sleeping). Empty: nothing to wait for, poll only.
  virtual std::vector<int> wait_fds() const = 0;
  // Called before sleeping: false where frames came meanwhile, so that the worker polls again (need-wakeup rings).
  virtual bool ArmWakeup() { return true; }
  // Where Transmit took less than all: the descriptor whose writability says that it takes more (-1: try again at the next turn).
  virtual int tx_wait_fd() const { return -1; }
  // Frames that Transmit took are still here (cut into segments that the device had no room for): call Transmit with an empty
  // burst when it takes more.
  virtual bool tx_pending() const { return false; }
  // A queueing discipline holds frames until then: call Transmit with an empty burst. Instant::Max(): none.
  virtual Instant transmit_at() const { return Instant::Max(); }
  // Of the discipline before the device; nullopt: frames wait in the stack's queue, or not at all (LinkFeatures::queues).
  virtual std::optional<QdiscStats> qdisc() const { return std::nullopt; }
  // Receive costs no system call, so it is polled every turn; otherwise only when a descriptor of wait_fds() is readable.
  virtual bool polled() const { return false; }
  // True where the device vanished or the port was detached by someone else; frames neither come nor go any more.
  virtual bool dead() const { return false; }
  virtual PortStats stats() const = 0;
  virtual PortFaults faults() const { return {}; }
  virtual std::vector<std::string> describe() const { return {}; }  // "key=value" lines for `sluice stats`
};

}  // namespace sluice
