#include "xdp/xsk.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/if_xdp.h>
#include <net/if.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#include <bit>
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

// A socket with its rings. `first`: the device's first, which makes the UMEM that the others share.
Errno MakeSocket(const XskFacts& facts, const Xsk* first, Xsk* xsk, std::string* error) {
  xsk->facts = facts;
  xsk->fd = UniqueFd(socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!xsk->fd) return FailErrno(error, "AF_XDP socket (needs CAP_NET_RAW and a kernel with CONFIG_XDP_SOCKETS)");
  const int memory = first == nullptr ? memfd_create("sluice-umem", MFD_CLOEXEC) : fcntl(first->umem.get(), F_DUPFD_CLOEXEC, 0);
  xsk->umem = UniqueFd(memory);
  if (!xsk->umem) return FailErrno(error, "memfd for the UMEM");
  if (first == nullptr) {
    if (Errno e = RegisterUmem(*xsk, error); e != Errno::kOk) return e;
  }
  const int fd = xsk->fd.get();
  const bool first_of_queue = first == nullptr || facts.sharers == 1;
  if ((first_of_queue &&
       (!SetSize(fd, XDP_UMEM_FILL_RING, facts.fill_size) || !SetSize(fd, XDP_UMEM_COMPLETION_RING, facts.completion_size))) ||
      !SetSize(fd, XDP_RX_RING, facts.rx_chunks) || !SetSize(fd, XDP_TX_RING, facts.tx_chunks)) {
    return FailErrno(error, "sizing the rings (powers of two)");
  }
  return Errno::kOk;
}

// `umem`: the socket whose UMEM is shared, or -1. The flags are that one's then.
Errno Bind(const Xsk& xsk, int flags, int umem) {
  sockaddr_xdp address{};
  address.sxdp_family = AF_XDP;
  address.sxdp_flags = static_cast<uint16_t>(umem >= 0 ? XDP_SHARED_UMEM : flags);
  address.sxdp_shared_umem_fd = umem >= 0 ? static_cast<uint32_t>(umem) : 0;
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

struct Binding {
  bool zero_copy, scatter;
  int flags() const { return XDP_USE_NEED_WAKEUP | (zero_copy ? XDP_ZEROCOPY : XDP_COPY) | (scatter ? XDP_USE_SG : 0); }
};

// `facts`: of the first socket.
Errno OpenSockets(uint32_t count, const XskFacts& facts, const Binding& binding, std::vector<Xsk>* out, std::string* error) {
  std::vector<Xsk> opened(count);
  for (uint32_t i = 0; i < count; ++i) {
    XskFacts own = facts;
    own.first_chunk = i * (facts.rx_chunks + facts.tx_chunks);
    own.queue = facts.sharers == 1 ? i : 0;
    if (Errno e = MakeSocket(own, i == 0 ? nullptr : opened.data(), &opened[i], error); e != Errno::kOk) return e;
    const Errno e = Bind(opened[i], binding.flags(), i == 0 ? -1 : opened[0].fd.get());
    if (e != Errno::kOk) return Fail(error, "binding an AF_XDP socket to queue " + std::to_string(own.queue), e);
  }
  *out = std::move(opened);
  return Errno::kOk;
}

// From the best binding to the plainest; a socket whose bind failed is not used again.
Errno OpenBest(uint32_t count, XskFacts facts, const XskOptions& options, std::vector<Xsk>* out, std::string* error) {
  Errno last = Errno::kEINVAL;
  for (const Binding binding : {Binding{true, true}, Binding{true, false}, Binding{false, true}, Binding{false, false}}) {
    if (binding.zero_copy && (!facts.native || !options.zero_copy)) continue;
    if (binding.scatter && !options.scatter) continue;
    facts.zero_copy = binding.zero_copy;
    facts.scatter = binding.scatter;
    last = OpenSockets(count, facts, binding, out, error);
    if (last == Errno::kOk || last == Errno::kEBUSY || last == Errno::kENODEV || last == Errno::kENETDOWN) break;
  }
  return last;
}

Errno OpenInMode(int ifindex, uint32_t count, const XdpDeviceFacts& device, const XskOptions& options, bool native,
                 XdpAttachment* attachment, std::vector<Xsk>* sockets, std::string* error) {
  XskFacts facts;
  facts.ifindex = ifindex;
  facts.mtu = device.mtu;
  facts.rx_chunks = options.rx_chunks;
  facts.tx_chunks = options.tx_chunks;
  facts.umem_chunks = count * (options.rx_chunks + options.tx_chunks);
  facts.sharers = device.rx_queues == 1 ? count : 1;
  facts.fill_size = std::bit_ceil(facts.sharers * options.rx_chunks);
  facts.completion_size = std::bit_ceil(facts.sharers * options.tx_chunks);
  facts.native = native;
  facts.local_peer = device.veth;
  XdpAttachment attached;
  if (Errno e = AttachXdp(ifindex, native, facts.sharers, options, &attached, error); e != Errno::kOk) return e;
  std::vector<Xsk> opened;
  if (Errno e = OpenBest(count, facts, options, &opened, error); e != Errno::kOk) return e;
  if (!native && device.veth && !opened[0].facts.scatter) {
    return Fail(error, "without XDP_USE_SG (kernel 6.6) generic mode loses the super-segments of a local peer",
                Errno::kEOPNOTSUPP);
  }
  for (uint32_t i = 0; i < count; ++i) {
    const auto value = static_cast<uint32_t>(opened[i].fd.get());
    if (Errno e = bpf::UpdateMap(attached.map_fd(), &i, &value); e != Errno::kOk)
      return Fail(error, "putting socket " + std::to_string(i) + " in the map", e);
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
  Errno Attach() { return bpf::CreateXdpLink(program, ifindex, native ? XDP_FLAGS_DRV_MODE : XDP_FLAGS_SKB_MODE, &link); }
  sluice_redirect_bpf* programs = nullptr;
  int program = -1;  // of `programs`
  int ifindex = 0;
  UniqueFd link;
  bool native = false;
  uint64_t restored = 0;
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
uint64_t XdpAttachment::restored() const { return impl_ == nullptr ? 0 : impl_->restored; }

Errno XdpAttachment::Restore(std::string* error) {
  if (impl_ == nullptr) return Errno::kENOENT;
  bpf_link_info info{};
  uint32_t size = sizeof info;
  if (impl_->link && bpf_obj_get_info_by_fd(impl_->link.get(), &info, &size) == 0 && info.xdp.ifindex != 0) return Errno::kOk;
  if (Errno e = impl_->Attach(); e != Errno::kOk) {
    char name[IF_NAMESIZE];
    const bool gone = if_indextoname(static_cast<unsigned>(impl_->ifindex), name) == nullptr;
    return Fail(error, "attaching the XDP program again", gone ? Errno::kENODEV : e);
  }
  ++impl_->restored;
  return Errno::kOk;
}

Errno AttachXdp(int ifindex, bool native, uint32_t sharers, const XskOptions& options, XdpAttachment* out, std::string* error) {
  bpf::QuietLibbpf();
  if (sharers > 1 && options.steering == nullptr)
    return Fail(error, "several sockets of one queue need a steering key", Errno::kEINVAL);
  auto impl = std::make_unique<XdpAttachment::Impl>();
  impl->native = native;
  impl->ifindex = ifindex;
  impl->programs = sluice_redirect_bpf__open();
  if (impl->programs == nullptr) return FailErrno(error, "opening the XDP program");
  impl->programs->rodata->sluice_sharers = sharers;
  if (sharers > 1) std::memcpy(&impl->programs->rodata->sluice_key, options.steering, sizeof *options.steering);
  const auto& programs = impl->programs->progs;
  const EngineFlowMaps* flows = options.flows;
  bpf_program__set_autoload(flows != nullptr ? programs.sluice_redirect : programs.sluice_redirect_flows, false);
  if (UseEngineFlowMaps(impl->programs->obj, flows) != Errno::kOk || sluice_redirect_bpf__load(impl->programs) != 0)
    return FailErrno(error, "loading the XDP program (needs CAP_BPF and CAP_NET_ADMIN)");
  impl->program = bpf_program__fd(flows != nullptr ? programs.sluice_redirect_flows : programs.sluice_redirect);
  if (const Errno e = impl->Attach(); e != Errno::kOk) {
    const char* hint =
        e == Errno::kEBUSY ? " (another XDP program is attached: ip link set dev ... xdp off, or --link=packet)" : "";
    return Fail(error, std::string("attaching the XDP program in ") + (native ? "native" : "generic") + " mode" + hint, e);
  }
  out->impl_ = std::move(impl);
  return Errno::kOk;
}

Errno OpenXdpDevice(int ifindex, uint32_t count, const XdpDeviceFacts& device, const XskOptions& options,
                    XdpAttachment* attachment, std::vector<Xsk>* sockets, std::string* error) {
  // One socket on a device of several queues hears one of them: the caller's choice, and the others are counted (missed).
  if (count != 1 && device.rx_queues != 1 && count != device.rx_queues) {
    return Fail(error,
                "an AF_XDP socket serves one receive queue, and the device uses " + std::to_string(device.rx_queues) +
                    ": give it one or " + std::to_string(count) +
                    " (ethtool -L), as many workers as it has queues, or --link=packet",
                Errno::kEINVAL);
  }
  std::vector<bool> modes;  // native?
  if (options.mode != XdpMode::kGeneric) modes.push_back(true);
  if (options.mode != XdpMode::kNative) modes.insert(device.veth ? modes.begin() : modes.end(), false);
  std::string all;
  Errno last = Errno::kEINVAL;
  for (const bool native : modes) {
    std::string text;
    last = OpenInMode(ifindex, count, device, options, native, attachment, sockets, &text);
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
                        {XDP_UMEM_PGOFF_FILL_RING, offsets.fr, sizeof(uint64_t), facts.fill_size, &m->fill},
                        {XDP_UMEM_PGOFF_COMPLETION_RING, offsets.cr, sizeof(uint64_t), facts.completion_size, &m->completion}};
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
