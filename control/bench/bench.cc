#include "control/bench/bench.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "control/bench/bench_ports.h"
#include "control/log.h"
#include "control/namespaces.h"
#include "control/os.h"
#include "netstack/wire/checksum.h"

namespace sluice {
namespace {

constexpr size_t kBurst = 32;
constexpr size_t kMemory = size_t{256} << 20;
constexpr uint8_t kUdp = 17;
constexpr size_t kHeaders = 14 + 20 + 8;
constexpr size_t kMaxFrameSize = 1514, kMaxSuperSize = 65000;

volatile sig_atomic_t stopped = 0;

int64_t NowNs() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * int64_t{1000000000} + t.tv_nsec;
}

int64_t CpuNs() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * int64_t{1000000000} +
         (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * int64_t{1000};
}

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

struct Count {
  uint64_t rx_frames = 0, rx_bytes = 0, tx_frames = 0, tx_bytes = 0, dropped = 0, bursts = 0;
  int64_t at = 0, cpu = 0;
};

class Bench {
 public:
  explicit Bench(const CommandLine& line) : flags_(line.flags), options_(line.bench) {}

  Status Open() {
    if (!options_.netns.empty()) {
      UniqueFd netns;
      std::string name;
      SLUICE_RETURN_IF_ERROR(OpenNetns(options_.netns, &netns, &name));
      if (setns(netns.get(), CLONE_NEWNET) < 0)
        return Status::Error("--netns=" + options_.netns + ": cannot enter it" + ErrnoText(errno));
    }
    for (const std::string& device : options_.devices) {
      BenchPort port;
      SLUICE_RETURN_IF_ERROR(OpenBenchPort(flags_, options_, device, pool_, &port));
      ports_.push_back(std::move(port));
    }
    for (uint32_t flow = 0; options_.mode == BenchMode::kTx && flow < options_.flows; ++flow)
      models_.push_back(MakeFrame(pool_, options_.size, flow));
    return {};
  }

  void Describe() const {
    if (options_.json) return;
    for (size_t i = 0; i < ports_.size(); ++i) {
      std::string text;
      for (const std::string& word : ports_[i].port->describe()) text += " " + word;
      printf("%s:%s\n", options_.devices[i].c_str(), text.c_str());
    }
    printf("%8s %12s %9s %12s %9s %12s %7s %5s\n", "seconds", "rx frames/s", "rx Gbps", "tx frames/s", "tx Gbps", "dropped/s",
           "a burst", "cpu");
    fflush(stdout);
  }

  int Run() {
    Describe();
    const Count begin = Now();
    Count last = begin;
    const int64_t end = options_.seconds == 0 ? INT64_MAX : begin.at + options_.seconds * int64_t{1000000000};
    while (stopped == 0 && !dead_) {
      // The clock is read now and then only.
      for (int i = 0; i < 64 && stopped == 0 && !dead_; ++i) Turn();
      const int64_t now = NowNs();
      if (now - last.at >= 1000000000 && !options_.json) {
        const Count next = Now();
        Print(last, next, begin.at);
        last = next;
      }
      if (now >= end) break;
    }
    Finish(begin, Now());
    if (dead_) LogLine(LogLevel::kError, "bench: a device is gone");
    return dead_ ? 1 : 0;
  }

 private:
  Count Now() const {
    Count c = count_;
    for (const BenchPort& p : ports_) {
      const PortStats s = p.port->stats();
      c.rx_frames += s.rx_frames;
      c.rx_bytes += s.rx_bytes;
      c.tx_frames += s.tx_frames;
      c.tx_bytes += s.tx_bytes;
      c.dropped += s.rx_dropped + s.tx_dropped;
    }
    c.at = NowNs();
    c.cpu = CpuNs();
    return c;
  }

  struct Rates {
    double rx, rx_gbps, tx, tx_gbps, dropped, burst, cpu, seconds;
  };
  static Rates Between(const Count& a, const Count& b) {
    const double seconds = std::max(1e-9, static_cast<double>(b.at - a.at) / 1e9);
    auto per = [&](uint64_t from, uint64_t to) { return static_cast<double>(to - from) / seconds; };
    const double bursts = per(a.bursts, b.bursts);
    const double rx = per(a.rx_frames, b.rx_frames), tx = per(a.tx_frames, b.tx_frames);
    return {.rx = rx,
            .rx_gbps = per(a.rx_bytes, b.rx_bytes) * 8e-9,
            .tx = tx,
            .tx_gbps = per(a.tx_bytes, b.tx_bytes) * 8e-9,
            .dropped = per(a.dropped, b.dropped),
            .burst = bursts > 0 ? std::max(rx, tx) / bursts : 0,
            .cpu = static_cast<double>(b.cpu - a.cpu) / 1e7 / seconds,
            .seconds = seconds};
  }

  static void PrintLine(const std::string& label, const Rates& r) {
    printf("%8s %12.0f %9.3f %12.0f %9.3f %12.0f %7.1f %4.0f%%\n", label.c_str(), r.rx, r.rx_gbps, r.tx, r.tx_gbps, r.dropped,
           r.burst, r.cpu);
    fflush(stdout);
  }
  static void Print(const Count& from, const Count& to, int64_t begin) {
    PrintLine(Format("%.0f", static_cast<double>(to.at - begin) / 1e9), Between(from, to));
  }

  void Finish(const Count& from, const Count& to) const {
    const Rates r = Between(from, to);
    if (!options_.json) return PrintLine("all", r);
    const nlohmann::json result = {{"mode", options_.mode_name},
                                   {"devices", options_.devices},
                                   {"port", ports_[0].port->kind()},
                                   {"seconds", r.seconds},
                                   {"rx_frames", to.rx_frames - from.rx_frames},
                                   {"rx_bytes", to.rx_bytes - from.rx_bytes},
                                   {"tx_frames", to.tx_frames - from.tx_frames},
                                   {"tx_bytes", to.tx_bytes - from.tx_bytes},
                                   {"dropped", to.dropped - from.dropped},
                                   {"rx_per_second", r.rx},
                                   {"tx_per_second", r.tx},
                                   {"rx_gbps", r.rx_gbps},
                                   {"tx_gbps", r.tx_gbps},
                                   {"frames_per_burst", r.burst},
                                   {"cpu_percent", r.cpu}};
    printf("%s\n", result.dump().c_str());
  }

  void Turn() {
    bool busy = false;
    for (size_t i = 0; i < ports_.size(); ++i)
      busy |= options_.mode == BenchMode::kTx ? SendBurst(*ports_[i].port) : PassBurst(i);
    for (const BenchPort& p : ports_) dead_ |= p.port->dead();
    if (busy)
      idle_turns_ = 0;
    else
      Idle();
  }

  bool SendBurst(Port& port) {
    size_t made = 0;
    for (; made < kBurst; ++made) {
      burst_[made] = models_[next_model_].Clone(pool_);
      next_model_ = next_model_ + 1 == models_.size() ? 0 : next_model_ + 1;
    }
    size_t sent = 0;
    while (sent < made && stopped == 0 && !port.dead()) {
      const size_t n = port.Transmit(std::span(burst_).subspan(sent, made - sent));
      sent += n;
      if (n == 0) WaitForRoom(port);
    }
    for (Packet& p : burst_) p = Packet();
    ++count_.bursts;
    return true;
  }

  void WaitForRoom(Port& port) {
    pollfd p{port.tx_wait_fd(), POLLOUT, 0};
    if (p.fd >= 0) poll(&p, 1, 10);
  }

  bool PassBurst(size_t i) {
    Port& from = *ports_[i].port;
    if (from.tx_pending()) from.Transmit({});
    const size_t n = from.Receive(burst_);
    if (n == 0) return false;
    ++count_.bursts;
    auto frames = std::span(burst_).first(n);
    if (options_.mode != BenchMode::kRx) Forward(frames, i);
    for (Packet& p : frames) p = Packet();
    return true;
  }

  // What the device does not take at once is dropped, as a switch would.
  void Forward(std::span<Packet> frames, size_t from) {
    Port& to = *ports_[options_.mode == BenchMode::kL2Forward ? (from + 1) % ports_.size() : from].port;
    for (Packet& p : frames) {
      if (p.offload.checksum == ChecksumState::kVerified) p.offload.checksum = ChecksumState::kNone;  // it is complete
      if (options_.mode == BenchMode::kEcho) TurnRound(p);
    }
    const size_t sent = to.Transmit(frames);
    count_.dropped += frames.size() - sent;
  }

  void Idle() {
    constexpr uint32_t kSpins = 1000;
    if (flags_.poll == PollMode::kBusy || (flags_.poll == PollMode::kAdaptive && ++idle_turns_ < kSpins)) return;
    std::vector<pollfd> fds;
    for (const BenchPort& p : ports_) {
      if (!p.port->ArmWakeup() || p.port->tx_pending()) return;
      for (const int fd : p.port->wait_fds()) fds.push_back({fd, POLLIN, 0});
    }
    poll(fds.data(), fds.size(), 100);
  }

  const Flags& flags_;
  const BenchOptions& options_;
  HeapBlockPool pool_{kMemory};
  std::vector<BenchPort> ports_;
  std::vector<Packet> models_;
  size_t next_model_ = 0;
  std::array<Packet, kBurst> burst_;
  Count count_;
  uint32_t idle_turns_ = 0;
  bool dead_ = false;
};

}  // namespace

int RunBench(const CommandLine& line) {
  struct sigaction action{};
  action.sa_handler = [](int) { stopped = 1; };
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  Bench bench(line);
  const Status status = bench.Open();
  if (!status.ok()) {
    LogLine(LogLevel::kError, status.line());
    return status.exit_code();
  }
  return bench.Run();
}

}  // namespace sluice
