// Hands every frame of a device queue to the AF_XDP socket in that queue's slot. A queue without a socket passes its frames on, to
// the silencing program.
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#define LOAD(context, offset, to, size) bpf_xdp_load_bytes(context, offset, to, size)
#include "xdp/bpf/engine_flows.h"

struct {
  __uint(type, BPF_MAP_TYPE_XSKMAP);
  __uint(max_entries, 64);
  __type(key, __u32);
  __type(value, __u32);
} sluice_xsks SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, __u64);
} sluice_missed SEC(".maps");

static __always_inline int redirect(struct xdp_md* ctx) {
  const int action = bpf_redirect_map(&sluice_xsks, ctx->rx_queue_index, XDP_PASS);
  if (action == XDP_PASS) {
    const __u32 only = 0;
    __u64* missed = bpf_map_lookup_elem(&sluice_missed, &only);
    if (missed) __sync_fetch_and_add(missed, 1);
  }
  return action;
}

// Takes frames of several buffers: 64 KiB super-segments in generic mode, jumbo frames in native mode.
SEC("xdp.frags")
int sluice_redirect(struct xdp_md* ctx) {
  return redirect(ctx);
}

// The same but for engine flows, which go on to the silencing program, and past it.
SEC("xdp.frags")
int sluice_redirect_flows(struct xdp_md* ctx) {
  const __u64 now = bpf_ktime_get_ns();
  if (gate_lives(now) && (received_by_engine(ctx, now) || answered(ctx, now) != 0)) return XDP_PASS;
  return redirect(ctx);
}

char LICENSE[] SEC("license") = "Apache-2.0";
