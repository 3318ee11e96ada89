#include "dataplane/pipe_port.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <deque>

#include "base/check.h"
#include "xdp/unique_fd.h"

namespace sluice {
namespace {

struct Direction {
  std::deque<Packet> frames;
  UniqueFd event{eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};  // readable while frames wait
  bool closed = false;

  void Signal() {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(event.get(), &one, sizeof one);
  }
  void Quiet() {
    uint64_t value;
    [[maybe_unused]] const ssize_t n = read(event.get(), &value, sizeof value);
  }
};

class PipePort final : public Port {
 public:
  PipePort(IfIndex ifindex, std::shared_ptr<Direction> in, std::shared_ptr<Direction> out, BlockPool& pool, size_t capacity)
      : ifindex_(ifindex), in_(std::move(in)), out_(std::move(out)), pool_(pool), capacity_(capacity) {
    SLUICE_CHECK(in_->event);
  }
  ~PipePort() override {
    in_->closed = out_->closed = true;
    out_->Signal();
  }

  LinkFeatures features() const override { return {.tx_checksum = true, .gso = true, .udp_gso = true, .rx_checksum = true}; }
  IfIndex ifindex() const override { return ifindex_; }
  std::string_view kind() const override { return "pipe"; }
  std::vector<int> wait_fds() const override { return {in_->event.get()}; }
  bool ArmWakeup() override { return in_->frames.empty(); }
  bool dead() const override { return in_->closed; }
  PortStats stats() const override { return stats_; }
  std::vector<std::string> describe() const override { return {"link=pipe", "capacity=" + std::to_string(capacity_)}; }

  size_t Transmit(std::span<Packet> burst) override {
    size_t done = 0;
    for (; done < burst.size(); ++done) {
      Packet& frame = burst[done];
      if (!out_->closed && out_->frames.size() >= capacity_) break;
      // The receiver wants one linear region, as from a device.
      if (out_->closed || !frame.Linearize(pool_)) {
        ++stats_.tx_dropped;
      } else {
        ++stats_.tx_frames;
        stats_.tx_bytes += frame.size();
        out_->frames.push_back(std::move(frame));
      }
      frame = Packet();
    }
    if (done > 0) out_->Signal();
    return done;
  }

  size_t Receive(std::span<Packet> out) override {
    size_t n = 0;
    for (; n < out.size() && !in_->frames.empty(); ++n) {
      out[n] = std::move(in_->frames.front());
      in_->frames.pop_front();
      out[n].ifindex = ifindex_;
      out[n].link_type = 0;
      ++stats_.rx_frames;
      stats_.rx_bytes += out[n].size();
    }
    if (in_->frames.empty()) in_->Quiet();
    return n;
  }

 private:
  const IfIndex ifindex_;
  std::shared_ptr<Direction> in_, out_;
  BlockPool& pool_;
  const size_t capacity_;
  PortStats stats_;
};

}  // namespace

std::pair<std::unique_ptr<Port>, std::unique_ptr<Port>> MakePipePorts(IfIndex first, IfIndex second, BlockPool& pool,
                                                                      size_t capacity) {
  auto forth = std::make_shared<Direction>(), back = std::make_shared<Direction>();
  return {std::make_unique<PipePort>(first, back, forth, pool, capacity),
          std::make_unique<PipePort>(second, forth, back, pool, capacity)};
}

}  // namespace sluice
