// Hands every frame of a device queue to the AF_XDP socket in that queue's slot, or, where several sockets share queue 0, to the one
// that our hash names (a socket takes frames of its own queue only). A queue without a socket passes its frames on, to the silencing
// program.
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#define LOAD(context, offset, to, size) bpf_xdp_load_bytes(context, offset, to, size)
#include "base/steering.h"
#include "xdp/bpf/engine_flows.h"

const volatile __u32 sluice_sharers = 1;
const volatile struct sluice_steering_key sluice_key = {};

struct sluice_frame {
  struct xdp_md* context;
};

static __always_inline int sluice_load(const struct sluice_frame* frame, sluice_u32 at, void* to, sluice_u32 size) {
  return bpf_xdp_load_bytes(frame->context, at, to, size);
}

#include "base/steering_frame.h"

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

// Queues that were added later have no slot: theirs lie behind the shared queue's.
static __always_inline __u32 slot_of(struct xdp_md* ctx) {
  if (sluice_sharers == 1 || ctx->rx_queue_index != 0) return ctx->rx_queue_index * sluice_sharers;
  const struct sluice_steering_key key = {sluice_key.k0, sluice_key.k1};
  const struct sluice_frame frame = {ctx};
  return sluice_steer(&key, &frame) % sluice_sharers;
}

static __always_inline int redirect(struct xdp_md* ctx) {
  const int action = bpf_redirect_map(&sluice_xsks, slot_of(ctx), XDP_PASS);
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
