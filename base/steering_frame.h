// The parser that belongs to steering.h. Its includer has defined
//
//   struct sluice_frame;   // a frame, from its Ethernet header on
//   static int sluice_load(const struct sluice_frame* frame, sluice_u32 at, void* to, sluice_u32 size);   // 0: all of it was
//   there
//
// Included by one source file of each program, not by headers.
#pragma once

#include "base/steering.h"

enum {
  SLUICE_ETHERNET = 14,
  SLUICE_IPV4 = 20,
  SLUICE_ICMP = 8,
  SLUICE_PROTOCOL_ICMP = 1,
  SLUICE_PROTOCOL_TCP = 6,
  SLUICE_PROTOCOL_UDP = 17
};

SLUICE_STEERING_INLINE sluice_u16 sluice_be16(const sluice_u8* p) { return (sluice_u16)(p[0] << 8 | p[1]); }
SLUICE_STEERING_INLINE sluice_u32 sluice_be32(const sluice_u8* p) {
  return (sluice_u32)p[0] << 24 | (sluice_u32)p[1] << 16 | (sluice_u32)p[2] << 8 | p[3];
}
// Bytes of the header; 0: it is none.
SLUICE_STEERING_INLINE sluice_u32 sluice_ipv4_header(const sluice_u8* ip) {
  const sluice_u32 length = (ip[0] & 15) * 4u;
  return ip[0] >> 4 == 4 && length >= SLUICE_IPV4 ? length : 0;
}
SLUICE_STEERING_INLINE sluice_u32 sluice_hash_of(const struct sluice_steering_key* key, const sluice_u8* ip, sluice_u16 from,
                                                 sluice_u16 to) {
  return sluice_flow_hash(key, sluice_be32(ip + 12), from, sluice_be32(ip + 16), to);
}

// RFC 792: errors quote what they are about.
SLUICE_STEERING_INLINE int sluice_is_icmp_error(sluice_u8 type) {
  return type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
}
SLUICE_STEERING_INLINE int sluice_is_echo(sluice_u8 type) { return type == 0 || type == 8; }

// The flow of the packet quoted at `at`; `outer` is the error's own header.
SLUICE_STEERING_INLINE sluice_u32 sluice_steer_quoted(const struct sluice_steering_key* key, const struct sluice_frame* frame,
                                                      sluice_u32 at, const sluice_u8* outer) {
  sluice_u8 ip[SLUICE_IPV4], transport[SLUICE_ICMP];
  if (sluice_load(frame, at, ip, sizeof ip) != 0) return sluice_hash_of(key, outer, 0, 0);
  const sluice_u32 header = sluice_ipv4_header(ip);
  const sluice_u16 offset = sluice_be16(ip + 6) & 0x1fff;
  if (header == 0 || offset != 0 || sluice_load(frame, at + header, transport, sizeof transport) != 0)
    return sluice_hash_of(key, outer, 0, 0);
  if (ip[9] == SLUICE_PROTOCOL_TCP || ip[9] == SLUICE_PROTOCOL_UDP)
    return sluice_hash_of(key, ip, sluice_be16(transport), sluice_be16(transport + 2));
  if (ip[9] == SLUICE_PROTOCOL_ICMP && sluice_is_echo(transport[0]))
    return sluice_hash_of(key, ip, sluice_be16(transport + 4), sluice_be16(transport + 4));
  return sluice_hash_of(key, ip, 0, 0);
}

SLUICE_STEERING_INLINE sluice_u32 sluice_steer_icmp(const struct sluice_steering_key* key, const struct sluice_frame* frame,
                                                    sluice_u32 at, const sluice_u8* ip) {
  sluice_u8 icmp[SLUICE_ICMP];
  if (sluice_load(frame, at, icmp, sizeof icmp) != 0) return 0;
  if (sluice_is_icmp_error(icmp[0])) return sluice_steer_quoted(key, frame, at + SLUICE_ICMP, ip);
  if (sluice_is_echo(icmp[0])) return sluice_hash_of(key, ip, sluice_be16(icmp + 4), sluice_be16(icmp + 4));
  return sluice_hash_of(key, ip, 0, 0);
}

SLUICE_STEERING_INLINE sluice_u32 sluice_steer(const struct sluice_steering_key* key, const struct sluice_frame* frame) {
  sluice_u8 ethernet[SLUICE_ETHERNET], ip[SLUICE_IPV4], ports[4];
  if (sluice_load(frame, 0, ethernet, sizeof ethernet) != 0 || (ethernet[0] & 1) != 0 || sluice_be16(ethernet + 12) != 0x0800 ||
      sluice_load(frame, SLUICE_ETHERNET, ip, sizeof ip) != 0) {
    return 0;
  }
  const sluice_u32 header = sluice_ipv4_header(ip);
  if (header == 0) return 0;
  if ((sluice_be16(ip + 6) & 0x3fff) != 0) return sluice_hash_of(key, ip, sluice_be16(ip + 4), sluice_be16(ip + 4));
  if (ip[9] == SLUICE_PROTOCOL_ICMP) return sluice_steer_icmp(key, frame, SLUICE_ETHERNET + header, ip);
  if (ip[9] != SLUICE_PROTOCOL_TCP && ip[9] != SLUICE_PROTOCOL_UDP) return sluice_hash_of(key, ip, 0, 0);
  if (sluice_load(frame, SLUICE_ETHERNET + header, ports, sizeof ports) != 0) return 0;
  return sluice_hash_of(key, ip, sluice_be16(ports), sluice_be16(ports + 2));
}
