// What the BPF programs of engine flows (bpf/engine_flows.h) and those who read and write their maps share. C and C++.
#pragma once

#include <linux/types.h>

// Servers of names: the one remote port of an engine's flows.
#define SLUICE_ENGINE_PORT 53

// A flow of a socket of the kernel, as that socket sees it; network byte order. Its value: when the socket last sent, ns.
struct sluice_flow {
  __u32 local, remote;
  __u16 local_port, remote_port;
  __u8 protocol;
  __u8 zero[3];
};

// A datagram of a flow of which a first fragment was seen. Its value: when, ns.
struct sluice_fragment {
  __u32 source, destination;
  __u16 id;
  __u8 protocol;
  __u8 zero;
};

// An ARP request that the kernel sent for the address that is the key.
struct sluice_resolution {
  __u64 when;
  __u32 sender;
  __u32 zero;
};

// Written by the relay to the engine's resolver. Times are CLOCK_MONOTONIC in nanoseconds.
struct sluice_gate {
  __u64 asked;         // when the sandbox last asked the resolver; 0: never
  __s64 arp_requests;  // that the kernel may still send
};

// Local ports that the sandbox's own stack holds: one bit each, UDP's then TCP's; written by the sentry.
#define SLUICE_HELD_WORDS 2048
