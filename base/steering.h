// Which shard a flow belongs to: one text for C++ (netstack/wire/steering.h) and for the BPF programs (xdp/bpf/steering.bpf.c),
// so that all agree bit for bit.
//
// The hash is SipHash-1-3 with the host's secret key: a peer that does not know it cannot pile its flows on one shard, and a
// stack, which knows it, finds a local port that brings the answers home. It is symmetric (both directions of a flow give one
// value), so an ICMP error about a packet goes where the packet's answers go, and both ends of a connection within the host are
// in one shard. A fragment is hashed by addresses and identification, an echo by addresses and identifier, other protocols by
// addresses.
//
// The value has 16 bits, as TUN devices take no more of it; a shard is the value modulo their number.
//
// What is no IPv4 flow gives zero: group frames, ARP, VLAN tags, IPv6 (not spoken on the wire), malformed frames.
#pragma once

#ifdef __cplusplus
#include <cstdint>
typedef uint8_t sluice_u8;
typedef uint16_t sluice_u16;
typedef uint32_t sluice_u32;
typedef uint64_t sluice_u64;
#else
typedef __u8 sluice_u8;
typedef __u16 sluice_u16;
typedef __u32 sluice_u32;
typedef __u64 sluice_u64;
#endif

#define SLUICE_STEERING_INLINE static inline __attribute__((always_inline, unused))

struct sluice_steering_key {
  sluice_u64 k0, k1;
};

SLUICE_STEERING_INLINE sluice_u64 sluice_rotate(sluice_u64 v, int by) { return v << by | v >> (64 - by); }

struct sluice_sip {
  sluice_u64 v0, v1, v2, v3;
};

SLUICE_STEERING_INLINE void sluice_sip_round(struct sluice_sip* s) {
  s->v0 += s->v1;
  s->v1 = sluice_rotate(s->v1, 13) ^ s->v0;
  s->v0 = sluice_rotate(s->v0, 32);
  s->v2 += s->v3;
  s->v3 = sluice_rotate(s->v3, 16) ^ s->v2;
  s->v0 += s->v3;
  s->v3 = sluice_rotate(s->v3, 21) ^ s->v0;
  s->v2 += s->v1;
  s->v1 = sluice_rotate(s->v1, 17) ^ s->v2;
  s->v2 = sluice_rotate(s->v2, 32);
}

SLUICE_STEERING_INLINE void sluice_sip_word(struct sluice_sip* s, sluice_u64 word) {
  s->v3 ^= word;
  sluice_sip_round(s);
  s->v0 ^= word;
}

// Addresses and ports in host order.
SLUICE_STEERING_INLINE sluice_u32 sluice_flow_hash(const struct sluice_steering_key* key, sluice_u32 a, sluice_u16 a_port,
                                                   sluice_u32 b, sluice_u16 b_port) {
  sluice_u64 low = (sluice_u64)a << 16 | a_port, high = (sluice_u64)b << 16 | b_port;
  if (low > high) {
    const sluice_u64 swapped = low;
    low = high;
    high = swapped;
  }
  struct sluice_sip s = {key->k0 ^ 0x736f6d6570736575u, key->k1 ^ 0x646f72616e646f6du, key->k0 ^ 0x6c7967656e657261u,
                         key->k1 ^ 0x7465646279746573u};
  sluice_sip_word(&s, low | high << 48);
  sluice_sip_word(&s, high >> 16 | (sluice_u64)12 << 56);  // of twelve bytes
  s.v2 ^= 0xff;
  sluice_sip_round(&s);
  sluice_sip_round(&s);
  sluice_sip_round(&s);
  return (sluice_u16)(s.v0 ^ s.v1 ^ s.v2 ^ s.v3);
}
