// One capture of a running sandbox: the workers put frames in, the control thread takes them out for the reader. The queue is
// bounded; a reader that is slow or stops costs frames of the capture, which are counted, and nothing else.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "control/run/admin_protocol.h"
#include "netstack/stack.h"

namespace sluice {

class CaptureQueue {
 public:
  struct Options {
    uint32_t snaplen = kMaxCaptured;
    std::vector<std::string> devices;  // empty: all
  };
  static constexpr size_t kMaxWaiting = 4 << 20;

  // `wake` is called (a worker's thread) when there is something to take after there was nothing.
  CaptureQueue(Options options, uint32_t workers, std::function<void()> wake)
      : options_(std::move(options)), wake_(std::move(wake)), places_(workers) {}

  // In the thread of `worker`, whose stack it is. After Untap, which may come first, Tap does nothing: what would take it off
  // again has been.
  void Tap(uint32_t worker, Stack& stack);
  void Untap(uint32_t worker, Stack& stack);
  void Close();  // no more frames come; any worker

  // Control thread: replaces `out` by the records that wait. False where nothing will come any more.
  bool Take(std::string* out);

 private:
  struct Interface {
    IfIndex ifindex = 0;
    bool wanted = false;
    uint64_t dropped = 0, told = 0;
  };
  // Of one stack, which stays its own.
  class StackTap final : public FrameTap {
   public:
    StackTap(CaptureQueue& queue, const Stack& stack) : queue_(queue), stack_(stack) {}
    void OnFrame(IfIndex ifindex, Direction direction, const Packet& frame) override {
      queue_.OnFrame(stack_.config(), ifindex, direction, frame);
    }

   private:
    CaptureQueue& queue_;
    const Stack& stack_;
  };

  // Of its worker's thread alone.
  struct Place {
    std::unique_ptr<StackTap> tap;
    bool over = false;
  };

  void OnFrame(const NetConfig& config, IfIndex ifindex, FrameTap::Direction direction, const Packet& frame);
  Interface& Find(const NetConfig& config, IfIndex ifindex);
  void Append(const CaptureRecord& record);

  const Options options_;
  const std::function<void()> wake_;
  std::vector<Place> places_;  // by worker
  std::mutex mutex_;           // held for the copy of a frame, and for the swap of Take
  std::vector<Interface> interfaces_;
  std::string waiting_;
  bool closed_ = false;
};

}  // namespace sluice
