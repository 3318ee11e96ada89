// Micro-benchmarks of the stack, on one core and in memory: what one frame, one timer, one record costs. docs/benchmarks.md says
// what each leaves out.
#include <benchmark/benchmark.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "base/spsc_byte_ring.h"
#include "base/timer_wheel.h"
#include "dataplane/frame_ring.h"
#include "dataplane/testing/test_frames.h"
#include "netstack/tcp/flow_table.h"
#include "netstack/tcp/segment.h"
#include "netstack/tcp/testing/wire_peer.h"
#include "netstack/wire/headers.h"
#include "netstack/wire/steering.h"

namespace sluice {
namespace {

using testing::MakeFrame;
using testing::Pattern;

constexpr uint32_t kMss = 1448;

// ---- Parsing

constexpr uint8_t kTimestamps[] = {1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2};

// The headers of a data segment with timestamps: Ethernet, IPv4 with its checksum, TCP with its options. TCP's checksum is
// another benchmark (BM_Checksum).
void BM_ParseTcpFrame(benchmark::State& state) {
  HeapBlockPool pool(1 << 20);
  const Packet frame =
      MakeFrame(pool, {.payload = Pattern(kMss, 1), .tcp_options = std::vector(std::begin(kTimestamps), std::end(kTimestamps))});
  Packet segment = frame.Clone(pool);
  segment.Pull(wire::kEthernetHeader + wire::kIpv4Header);
  for (auto _ : state) {
    const auto ethernet = wire::EthernetView::Parse(frame.linear());
    const auto ip = wire::Ipv4View::Parse(frame.linear().subspan(wire::kEthernetHeader), frame.size() - wire::kEthernetHeader);
    tcp::Segment parsed;
    bool ok = ethernet->type() == wire::kEtherIpv4 && ip->ChecksumOk() && tcp::ParseSegment(segment, &parsed);
    benchmark::DoNotOptimize(ok);
    benchmark::DoNotOptimize(parsed);
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_ParseTcpFrame);

void BM_SteeringHash(benchmark::State& state) {
  HeapBlockPool pool(1 << 20);
  const Packet frame = MakeFrame(pool, {.payload = Pattern(kMss, 1)});
  const wire::SteeringKey key{7, 8};
  for (auto _ : state) benchmark::DoNotOptimize(wire::SteeringHash(key, frame.linear()));
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_SteeringHash);

// ---- Demultiplexing

// Looks flows up in an order that no cache foresees. With many flows it is the memory that is measured.
void BM_Demux(benchmark::State& state) {
  TimerWheel timers(Instant(0));
  Rng rng(1);
  testing::TestSecureRng secure(2);
  Counters counters;
  HeapBlockPool pool(1 << 20);
  const StackContext context{.timers = timers, .rng = rng, .secure = secure, .counters = counters, .pool = pool};
  tcp::FlowTable table(context, 3);
  std::vector<std::unique_ptr<tcp::FlowEntry>> flows;
  for (uint32_t i = 0; i < state.range(0); ++i) {
    auto flow = std::make_unique<tcp::FlowEntry>(tcp::FlowKind::kConnection);
    flow->key = {IpAddress::V4(10, 0, 0, 1), IpAddress::V4(10, 1, static_cast<uint8_t>(i >> 8), static_cast<uint8_t>(i)), 80,
                 static_cast<uint16_t>(1024 + (i >> 16))};
    flow->hash = table.Hash(flow->key);
    table.Insert(flow.get());
    flows.push_back(std::move(flow));
  }
  std::vector<tcp::FlowKey> order;
  for (uint32_t i = 0; i < 1 << 16; ++i) order.push_back(flows[rng.Uniform(static_cast<uint32_t>(flows.size()))]->key);
  size_t at = 0;
  for (auto _ : state) benchmark::DoNotOptimize(table.Find(order[at++ & 0xffff]));
  state.SetItemsProcessed(state.iterations());
  for (const auto& flow : flows) table.Remove(flow.get());
}
BENCHMARK(BM_Demux)->Arg(1)->Arg(1000)->Arg(100000);

// ---- Segments

// Takes every frame and remembers how far TCP has sent.
class Sink final : public Link {
 public:
  explicit Sink(bool gso) : gso_(gso) {}
  LinkFeatures features() const override { return {.tx_checksum = true, .gso = gso_, .udp_gso = gso_, .rx_checksum = true}; }
  size_t Transmit(std::span<Packet> burst) override {
    constexpr size_t kHeaders = wire::kEthernetHeader + wire::kIpv4Header;
    for (Packet& p : burst) {
      const uint8_t* tcp = p.data() + kHeaders;
      const size_t header = size_t{4} * (tcp[12] >> 4);
      end = LoadBe32(tcp + 4) + static_cast<uint32_t>(p.size() - kHeaders - header);
      ++frames;
      p = Packet();
    }
    return burst.size();
  }
  uint32_t end = 0;  // sequence number behind the last byte sent
  uint64_t frames = 0;

 private:
  const bool gso_;
};

// A stack with one established connection to a peer made by hand.
class Connection {
 public:
  explicit Connection(bool gso) : sink(gso) {
    peer.wscale = 10;
    peer.timestamps = false;
    socket = peer.Accepted();
    SLUICE_CHECK(socket != nullptr);
    host_next_ = peer.host_iss + 1u;
    peer_next_ = peer.iss + 1u;
    now_ = peer.host.now();
    peer.host.stack().AttachLink(testing::kSimIfIndex, &sink);
  }
  ~Connection() { socket->Abort(); }

  // A segment of the peer's with `payload`, whose checksum somebody trusted has verified.
  Packet Segment(Bytes payload, SeqNum ack, uint16_t gso_size = 0) {
    tcp::HeaderSpec header = peer.Header(tcp::kAck, 0, 0);
    header.seq = peer_next_;
    header.ack = ack;
    const uint32_t tcp_header = tcp::HeaderLength(header);
    constexpr size_t kIp = wire::kEthernetHeader + wire::kIpv4Header;
    Packet p = Packet::Allocate(peer.host.pool(), kIp + tcp_header + payload.size());
    uint8_t* to = p.Append(kIp + tcp_header + payload.size());
    wire::WriteEthernet(to, peer.host.mac(), testing::kPeerMac, wire::kEtherIpv4);
    wire::Ipv4Fields ip{.source = IpAddress::V4(10, 0, 0, 2), .destination = IpAddress::V4(10, 0, 0, 1)};
    ip.total_length = static_cast<uint16_t>(wire::kIpv4Header + tcp_header + payload.size());
    ip.protocol = 6;
    ip.Write(to + wire::kEthernetHeader);
    tcp::WriteHeader(header, to + kIp);
    if (!payload.empty()) std::memcpy(to + kIp + tcp_header, payload.data(), payload.size());
    p.offload.checksum = ChecksumState::kVerified;
    if (gso_size != 0) {
      p.offload.gso = GsoType::kTcpV4;
      p.offload.gso_size = gso_size;
      p.offload.hdr_len = static_cast<uint16_t>(kIp + tcp_header);
    }
    p.ifindex = testing::kSimIfIndex;
    p.received = now_;
    peer_next_ += static_cast<uint32_t>(payload.size());
    return p;
  }
  // One turn of the driver: a microsecond later.
  void Turn(std::span<Packet> burst) {
    Stack& stack = peer.host.stack();
    now_ = now_ + Duration::Microseconds(1);
    stack.SetNow(now_);
    stack.Input(burst, testing::kSimIfIndex);
    stack.AdvanceTimers();
    stack.Flush();
  }
  SeqNum host_next() const { return host_next_; }

  testing::WirePeer peer;
  Sink sink;
  StreamSocket* socket;

 private:
  Instant now_;
  SeqNum host_next_, peer_next_;
};

// Bursts of eight segments in order (of a super-segment: one), read at once by the program. Making them is not counted.
void BM_SegmentIn(benchmark::State& state) {
  Connection c(true);
  const auto payload = Pattern(static_cast<size_t>(state.range(0)), 1);
  const size_t count = payload.size() > kMss ? 1 : 8;
  for (auto _ : state) {
    state.PauseTiming();
    Packet packets[8];
    const std::span burst = std::span(packets).first(count);
    for (Packet& p : burst) p = c.Segment(payload, c.host_next(), payload.size() > kMss ? kMss : 0);
    state.ResumeTiming();
    c.Turn(burst);
    const size_t n = c.socket->readable_bytes();
    if (n != count * payload.size()) return state.SkipWithError("a segment was not taken");
    c.socket->Consume(n);
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(count));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(count * payload.size()));
}
BENCHMARK(BM_SegmentIn)->Arg(1)->Arg(kMss)->Arg(int64_t{kMss} * 20);

// One write of the program, the segments that it makes, and the acknowledgement of all of them. Range 1: the device cuts (one
// frame of all), or the stack makes a frame of each segment.
void BM_SegmentOut(benchmark::State& state) {
  Connection c(state.range(1) != 0);
  const auto size = static_cast<uint32_t>(state.range(0));
  BlockRef block(c.peer.host.pool().Allocate(size));
  std::memset(block->data, 'x', size);
  uint32_t acked = c.host_next().value();
  for (auto _ : state) {
    if (c.socket->Send(Slice{block, 0, size}, false) != Errno::kOk) return state.SkipWithError("the send buffer is full");
    c.Turn({});
    for (int tries = 0; c.sink.end != acked + size; ++tries) {  // the congestion window is still small
      if (tries == 100) return state.SkipWithError("not everything was sent");
      Packet ack = c.Segment({}, SeqNum(c.sink.end));
      c.Turn({&ack, 1});
    }
    acked = c.sink.end;
    Packet ack = c.Segment({}, SeqNum(acked));
    c.Turn({&ack, 1});
  }
  state.SetItemsProcessed(state.iterations());
  state.SetBytesProcessed(state.iterations() * size);
  state.counters["frames"] = benchmark::Counter(static_cast<double>(c.sink.frames) / static_cast<double>(state.iterations()));
}
BENCHMARK(BM_SegmentOut)->ArgNames({"bytes", "gso"})->Args({1, 1})->Args({kMss, 1})->Args({57920, 1})->Args({57920, 0});

// ---- Timers

// What every acknowledgement does: a timer of one of many connections is moved.
void BM_TimerRearm(benchmark::State& state) {
  Instant now(0);
  TimerWheel wheel(now);
  std::vector<std::unique_ptr<Timer>> timers;
  for (int64_t i = 0; i < state.range(0); ++i) timers.push_back(std::make_unique<Timer>([](void*) {}, nullptr));
  for (auto& t : timers) wheel.Schedule(*t, now + Duration::Milliseconds(200));
  size_t at = 0;
  for (auto _ : state) {
    now = now + Duration(100);
    wheel.Schedule(*timers[at], now + Duration::Milliseconds(200));
    if (++at == timers.size()) at = 0;
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_TimerRearm)->Arg(1)->Arg(1000)->Arg(100000);

// From being scheduled, up to ten seconds ahead, to firing, with moves between the levels of the wheel.
void BM_TimerFire(benchmark::State& state) {
  constexpr size_t kTimers = 1000;
  Instant now(0);
  TimerWheel wheel(now);
  Rng rng(1);
  uint64_t fired = 0;
  std::vector<std::unique_ptr<Timer>> timers;
  for (size_t i = 0; i < kTimers; ++i)
    timers.push_back(std::make_unique<Timer>([](void* count) { ++*static_cast<uint64_t*>(count); }, &fired));
  for (auto _ : state) {
    for (auto& t : timers) wheel.Schedule(*t, now + Duration::Milliseconds(1 + rng.Uniform(10000)));
    while (const auto next = wheel.NextDeadline()) {
      now = std::max(now, *next);
      wheel.Advance(now);
    }
  }
  if (fired != static_cast<uint64_t>(state.iterations()) * kTimers) state.SkipWithError("a timer did not fire");
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kTimers));
}
BENCHMARK(BM_TimerFire);

// ---- Rings

// Writer and reader in one thread: the instructions, without the travel of cache lines.
void BM_ByteRing(benchmark::State& state) {
  SpscByteRing ring(1 << 16);
  const auto record = Pattern(static_cast<size_t>(state.range(0)), 1);
  for (auto _ : state) {
    const MutableBytes room = ring.Reserve(record.size());
    std::memcpy(room.data(), record.data(), record.size());
    ring.Commit();
    benchmark::DoNotOptimize(ring.Front().data());
    ring.Pop();
  }
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_ByteRing)->Arg(8)->Arg(64)->Arg(1514);

// A reader in a thread of its own empties the ring as fast as it can.
void BM_ByteRingBetweenThreads(benchmark::State& state) {
  SpscByteRing ring(1 << 16);
  const auto record = Pattern(static_cast<size_t>(state.range(0)), 1);
  std::atomic<bool> stop{false};
  std::thread reader([&] {
    while (!stop.load(std::memory_order_relaxed)) {
      if (ring.empty()) {
        std::this_thread::yield();  // where there is one core
        continue;
      }
      benchmark::DoNotOptimize(ring.Front().data());
      ring.Pop();
    }
  });
  for (auto _ : state) {
    MutableBytes room;
    while ((room = ring.Reserve(record.size())).data() == nullptr) std::this_thread::yield();
    std::memcpy(room.data(), record.data(), record.size());
    ring.Commit();
  }
  stop = true;
  reader.join();
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_ByteRingBetweenThreads)->Arg(64)->Arg(1514)->UseRealTime();

// A frame into the ring and out of it into a block of the receiver's: two copies. This is what mail to another worker costs.
void BM_FrameRing(benchmark::State& state) {
  HeapBlockPool pool(16 << 20);
  FrameRing ring(kFrameRingBytes);
  const Packet frame = MakeFrame(pool, {.payload = Pattern(static_cast<size_t>(state.range(0)), 1)});
  for (auto _ : state) {
    if (!ring.Send(frame)) return state.SkipWithError("no room");
    benchmark::DoNotOptimize(ring.Receive(pool));
  }
  state.SetItemsProcessed(state.iterations());
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_FrameRing)->Arg(64)->Arg(kMss)->Arg(65000);

}  // namespace
}  // namespace sluice

BENCHMARK_MAIN();
