// Engine flows: the one exception from the silence. A container engine's resolver asks its servers by sockets of the kernel in
// the container's namespace. Which frames are its own is judged here, the same way by every program that sees them.
//
// All of it is closed unless the sandbox asked the resolver lately (sluice_gate). Then egress makes a flow for what a full socket
// sends by UDP or TCP to a server's port, from a local port that the sandbox's stack does not hold; nobody else makes any. Both
// directions match by addresses and ports; errors by ICMP that come in, by the packet that they quote; later fragments by their
// id. The kernel's ARP requests pass, as many as the gate says, and one answer to each. A port that the stack holds is the
// stack's, also where a flow is older.
//
// The includer defines LOAD(context, offset, to, size): 0 where that many bytes are there.
#pragma once

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>

#include "xdp/engine_flow.h"

#define SECONDS 1000000000ull
#define GATE_OPEN (15 * SECONDS)  // for new flows and ARP: the resolver gives a question up after less
#define GATE_LIVE (60 * SECONDS)  // for everything
#define FLOW_LIFE (30 * SECONDS)
#define FRAGMENT_LIFE (30 * SECONDS)
#define RESOLUTION_LIFE (3 * SECONDS)

#define PROTOCOL_ICMP 1
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct sluice_gate);
} flow_gate SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, SLUICE_HELD_WORDS);
  __type(key, __u32);
  __type(value, __u64);
} flow_held SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 512);
  __type(key, struct sluice_flow);
  __type(value, __u64);
} flow_table SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 64);
  __type(key, struct sluice_fragment);
  __type(value, __u64);
} flow_fragments SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 64);
  __type(key, __u32);
  __type(value, struct sluice_resolution);
} flow_resolutions SEC(".maps");

struct ip_frame {
  __u16 before;  // not of the frame: aligns the header of IP
  struct ethhdr ethernet;
  struct iphdr ip;
};
#define IP_FRAME_SIZE (sizeof(struct ethhdr) + sizeof(struct iphdr))

// linux/if_arp.h leaves the addresses out.
struct arp_frame {
  struct ethhdr ethernet;
  __be16 hardware, protocol;
  __u8 hardware_size, protocol_size;
  __be16 operation;
  __u8 sender_mac[ETH_ALEN];
  __be32 sender;
  __u8 target_mac[ETH_ALEN];
  __be32 target;
} __attribute__((packed));

struct ports {
  __be16 source, destination;
};

static __always_inline int younger(__u64 now, __u64 then, __u64 life) { return then != 0 && now - then < life; }

static __always_inline struct sluice_gate* gate(void) {
  const __u32 first = 0;
  return bpf_map_lookup_elem(&flow_gate, &first);
}

// Whether anything of a flow can be there at all; what most frames are done with.
static __always_inline int gate_lives(__u64 now) {
  const struct sluice_gate* g = gate();
  return g != 0 && younger(now, g->asked, GATE_LIVE);
}

static __always_inline int held(__u8 protocol, __be16 port) {
  const __u32 bit = bpf_ntohs(port) | (protocol == PROTOCOL_TCP ? 0x10000u : 0), word = bit / 64;
  const __u64* bits = bpf_map_lookup_elem(&flow_held, &word);
  return bits == 0 || (*bits >> (bit % 64) & 1) != 0;
}

static __always_inline int flow_lives(const struct sluice_flow* flow, __u64 now) {
  const __u64* sent = bpf_map_lookup_elem(&flow_table, flow);
  return sent != 0 && younger(now, *sent, FLOW_LIFE) && !held(flow->protocol, flow->local_port);
}

static __always_inline struct sluice_fragment fragment_of(const struct iphdr* ip) {
  return (struct sluice_fragment){ip->saddr, ip->daddr, ip->id, ip->protocol, 0};
}

static __always_inline int is_later_fragment(const struct iphdr* ip) { return (ip->frag_off & bpf_htons(0x1fff)) != 0; }
static __always_inline int more_follow(const struct iphdr* ip) { return (ip->frag_off & bpf_htons(0x2000)) != 0; }

static __always_inline int fragment_lives(const struct iphdr* ip, __u64 now) {
  const struct sluice_fragment key = fragment_of(ip);
  const __u64* seen = bpf_map_lookup_elem(&flow_fragments, &key);
  return seen != 0 && younger(now, *seen, FRAGMENT_LIFE);
}

static __always_inline void expect_fragments(const struct iphdr* ip, __u64 now) {
  const struct sluice_fragment key = fragment_of(ip);
  if (more_follow(ip)) bpf_map_update_elem(&flow_fragments, &key, &now, BPF_ANY);
}

static __always_inline int load_ip(void* context, struct ip_frame* f) {
  if (LOAD(context, 0, (__u8*)f + sizeof f->before, IP_FRAME_SIZE) != 0) return 0;
  return f->ethernet.h_proto == bpf_htons(ETH_P_IP) && f->ip.version == 4 && f->ip.ihl >= 5;
}

static __always_inline int has_ports(__u8 protocol) { return protocol == PROTOCOL_UDP || protocol == PROTOCOL_TCP; }

// An error about a packet of a flow.
static __always_inline int quotes_a_flow(void* context, const struct ip_frame* f, __u32 offset, __u64 now) {
  struct {
    __u8 type, code;
    __u16 checksum;
    __u32 rest;
    struct iphdr quoted;
  } icmp;
  struct ports ports;
  if (more_follow(&f->ip) || LOAD(context, offset, &icmp, sizeof icmp) != 0) return 0;
  // Destination unreachable, time exceeded, parameter problem.
  if (icmp.type != 3 && icmp.type != 11 && icmp.type != 12) return 0;
  const struct iphdr* ip = &icmp.quoted;
  if (ip->version != 4 || ip->ihl < 5 || !has_ports(ip->protocol) || is_later_fragment(ip)) return 0;
  if (ip->saddr != f->ip.daddr || LOAD(context, offset + 8 + ip->ihl * 4, &ports, sizeof ports) != 0) return 0;
  const struct sluice_flow flow = {ip->saddr, ip->daddr, ports.source, ports.destination, ip->protocol, {}};
  return flow_lives(&flow, now);
}

// A received frame: is it the kernel's own?
static __always_inline int received_by_engine(void* context, __u64 now) {
  struct ip_frame f;
  struct ports ports;
  if (!load_ip(context, &f)) return 0;
  if (is_later_fragment(&f.ip)) return fragment_lives(&f.ip, now);
  const __u32 offset = ETH_HLEN + f.ip.ihl * 4;
  if (f.ip.protocol == PROTOCOL_ICMP) return quotes_a_flow(context, &f, offset, now);
  if (!has_ports(f.ip.protocol) || LOAD(context, offset, &ports, sizeof ports) != 0) return 0;
  if (ports.source != bpf_htons(SLUICE_ENGINE_PORT)) return 0;
  const struct sluice_flow flow = {f.ip.daddr, f.ip.saddr, ports.destination, ports.source, f.ip.protocol, {}};
  if (!flow_lives(&flow, now)) return 0;
  expect_fragments(&f.ip, now);
  return 1;
}

static __always_inline int load_arp(void* context, struct arp_frame* f, __u16 operation) {
  return LOAD(context, 0, f, sizeof *f) == 0 && f->ethernet.h_proto == bpf_htons(ETH_P_ARP) && f->hardware == bpf_htons(1) &&
         f->protocol == bpf_htons(ETH_P_IP) && f->hardware_size == ETH_ALEN && f->protocol_size == 4 &&
         f->operation == bpf_htons(operation);
}

// The address whose owner answers a request of the kernel; 0 where it is no such answer. Never a request: the kernel answers
// none.
static __always_inline __be32 answered(void* context, __u64 now) {
  struct arp_frame f;
  if (!load_arp(context, &f, 2)) return 0;
  const __u32 key = f.sender;
  const struct sluice_resolution* r = bpf_map_lookup_elem(&flow_resolutions, &key);
  return r != 0 && younger(now, r->when, RESOLUTION_LIFE) && r->sender == f.target ? key : 0;
}
