#include "dataplane/fq.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/rng.h"
#include "dataplane/frame.h"

namespace sluice {
namespace {

// A program inside that finds two flows of one key shares its own turn with itself: there is nothing to keep secret.
uint64_t FlowKey(const Packet& frame) {
  static constexpr SipKey kKey{};
  FrameHeaders h;
  const Bytes bytes = frame.linear();
  if (!LocateHeaders(bytes, frame.size(), &h)) return 0;
  std::array<uint8_t, 37> text{};
  const Bytes addresses = h.v6 ? bytes.subspan(h.network + size_t{8}, 32) : bytes.subspan(h.network + size_t{12}, 8);
  std::memcpy(text.data(), addresses.data(), addresses.size());
  const bool ports = !h.fragment && bytes.size() >= h.transport + size_t{4};
  if (ports) std::memcpy(text.data() + 32, bytes.data() + h.transport, 4);
  text[36] = h.protocol;
  return SipHash24(kKey, text) | 1;
}

}  // namespace

Fq::Fq() {
  stats_.kind = "fq";
  buckets_.fill(kNone);
}

uint32_t Fq::FindFlow(uint64_t key) {
  uint32_t& bucket = buckets_[key / 2 % kBuckets];
  for (uint32_t i = bucket; i != kNone; i = flows_[i].next_in_bucket) {
    if (flows_[i].key == key) return i;
  }
  uint32_t i = free_flow_;
  if (i == kNone) {
    i = static_cast<uint32_t>(flows_.size());
    flows_.emplace_back();
  } else {
    free_flow_ = flows_[i].next;
  }
  flows_[i] = Flow{.key = key, .next_in_bucket = bucket, .credit = kQuantum};
  bucket = i;
  Append(new_, i);
  return i;
}

void Fq::FreeFlow(uint32_t flow) {
  uint32_t* link = &buckets_[flows_[flow].key / 2 % kBuckets];
  while (*link != flow) link = &flows_[*link].next_in_bucket;
  *link = flows_[flow].next_in_bucket;
  flows_[flow].next = free_flow_;
  free_flow_ = flow;
}

void Fq::Append(List& list, uint32_t flow) {
  flows_[flow].next = kNone;
  (list.head == kNone ? list.head : flows_[list.tail].next) = flow;
  list.tail = flow;
}

uint32_t Fq::PopFront(List& list) {
  const uint32_t flow = list.head;
  list.head = flows_[flow].next;
  return flow;
}

void Fq::Enqueue(Packet frame, Instant) {
  if (stats_.backlog_frames >= kLimit) {
    ++stats_.dropped_limit;
    return;
  }
  Flow& flow = flows_[FindFlow(FlowKey(frame))];
  if (flow.length >= kFlowLimit) {
    ++stats_.dropped_flow_limit;
    return;
  }
  NoteQueued(frame);
  uint32_t n = free_node_;
  if (n == kNone) {
    n = static_cast<uint32_t>(nodes_.size());
    nodes_.emplace_back();
  } else {
    free_node_ = nodes_[n].next;
  }
  nodes_[n].frame = std::move(frame);
  nodes_[n].next = kNone;
  (flow.length == 0 ? flow.head : nodes_[flow.tail].next) = n;
  flow.tail = n;
  ++flow.length;
}

void Fq::TakeFrame(Flow& flow, Packet* out) {
  const uint32_t n = flow.head;
  flow.head = nodes_[n].next;
  --flow.length;
  *out = std::move(nodes_[n].frame);
  nodes_[n].next = free_node_;
  free_node_ = n;
  flow.credit -= static_cast<int64_t>(WireBytes(*out));
  NoteSent(*out);
}

void Fq::StepAside(uint32_t flow) {
  ++stats_.overlimits;
  aside_.push_back(flow);
  std::push_heap(aside_.begin(), aside_.end(), [this](uint32_t a, uint32_t b) { return Later(a, b); });
}

// Those whose time has come.
void Fq::Recall(Instant now) {
  while (!aside_.empty() && flows_[aside_.front()].departure <= now) {
    std::pop_heap(aside_.begin(), aside_.end(), [this](uint32_t a, uint32_t b) { return Later(a, b); });
    Append(old_, aside_.back());
    aside_.pop_back();
  }
}

bool Fq::Dequeue(Instant now, Packet* out) {
  Recall(now);
  for (;;) {
    List& list = new_.head != kNone ? new_ : old_;
    if (list.head == kNone) return false;
    const uint32_t i = list.head;
    Flow& flow = flows_[i];
    if (flow.length == 0) {  // a new flow goes once round with the old ones, or it would be new, and first, all the time
      PopFront(list);
      if (&list == &new_ && old_.head != kNone)
        Append(old_, i);
      else
        FreeFlow(i);
    } else if (flow.credit <= 0) {
      flow.credit += kQuantum;
      Append(old_, PopFront(list));
    } else if (const Instant at = nodes_[flow.head].frame.departure; at > now) {
      flow.departure = at;
      StepAside(PopFront(list));
    } else {
      TakeFrame(flow, out);
      return true;
    }
  }
}

Instant Fq::next() const { return aside_.empty() ? Instant::Max() : flows_[aside_.front()].departure; }

}  // namespace sluice
