// One worker's queue of a device of several: what comes to it and belongs to another shard is mailed there. Where the kernel
// steers by our hash that is rare (a group that changes while the device goes down and up); where the device chooses the queue by
// a hash of its own (AF_XDP, DPDK) it is how flows come home. Group frames and ARP are mailed to all: every stack learns from
// them, one answers.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dataplane/shard_mail.h"
#include "dataplane/wrapped_port.h"

namespace sluice {

class SteeredPort final : public WrappedPort {
 public:
  SteeredPort(std::unique_ptr<Port> inner, ShardMailbox& mail) : WrappedPort(std::move(inner)), mail_(mail) {}

  size_t Receive(std::span<Packet> out) override;
  std::vector<std::string> describe() const override;

 private:
  bool Keep(Packet& frame);

  ShardMailbox& mail_;
};

}  // namespace sluice
