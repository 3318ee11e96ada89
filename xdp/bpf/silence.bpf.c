// Keeps the kernel's network stack away from a device: nothing comes in, and only frames with our mark go out. Taps (AF_PACKET)
// and generic XDP see received frames before this hook. The sluice_flow_ programs do the same but for engine flows.
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

// From the link header, wherever the program's data begins: generic XDP leaves packets behind that say they have none.
#define LOAD(context, offset, to, size) bpf_skb_load_bytes_relative(context, offset, to, size, BPF_HDR_START_MAC)
#include "xdp/bpf/engine_flows.h"

#define TC_ACT_UNSPEC (-1)  // TCX_NEXT: the programs behind still run
#define TC_ACT_SHOT 2       // TCX_DROP

#define PACKET_HOST 0
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOCK_DGRAM 2

const volatile __u32 sluice_mark = 0;

static __always_inline int is_ours(const struct __sk_buff* skb) { return sluice_mark != 0 && skb->mark == sluice_mark; }

SEC("tc")
int sluice_quiet_in(struct __sk_buff* skb) {
  return TC_ACT_SHOT;
}

SEC("tc")
int sluice_quiet_out(struct __sk_buff* skb) {
  return is_ours(skb) ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

SEC("tc")
int sluice_flow_in(struct __sk_buff* skb) {
  const __u64 now = bpf_ktime_get_ns();
  if (!gate_lives(now) || skb->vlan_present || skb->pkt_type != PACKET_HOST) return TC_ACT_SHOT;
  if (received_by_engine(skb, now)) return TC_ACT_UNSPEC;
  const __u32 address = answered(skb, now);
  if (address == 0) return TC_ACT_SHOT;
  bpf_map_delete_elem(&flow_resolutions, &address);
  return TC_ACT_UNSPEC;
}

// What the sandbox's packet socket does not get: the stack would answer the server with a reset or an error.
SEC("socket")
int sluice_flow_tap(struct __sk_buff* skb) {
  const __u64 now = bpf_ktime_get_ns();
  return gate_lives(now) && !skb->vlan_present && received_by_engine(skb, now) ? 0 : -1;
}

// A question who has the next hop. Not an announcement of our own address, and not more than the gate allows.
static __always_inline int resolves(struct __sk_buff* skb, __u64 now) {
  struct arp_frame f;
  struct sluice_gate* g = gate();
  if (g == 0 || !younger(now, g->asked, GATE_OPEN) || !load_arp(skb, &f, 1)) return 0;
  if (f.sender == 0 || f.target == 0 || f.sender == f.target) return 0;
  if (__sync_fetch_and_add(&g->arp_requests, -1) <= 0) {
    g->arp_requests = 0;
    return 0;
  }
  const __u32 key = f.target;
  const struct sluice_resolution resolution = {now, f.sender, 0};
  return bpf_map_update_elem(&flow_resolutions, &key, &resolution, BPF_ANY) == 0;
}

// A full socket of UDP or TCP whose port this is: no raw or packet socket, and not the kernel's own that send resets and errors.
static __always_inline int from_socket(struct __sk_buff* skb, const struct sluice_flow* flow) {
  struct bpf_sock* sk = skb->sk;
  if (sk == 0) return 0;
  sk = bpf_sk_fullsock(sk);
  if (sk == 0 || (sk->family != AF_INET && sk->family != AF_INET6)) return 0;
  if (sk->type != (flow->protocol == PROTOCOL_TCP ? SOCK_STREAM : SOCK_DGRAM) || sk->protocol != flow->protocol) return 0;
  return sk->src_port == bpf_ntohs(flow->local_port);
}

static __always_inline int sent_by_engine(struct __sk_buff* skb, __u64 now) {
  struct ip_frame f;
  struct ports ports;
  const struct sluice_gate* g = gate();
  if (g == 0 || !load_ip(skb, &f) || (f.ethernet.h_dest[0] & 1) != 0) return 0;
  if (is_later_fragment(&f.ip)) return fragment_lives(&f.ip, now);
  if (!has_ports(f.ip.protocol) || LOAD(skb, ETH_HLEN + f.ip.ihl * 4, &ports, sizeof ports) != 0) return 0;
  if (ports.destination != bpf_htons(SLUICE_ENGINE_PORT)) return 0;
  const struct sluice_flow flow = {f.ip.saddr, f.ip.daddr, ports.source, ports.destination, f.ip.protocol, {}};
  const int socket = from_socket(skb, &flow);
  const int may_begin = socket && younger(now, g->asked, GATE_OPEN) && !held(flow.protocol, flow.local_port);
  // Without a socket: what TCP still says for a closed one.
  if (!may_begin && !flow_lives(&flow, now)) return 0;
  if (socket && bpf_map_update_elem(&flow_table, &flow, &now, BPF_ANY) != 0) return 0;
  expect_fragments(&f.ip, now);
  return 1;
}

SEC("tc")
int sluice_flow_out(struct __sk_buff* skb) {
  if (is_ours(skb)) return TC_ACT_UNSPEC;
  const __u64 now = bpf_ktime_get_ns();
  if (!gate_lives(now) || skb->vlan_present) return TC_ACT_SHOT;
  return sent_by_engine(skb, now) || resolves(skb, now) ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Apache-2.0";
