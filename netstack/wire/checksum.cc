#include "netstack/wire/checksum.h"

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sluice::wire {
namespace {

uint16_t Fold(uint64_t s) {
  s = (s & 0xffffffff) + (s >> 32);
  s = (s & 0xffffffff) + (s >> 32);
  uint32_t t = static_cast<uint32_t>((s & 0xffff) + (s >> 16));
  t = (t & 0xffff) + (t >> 16);
  return static_cast<uint16_t>(t);
}

uint64_t AddCarry(uint64_t a, uint64_t b) {
  const uint64_t s = a + b;
  return s + (s < b);
}

// The sum does not depend on the word size, as long as carries come round (RFC 1071 2.C).
uint64_t Sum64(const uint8_t* p, size_t n, uint64_t sum) {
  for (; n >= 8; n -= 8, p += 8) {
    uint64_t v;
    std::memcpy(&v, p, 8);
    sum = AddCarry(sum, v);
  }
  if (n > 0) {
    uint64_t v = 0;
    std::memcpy(&v, p, n);
    sum = AddCarry(sum, v);
  }
  return sum;
}

#if defined(__x86_64__)
constexpr size_t kVectorMin = 256;        // below it the loop of 64-bit additions is as fast
constexpr size_t kVectorChunk = 1 << 20;  // lanes of 32 bits take 2^16 additions of 16-bit words

__attribute__((target("avx2"))) uint64_t SumAvx2(const uint8_t* p, size_t n) {
  const __m256i low = _mm256_set1_epi32(0xffff);
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  for (; n >= 64; n -= 64, p += 64) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
    a = _mm256_add_epi32(a, _mm256_and_si256(v, low));
    b = _mm256_add_epi32(b, _mm256_srli_epi32(v, 16));
    c = _mm256_add_epi32(c, _mm256_and_si256(w, low));
    d = _mm256_add_epi32(d, _mm256_srli_epi32(w, 16));
  }
  uint64_t sum = 0;
  for (const __m256i* lanes : {&a, &b, &c, &d}) {
    uint32_t out[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), *lanes);
    for (uint32_t v : out) sum += v;
  }
  return sum;
}

const bool kHasAvx2 = __builtin_cpu_supports("avx2");
#endif

}  // namespace

uint16_t OnesSumScalar(Bytes data, uint16_t initial) { return Fold(Sum64(data.data(), data.size(), initial)); }

uint16_t OnesSum(Bytes data, uint16_t initial) {
#if defined(__x86_64__)
  if (data.size() >= kVectorMin && kHasAvx2) {
    uint64_t sum = initial;
    while (data.size() >= kVectorMin) {
      const size_t n = std::min(data.size() & ~size_t{63}, kVectorChunk);
      sum += SumAvx2(data.data(), n);
      data = data.subspan(n);
    }
    return Fold(Sum64(data.data(), data.size(), sum));
  }
#endif
  return OnesSumScalar(data, initial);
}

uint16_t OnesSum(const Packet& packet, size_t from, uint16_t initial) {
  uint16_t sum = initial;
  bool odd = false;  // a piece that begins at an odd place has its bytes in the other halves of the words
  auto add = [&](Bytes piece) {
    if (from >= piece.size()) {
      from -= piece.size();
      return;
    }
    piece = piece.subspan(from);
    from = 0;
    const uint16_t s = OnesSum(piece);
    sum = AddSums(sum, odd ? __builtin_bswap16(s) : s);
    odd ^= (piece.size() & 1) != 0;
  };
  add(packet.linear());
  for (size_t i = 0; i < packet.slice_count(); ++i) add(packet.slice(i).bytes());
  return sum;
}

uint16_t PseudoHeaderSum(const IpAddress& source, const IpAddress& destination, uint8_t protocol, uint32_t length) {
  uint64_t sum = Sum64(source.bytes().data(), source.bytes().size(), 0);
  sum = Sum64(destination.bytes().data(), destination.bytes().size(), sum);
  uint8_t rest[8];
  StoreBe32(rest, length);
  StoreBe32(rest + 4, protocol);
  return Fold(Sum64(rest, sizeof rest, sum));
}

bool CompleteChecksum(Packet& packet, bool zero_is_ffff) {
  const size_t field = size_t{packet.offload.csum_start} + packet.offload.csum_offset;
  if (packet.offload.csum_start > packet.size() || field + 2 > packet.linear_size()) return false;
  // The field itself holds the pseudo header's sum, so it takes part.
  uint16_t checksum = static_cast<uint16_t>(~OnesSum(packet, packet.offload.csum_start));
  if (checksum == 0 && zero_is_ffff) checksum = 0xffff;
  StoreSum(packet.data() + field, checksum);
  packet.offload.checksum = ChecksumState::kNone;
  return true;
}

}  // namespace sluice::wire
