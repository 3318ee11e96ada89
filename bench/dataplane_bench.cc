// Micro-benchmarks of the dataplane: checksum, segmentation, coalescing, and ports on a veth (root) beside a bare sendmsg loop.
#include <benchmark/benchmark.h>
#include <sys/socket.h>

#include <cstring>

#include "dataplane/gro_port.h"
#include "dataplane/gso.h"
#include "dataplane/packet_port.h"
#include "dataplane/pipe_port.h"
#include "dataplane/testing/test_frames.h"
#include "dataplane/testing/test_netns.h"
#include "dataplane/xdp_port.h"
#include "netstack/wire/checksum.h"

namespace sluice {
namespace {

using testing::MakeFrame;
using testing::Pattern;

void BM_Checksum(benchmark::State& state) {
  const auto data = Pattern(static_cast<size_t>(state.range(0)), 1);
  for (auto _ : state) benchmark::DoNotOptimize(wire::OnesSum(data));
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_Checksum)->Arg(64)->Arg(1448)->Arg(65160);

void BM_GsoCut(benchmark::State& state) {
  HeapBlockPool pool(64 << 20);
  const Packet frame = MakeFrame(pool, {.payload = Pattern(65160, 1), .sliced = true, .gso_size = 1448});
  std::vector<uint8_t> out(2048);
  for (auto _ : state) {
    GsoCutter cutter(frame);
    while (!cutter.done()) cutter.Next(out);
  }
  state.SetBytesProcessed(state.iterations() * 65160);
}
BENCHMARK(BM_GsoCut);

void BM_Gro(benchmark::State& state) {
  HeapBlockPool pool(64 << 20);
  auto [wire, far] = MakePipePorts(1, 2, pool);
  GroPort gro(std::move(far));
  std::vector<Packet> got(32);
  for (auto _ : state) {
    state.PauseTiming();
    for (uint32_t i = 0; i < 20; ++i) {
      Packet p = MakeFrame(pool, {.payload = Pattern(1448, i), .seq = 1000 + i * 1448});
      wire->Transmit(std::span(&p, 1));
    }
    state.ResumeTiming();
    benchmark::DoNotOptimize(gro.Receive(got));
  }
  state.SetItemsProcessed(state.iterations() * 20);
}
BENCHMARK(BM_Gro);

// A packet port (or the bare socket below it) that sends into a veth whose other end has nobody listening but the kernel, which
// drops the frames by their address.
struct Sender {
  explicit Sender(bool vnet = true) {
    testing::InNetns in(veth.ours());
    std::string error;
    SLUICE_CHECK(OpenPacketSocket(veth.our_index(), {.vnet_header = vnet}, &socket, &error) == Errno::kOk);
  }
  testing::VethPair veth;
  PacketSocket socket;
  HeapBlockPool pool{64 << 20};
};

bool SkipWithoutRoot(benchmark::State& state) {
  const std::string why = testing::WhyNoNetns();
  if (!why.empty()) state.SkipWithError(why.c_str());
  return !why.empty();
}

testing::FrameSpec Spec(size_t size) {
  testing::FrameSpec spec{.payload = Pattern(size, 1), .sliced = size > 1448, .partial = true};
  if (size > 1448) spec.gso_size = 1448;
  return spec;
}

void BM_BareSendmsg(benchmark::State& state) {
  if (SkipWithoutRoot(state)) return;
  Sender s;
  Packet frame = MakeFrame(s.pool, Spec(static_cast<size_t>(state.range(0))));
  VnetHeader header = MakeVnetHeader(frame.offload);
  std::vector<iovec> pieces = {{&header, sizeof header}, {frame.data(), frame.linear_size()}};
  for (size_t i = 0; i < frame.slice_count(); ++i) {
    pieces.push_back({frame.slice(i).block->data + frame.slice(i).offset, frame.slice(i).length});
  }
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = pieces.size();
  for (auto _ : state) {
    while (sendmsg(s.socket.fd.get(), &message, 0) < 0) {
    }
  }
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_BareSendmsg)->Arg(1)->Arg(1448)->Arg(65000);

void Transmit(benchmark::State& state, Port& port, BlockPool& pool) {
  const Packet model = MakeFrame(pool, Spec(static_cast<size_t>(state.range(0))));
  constexpr size_t kBurst = 8;
  Packet burst[kBurst];
  for (auto _ : state) {
    for (Packet& p : burst) p = model.Clone(pool);
    for (size_t sent = 0; sent < kBurst;) sent += port.Transmit(std::span(burst).subspan(sent));
  }
  state.SetItemsProcessed(state.iterations() * kBurst);
  state.SetBytesProcessed(state.iterations() * kBurst * state.range(0));
}

void BM_PacketPortTransmit(benchmark::State& state) {
  if (SkipWithoutRoot(state)) return;
  Sender s(state.range(1) != 0);
  PacketPort port(std::move(s.socket.fd), s.socket.facts, {}, s.pool);
  Transmit(state, port, s.pool);
}
BENCHMARK(BM_PacketPortTransmit)->Args({1, 1})->Args({1448, 1})->Args({65000, 1})->Args({65000, 0});

void BM_XdpPortTransmit(benchmark::State& state) {
  if (SkipWithoutRoot(state)) return;
  testing::VethPair veth;
  HeapBlockPool pool(64 << 20);
  testing::InNetns in(veth.ours());
  XdpAttachment attachment;
  std::vector<Xsk> sockets;
  std::string error;
  SLUICE_CHECK(OpenXdpDevice(veth.our_index(), 1, {.veth = true}, {}, &attachment, &sockets, &error) == Errno::kOk);
  auto port = XdpPort::Create(std::move(sockets[0].fd), std::move(sockets[0].umem), sockets[0].facts, {}, pool, &error);
  Transmit(state, *port, pool);
}
BENCHMARK(BM_XdpPortTransmit)->Arg(1)->Arg(1448)->Arg(65000);

// Both ends on one core: the sender's system call runs the receiver's softirq, then the port takes the burst.
void BM_PacketPortReceive(benchmark::State& state) {
  if (SkipWithoutRoot(state)) return;
  Sender s;
  PacketSocket far;
  {
    testing::InNetns in(s.veth.peer());
    std::string error;
    SLUICE_CHECK(OpenPacketSocket(s.veth.peer_index(), {}, &far, &error) == Errno::kOk);
  }
  PacketPort to(std::move(far.fd), far.facts, {}, s.pool);
  PacketPort from(std::move(s.socket.fd), s.socket.facts, {}, s.pool);
  const Packet model = MakeFrame(s.pool, Spec(static_cast<size_t>(state.range(0))));
  constexpr size_t kBurst = 8;
  for (auto _ : state) {
    state.PauseTiming();
    Packet burst[kBurst];
    for (Packet& p : burst) p = model.Clone(s.pool);
    for (size_t sent = 0; sent < kBurst;) sent += from.Transmit(std::span(burst).subspan(sent));
    state.ResumeTiming();
    for (size_t have = 0; have < kBurst;) {
      Packet got[kBurst];
      have += to.Receive(got);
    }
  }
  state.SetItemsProcessed(state.iterations() * kBurst);
  state.SetBytesProcessed(state.iterations() * kBurst * state.range(0));
}
BENCHMARK(BM_PacketPortReceive)->Arg(1)->Arg(1448)->Arg(65000);

}  // namespace
}  // namespace sluice

BENCHMARK_MAIN();
