#include "netstack/tcp/testing/programs.h"

#include <algorithm>
#include <array>

namespace sluice::testing {

void StreamPeer::Complain(const std::string& what) {
  if (!failed_) failure_ = what;
  failed_ = true;
}

void StreamPeer::Work() {
  if (failed_ || socket_ == nullptr) return;
  if ((socket_->events() & kError) != 0) return Complain("error " + std::to_string(ToInt(socket_->TakeError())));
  if (socket_->state() == 2 || socket_->state() == 3) return;
  Write();
  Read();
}

void StreamPeer::Write() {
  while (sent_ < out_total_ && socket_->send_space() > 0) {
    const size_t n = std::min<uint64_t>(write_size, out_total_ - sent_);
    Block* block = host_.pool().Allocate(n);
    if (block == nullptr) return;
    for (size_t i = 0; i < n; ++i) block->data[i] = StreamByte(out_stream_, sent_ + i);
    const Errno e = socket_->Send(Slice{BlockRef(block), 0, static_cast<uint32_t>(n)}, false);
    if (e == Errno::kEAGAIN) return;
    if (e != Errno::kOk) return Complain("send: " + std::to_string(ToInt(e)));
    sent_ += n;
  }
  if (sent_ == out_total_ && !shut_ && half_close) {
    shut_ = true;
    if (const Errno e = socket_->Shutdown(false, true); e != Errno::kOk) Complain("shutdown: " + std::to_string(ToInt(e)));
  }
}

void StreamPeer::Read() {
  std::array<Bytes, 8> spans;
  size_t left = read_limit;
  while (left > 0) {
    const size_t count = socket_->Peek(spans);
    if (count == 0) break;
    size_t taken = 0;
    for (size_t s = 0; s < count && left > 0; ++s) {
      const size_t n = std::min(spans[s].size(), left);
      for (size_t i = 0; i < n; ++i) {
        if (spans[s][i] != StreamByte(in_stream_, received_ + i)) {
          return Complain("byte " + std::to_string(received_ + i) + " is wrong");
        }
      }
      received_ += n;
      taken += n;
      left -= n;
    }
    socket_->Consume(taken);
  }
  if (socket_->at_end()) ended_ = true;
}

}  // namespace sluice::testing
