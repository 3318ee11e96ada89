// setsockopt on stand-ins, answered in the caller's own system call: options that cannot fail, or by their value alone, are written
// where the sentry finds them. Attached to the control group of the sentry, whose sockets the stand-ins are; the group of the caller
// does not matter. Sockets without a mark and all other options are the kernel's, which is right about them.
//
// The caller holds the socket's lock: one call at a time writes a slot. No call is lost and nothing grows, whatever a program does:
// a slot keeps the last value of each option, and its number is in the ring at most once.
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "xdp/option_slot.h"

#define SOL_SOCKET 1
#define SO_KEEPALIVE 9
#define IPPROTO_TCP 6
#define TCP_NODELAY 1
#define TCP_CORK 3
#define TCP_KEEPIDLE 4
#define TCP_KEEPINTVL 5
#define TCP_KEEPCNT 6
#define TCP_QUICKACK 12
#define TCP_USER_TIMEOUT 18
#define EINVAL 22
#define ENOPROTOOPT 92

#define HANDLED 1  // return value: go on; with optlen -1: the kernel's own handler is passed by

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 1);  // set before loading
  __type(key, __u32);
  __type(value, struct sluice_slot);
} slots SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_SK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, int);
  __type(value, struct sluice_mark);
} marks SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_RINGBUF);
  __uint(max_entries, 4096);  // set before loading
} posted SEC(".maps");

static int option_of(int level, int name) {
  if (level == SOL_SOCKET) return name == SO_KEEPALIVE ? SLUICE_SO_KEEPALIVE : -1;
  if (level != IPPROTO_TCP) return -1;
  switch (name) {
    case TCP_NODELAY: return SLUICE_TCP_NODELAY;
    case TCP_CORK: return SLUICE_TCP_CORK;
    case TCP_QUICKACK: return SLUICE_TCP_QUICKACK;
    case TCP_KEEPIDLE: return SLUICE_TCP_KEEPIDLE;
    case TCP_KEEPINTVL: return SLUICE_TCP_KEEPINTVL;
    case TCP_KEEPCNT: return SLUICE_TCP_KEEPCNT;
    case TCP_USER_TIMEOUT: return SLUICE_TCP_USER_TIMEOUT;
    default: return -1;
  }
}

// As do_tcp_setsockopt has it.
static int valid(int option, int value) {
  switch (option) {
    case SLUICE_TCP_KEEPIDLE:
    case SLUICE_TCP_KEEPINTVL: return value >= 1 && value <= 32767;
    case SLUICE_TCP_KEEPCNT: return value >= 1 && value <= 127;
    case SLUICE_TCP_USER_TIMEOUT: return value >= 0;
    default: return 1;
  }
}

static int fail(int error) {
  bpf_set_retval(-error);
  return HANDLED;
}

// Whether the sentry has to act now where it sleeps. What concerns only bytes that are still to come it sees before it reads them.
static int urgent(int option, __u32 bits, const struct sluice_slot* slot) {
  if (slot->flag == SLUICE_ALWAYS || (option != SLUICE_TCP_NODELAY && option != SLUICE_TCP_CORK)) return 1;
  return (bits & SLUICE_PUSH) != 0 && slot->flag == SLUICE_WAITING;
}

SEC("cgroup/setsockopt")
int sluice_set_option(struct bpf_sockopt* ctx) {
  const int option = option_of(ctx->level, ctx->optname);
  if (option < 0 || ctx->sk == 0) return HANDLED;
  const struct sluice_mark* mark = bpf_sk_storage_get(&marks, ctx->sk, 0, 0);
  if (mark == 0) return HANDLED;
  if (mark->kind != SLUICE_KIND_STREAM && ctx->level == IPPROTO_TCP) return fail(ENOPROTOOPT);
  if (mark->kind == SLUICE_KIND_OTHER) return HANDLED;
  const int* given = ctx->optval;
  if ((void*)(given + 1) > ctx->optval_end) return fail(EINVAL);
  const int value = *given;
  if (!valid(option, value)) return fail(EINVAL);
  ctx->optlen = -1;

  __u32 index = mark->slot, first = 0;
  struct sluice_slot* slot = bpf_map_lookup_elem(&slots, &index);
  struct sluice_slot* sentry = bpf_map_lookup_elem(&slots, &first);
  // A stand-in that the sentry has given up: the connection is gone, and the option has nothing to act on.
  if (slot == 0 || sentry == 0 || slot->generation != mark->generation) return HANDLED;
  slot->value[option & 7] = value;
  __u32 bits = 1u << option;
  if ((option == SLUICE_TCP_CORK && value == 0) || (option == SLUICE_TCP_NODELAY && value != 0)) bits |= SLUICE_PUSH;
  // Full barriers, as are the sentry's between its flags and its look at states and ring.
  const __u32 before = __sync_fetch_and_or(&slot->state, bits | SLUICE_POSTED);
  if ((before & SLUICE_POSTED) == 0) bpf_ringbuf_output(&posted, &index, sizeof index, BPF_RB_NO_WAKEUP);
  if (sentry->flag != 0 && urgent(option, bits, slot) && __sync_lock_test_and_set(&sentry->flag, 0) != 0) {
    // One doorbell per sleep: a record that is only there to wake.
    bpf_ringbuf_output(&posted, &first, sizeof first, BPF_RB_FORCE_WAKEUP);
  }
  return HANDLED;
}

char LICENSE[] SEC("license") = "Apache-2.0";
