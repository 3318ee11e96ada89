#include "netstack/tcp/sent_ranges.h"

#include <algorithm>

#include "base/check.h"

namespace sluice::tcp {
namespace {

bool SentAfter(Instant a, SeqNum a_end, Instant b, SeqNum b_end) { return a > b || (a == b && b_end < a_end); }

bool SameFate(const SentRange& a, const SentRange& b) {
  if (a.end != b.start) return false;
  if (a.sacked || b.sacked) return a.sacked && b.sacked;
  return a.sent_at == b.sent_at && a.lost == b.lost && a.retransmitted == b.retransmitted &&
         a.ever_retransmitted == b.ever_retransmitted;
}

}  // namespace

void SentRanges::OnSend(SeqNum start, SeqNum end, const SendStamp& stamp) {
  if (empty()) {
    Clear();
    highest_sacked_ = highest_retransmitted_ = start;
  }
  out_ += end - start;
  if (!empty() && ranges_.back().end == start && ranges_.back().sent_at == stamp.sent_at && !ranges_.back().sacked &&
      !ranges_.back().lost && !ranges_.back().ever_retransmitted) {
    ranges_.back().end = end;
    return;
  }
  SentRange r{stamp};
  r.start = start, r.end = end;
  ranges_.push_back(r);
}

void SentRanges::Delivered(const SentRange& r, Delivery* d, RackMark* rack, Instant now, Duration min_rtt) const {
  d->bytes += r.length();
  if (!r.ever_retransmitted) {
    if (!d->latest_sent || *d->latest_sent < r.sent_at) d->latest_sent = r.sent_at;
    if (!d->earliest_sent || r.sent_at < *d->earliest_sent) d->earliest_sent = r.sent_at;
    if (r.start < highest_sacked_ && sacked_ > 0) d->reordered = true;
  }
  if (!d->has_newest || SentAfter(r.sent_at, r.end, d->newest.sent_at, d->newest_end)) {
    d->has_newest = true;
    d->newest = r;
    d->newest_end = r.end;
  }
  // RFC 8985 6.2 step 2: an answer sooner than any round trip is one to the original transmission.
  if (r.ever_retransmitted && now - r.sent_at < min_rtt) return;
  if (!rack->valid || SentAfter(r.sent_at, r.end, rack->sent_at, rack->end)) {
    *rack = {r.sent_at, r.end, now - r.sent_at, true};
  }
}

void SentRanges::Forget(const SentRange& r) {
  const uint32_t n = r.length();
  out_ -= n;
  if (r.sacked) sacked_ -= n;
  if (r.lost) lost_ -= n;
  if (r.retransmitted) {
    retransmitted_ -= n;
    if (r.lost) retransmitted_lost_ -= n;
  }
}

void SentRanges::AckTo(SeqNum una, Delivery* d, RackMark* rack, Instant now, Duration min_rtt) {
  while (head_ < ranges_.size() && ranges_[head_].start < una) {
    SentRange& r = ranges_[head_];
    const bool whole = r.end <= una;
    SentRange part = r;
    if (!whole) part.end = una;
    if (part.ever_retransmitted) d->any_retransmitted = true;
    if (!part.sacked) Delivered(part, d, rack, now, min_rtt);
    Forget(part);
    if (!whole) {
      r.start = una;
      break;
    }
    if (r.sacked) --sacked_runs_;
    ++head_;
  }
  if (highest_sacked_ < una) highest_sacked_ = una;
  if (highest_retransmitted_ < una) highest_retransmitted_ = una;
  Compact();
}

size_t SentRanges::Find(SeqNum seq) const {
  auto it = std::upper_bound(ranges_.begin() + static_cast<ptrdiff_t>(head_), ranges_.end(), seq,
                             [](SeqNum s, const SentRange& r) { return s < r.end; });
  return static_cast<size_t>(it - ranges_.begin());
}

size_t SentRanges::SplitAt(SeqNum seq) {
  const size_t i = Find(seq);
  if (i == ranges_.size() || seq <= ranges_[i].start) return i;
  SentRange tail = ranges_[i];
  tail.start = seq;
  ranges_[i].end = seq;
  if (tail.sacked) ++sacked_runs_;
  ranges_.insert(ranges_.begin() + static_cast<ptrdiff_t>(i) + 1, tail);
  return i + 1;
}

void SentRanges::MergeAround(size_t first, size_t last) {
  size_t from = first > head_ ? first - 1 : head_;
  const size_t to = std::min(last + 1, ranges_.size());
  if (from >= to) return;
  size_t kept = from;
  for (size_t i = from + 1; i < to; ++i) {
    SentRange& a = ranges_[kept];
    const SentRange& b = ranges_[i];
    if (SameFate(a, b)) {
      if (a.sacked) --sacked_runs_;
      a.end = b.end;
    } else {
      ranges_[++kept] = b;
    }
  }
  ranges_.erase(ranges_.begin() + static_cast<ptrdiff_t>(kept) + 1, ranges_.begin() + static_cast<ptrdiff_t>(to));
}

void SentRanges::Sack(SeqNum start, SeqNum end, Delivery* d, RackMark* rack, Instant now, Duration min_rtt) {
  if (empty() || !(start < end)) return;
  start = Max(start, front().start);
  end = Min(end, back().end);
  if (!(start < end)) return;
  const size_t known = Find(start);
  if (ranges_[known].sacked && end <= ranges_[known].end) return;  // nothing new: the usual case of repeated blocks
  const size_t first = SplitAt(start);
  size_t last = first;
  SplitAt(end);
  for (; last < ranges_.size() && ranges_[last].start < end; ++last) {
    SentRange& r = ranges_[last];
    if (r.sacked) continue;
    Delivered(r, d, rack, now, min_rtt);
    d->sacked_bytes += r.length();
    sacked_ += r.length();
    if (r.lost) lost_ -= r.length();
    if (r.retransmitted) {
      retransmitted_ -= r.length();
      if (r.lost) retransmitted_lost_ -= r.length();
    }
    r.lost = r.retransmitted = false;
    r.sacked = true;
    ++sacked_runs_;
  }
  if (highest_sacked_ < end) highest_sacked_ = end;
  MergeAround(first, last);
}

void SentRanges::SetLost(SentRange& r) {
  if (!r.lost) {
    r.lost = true;
    lost_ += r.length();
    if (r.retransmitted) retransmitted_lost_ += r.length();
  }
  if (r.retransmitted) {
    r.retransmitted = false;
    retransmitted_ -= r.length();
    retransmitted_lost_ -= r.length();
  }
}

uint32_t SentRanges::DetectLost(const RackMark& rack, Duration reorder_window, Instant now, Duration* wait) {
  *wait = Duration();
  if (!rack.valid) return 0;
  uint32_t newly_lost = 0;
  const SeqNum limit = Max(rack.end, highest_retransmitted_);  // nothing above was sent before `rack`
  size_t first = ranges_.size(), last = head_;
  for (size_t i = head_; i < ranges_.size() && ranges_[i].start < limit; ++i) {
    SentRange& r = ranges_[i];
    if (r.sacked || (r.lost && !r.retransmitted)) continue;
    if (!SentAfter(rack.sent_at, rack.end, r.sent_at, r.end)) continue;
    const Duration remaining = r.sent_at + rack.rtt + reorder_window - now;
    if (remaining > Duration()) {
      *wait = std::max(*wait, remaining);
      continue;
    }
    SetLost(r);
    newly_lost += r.length();
    first = std::min(first, i);
    last = i + 1;
  }
  if (newly_lost > 0) MergeAround(first, last);
  return newly_lost;
}

uint32_t SentRanges::MarkLostBelow(SeqNum edge) {
  if (empty() || edge <= front().start) return 0;
  const size_t stop = SplitAt(edge);
  uint32_t newly_lost = 0;
  for (size_t i = head_; i < stop; ++i) {
    SentRange& r = ranges_[i];
    if (r.sacked || r.lost) continue;
    SetLost(r);
    newly_lost += r.length();
  }
  MergeAround(head_, stop);
  return newly_lost;
}

uint32_t SentRanges::MarkHeadLost(uint32_t length) {
  if (empty()) return 0;
  const SeqNum edge = front().start + length;
  const size_t stop = SplitAt(edge);
  uint32_t newly_lost = 0;
  for (size_t i = head_; i < stop; ++i) {
    SentRange& r = ranges_[i];
    if (r.sacked || (r.lost && !r.retransmitted)) continue;
    SetLost(r);
    newly_lost += r.length();
  }
  MergeAround(head_, stop);
  return newly_lost;
}

void SentRanges::MarkAllLost(bool forget_sacks) {
  for (size_t i = head_; i < ranges_.size(); ++i) {
    SentRange& r = ranges_[i];
    if (r.sacked && !forget_sacks) continue;
    if (r.sacked) {
      r.sacked = false;
      sacked_ -= r.length();
      --sacked_runs_;
    }
    SetLost(r);
  }
  if (forget_sacks && !empty()) highest_sacked_ = front().start;
  MergeAround(head_, ranges_.size());
}

void SentRanges::ClearLost() {
  for (size_t i = head_; i < ranges_.size(); ++i) ranges_[i].lost = false;
  lost_ = retransmitted_lost_ = 0;
  // A piece in flight twice counts once again.
  for (size_t i = head_; i < ranges_.size(); ++i) {
    SentRange& r = ranges_[i];
    if (r.retransmitted) retransmitted_ -= r.length();
    r.retransmitted = false;
  }
}

std::optional<SentRanges::Piece> SentRanges::NextLost(SeqNum from) const {
  size_t i = empty() || from < front().start ? head_ : Find(from);
  auto waits = [](const SentRange& r) { return r.lost && !r.retransmitted && !r.sacked; };
  while (i < ranges_.size() && !waits(ranges_[i])) ++i;
  if (i >= ranges_.size()) return std::nullopt;
  Piece p{Max(ranges_[i].start, from), ranges_[i].end};
  if (from < ranges_[i].start) p.start = ranges_[i].start;
  while (++i < ranges_.size() && waits(ranges_[i])) p.end = ranges_[i].end;
  return p;
}

void SentRanges::OnRetransmit(SeqNum start, SeqNum end, const SendStamp& stamp) {
  const size_t first = SplitAt(start);
  const size_t stop = std::max(SplitAt(end), first);
  for (size_t i = first; i < stop && i < ranges_.size(); ++i) {
    SentRange& r = ranges_[i];
    if (!r.sacked && !r.retransmitted) {
      r.retransmitted = true;
      retransmitted_ += r.length();
      if (r.lost) retransmitted_lost_ += r.length();
    }
    r.ever_retransmitted = true;
    static_cast<SendStamp&>(r) = stamp;
  }
  if (highest_retransmitted_ < end) highest_retransmitted_ = end;
  MergeAround(first, stop);
}

bool SentRanges::RetransmittedBelow(SeqNum seq) const {
  for (size_t i = head_; i < ranges_.size() && ranges_[i].start < seq; ++i) {
    if (ranges_[i].retransmitted) return true;
  }
  return false;
}

void SentRanges::Compact() {
  if (empty()) {
    Clear();
  } else if (head_ >= 32 && head_ * 2 >= ranges_.size()) {
    ranges_.erase(ranges_.begin(), ranges_.begin() + static_cast<ptrdiff_t>(head_));
    head_ = 0;
  }
}

void SentRanges::Clear() {
  ranges_.clear();
  if (ranges_.capacity() > 64) ranges_.shrink_to_fit();
  head_ = 0;
  out_ = sacked_ = lost_ = retransmitted_ = retransmitted_lost_ = sacked_runs_ = 0;
}

}  // namespace sluice::tcp
