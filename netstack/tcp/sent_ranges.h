// What was sent and not yet acknowledged cumulatively: the scoreboard of RFC 6675 with the times RACK (RFC 8985) needs.
//
// Neighbours with the same fate share one entry: a window without loss is a few entries however large it is, and a hole splits
// them on demand. Finding a sequence number is a binary search.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/seq_num.h"
#include "base/time.h"

namespace sluice::tcp {

// A transmission, with what the delivery rate needs to know of the connection then.
struct SendStamp {
  Instant sent_at;
  Instant delivered_at;      // of the latest delivery
  Instant first_sent_at;     // when the newest piece that was delivered then had been sent
  uint64_t delivered = 0;    // bytes
  bool app_limited = false;  // the program had no more to send
};

struct SentRange : SendStamp {  // of the latest transmission
  SeqNum start, end;
  bool sacked = false;
  bool lost = false;           // deemed lost; still true after the retransmission
  bool retransmitted = false;  // the latest transmission is a retransmission that is in flight
  bool ever_retransmitted = false;
  uint32_t length() const { return end - start; }
};

// The latest-sent piece that is known to have arrived (RFC 8985 6.2).
struct RackMark {
  Instant sent_at;
  SeqNum end;
  Duration rtt{};
  bool valid = false;
};

// What one acknowledgment did.
struct Delivery {
  uint32_t bytes = 0;                  // newly acknowledged or SACKed
  uint32_t sacked_bytes = 0;           // newly SACKed
  bool any_retransmitted = false;      // of what was acknowledged cumulatively
  bool reordered = false;              // a piece never retransmitted arrived below the highest SACKed one
  std::optional<Instant> latest_sent;  // of pieces never retransmitted: the most recent
  std::optional<Instant> earliest_sent;
  SendStamp newest;  // of the latest-sent piece, retransmitted or not
  SeqNum newest_end;
  bool has_newest = false;
};

class SentRanges {
 public:
  bool empty() const { return head_ == ranges_.size(); }
  size_t count() const { return ranges_.size() - head_; }
  uint32_t out_bytes() const { return out_; }
  uint32_t sacked_bytes() const { return sacked_; }
  uint32_t lost_bytes() const { return lost_; }
  uint32_t retransmitted_bytes() const { return retransmitted_; }
  // RFC 6675 "pipe".
  uint32_t in_flight() const { return out_ - sacked_ - lost_ + retransmitted_; }
  bool has_unsent_loss() const { return lost_ > retransmitted_lost_; }
  SeqNum highest_sacked() const { return highest_sacked_; }
  uint32_t sacked_runs() const { return sacked_runs_; }
  const SentRange& front() const { return ranges_[head_]; }
  const SentRange& back() const { return ranges_.back(); }
  size_t memory() const { return ranges_.capacity() * sizeof(SentRange); }

  void OnSend(SeqNum start, SeqNum end, const SendStamp& stamp);
  // Removes everything below `una`.
  void AckTo(SeqNum una, Delivery* d, RackMark* rack, Instant now, Duration min_rtt);
  void Sack(SeqNum start, SeqNum end, Delivery* d, RackMark* rack, Instant now, Duration min_rtt);

  // RACK: everything sent sufficiently before `rack` and not delivered is lost. Returns the newly lost bytes; `wait` gets how
  // long until the next piece may be judged lost.
  uint32_t DetectLost(const RackMark& rack, Duration reorder_window, Instant now, Duration* wait);
  // RFC 6675 IsLost() by `threshold` bytes SACKed above.
  uint32_t MarkLostBelow(SeqNum edge);
  // The first `length` bytes, retransmitted already or not.
  uint32_t MarkHeadLost(uint32_t length);
  // Retransmission timeout: all that was not SACKed, or all where `forget_sacks`.
  void MarkAllLost(bool forget_sacks);
  // Undo: nothing is lost any more.
  void ClearLost();

  struct Piece {
    SeqNum start, end;
  };
  // The next run at or above `from` that is lost and waits for its retransmission; adjacent entries are one run.
  std::optional<Piece> NextLost(SeqNum from) const;
  // Bytes newly counted as retransmitted.
  void OnRetransmit(SeqNum start, SeqNum end, const SendStamp& stamp);
  bool RetransmittedBelow(SeqNum seq) const;
  void Clear();

 private:
  size_t Find(SeqNum seq) const;  // index of the entry that holds seq, or ranges_.size()
  size_t SplitAt(SeqNum seq);     // makes seq an entry boundary; returns the index of the entry that starts there
  void MergeAround(size_t first, size_t last);
  void SetLost(SentRange& r);
  void Delivered(const SentRange& r, Delivery* d, RackMark* rack, Instant now, Duration min_rtt) const;
  void Forget(const SentRange& r);
  void Compact();

  std::vector<SentRange> ranges_;
  size_t head_ = 0;
  uint32_t out_ = 0, sacked_ = 0, lost_ = 0, retransmitted_ = 0;
  uint32_t retransmitted_lost_ = 0;  // of the lost bytes, those sent again
  uint32_t sacked_runs_ = 0;
  SeqNum highest_sacked_;
  SeqNum highest_retransmitted_;
};

}  // namespace sluice::tcp
