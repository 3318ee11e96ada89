#include "control/bench/bench_worker.h"

#include <poll.h>

#include <algorithm>
#include <cstring>

#include "netstack/wire/checksum.h"

namespace sluice {
namespace {

constexpr uint8_t kUdp = 17;
constexpr size_t kHeaders = 14 + 20 + 8;
constexpr size_t kMaxFrameSize = 1514;
constexpr int kTurnsPerLook = 64;  // at the counters of the ports

// A UDP datagram between addresses kept for benchmarks (RFC 2544). Longer than an MTU: a super-segment of segments of 1472 bytes.
Packet MakeFrame(BlockPool& pool, size_t size, uint32_t flow) {
  const bool super = size > kMaxFrameSize;
  const size_t linear = super ? kHeaders : size;
  Packet frame = Packet::Allocate(pool, linear);
  uint8_t* f = frame.Append(linear);
  std::memset(f, 0, linear);
  const uint8_t macs[] = {2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1};
  std::memcpy(f, macs, sizeof macs);
  StoreBe16(f + 12, 0x0800);
  uint8_t* ip = f + 14;
  ip[0] = 0x45;
  StoreBe16(ip + 2, static_cast<uint16_t>(size - 14));
  ip[6] = 0x40;
  ip[8] = 64;
  ip[9] = kUdp;
  const uint8_t addresses[] = {198, 18, 0, 1, 198, 18, 0, 2};
  std::memcpy(ip + 12, addresses, sizeof addresses);
  wire::StoreSum(ip + 10, static_cast<uint16_t>(~wire::OnesSum(Bytes{ip, 20})));
  StoreBe16(ip + 20, static_cast<uint16_t>(1024 + flow));
  StoreBe16(ip + 22, 9);  // discard
  StoreBe16(ip + 24, static_cast<uint16_t>(size - 34));
  if (!super) return frame;  // a UDP checksum of zero: none
  BlockRef payload(pool.Allocate(size - kHeaders));
  std::memset(payload->data, 0, size - kHeaders);
  (void)frame.AddSlice(Slice{payload, 0, static_cast<uint32_t>(size - kHeaders)});
  uint8_t pseudo[12];
  std::memcpy(pseudo, addresses, sizeof addresses);
  StoreBe16(pseudo + 8, kUdp);
  StoreBe16(pseudo + 10, static_cast<uint16_t>(size - 34));
  wire::StoreSum(ip + 26, wire::OnesSum(Bytes{pseudo, sizeof pseudo}));
  frame.offload = {.gso = GsoType::kUdp,
                   .checksum = ChecksumState::kPartial,
                   .gso_size = 1472,
                   .hdr_len = kHeaders,
                   .csum_start = 34,
                   .csum_offset = 6};
  return frame;
}

// Swaps what says where a frame goes; checksums stay right.
void TurnRound(Packet& frame) {
  uint8_t* f = frame.data();
  std::swap_ranges(f, f + 6, f + 6);
  if (frame.linear_size() < 34 || f[12] != 8 || f[13] != 0 || (f[14] >> 4) != 4) return;
  std::swap_ranges(f + 26, f + 30, f + 30);
  const size_t transport = 14 + (f[14] & 15) * size_t{4};
  const bool ports = f[23] == 6 || f[23] == kUdp;
  if (ports && frame.linear_size() >= transport + 4 && (LoadBe16(f + 20) & 0x1fff) == 0)
    std::swap_ranges(f + transport, f + transport + 2, f + transport + 2);
}

}  // namespace

BenchCount& BenchCount::operator+=(const BenchCount& o) {
  rx_frames += o.rx_frames;
  rx_bytes += o.rx_bytes;
  tx_frames += o.tx_frames;
  tx_bytes += o.tx_bytes;
  dropped += o.dropped;
  bursts += o.bursts;
  return *this;
}

void BenchWorker::Run(const std::atomic<bool>& stop) {
  stop_ = &stop;
  for (uint32_t flow = 0; options_.mode == BenchMode::kTx && flow < options_.flows; ++flow)
    models_.push_back(MakeFrame(pool_, options_.size, flow));
  while (!stop && !dead_) {
    for (int i = 0; i < kTurnsPerLook && !stop && !dead_; ++i) Turn();
    Publish();
  }
  Publish();
}

void BenchWorker::Publish() {
  BenchCount c{.dropped = dropped_, .bursts = bursts_};
  for (const auto& p : ports_) {
    const PortStats s = p->stats();
    c += {s.rx_frames, s.rx_bytes, s.tx_frames, s.tx_bytes, s.rx_dropped + s.tx_dropped, 0};
  }
  constexpr auto kRelaxed = std::memory_order_relaxed;
  shown_.rx_frames.store(c.rx_frames, kRelaxed);
  shown_.rx_bytes.store(c.rx_bytes, kRelaxed);
  shown_.tx_frames.store(c.tx_frames, kRelaxed);
  shown_.tx_bytes.store(c.tx_bytes, kRelaxed);
  shown_.dropped.store(c.dropped, kRelaxed);
  shown_.bursts.store(c.bursts, kRelaxed);
}

BenchCount BenchWorker::count() const {
  return {shown_.rx_frames, shown_.rx_bytes, shown_.tx_frames, shown_.tx_bytes, shown_.dropped, shown_.bursts};
}

void BenchWorker::Turn() {
  bool busy = false;
  for (size_t i = 0; i < ports_.size(); ++i) busy |= options_.mode == BenchMode::kTx ? SendBurst(*ports_[i]) : PassBurst(i);
  for (const auto& p : ports_) {
    if (p->dead()) dead_ = true;
  }
  if (busy)
    idle_turns_ = 0;
  else
    Idle();
}

bool BenchWorker::SendBurst(Port& port) {
  size_t made = 0;
  for (; made < kBurst; ++made) {
    burst_[made] = models_[next_model_].Clone(pool_);
    next_model_ = next_model_ + 1 == models_.size() ? 0 : next_model_ + 1;
  }
  size_t sent = 0;
  while (sent < made && !stop_->load(std::memory_order_relaxed) && !port.dead()) {
    const size_t n = port.Transmit(std::span(burst_).subspan(sent, made - sent));
    sent += n;
    if (n == 0) WaitForRoom(port);
  }
  for (Packet& p : burst_) p = Packet();
  ++bursts_;
  return true;
}

void BenchWorker::WaitForRoom(Port& port) {
  pollfd p{port.tx_wait_fd(), POLLOUT, 0};
  if (p.fd >= 0) poll(&p, 1, 10);
}

bool BenchWorker::PassBurst(size_t i) {
  Port& from = *ports_[i];
  if (from.tx_pending()) from.Transmit({});
  const size_t n = from.Receive(burst_);
  if (n == 0) return false;
  ++bursts_;
  auto frames = std::span(burst_).first(n);
  if (options_.mode != BenchMode::kRx) Forward(frames, i);
  for (Packet& p : frames) p = Packet();
  return true;
}

// What the device does not take at once is dropped, as a switch would.
void BenchWorker::Forward(std::span<Packet> frames, size_t from) {
  Port& to = *ports_[options_.mode == BenchMode::kL2Forward ? (from + 1) % ports_.size() : from];
  for (Packet& p : frames) {
    if (p.offload.checksum == ChecksumState::kVerified) p.offload.checksum = ChecksumState::kNone;  // it is complete
    if (options_.mode == BenchMode::kEcho) TurnRound(p);
  }
  const size_t sent = to.Transmit(frames);
  dropped_ += frames.size() - sent;
}

void BenchWorker::Idle() {
  constexpr uint32_t kSpins = 1000;
  if (flags_.poll == PollMode::kBusy || (flags_.poll == PollMode::kAdaptive && ++idle_turns_ < kSpins)) return;
  std::vector<pollfd> fds;
  for (const auto& p : ports_) {
    if (!p->ArmWakeup() || p->tx_pending()) return;
    for (const int fd : p->wait_fds()) fds.push_back({fd, POLLIN, 0});
  }
  poll(fds.data(), fds.size(), 100);
}

}  // namespace sluice
