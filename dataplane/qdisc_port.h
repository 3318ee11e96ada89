// A Port around a Port: what is sent goes through a queueing discipline first. Takes every frame; what it drops it counts.
#pragma once

#include <array>
#include <memory>
#include <optional>

#include "dataplane/qdisc.h"
#include "dataplane/system.h"
#include "dataplane/wrapped_port.h"

namespace sluice {

class QdiscPort final : public WrappedPort {
 public:
  using Clock = Instant (*)();
  QdiscPort(std::unique_ptr<Port> inner, std::unique_ptr<Qdisc> qdisc, Clock clock = MonotonicNow)
      : WrappedPort(std::move(inner)), qdisc_(std::move(qdisc)), clock_(clock) {}

  LinkFeatures features() const override;
  size_t Transmit(std::span<Packet> burst) override;
  bool tx_pending() const override { return waiting_ > 0 || inner_->tx_pending(); }
  Instant transmit_at() const override { return waiting_ > 0 ? Instant::Max() : qdisc_->next(); }
  std::optional<QdiscStats> qdisc() const override;

 private:
  static constexpr size_t kBurst = 32;

  std::unique_ptr<Qdisc> qdisc_;
  const Clock clock_;
  std::array<Packet, kBurst> burst_;  // [at_, at_ + waiting_) left the discipline and found no room in the device
  size_t at_ = 0, waiting_ = 0;
  uint64_t requeues_ = 0;
};

// --qdisc=none: what the device does not take at once is dropped.
class UnqueuedPort final : public WrappedPort {
 public:
  using WrappedPort::WrappedPort;
  LinkFeatures features() const override {
    LinkFeatures f = inner_->features();
    f.queues = false;
    return f;
  }
};

// `port` with the discipline before it; with fifo that is `port` itself.
std::unique_ptr<Port> WithQdisc(std::unique_ptr<Port> port, const QdiscOptions& options, BlockPool& pool);

}  // namespace sluice
