// Which shard of a host that has several stacks a frame or a flow belongs to: `hash % shards`. The function itself is
// base/steering.h, which says what is hashed and why; the kernel's programs compute the same.
#pragma once

#include "base/bytes.h"
#include "base/rng.h"
#include "base/steering.h"
#include "netstack/ip/address.h"

namespace sluice::wire {

using SteeringKey = sluice_steering_key;
SteeringKey NewSteeringKey(SecureRng& secure);

// Of a whole Ethernet frame; 0 where it belongs to no flow.
uint32_t SteeringHash(const SteeringKey& key, Bytes frame);
// Of a flow, in either direction. IPv6, which occurs inside of a host only, is folded.
uint32_t SteeringHash(const SteeringKey& key, const IpAddress& a, uint16_t a_port, const IpAddress& b, uint16_t b_port);
// Group frames and ARP: every stack of a host learns from them, and one of them (that of hash 0) answers.
bool ConcernsEveryShard(Bytes frame);

}  // namespace sluice::wire
