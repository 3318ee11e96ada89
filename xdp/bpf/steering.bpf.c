// Chooses the queue of a received frame by the host's own hash (base/steering.h): of the sockets of a PACKET_FANOUT group, or of the
// descriptors of a TAP device. The kernel takes what is returned modulo the number of queues.
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "base/steering.h"

const volatile struct sluice_steering_key sluice_key = {};

// The packet begins at the network header for a packet socket, at the Ethernet header for a TAP device.
struct sluice_frame {
  struct __sk_buff* skb;
  sluice_u32 start;
};

static __attribute__((always_inline)) int sluice_load(const struct sluice_frame* frame, sluice_u32 at, void* to, sluice_u32 size) {
  if (at < frame->start) return bpf_skb_load_bytes_relative(frame->skb, at, to, size, BPF_HDR_START_MAC);
  return bpf_skb_load_bytes(frame->skb, at - frame->start, to, size);
}

#include "base/steering_frame.h"

static __attribute__((always_inline)) int steer(struct __sk_buff* skb, sluice_u32 start) {
  const struct sluice_steering_key key = {sluice_key.k0, sluice_key.k1};
  const struct sluice_frame frame = {skb, start};
  // A tag that the kernel took off the frame.
  return skb->vlan_present ? 0 : (int)sluice_steer(&key, &frame);
}

SEC("socket")
int sluice_fanout(struct __sk_buff* skb) {
  return steer(skb, SLUICE_ETHERNET);
}

SEC("socket")
int sluice_tap(struct __sk_buff* skb) {
  return steer(skb, 0);
}

char LICENSE[] SEC("license") = "Apache-2.0";
