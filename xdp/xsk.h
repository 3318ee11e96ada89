// AF_XDP sockets in two halves. The privileged half (CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF, in the device's namespace) makes the
// socket, its UMEM and rings, binds it to a device queue and attaches the redirect program. The unprivileged half maps the rings
// and the UMEM from the two descriptors it was given (dataplane/xdp_port.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/errno.h"
#include "base/steering.h"
#include "xdp/engine_flows.h"
#include "xdp/unique_fd.h"

struct xdp_ring_offset;  // linux/if_xdp.h

namespace sluice {

enum class XdpMode : uint8_t {
  kAuto,     // on a veth generic, else native (native switches the peer's TSO off); on other devices native, else generic
  kNative,   // in the driver
  kGeneric,  // on the kernel's packet buffers: any device; super-segments arrive whole by XDP_USE_SG; refused on a veth without
             // it
};

struct XskOptions {
  XdpMode mode = XdpMode::kAuto;
  bool zero_copy = true;      // try it in native mode
  bool scatter = true;        // XDP_USE_SG where known; false as on kernels before 6.6
  uint32_t rx_chunks = 2048;  // ring sizes: powers of two
  uint32_t tx_chunks = 1024;
  const EngineFlowMaps* flows = nullptr;  // these flows go on to the kernel
  // The key by which the program chooses among several sockets of the device's only queue (base/steering.h); needed for those.
  const sluice_steering_key* steering = nullptr;
};

// Plain values, passed on beside the descriptors.
struct XskFacts {
  int32_t ifindex = 0;
  uint32_t queue = 0;
  uint32_t mtu = 1500;
  uint32_t chunk_size = 4096;
  // This socket's part of the UMEM, which all sockets of the device share: rx_chunks for receiving, then tx_chunks for sending.
  uint32_t first_chunk = 0, rx_chunks = 0, tx_chunks = 0;
  uint32_t umem_chunks = 0;                     // of the whole UMEM
  uint32_t fill_size = 0, completion_size = 0;  // of those rings
  // Sockets of this queue. The kernel gives a queue one fill and one completion ring, whoever's chunk it is, so these share them
  // (XdpPort::CreateQueues).
  uint32_t sharers = 1;
  bool native = false;
  bool zero_copy = false;
  bool scatter = false;     // frames of several descriptors, both ways
  bool local_peer = false;  // frames may come from a local sender with partial checksums (veth)
  uint64_t umem_size() const { return uint64_t{chunk_size} * umem_chunks; }
  uint32_t share() const { return first_chunk / (rx_chunks + tx_chunks); }  // which of the device's sockets
  uint64_t part_size() const { return uint64_t{chunk_size} * (rx_chunks + tx_chunks); }
};

struct Xsk {
  UniqueFd fd;    // non-blocking, bound
  UniqueFd umem;  // memfd, the same for all sockets of a device
  XskFacts facts;
};

// The redirect program on a device. It is detached when this object goes or its process dies, whatever way: the link is held by
// descriptor only.
class XdpAttachment {
 public:
  XdpAttachment();
  ~XdpAttachment();
  XdpAttachment(XdpAttachment&&) noexcept;
  XdpAttachment& operator=(XdpAttachment&&) noexcept;

  bool native() const;
  // Frames that came by a queue without a socket, and went on to the kernel: somebody gave the device more queues (ethtool -L).
  uint64_t missed() const;
  // Puts the program back where somebody took it off (bpftool link detach; `ip link set ... xdp off` is refused by the kernel).
  // Without it the sockets hear nothing and are not told. kEBUSY: another program took its place; kENODEV: the device is gone.
  Errno Restore(std::string* error);
  uint64_t restored() const;  // how often that was needed
  int map_fd() const;

 private:
  friend Errno AttachXdp(int ifindex, bool native, uint32_t sharers, const XskOptions& options, XdpAttachment* out,
                         std::string* error);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// kEBUSY: the device has an XDP program of somebody else. `sharers`: sockets of queue 0 that the program chooses among; 1: each
// queue has its own socket.
Errno AttachXdp(int ifindex, bool native, uint32_t sharers, const XskOptions& options, XdpAttachment* out, std::string* error);

struct XdpDeviceFacts {
  bool veth = false;
  uint32_t mtu = 1500;
  uint32_t rx_queues = 1;  // in use
};

// An AF_XDP socket gets the frames of one receive queue of the device. Of `count` sockets, one for each worker:
// - where the device uses one queue, all are bound to it, and the program gives each frame to the socket that our hash names;
// - where it uses `count` queues, each has its own, and which queue a frame comes by is the device's choice: what belongs to
//   another worker is sent home by SteeredPort;
// - otherwise it is refused: frames of a queue without a socket would be lost.
//
// Opens the sockets, attaches the program in the best mode that works and puts the sockets in its map. All share one UMEM.
// On failure nothing is left attached and `error` says which step failed for which mode.
Errno OpenXdpDevice(int ifindex, uint32_t count, const XdpDeviceFacts& device, const XskOptions& options,
                    XdpAttachment* attachment, std::vector<Xsk>* sockets, std::string* error);

// One ring of a socket, mapped. Producer rings (fill, transmit) and consumer rings (receive, completion) use the same layout.
struct XskRing {
  uint32_t* producer = nullptr;
  uint32_t* consumer = nullptr;
  uint32_t* flags = nullptr;
  void* entries = nullptr;
  uint32_t size = 0;

  uint32_t Available() const { return __atomic_load_n(producer, __ATOMIC_ACQUIRE) - __atomic_load_n(consumer, __ATOMIC_RELAXED); }
  uint32_t Room() const {
    return size - (__atomic_load_n(producer, __ATOMIC_RELAXED) - __atomic_load_n(consumer, __ATOMIC_ACQUIRE));
  }
  bool NeedsWakeup() const { return (__atomic_load_n(flags, __ATOMIC_RELAXED) & 1) != 0; }
  template <typename Entry>
  Entry& At(uint32_t index) const {
    return static_cast<Entry*>(entries)[index & (size - 1)];
  }
};

// The unprivileged half's view. Needs no right beyond the descriptors.
class XskMapping {
 public:
  static Errno Map(int fd, int umem, const XskFacts& facts, std::unique_ptr<XskMapping>* out, std::string* error);
  ~XskMapping();
  XskMapping(const XskMapping&) = delete;

  XskRing rx, tx, fill, completion;
  uint8_t* umem = nullptr;

 private:
  XskMapping() = default;
  struct Region {
    void* address;
    size_t size;
  };
  Errno MapRing(int fd, uint64_t page_offset, const xdp_ring_offset& offsets, size_t entry_size, uint32_t size, XskRing* ring);

  std::vector<Region> regions_;
};

}  // namespace sluice
