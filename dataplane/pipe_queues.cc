#include "dataplane/pipe_queues.h"

#include <atomic>

#include "dataplane/doorbell.h"
#include "dataplane/frame_ring.h"

namespace sluice {
namespace {

// All that goes one way.
struct Way {
  Way(size_t senders, const PipeSide& to) : key(to.key), bells(to.pools.size()) {
    for (size_t i = 0; i < senders * bells.size(); ++i) rings.push_back(std::make_unique<FrameRing>(kFrameRingBytes));
  }
  FrameRing& ring(size_t from, size_t to) { return *rings[from * bells.size() + to]; }
  const wire::SteeringKey key;  // of the receivers' host
  std::vector<std::unique_ptr<FrameRing>> rings;
  std::vector<Doorbell> bells;  // of the receivers
};

struct Pipe {
  Pipe(const PipeSide& first, const PipeSide& second) : ways{{first.pools.size(), second}, {second.pools.size(), first}} {}
  Way ways[2];                                   // from first, from second
  std::atomic<bool> closed[2] = {false, false};  // a side has lost a queue
};

class QueuePort final : public Port {
 public:
  QueuePort(std::shared_ptr<Pipe> pipe, int side, size_t queue, IfIndex ifindex, BlockPool& pool)
      : pipe_(std::move(pipe)),
        out_(pipe_->ways[side]),
        in_(pipe_->ways[1 - side]),
        side_(side),
        queue_(queue),
        ifindex_(ifindex),
        pool_(pool) {}
  ~QueuePort() override {
    pipe_->closed[side_] = true;
    for (Doorbell& bell : out_.bells) bell.Ring();
  }

  LinkFeatures features() const override { return {.tx_checksum = true, .gso = true, .udp_gso = true, .rx_checksum = true}; }
  IfIndex ifindex() const override { return ifindex_; }
  std::string_view kind() const override { return "pipe"; }
  std::vector<int> wait_fds() const override { return {bell().fd()}; }
  bool polled() const override { return true; }
  bool dead() const override { return pipe_->closed[1 - side_].load(std::memory_order_relaxed); }
  PortStats stats() const override { return stats_; }
  std::vector<std::string> describe() const override { return {"link=pipe", "queue=" + std::to_string(queue_)}; }

  bool ArmWakeup() override {
    bell().WillSleep();
    for (size_t from = 0; from < senders(); ++from) {
      if (!in_.ring(from, queue_).empty()) return false;
    }
    return !dead();
  }

  size_t Transmit(std::span<Packet> burst) override {
    size_t done = 0;
    uint64_t rung = 0;
    for (; done < burst.size(); ++done) {
      Packet& frame = burst[done];
      if (dead()) {
        ++stats_.tx_dropped;
      } else {
        const size_t to = wire::SteeringHash(out_.key, frame.has_vlan ? Bytes{} : frame.linear()) % out_.bells.size();
        if (!out_.ring(queue_, to).Send(frame)) break;
        rung |= uint64_t{1} << (to % 64);
        ++stats_.tx_frames;
        stats_.tx_bytes += frame.size();
      }
      frame = Packet();
    }
    for (size_t to = 0; to < out_.bells.size(); ++to) {
      if ((rung >> (to % 64) & 1) != 0) out_.bells[to].Ring();
    }
    return done;
  }

  size_t Receive(std::span<Packet> out) override {
    bell().Awake();
    size_t taken = 0;
    for (size_t idle = 0; taken < out.size() && idle < senders();) {
      FrameRing::Received got = in_.ring(next_, queue_).Receive(pool_);
      if (!got.any) {
        next_ = (next_ + 1) % senders();
        ++idle;
        continue;
      }
      idle = 0;
      if (!got.packet) {
        ++stats_.rx_dropped;
        continue;
      }
      out[taken] = std::move(got.packet);
      out[taken].ifindex = ifindex_;
      out[taken].link_type = 0;
      ++stats_.rx_frames;
      stats_.rx_bytes += out[taken++].size();
    }
    return taken;
  }

 private:
  Doorbell& bell() const { return in_.bells[queue_]; }
  size_t senders() const { return in_.rings.size() / in_.bells.size(); }

  const std::shared_ptr<Pipe> pipe_;
  Way &out_, &in_;
  const int side_;
  const size_t queue_;
  const IfIndex ifindex_;
  BlockPool& pool_;
  size_t next_ = 0;  // sender that is looked at next
  PortStats stats_;
};

}  // namespace

PipeQueues MakePipeQueues(const PipeSide& first, const PipeSide& second) {
  const auto pipe = std::make_shared<Pipe>(first, second);
  PipeQueues queues;
  for (size_t i = 0; i < first.pools.size(); ++i)
    queues.first.push_back(std::make_unique<QueuePort>(pipe, 0, i, first.ifindex, *first.pools[i]));
  for (size_t i = 0; i < second.pools.size(); ++i)
    queues.second.push_back(std::make_unique<QueuePort>(pipe, 1, i, second.ifindex, *second.pools[i]));
  return queues;
}

}  // namespace sluice
