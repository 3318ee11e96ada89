// A token bucket filter, as Linux's sch_tbf: one queue in order; a super-segment that is longer than the bucket is cut into its
// segments. The queue holds what the rate sends in 50 ms, the bucket beside it, and no more than 10000 frames.
#pragma once

#include <vector>

#include "dataplane/qdisc.h"

namespace sluice {

class Tbf final : public Qdisc {
 public:
  // Bytes per second and bytes, neither 0.
  Tbf(uint64_t rate, uint32_t burst, BlockPool& pool);

  void Enqueue(Packet frame, Instant now) override;
  bool Dequeue(Instant now, Packet* out) override;
  Instant next() const override;

 private:
  void Append(Packet frame);
  Duration Cost(const Packet& frame) const;
  Instant Leaves() const;  // when there are tokens for the first frame
  size_t waiting() const { return queue_.size() - head_; }

  const uint64_t rate_;
  const uint32_t burst_;
  const Duration depth_;  // the bucket in time
  const uint64_t limit_;  // bytes
  BlockPool& pool_;
  std::vector<Packet> queue_;  // [head_, end) wait
  size_t head_ = 0;
  std::vector<Packet> segments_;  // of the frame that is being cut
  Instant full_at_;               // when the bucket will be full
};

}  // namespace sluice
