#include "dataplane/qdisc_port.h"

#include <utility>

namespace sluice {

LinkFeatures QdiscPort::features() const {
  LinkFeatures f = inner_->features();
  f.paces = qdisc_->paces();
  return f;
}

size_t QdiscPort::Transmit(std::span<Packet> burst) {
  const Instant now = clock_();
  for (Packet& frame : burst) qdisc_->Enqueue(std::move(frame), now);
  if (inner_->tx_pending()) inner_->Transmit({});
  for (;;) {
    if (waiting_ == 0) {
      at_ = 0;
      while (waiting_ < kBurst && qdisc_->Dequeue(now, &burst_[waiting_])) ++waiting_;
      if (waiting_ == 0) break;
    }
    const size_t taken = inner_->Transmit(std::span(burst_).subspan(at_, waiting_));
    at_ += taken;
    waiting_ -= taken;
    if (waiting_ > 0) {
      ++requeues_;
      break;
    }
  }
  return burst.size();
}

std::optional<QdiscStats> QdiscPort::qdisc() const {
  QdiscStats s = qdisc_->stats();
  s.requeues = requeues_;
  for (size_t i = at_; i < at_ + waiting_; ++i) {
    ++s.backlog_frames;
    s.backlog_bytes += WireBytes(burst_[i]);
    s.sent_frames -= WireFrames(burst_[i]);
    s.sent_bytes -= WireBytes(burst_[i]);
  }
  return s;
}

std::unique_ptr<Port> WithQdisc(std::unique_ptr<Port> port, const QdiscOptions& options, BlockPool& pool) {
  if (options.kind == QdiscKind::kNone) return std::make_unique<UnqueuedPort>(std::move(port));
  std::unique_ptr<Qdisc> qdisc = MakeQdisc(options, pool);
  if (qdisc == nullptr) return port;
  return std::make_unique<QdiscPort>(std::move(port), std::move(qdisc));
}

}  // namespace sluice
