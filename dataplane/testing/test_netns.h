// Two network namespaces joined by a veth, for tests that need a kernel peer. Made and removed with the object; needs root.
#pragma once

#include <string>

#include "netstack/ip/address.h"
#include "xdp/unique_fd.h"

namespace sluice::testing {

// Empty where tests may make namespaces, otherwise why not (for GTEST_SKIP).
std::string WhyNoNetns();

// A fresh namespace; the calling thread is not moved.
UniqueFd NewNetns();

// Moves the calling thread and back.
class InNetns {
 public:
  explicit InNetns(int netns);
  ~InNetns();
  InNetns(const InNetns&) = delete;

 private:
  UniqueFd before_;
};

// sl0 (10.77.0.1/24, ours) in `ours`, pe0 (10.77.0.2/24) in `peer`; both up, no IPv6 chatter, no offloads changed.
class VethPair {
 public:
  // `queues`: that many can be given to both ends (ethtool -L); one is in use. 0: the kernel's choice, one for each core.
  explicit VethPair(int queues = 0);
  ~VethPair();

  int ours() const { return ours_.get(); }
  int peer() const { return peer_.get(); }
  IfIndex our_index() const { return our_index_; }
  IfIndex peer_index() const { return peer_index_; }
  // Runs a shell command in a namespace; its exit status. Output goes to `output` where given.
  int Run(int netns, const std::string& command, std::string* output = nullptr) const;

 private:
  UniqueFd ours_, peer_;
  IfIndex our_index_ = 0, peer_index_ = 0;
};

}  // namespace sluice::testing
