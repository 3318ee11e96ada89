// Fair queueing with pacing, as Linux's sch_fq: flows take turns of two full frames each (new ones first), and a flow whose next
// frame has a departure to come steps aside until then. Frames without TCP or UDP of one pair of hosts are a flow.
//
// Bounded as there: 10000 frames, 100 of a flow. A flow is known while frames of it wait.
#pragma once

#include <array>
#include <vector>

#include "dataplane/qdisc.h"

namespace sluice {

class Fq final : public Qdisc {
 public:
  static constexpr size_t kLimit = 10000, kFlowLimit = 100;
  static constexpr int64_t kQuantum = 2 * 1514;

  Fq();

  void Enqueue(Packet frame, Instant now) override;
  bool Dequeue(Instant now, Packet* out) override;
  Instant next() const override;
  bool paces() const override { return true; }

 private:
  static constexpr uint32_t kNone = UINT32_MAX;
  static constexpr size_t kBuckets = 1024;

  struct Node {
    Packet frame;
    uint32_t next = kNone;
  };
  struct Flow {
    uint64_t key = 0;
    uint32_t head = kNone, tail = kNone;  // nodes
    uint32_t length = 0;
    uint32_t next = kNone;  // in its list of turns, or free
    uint32_t next_in_bucket = kNone;
    int64_t credit = 0;  // bytes
    Instant departure;   // of its first frame, while it stands aside
  };
  struct List {
    uint32_t head = kNone, tail = kNone;
  };

  uint32_t FindFlow(uint64_t key);
  void FreeFlow(uint32_t flow);
  void Append(List& list, uint32_t flow);
  uint32_t PopFront(List& list);
  void StepAside(uint32_t flow);
  void Recall(Instant now);
  void TakeFrame(Flow& flow, Packet* out);
  bool Later(uint32_t a, uint32_t b) const { return flows_[a].departure > flows_[b].departure; }

  std::vector<Node> nodes_;
  std::vector<Flow> flows_;
  uint32_t free_node_ = kNone, free_flow_ = kNone;
  std::array<uint32_t, kBuckets> buckets_;
  List new_, old_;
  std::vector<uint32_t> aside_;  // a heap by departure
};

}  // namespace sluice
