// Hands every frame of a device queue to the AF_XDP socket in that queue's slot. A queue without a socket passes its frames on, to
// the silencing program.
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

struct {
  __uint(type, BPF_MAP_TYPE_XSKMAP);
  __uint(max_entries, 64);
  __type(key, __u32);
  __type(value, __u32);
} sluice_xsks SEC(".maps");

// Takes frames of several buffers: 64 KiB super-segments in generic mode, jumbo frames in native mode.
SEC("xdp.frags")
int sluice_redirect(struct xdp_md* ctx) {
  return bpf_redirect_map(&sluice_xsks, ctx->rx_queue_index, XDP_PASS);
}

char LICENSE[] SEC("license") = "Apache-2.0";
