// One capture of a running sandbox: the worker puts frames in, the control thread takes them out for the reader. The queue is
// bounded; a reader that is slow or stops costs frames of the capture, which are counted, and nothing else.
#pragma once

#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "control/run/admin_protocol.h"
#include "netstack/stack.h"

namespace sluice {

class CaptureQueue final : public FrameTap {
 public:
  struct Options {
    uint32_t snaplen = kMaxCaptured;
    std::vector<std::string> devices;  // empty: all
  };
  static constexpr size_t kMaxWaiting = 4 << 20;

  // `wake` is called (worker's thread) when there is something to take after there was nothing.
  CaptureQueue(Options options, const Stack& stack, std::function<void()> wake)
      : options_(std::move(options)), stack_(stack), wake_(std::move(wake)) {}

  // Worker's thread.
  void OnFrame(IfIndex ifindex, Direction direction, const Packet& frame) override;
  void Close();  // no more frames come

  // Control thread: replaces `out` by the records that wait. False where nothing will come any more.
  bool Take(std::string* out);

 private:
  struct Interface {
    IfIndex ifindex = 0;
    bool wanted = false;
    uint64_t dropped = 0, told = 0;
  };
  Interface& Find(IfIndex ifindex);
  void Append(const CaptureRecord& record);

  const Options options_;
  const Stack& stack_;
  const std::function<void()> wake_;
  std::mutex mutex_;  // held for the copy of a frame, and for the swap of Take
  std::vector<Interface> interfaces_;
  std::string waiting_;
  bool closed_ = false;
};

}  // namespace sluice
