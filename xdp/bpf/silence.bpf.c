// Keeps the kernel's network stack away from a device: nothing comes in, and only frames with our mark go out. Taps (AF_PACKET)
// and generic XDP see received frames before this hook.
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#define TC_ACT_UNSPEC (-1)  // TCX_NEXT: the programs behind still run
#define TC_ACT_SHOT 2       // TCX_DROP

const volatile __u32 sluice_mark = 0;

SEC("tc")
int sluice_quiet_in(struct __sk_buff* skb) {
  return TC_ACT_SHOT;
}

SEC("tc")
int sluice_quiet_out(struct __sk_buff* skb) {
  return sluice_mark != 0 && skb->mark == sluice_mark ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Apache-2.0";
