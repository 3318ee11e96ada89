// A Port around a Port: everything is passed on. Middlewares override what they change.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dataplane/port.h"

namespace sluice {

class WrappedPort : public Port {
 public:
  explicit WrappedPort(std::unique_ptr<Port> inner) : inner_(std::move(inner)) {}

  LinkFeatures features() const override { return inner_->features(); }
  size_t Transmit(std::span<Packet> burst) override { return inner_->Transmit(burst); }
  IfIndex ifindex() const override { return inner_->ifindex(); }
  std::string_view kind() const override { return inner_->kind(); }
  size_t Receive(std::span<Packet> out) override { return inner_->Receive(out); }
  std::vector<int> wait_fds() const override { return inner_->wait_fds(); }
  bool ArmWakeup() override { return inner_->ArmWakeup(); }
  int tx_wait_fd() const override { return inner_->tx_wait_fd(); }
  bool tx_pending() const override { return inner_->tx_pending(); }
  Instant transmit_at() const override { return inner_->transmit_at(); }
  std::optional<QdiscStats> qdisc() const override { return inner_->qdisc(); }
  bool polled() const override { return inner_->polled(); }
  bool dead() const override { return inner_->dead(); }
  PortStats stats() const override { return inner_->stats(); }
  PortFaults faults() const override { return inner_->faults(); }
  std::vector<std::string> describe() const override { return inner_->describe(); }

 protected:
  const std::unique_ptr<Port> inner_;
};

}  // namespace sluice
