// Objects of one type in slabs with a free list: no call of the allocator per connection once the pool is warm.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace sluice::tcp {

template <typename T>
class ObjectPool {
 public:
  template <typename... Args>
  T* New(Args&&... args) {
    if (free_ == nullptr) Grow();
    Node* node = free_;
    free_ = node->next;
    ++in_use_;
    return new (node) T(std::forward<Args>(args)...);
  }
  void Delete(T* object) {
    object->~T();
    auto* node = reinterpret_cast<Node*>(object);
    node->next = free_;
    free_ = node;
    --in_use_;
  }
  size_t in_use() const { return in_use_; }

 private:
  union Node {
    Node() {}
    ~Node() {}
    Node* next;
    alignas(T) unsigned char storage[sizeof(T)];
  };
  static constexpr size_t kPerSlab = 16;
  void Grow() {
    slabs_.push_back(std::make_unique<Node[]>(kPerSlab));
    for (size_t i = 0; i < kPerSlab; ++i) {
      slabs_.back()[i].next = free_;
      free_ = &slabs_.back()[i];
    }
  }
  std::vector<std::unique_ptr<Node[]>> slabs_;
  Node* free_ = nullptr;
  size_t in_use_ = 0;
};

}  // namespace sluice::tcp
