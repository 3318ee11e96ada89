// Memory shared by the BPF program that answers options (bpf/options.bpf.c, plain C) and the sentry (xdp/native_options.h).
#pragma once

#ifdef __cplusplus
#include <cstdint>
typedef uint32_t sluice_u32;
typedef int32_t sluice_s32;
#else
typedef __u32 sluice_u32;
typedef __s32 sluice_s32;
#endif

// Options whose success depends on the value alone; the index of their value in a slot.
enum sluice_option {
  SLUICE_TCP_NODELAY,
  SLUICE_TCP_CORK,
  SLUICE_TCP_QUICKACK,
  SLUICE_TCP_KEEPIDLE,
  SLUICE_TCP_KEEPINTVL,
  SLUICE_TCP_KEEPCNT,
  SLUICE_TCP_USER_TIMEOUT,
  SLUICE_SO_KEEPALIVE,
  SLUICE_OPTIONS
};

// Bits of sluice_slot.state above those of the options (1 << option: has a value that the sentry has not taken).
enum {
  SLUICE_PUSH =
      1 << 16,  // TCP_CORK was cleared or TCP_NODELAY set: what waits is to be sent, also where a later call set the cork again
  SLUICE_POSTED = 1 << 17  // the slot's number is in the ring
};

// Values of sluice_slot.flag but for slot 0: bytes wait in the stack for TCP_CORK or Nagle's rule; every option matters at once.
enum { SLUICE_WAITING = 1, SLUICE_ALWAYS = 2 };

// Of one stand-in. Slot 0 is nobody's: its `flag` is 1 where the sentry is about to sleep.
struct sluice_slot {
  sluice_u32 state;       // the program sets bits, the sentry takes them
  sluice_u32 generation;  // written by the sentry: marks of an earlier owner differ
  sluice_u32 flag;        // written by the sentry
  sluice_u32 reserved[5];
  sluice_s32 value[SLUICE_OPTIONS];
};

enum { SLUICE_KIND_STREAM, SLUICE_KIND_DATAGRAM, SLUICE_KIND_OTHER };

// Storage of a stand-in's socket.
struct sluice_mark {
  sluice_u32 slot;
  sluice_u32 generation;
  sluice_u32 kind;
  sluice_u32 reserved;
};
