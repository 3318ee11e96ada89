// A queue in one array that grows by doubling and keeps its room: no allocation per element.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace sluice {

template <typename T>
class Ring {
 public:
  bool empty() const { return size_ == 0; }
  size_t size() const { return size_; }
  T& front() { return slots_[head_]; }
  const T& front() const { return slots_[head_]; }
  void push_back(T&& v) {
    Grow();
    slots_[(head_ + size_++) & (slots_.size() - 1)] = std::move(v);
  }
  void push_front(T&& v) {
    Grow();
    head_ = (head_ - 1) & (slots_.size() - 1);
    ++size_;
    slots_[head_] = std::move(v);
  }
  T pop_front() {
    T v = std::move(slots_[head_]);
    slots_[head_] = T();
    head_ = (head_ + 1) & (slots_.size() - 1);
    --size_;
    return v;
  }

 private:
  void Grow() {
    if (size_ < slots_.size()) return;
    std::vector<T> bigger(slots_.empty() ? 8 : slots_.size() * 2);
    for (size_t i = 0; i < size_; ++i) bigger[i] = std::move(slots_[(head_ + i) & (slots_.size() - 1)]);
    slots_ = std::move(bigger);
    head_ = 0;
  }
  std::vector<T> slots_;  // a power of two
  size_t head_ = 0, size_ = 0;
};

}  // namespace sluice
