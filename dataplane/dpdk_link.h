// Opens ports over DPDK's Ethernet devices. DPDK is in a module of its own (libsluice_dpdk.so beside the program or in
// ../lib/sluice), loaded when it is first asked for: the program itself links none of it.
//
// EAL, DPDK's environment, is set up once per process and stays until its end. It wants privileges that the sentry does not have
// (network devices, /dev/vfio, memory that is locked), so it is set up by whoever calls this: `sluice bench`, a server that links
// the library, a test. Any thread; one at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/errno.h"
#include "dataplane/port.h"

namespace sluice {

struct DpdkOptions {
  // A device: "net_af_xdp0,iface=eth0", "net_tap0,iface=tap0", "0000:01:00.0" (a PCI device bound to vfio) ... EAL then gets no
  // huge pages and this one core. Or EAL's own arguments, separated by spaces, where it starts with '-': "-a 0000:01:00.0 -m
  // 1024"; each call with the same arguments opens the next device of them.
  std::string device;
  IfIndex ifindex = 1;       // that the frames carry
  uint32_t queues = 1;       // ports to open, one per worker
  bool offloads = true;      // checksums and TSO by the device where it has them; false: all in software
  bool software_gso = true;  // take GSO frames, and cut them here where the device does not
  bool promiscuous = true;   // else only frames to the device's own address and to groups
  std::string module;        // path of the module; empty: where it is installed
};

struct DpdkLink {
  std::vector<std::unique_ptr<Port>> queues;
  MacAddress mac;
  uint32_t mtu = 1500;
};

// `pool` outlives the ports and every frame received. On failure `error` says what was tried and what to do about it.
Errno OpenDpdk(const DpdkOptions& options, BlockPool& pool, DpdkLink* out, std::string* error);

// What the module exports under the name "sluice_dpdk_module". Program and module are of one build.
struct DpdkModule {
  static constexpr uint32_t kVersion = 1;
  uint32_t version = kVersion;
  Errno (*open)(const DpdkOptions& options, BlockPool& pool, DpdkLink* out, std::string* error) = nullptr;
};

}  // namespace sluice
