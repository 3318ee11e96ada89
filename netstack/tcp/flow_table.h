// Finds what belongs to a 4-tuple: a flat table with open addressing and linear probing, keyed by a secret so that a peer cannot
// choose collisions.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>

#include "netstack/stack.h"
#include "netstack/tcp/types.h"

namespace sluice::tcp {

class FlowTable {
 public:
  FlowTable(const StackContext& context, uint64_t secret);
  uint32_t Hash(const FlowKey& key) const;
  FlowEntry* Find(const FlowKey& key) const { return Find(key, Hash(key)); }
  FlowEntry* Find(const FlowKey& key, uint32_t hash) const;
  // The entry's key must not be in the table.
  void Insert(FlowEntry* entry);
  void Remove(FlowEntry* entry);
  size_t size() const { return size_; }

  template <typename F>
  void ForEach(F f) const {
    for (size_t i = 0; i < capacity_; ++i) {
      if (slots_[i].entry != nullptr) f(slots_[i].entry);
    }
  }

 private:
  struct Slot {
    FlowEntry* entry = nullptr;
    uint32_t hash = 0;
  };
  void Grow();
  void NoteAway(FlowEntry* entry);
  void ForgetAway(FlowEntry* entry);

  std::unique_ptr<Slot[]> slots_;
  size_t capacity_;
  size_t size_ = 0;
  uint64_t secret_;
  const StackContext& context_;
  std::unordered_map<uint16_t, uint32_t> away_;  // flows by local port
};

}  // namespace sluice::tcp
