#include "netstack/link/device.h"

#include <algorithm>

namespace sluice {

void Device::set_link(Link* link) {
  link_ = link;
  features_ = link != nullptr ? link->features() : LinkFeatures{};
  stalled_ = false;
  if (link_ == nullptr && waiting() > 0) {
    context_.counters.Add(Counter::kDropLinkDown, waiting());
    counters_.tx_dropped += waiting();
    queue_.clear();
    head_ = 0;
  }
}

void Device::Enqueue(Packet frame) {
  if (!usable()) {
    context_.counters.Add(Counter::kDropLinkDown);
    ++counters_.tx_dropped;
    return;
  }
  const size_t limit = config_.tx_queue_len != 0 ? std::max<size_t>(config_.tx_queue_len, kBurst) : 1000;
  if (waiting() >= limit) {
    context_.counters.Add(Counter::kDropLinkTxQueueFull);
    ++counters_.tx_dropped;
    return;
  }
  frame.ifindex = config_.index;
  context_.Tap(config_.index, FrameTap::Direction::kOut, frame);
  queue_.push_back(std::move(frame));
  if (waiting() >= kBurst && !stalled_) (void)Flush();
}

Stack::LinkCounters Device::counters() const {
  Stack::LinkCounters c = counters_;
  c.tx_waiting = waiting();
  for (size_t i = head_; i < queue_.size(); ++i) c.tx_waiting_bytes += queue_[i].size();
  return c;
}

bool Device::Flush() {
  if (waiting() == 0) return true;
  if (!usable()) {
    context_.counters.Add(Counter::kDropLinkDown, waiting());
    counters_.tx_dropped += waiting();
    queue_.clear();
    head_ = 0;
    return true;
  }
  uint64_t bytes = 0;
  const std::span<Packet> burst = std::span(queue_).subspan(head_);
  std::vector<uint32_t>& sizes = sizes_;
  sizes.clear();
  for (const Packet& p : burst) sizes.push_back(static_cast<uint32_t>(p.size()));
  const size_t taken = link_->Transmit(burst);
  for (size_t i = 0; i < taken; ++i) bytes += sizes[i];
  counters_.tx_packets += taken;
  counters_.tx_bytes += bytes;
  context_.counters.Add(Counter::kLinkOutFrames, taken);
  context_.counters.Add(Counter::kLinkOutBytes, bytes);
  head_ += taken;
  if (!features_.queues && waiting() > 0) {
    context_.counters.Add(Counter::kDropLinkTxQueueFull, waiting());
    counters_.tx_dropped += waiting();
    head_ = queue_.size();
  }
  stalled_ = waiting() > 0;
  if (!stalled_) {
    queue_.clear();
    head_ = 0;
  } else if (head_ > queue_.size() / 2) {
    std::move(queue_.begin() + static_cast<ptrdiff_t>(head_), queue_.end(), queue_.begin());
    queue_.resize(queue_.size() - head_);
    head_ = 0;
  }
  return !stalled_;
}

}  // namespace sluice
