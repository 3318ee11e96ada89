#include "xdp/xsk.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/if_link.h>
#include <linux/if_xdp.h>
#include <net/if.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#include <cerrno>
#include <cstring>

#include "redirect.skel.h"
#include "xdp/bpf_calls.h"

namespace sluice {
namespace {

#ifndef XDP_USE_SG
constexpr uint16_t XDP_USE_SG = 1 << 4;  // 6.6
#endif

// A socket that was just closed is taken off its queue asynchronously: bind says EBUSY for a moment.
constexpr int kBusyTries = 200;
constexpr long kBusyPauseNs = 5'000'000;

Errno Fail(std::string* error, const std::string& what, Errno e) {
  if (error != nullptr) *error = what + ": " + std::strerror(ToInt(e));
  return e;
}
Errno FailErrno(std::string* error, const std::string& what) { return Fail(error, what, static_cast<Errno>(errno)); }

bool SetSize(int fd, int option, uint32_t size) { return setsockopt(fd, SOL_XDP, option, &size, sizeof size) == 0; }

Errno RegisterUmem(const Xsk& xsk, std::string* error) {
  const uint64_t size = xsk.facts.umem_size();
  if (ftruncate(xsk.umem.get(), static_cast<off_t>(size)) != 0) return FailErrno(error, "sizing the UMEM");
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, xsk.umem.get(), 0);
  if (memory == MAP_FAILED) return FailErrno(error, "mapping the UMEM");
  xdp_umem_reg reg{};
  reg.addr = reinterpret_cast<uintptr_t>(memory);
  reg.len = size;
  reg.chunk_size = xsk.facts.chunk_size;
  const int r = setsockopt(xsk.fd.get(), SOL_XDP, XDP_UMEM_REG, &reg, sizeof reg);
  const int saved = errno;
  munmap(memory, size);  // the kernel holds the pages, the memfd gives them to whoever maps it
  errno = saved;
  if (r != 0) return FailErrno(error, "registering the UMEM (it counts against RLIMIT_MEMLOCK without CAP_IPC_LOCK)");
  return Errno::kOk;
}

Errno MakeSocket(int ifindex, uint32_t queue, uint32_t mtu, const XskOptions& options, Xsk* xsk, std::string* error) {
  xsk->facts = XskFacts{};
  xsk->facts.ifindex = ifindex;
  xsk->facts.queue = queue;
  xsk->facts.mtu = mtu;
  xsk->facts.rx_chunks = options.rx_chunks;
  xsk->facts.tx_chunks = options.tx_chunks;
  xsk->fd = UniqueFd(socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!xsk->fd) return FailErrno(error, "AF_XDP socket (needs CAP_NET_RAW and a kernel with CONFIG_XDP_SOCKETS)");
  xsk->umem = UniqueFd(memfd_create("sluice-umem", MFD_CLOEXEC));
  if (!xsk->umem) return FailErrno(error, "memfd for the UMEM");
  if (Errno e = RegisterUmem(*xsk, error); e != Errno::kOk) return e;
  const int fd = xsk->fd.get();
  if (!SetSize(fd, XDP_UMEM_FILL_RING, options.rx_chunks) || !SetSize(fd, XDP_UMEM_COMPLETION_RING, options.tx_chunks) ||
      !SetSize(fd, XDP_RX_RING, options.rx_chunks) || !SetSize(fd, XDP_TX_RING, options.tx_chunks)) {
    return FailErrno(error, "sizing the rings (powers of two)");
  }
  return Errno::kOk;
}

Errno Bind(const Xsk& xsk, uint16_t flags) {
  sockaddr_xdp address{};
  address.sxdp_family = AF_XDP;
  address.sxdp_flags = flags;
  address.sxdp_ifindex = static_cast<uint32_t>(xsk.facts.ifindex);
  address.sxdp_queue_id = xsk.facts.queue;
  for (int i = 0; i < kBusyTries; ++i) {
    if (bind(xsk.fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return Errno::kOk;
    if (errno != EBUSY) return static_cast<Errno>(errno);
    const timespec pause{0, kBusyPauseNs};
    nanosleep(&pause, nullptr);
  }
  return Errno::kEBUSY;
}

// From the best binding to the plainest; a socket whose bind failed is not used again.
Errno OpenQueue(int ifindex, uint32_t queue, const XdpDeviceFacts& device, bool native, const XskOptions& options, Xsk* out,
                std::string* error) {
  struct Attempt {
    bool zero_copy, scatter;
  };
  Errno last = Errno::kEINVAL;
  for (const Attempt attempt : {Attempt{true, true}, Attempt{true, false}, Attempt{false, true}, Attempt{false, false}}) {
    if (attempt.zero_copy && (!native || !options.zero_copy)) continue;
    if (attempt.scatter && !options.scatter) continue;
    Xsk xsk;
    if (Errno e = MakeSocket(ifindex, queue, device.mtu, options, &xsk, error); e != Errno::kOk) return e;
    const int flags = XDP_USE_NEED_WAKEUP | (attempt.zero_copy ? XDP_ZEROCOPY : XDP_COPY) | (attempt.scatter ? XDP_USE_SG : 0);
    last = Bind(xsk, static_cast<uint16_t>(flags));
    if (last == Errno::kOk) {
      xsk.facts.native = native;
      xsk.facts.zero_copy = attempt.zero_copy;
      xsk.facts.scatter = attempt.scatter;
      xsk.facts.local_peer = device.veth;
      *out = std::move(xsk);
      return last;
    }
    if (last == Errno::kEBUSY || last == Errno::kENODEV || last == Errno::kENETDOWN) break;
  }
  return Fail(error, "binding an AF_XDP socket to queue " + std::to_string(queue), last);
}

Errno OpenInMode(int ifindex, uint32_t queues, const XdpDeviceFacts& device, const XskOptions& options, bool native,
                 XdpAttachment* attachment, std::vector<Xsk>* sockets, std::string* error) {
  XdpAttachment attached;
  if (Errno e = AttachXdp(ifindex, native, options.flows, &attached, error); e != Errno::kOk) return e;
  std::vector<Xsk> opened(queues);
  for (uint32_t queue = 0; queue < queues; ++queue) {
    if (Errno e = OpenQueue(ifindex, queue, device, native, options, &opened[queue], error); e != Errno::kOk) return e;
    if (!native && device.veth && !opened[queue].facts.scatter) {
      return Fail(error, "without XDP_USE_SG (kernel 6.6) generic mode loses the super-segments of a local peer",
                  Errno::kEOPNOTSUPP);
    }
    const auto value = static_cast<uint32_t>(opened[queue].fd.get());
    if (Errno e = bpf::UpdateMap(attached.map_fd(), &queue, &value); e != Errno::kOk) {
      return Fail(error, "putting the socket of queue " + std::to_string(queue) + " in the map", e);
    }
  }
  *attachment = std::move(attached);
  *sockets = std::move(opened);
  return Errno::kOk;
}

}  // namespace

// ---- The program

struct XdpAttachment::Impl {
  ~Impl() {
    link.Reset();
    sluice_redirect_bpf__destroy(programs);
  }
  sluice_redirect_bpf* programs = nullptr;
  UniqueFd link;
  bool native = false;
};

XdpAttachment::XdpAttachment() = default;
XdpAttachment::~XdpAttachment() = default;
XdpAttachment::XdpAttachment(XdpAttachment&&) noexcept = default;
XdpAttachment& XdpAttachment::operator=(XdpAttachment&&) noexcept = default;
bool XdpAttachment::native() const { return impl_ != nullptr && impl_->native; }
uint64_t XdpAttachment::missed() const {
  const uint32_t key = 0;
  uint64_t count = 0;
  if (impl_ != nullptr) (void)bpf_map_lookup_elem(bpf_map__fd(impl_->programs->maps.sluice_missed), &key, &count);
  return count;
}
int XdpAttachment::map_fd() const { return impl_ == nullptr ? -1 : bpf_map__fd(impl_->programs->maps.sluice_xsks); }

Errno AttachXdp(int ifindex, bool native, const EngineFlowMaps* flows, XdpAttachment* out, std::string* error) {
  bpf::QuietLibbpf();
  auto impl = std::make_unique<XdpAttachment::Impl>();
  impl->native = native;
  impl->programs = sluice_redirect_bpf__open();
  if (impl->programs == nullptr) return FailErrno(error, "opening the XDP program");
  const auto& programs = impl->programs->progs;
  bpf_program__set_autoload(flows != nullptr ? programs.sluice_redirect : programs.sluice_redirect_flows, false);
  if (UseEngineFlowMaps(impl->programs->obj, flows) != Errno::kOk || sluice_redirect_bpf__load(impl->programs) != 0)
    return FailErrno(error, "loading the XDP program (needs CAP_BPF and CAP_NET_ADMIN)");
  const int program = bpf_program__fd(flows != nullptr ? programs.sluice_redirect_flows : programs.sluice_redirect);
  const Errno e = bpf::CreateXdpLink(program, ifindex, native ? XDP_FLAGS_DRV_MODE : XDP_FLAGS_SKB_MODE, &impl->link);
  if (e != Errno::kOk) {
    const char* hint =
        e == Errno::kEBUSY ? " (another XDP program is attached: ip link set dev ... xdp off, or --link=packet)" : "";
    return Fail(error, std::string("attaching the XDP program in ") + (native ? "native" : "generic") + " mode" + hint, e);
  }
  out->impl_ = std::move(impl);
  return Errno::kOk;
}

Errno OpenXdpDevice(int ifindex, uint32_t queues, const XdpDeviceFacts& device, const XskOptions& options,
                    XdpAttachment* attachment, std::vector<Xsk>* sockets, std::string* error) {
  if (queues != 1 && queues != device.rx_queues) {
    return Fail(error,
                "an AF_XDP socket serves one receive queue, and the device uses " + std::to_string(device.rx_queues) +
                    ": give it " + std::to_string(queues) + " (ethtool -L), as many workers as it has queues, or --link=packet",
                Errno::kEINVAL);
  }
  std::vector<bool> modes;  // native?
  if (options.mode != XdpMode::kGeneric) modes.push_back(true);
  if (options.mode != XdpMode::kNative) modes.insert(device.veth ? modes.begin() : modes.end(), false);
  std::string all;
  Errno last = Errno::kEINVAL;
  for (const bool native : modes) {
    std::string text;
    last = OpenInMode(ifindex, queues, device, options, native, attachment, sockets, &text);
    if (last == Errno::kOk) return last;
    all += (all.empty() ? "" : "; ") + std::string(native ? "native: " : "generic: ") + text;
  }
  if (error != nullptr) *error = all;
  return last;
}

// ---- The mapping

Errno XskMapping::MapRing(int fd, uint64_t page_offset, const xdp_ring_offset& offsets, size_t entry_size, uint32_t size,
                          XskRing* ring) {
  const size_t bytes = offsets.desc + size * entry_size;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, static_cast<off_t>(page_offset));
  if (memory == MAP_FAILED) return static_cast<Errno>(errno);
  regions_.push_back({memory, bytes});
  auto* base = static_cast<uint8_t*>(memory);
  ring->producer = reinterpret_cast<uint32_t*>(base + offsets.producer);
  ring->consumer = reinterpret_cast<uint32_t*>(base + offsets.consumer);
  ring->flags = reinterpret_cast<uint32_t*>(base + offsets.flags);
  ring->entries = base + offsets.desc;
  ring->size = size;
  return Errno::kOk;
}

Errno XskMapping::Map(int fd, int umem, const XskFacts& facts, std::unique_ptr<XskMapping>* out, std::string* error) {
  xdp_mmap_offsets offsets{};
  socklen_t length = sizeof offsets;
  if (getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &length) != 0) return FailErrno(error, "XDP_MMAP_OFFSETS");
  std::unique_ptr<XskMapping> m(new XskMapping);
  struct Ring {
    uint64_t page_offset;
    const xdp_ring_offset& at;
    size_t entry;
    uint32_t size;
    XskRing* ring;
  };
  const Ring rings[] = {{XDP_PGOFF_RX_RING, offsets.rx, sizeof(xdp_desc), facts.rx_chunks, &m->rx},
                        {XDP_PGOFF_TX_RING, offsets.tx, sizeof(xdp_desc), facts.tx_chunks, &m->tx},
                        {XDP_UMEM_PGOFF_FILL_RING, offsets.fr, sizeof(uint64_t), facts.rx_chunks, &m->fill},
                        {XDP_UMEM_PGOFF_COMPLETION_RING, offsets.cr, sizeof(uint64_t), facts.tx_chunks, &m->completion}};
  for (const Ring& r : rings) {
    if (Errno e = m->MapRing(fd, r.page_offset, r.at, r.entry, r.size, r.ring); e != Errno::kOk)
      return Fail(error, "mapping an AF_XDP ring", e);
  }
  void* memory = mmap(nullptr, facts.umem_size(), PROT_READ | PROT_WRITE, MAP_SHARED, umem, 0);
  if (memory == MAP_FAILED) return FailErrno(error, "mapping the UMEM");
  m->regions_.push_back({memory, facts.umem_size()});
  m->umem = static_cast<uint8_t*>(memory);
  *out = std::move(m);
  return Errno::kOk;
}

XskMapping::~XskMapping() {
  for (const Region& r : regions_) munmap(r.address, r.size);
}

}  // namespace sluice
