// Fragments of one datagram in any order, size and overlap, against a model: whatever comes out is exactly the bytes that went
// in, and never a mixture.
#include <cstdlib>

#include "netstack/ip/reassembly.h"
#include "netstack/sysctls.h"
#include "netstack/testing/frames.h"

namespace {

using namespace sluice;

struct Quiet final : ReassemblyEvents {
  void ReassemblyTimedOut(Packet) override {}
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  HeapBlockPool pool(8 << 20);
  TimerWheel timers{Instant(0)};
  Rng rng(1);
  sluice::testing::TestSecureRng secure(1);
  Counters counters;
  Sysctls sysctls;
  QueueMemory streams({}), datagrams({});
  StackContext context{Instant(0), timers, rng, secure, counters, pool, streams, datagrams};
  context.sysctls = &sysctls;
  Quiet quiet;
  {
    Reassembler r(context, quiet);
    // Byte i of the datagram is a function of i, so that a wrong place shows.
    auto at = [](size_t i) { return static_cast<uint8_t>(i * 131 + (i >> 8)); };
    for (size_t i = 0; i + 4 <= size; i += 4) {
      if (data[i] == 0xff) {
        context.now = context.now + Duration::Seconds(data[i + 1]);
        timers.Advance(context.now);
        continue;
      }
      const uint32_t offset = (uint32_t{data[i]} << 3 | (data[i + 1] & 7u)) * 8u;
      const size_t n = size_t{data[i + 2]} * 8 + (data[i + 3] & 7u);
      const bool more = (data[i + 1] & 0x80) != 0;
      wire::Ipv4Fields f;
      f.source = IpAddress::V4(10, 0, 0, 2);
      f.destination = IpAddress::V4(10, 0, 0, 1);
      f.id = (data[i + 1] >> 3) & 1;
      f.protocol = 17;
      f.fragment = static_cast<uint16_t>((more ? wire::kIpv4MoreFragments : 0) | (offset / 8));
      if ((f.fragment & 0x3fff) == 0) continue;  // no fragment at all
      f.total_length = static_cast<uint16_t>(20 + n);
      Packet p = Packet::Allocate(pool, 20 + n);
      if (!p) std::abort();
      uint8_t* out = p.Append(20 + n);
      f.Write(out);
      for (size_t k = 0; k < n; ++k) out[20 + k] = at(offset + k);
      Packet whole = r.Add(std::move(p));
      if (!whole) continue;
      const auto ip = wire::Ipv4View::Parse(whole.linear(), whole.size());
      if (!ip || ip->is_fragment() || !ip->ChecksumOk() || ip->total_length() != whole.size()) std::abort();
      for (size_t k = 20; k < whole.size(); ++k) {
        if (whole.data()[k] != at(k - 20)) std::abort();
      }
    }
    timers.Advance(context.now + Duration::Seconds(100));
    if (r.datagrams() != 0 || r.bytes() != 0) std::abort();
  }
  if (pool.bytes_in_use() != 0) std::abort();
  return 0;
}
