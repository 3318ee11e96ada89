#include "dataplane/tbf.h"

#include <algorithm>
#include <utility>

#include "dataplane/gso.h"

namespace sluice {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint64_t kLatencyShare = 20;  // of a second: 50 ms
constexpr size_t kMostFrames = 10000;

}  // namespace

Tbf::Tbf(uint64_t rate, uint32_t burst, BlockPool& pool)
    : rate_(rate),
      burst_(burst),
      depth_(static_cast<int64_t>(burst * kSecond / rate)),
      limit_(burst + std::max<uint64_t>(rate / kLatencyShare, kMaxFrame)),
      pool_(pool) {
  stats_.kind = "tbf";
}

// Rounded up, so that no rounding adds to the rate; a frame as long as the bucket empties it.
Duration Tbf::Cost(const Packet& frame) const {
  return std::min(Duration(static_cast<int64_t>((WireBytes(frame) * kSecond + rate_ - 1) / rate_)), depth_);
}

Instant Tbf::Leaves() const { return full_at_ + Cost(queue_[head_]) - depth_; }

void Tbf::Enqueue(Packet frame, Instant) {
  if (WireBytes(frame) <= burst_) return Append(std::move(frame));
  if (frame.offload.gso == GsoType::kNone) {
    ++stats_.dropped_too_long;
    return;
  }
  segments_.clear();
  uint64_t cut = 0;
  if (!CutFrame(frame, pool_, &segments_, &cut)) {
    ++stats_.dropped_memory;
    return;
  }
  for (Packet& segment : segments_) {
    segment.ifindex = frame.ifindex;
    if (segment.size() > burst_)
      ++stats_.dropped_too_long;
    else
      Append(std::move(segment));
  }
  segments_.clear();
}

void Tbf::Append(Packet frame) {
  if (waiting() >= kMostFrames || stats_.backlog_bytes + WireBytes(frame) > limit_) {
    ++stats_.dropped_limit;
    return;
  }
  NoteQueued(frame);
  queue_.push_back(std::move(frame));
}

bool Tbf::Dequeue(Instant now, Packet* out) {
  if (waiting() == 0) return false;
  if (Leaves() > now) {
    ++stats_.overlimits;
    return false;
  }
  full_at_ = std::max(full_at_, now) + Cost(queue_[head_]);
  NoteSent(queue_[head_]);
  *out = std::move(queue_[head_++]);
  if (head_ > queue_.size() / 2) {
    std::move(queue_.begin() + static_cast<ptrdiff_t>(head_), queue_.end(), queue_.begin());
    queue_.resize(waiting());
    head_ = 0;
  }
  return true;
}

Instant Tbf::next() const { return waiting() == 0 ? Instant::Max() : Leaves(); }

}  // namespace sluice
