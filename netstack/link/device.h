// One device of the configuration: its link, its bounded transmit queue, its counters.
#pragma once

#include <vector>

#include "netstack/stack.h"

namespace sluice {

class Device {
 public:
  Device(StackContext& context, const LinkConfig& config) : context_(context), config_(config) {}

  const LinkConfig& config() const { return config_; }
  void set_config(const LinkConfig& config) { config_ = config; }
  void set_link(Link* link);
  IfIndex ifindex() const { return config_.index; }
  const LinkFeatures& features() const { return features_; }
  bool usable() const { return link_ != nullptr && config_.up(); }

  // Queues a complete frame; the link gets it when a burst is full or at Flush. Drops and counts where the queue is full or the
  // device cannot send.
  void Enqueue(Packet frame);
  // False where the link did not take all.
  bool Flush();
  void CountReceived(const Packet& frame) {
    ++counters_.rx_packets;
    counters_.rx_bytes += frame.size();
  }
  void CountReceiveDrop() { ++counters_.rx_dropped; }
  Stack::LinkCounters counters() const;

 private:
  static constexpr size_t kBurst = 64;
  size_t waiting() const { return queue_.size() - head_; }

  StackContext& context_;
  LinkConfig config_;
  Link* link_ = nullptr;
  LinkFeatures features_;
  std::vector<Packet> queue_;  // [head_, end) wait
  size_t head_ = 0;
  std::vector<uint32_t> sizes_;  // of the burst that is handed over (the link empties the packets)
  bool stalled_ = false;         // the link refused frames since the last Flush: no early bursts
  Stack::LinkCounters counters_{};
};

}  // namespace sluice
