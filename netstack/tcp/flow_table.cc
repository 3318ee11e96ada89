#include "netstack/tcp/flow_table.h"

#include <cstring>

#include "base/check.h"

namespace sluice::tcp {
namespace {

constexpr size_t kInitialCapacity = 64;

uint64_t Mix(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t Load(const uint8_t* p) {
  uint64_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

}  // namespace

FlowTable::FlowTable(const StackContext& context, uint64_t secret)
    : slots_(std::make_unique<Slot[]>(kInitialCapacity)), capacity_(kInitialCapacity), secret_(secret), context_(context) {}

uint32_t FlowTable::Hash(const FlowKey& key) const {
  const uint64_t ports = uint64_t{key.local_port} << 16 | key.remote_port;
  uint64_t h = secret_ ^ ports * 0x9e3779b97f4a7c15u;
  if (key.remote.is_v4()) {
    const uint64_t addresses = uint64_t{key.local.v4()} << 32 | key.remote.v4();
    h = Mix(h ^ addresses, 0xd6e8feb86659fd93u ^ secret_ << 1);
  } else {
    const uint8_t* l = key.local.bytes().data();
    const uint8_t* r = key.remote.bytes().data();
    h = Mix(h ^ Load(l), 0xa0761d6478bd642fu ^ Load(r) ^ secret_ << 1);
    h = Mix(h ^ Load(l + 8), 0xe7037ed1a0b428dbu ^ Load(r + 8) ^ secret_ << 2);
  }
  h = Mix(h ^ secret_, 0x8ebc6af09c88c6e3u);
  return static_cast<uint32_t>(h ^ h >> 32);
}

FlowEntry* FlowTable::Find(const FlowKey& key, uint32_t hash) const {
  const size_t mask = capacity_ - 1;
  for (size_t i = hash & mask; slots_[i].entry != nullptr; i = (i + 1) & mask) {
    if (slots_[i].hash == hash && slots_[i].entry->key == key) return slots_[i].entry;
  }
  return nullptr;
}

void FlowTable::Insert(FlowEntry* entry) {
  SLUICE_DCHECK(!entry->in_table);
  if ((size_ + 1) * 2 > capacity_) Grow();
  entry->hash = Hash(entry->key);
  entry->in_table = true;
  const size_t mask = capacity_ - 1;
  size_t i = entry->hash & mask;
  while (slots_[i].entry != nullptr) i = (i + 1) & mask;
  slots_[i] = {entry, entry->hash};
  ++size_;
  if (context_.peers != nullptr) NoteAway(entry);
}

// The other stacks pass on what comes for it.
void FlowTable::NoteAway(FlowEntry* entry) {
  const FlowKey& k = entry->key;
  entry->away = !context_.peers->IsHome({k.local, k.remote, k.local_port, k.remote_port});
  if (entry->away && away_[k.local_port]++ == 0) context_.peers->Hold(PortSpace::kTcpAway, k.local_port);
}

void FlowTable::ForgetAway(FlowEntry* entry) {
  entry->away = false;
  const auto it = away_.find(entry->key.local_port);
  if (--it->second != 0) return;
  away_.erase(it);
  if (context_.peers != nullptr) context_.peers->Release(PortSpace::kTcpAway, entry->key.local_port);
}

void FlowTable::Remove(FlowEntry* entry) {
  if (!entry->in_table) return;
  const size_t mask = capacity_ - 1;
  size_t i = entry->hash & mask;
  while (slots_[i].entry != entry) i = (i + 1) & mask;
  // Move later members of the run into the hole where that does not put them before their home.
  for (size_t j = (i + 1) & mask; slots_[j].entry != nullptr; j = (j + 1) & mask) {
    const size_t home = slots_[j].hash & mask;
    if (((j - home) & mask) >= ((j - i) & mask)) {
      slots_[i] = slots_[j];
      i = j;
    }
  }
  slots_[i] = {};
  entry->in_table = false;
  if (entry->away) ForgetAway(entry);
  --size_;
}

void FlowTable::Grow() {
  const std::unique_ptr<Slot[]> old = std::move(slots_);
  const size_t old_capacity = capacity_;
  capacity_ *= 2;
  slots_ = std::make_unique<Slot[]>(capacity_);
  const size_t mask = capacity_ - 1;
  for (size_t k = 0; k < old_capacity; ++k) {
    if (old[k].entry == nullptr) continue;
    size_t i = old[k].hash & mask;
    while (slots_[i].entry != nullptr) i = (i + 1) & mask;
    slots_[i] = old[k];
  }
}

}  // namespace sluice::tcp
