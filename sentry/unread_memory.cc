#include "sentry/unread_memory.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>

#include <algorithm>

namespace sluice {

UnreadMemory::Queue::~Queue() { Set(0); }

void UnreadMemory::Queue::Set(size_t held) {
  if (held_ == 0 && held != 0) {
    place_ = all_.holders_.size();
    all_.holders_.push_back(this);
  } else if (held_ != 0 && held == 0) {
    Queue* last = all_.holders_.back();
    all_.holders_[place_] = last;
    last->place_ = place_;
    all_.holders_.pop_back();
  }
  all_.held_ += held - held_;
  held_ = held;
}

void UnreadMemory::Queue::Measure() {
  int left = 0;
  if (s_ >= 0 && ioctl(s_, SIOCOUTQ, &left) == 0 && left >= 0) Set(static_cast<size_t>(left));
}

void UnreadMemory::Queue::Wrote(int s, size_t bytes) {
  s_ = s;
  Set(held_ + bytes + kOverhead);
  all_.since_sweep_ += bytes + kOverhead;
}

void UnreadMemory::Queue::Detach() {
  Measure();
  s_ = -1;
}

void UnreadMemory::Queue::Forget() {
  Set(0);
  s_ = -1;
}

size_t UnreadMemory::Queue::Room(int s, size_t wanted) {
  if (all_.left() >= wanted) return all_.left();
  s_ = s;
  Measure();
  if (all_.left() < wanted) all_.Sweep();
  if (all_.left() >= wanted) return all_.left();
  // Those that came first have more than theirs: newcomers get theirs from as much again.
  const size_t share =
      all_.held_ < 2 * all_.limit_ ? std::max(kMinimum, all_.limit_ / std::max<size_t>(all_.holders_.size(), 1)) : kMinimum;
  if (share > held_) return share - held_;
  all_.since_sweep_ += all_.limit_ / 64;
  return 0;
}

// Asks for every queue, but not more often than something may have changed.
void UnreadMemory::Sweep() {
  if (since_sweep_ < limit_ / 8) return;
  since_sweep_ = 0;
  for (size_t i = holders_.size(); i > 0; --i) holders_[i - 1]->Measure();  // an empty one leaves its place to the last
}

}  // namespace sluice
