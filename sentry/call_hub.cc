#include "sentry/call_hub.h"

#include <bit>

#include "base/check.h"
#include "sentry/call_engine.h"

namespace sluice {

CallHub::CallHub(WorkerGroup& group, const CallServer::Options& options)
    : group_(group), options_(options), use_(options.max_sockets, options.container_sockets, group.size() > 1) {
  if (options_.native_options != nullptr)
    slot_owners_ = std::make_unique<std::atomic<uint8_t>[]>(options_.native_options->slots());
  for (uint32_t i = 0; i < group.size(); ++i)
    engines_.push_back(std::make_unique<CallEngine>(*this, i, group.worker(i), group.pool(i)));
}

CallHub::~CallHub() = default;

void CallHub::Post(uint32_t to, std::function<void(CallEngine&)> work) {
  group_.worker(to).Post([&engine = *engines_[to], work = std::move(work)] { work(engine); });
}

void CallHub::Hand(uint32_t to, std::function<void(CallEngine&)> work) {
  Post(to, std::move(work));
  group_.RunPosted(to);
}

void CallHub::PostToOthers(const std::function<void(CallEngine&)>& work) {
  for (uint32_t i = 1; i < size(); ++i) Post(i, work);
}

void CallHub::AskOthers(const CallEngine& asker, const std::function<void(CallEngine&)>& work) {
  SLUICE_CHECK(asker.front());  // another one would wait for itself
  group_.Ask(mail(0)->others(), [&](uint32_t i) { work(*engines_[i]); });
}

void CallHub::Ask(uint32_t to, const std::function<void(CallEngine&)>& work) {
  group_.Ask(ShardSet{1} << to, [&](uint32_t i) { work(*engines_[i]); });
}

void CallHub::TellOfRoom() {
  if (size() == 1 || waiting_.load() == 0) return;
  for (ShardSet waiting = waiting_.exchange(0); waiting != 0; waiting &= waiting - 1)
    Post(static_cast<uint32_t>(std::countr_zero(waiting)), [](CallEngine& engine) { engine.OnRoom(); });
}

std::unique_lock<std::mutex> CallHub::LockOptions() {
  return size() > 1 ? std::unique_lock(options_mutex_) : std::unique_lock<std::mutex>();
}

uint32_t CallHub::AddOptionSlot(uint32_t owner, int socket, NativeOptions::Kind kind) {
  const auto lock = LockOptions();
  const uint32_t slot = options_.native_options->Add(socket, kind);
  if (slot != 0) SetSlotOwner(slot, owner);
  return slot;
}

sluice_mark CallHub::ReserveOptionSlot(uint32_t owner, NativeOptions::Kind kind) {
  const auto lock = LockOptions();
  const sluice_mark mark = options_.native_options->Reserve(kind);
  if (mark.slot != 0) SetSlotOwner(mark.slot, owner);
  return mark;
}

void CallHub::RemoveOptionSlot(uint32_t slot) {
  const auto lock = LockOptions();
  options_.native_options->Remove(slot);
}

}  // namespace sluice
