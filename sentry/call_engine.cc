#include "sentry/call_engine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/timerfd.h>
#include <time.h>

#include <algorithm>

#include "base/check.h"
#include "netstack/sysctls.h"
#include "sentry/call_netlink.h"
#include "sentry/listener_share.h"

#ifndef SECCOMP_ADDFD_FLAG_SEND
#define SECCOMP_ADDFD_FLAG_SEND (1UL << 1)
#endif

namespace sluice {

namespace {

// What all programs together may hand to the stack in a turn, and what each gets of it at least, so that what it writes leaves in
// super-segments.
constexpr size_t kTurnBytes = 512 << 10, kLeastShare = 128 << 10;

}  // namespace

using calls::Envelope;
using calls::MessageType;

StandIn::~StandIn() = default;

void StandIn::OnFetched(UniqueFd, bool) {}

void StandIn::MarkDirty() {
  if (dirty_ || dead_) return;
  dirty_ = true;
  engine_.dirty_.push_back(this);
}

void StandIn::NoteHolder(uint32_t tid, int number, uint16_t listener) {
  tid_ = tid;
  number_ = number;
  listener_ = listener;
}

void StandIn::RequestFetch() { engine_.SendFetch(this); }

class CallEngine::FdCallback final : public FdHandler {
 public:
  FdCallback(CallEngine& engine, void (CallEngine::*method)()) : engine_(engine), method_(method) {}
  void OnFdEvents(uint32_t) override { (engine_.*method_)(); }

 private:
  CallEngine& engine_;
  void (CallEngine::*method_)();
};

CallEngine::CallEngine(CallHub& hub, uint32_t shard, Worker& worker, BlockPool& pool)
    : hub_(hub),
      shard_(shard),
      worker_(worker),
      pool_(pool),
      options_(hub.options()),
      unread_(options_.unread_bytes / hub.size()),
      timers_(Now()),
      buffer_(calls::kMaxMessage) {
  SLUICE_CHECK(options_.calls_fd >= 0 && options_.offers_fd >= 0);
  inotify_ = UniqueFd(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  timerfd_ = UniqueFd(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  SLUICE_CHECK(inotify_ && timerfd_);
  calls_handler_ = std::make_unique<FdCallback>(*this, front() ? &CallEngine::OnCalls : &CallEngine::FlushQueue);
  inotify_handler_ = std::make_unique<FdCallback>(*this, &CallEngine::OnCloses);
  timer_handler_ = std::make_unique<FdCallback>(*this, &CallEngine::OnTimer);
  SLUICE_CHECK(worker_.AddFd(inotify_.get(), EPOLLIN, inotify_handler_.get()) == Errno::kOk);
  SLUICE_CHECK(worker_.AddFd(timerfd_.get(), EPOLLIN, timer_handler_.get()) == Errno::kOk);
  worker_.AddTask(this);
  if (!alone()) hub_.mail(shard_)->set_before_packets([this] { OnCloses(); });
  if (!front()) return;
  incoming_ = std::make_unique<calls::MessageReader>(calls::kMaxMessage);
  SLUICE_CHECK(worker_.AddFd(options_.calls_fd, EPOLLIN, calls_handler_.get()) == Errno::kOk);
  if (native_options() != nullptr) {
    stats_.native_options = true;
    options_handler_ = std::make_unique<FdCallback>(*this, &CallEngine::OnOptionsPosted);
    SLUICE_CHECK(worker_.AddFd(native_options()->wake_fd(), EPOLLIN, options_handler_.get()) == Errno::kOk);
  }
  backend_ = std::make_unique<NetlinkBackend>(*this);
  netlink_ = std::make_unique<netlink::NetlinkServer>(*backend_, options_.unread_bytes);
}

CallEngine::~CallEngine() {
  shares_.clear();
  owned_.clear();
  FlushDead();
  netlink_.reset();
  worker_.RemoveTask(this);
  if (!alone()) hub_.mail(shard_)->set_before_packets({});
  if (options_handler_ != nullptr) worker_.RemoveFd(native_options()->wake_fd());
  worker_.RemoveFd(timerfd_.get());
  worker_.RemoveFd(inotify_.get());
  worker_.RemoveFd(options_.calls_fd);
}

Instant CallEngine::Now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return Instant(int64_t{t.tv_sec} * 1000000000 + t.tv_nsec);
}

netlink::Backend& CallEngine::backend() { return *backend_; }
uint64_t CallEngine::RememberCall(const Envelope& e) { return backend_->Remember(e); }

uint64_t CallEngine::RandomName() {
  uint64_t v = 0;
  while (getrandom(&v, sizeof v, 0) != sizeof v) continue;
  return v;
}

const Sysctls& CallEngine::sysctls() const {
  const NetConfig& config = worker_.stack().config();
  if (sysctls_ == nullptr || sysctls_generation_ != config.generation) {
    sysctls_ = std::make_unique<Sysctls>(ParseSysctls(config.sysctls, nullptr));
    sysctls_generation_ = config.generation;
  }
  return *sysctls_;
}

Block* CallEngine::Scratch() {
  if (!scratch_) scratch_ = BlockRef(pool().Allocate(65536));
  return scratch_.get();
}

BlockRef CallEngine::TakeScratch() { return std::move(scratch_); }

// -- answering

bool CallEngine::StillValid(const Envelope& call) const {
  auto it = listeners_.find(call.listener);
  uint64_t id = call.id;
  return it != listeners_.end() && ioctl(it->second->fd.get(), SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0;
}

bool CallEngine::Answer(const Envelope& to, int64_t value) {
  auto it = listeners_.find(to.listener);
  if (it == listeners_.end()) return false;
  seccomp_notif_resp r{};
  r.id = to.id;
  if (value < 0) {
    r.error = static_cast<int>(value);
  } else {
    r.val = value;
  }
  ++stats_.answered;
  if (ioctl(it->second->fd.get(), SECCOMP_IOCTL_NOTIF_SEND, &r) == 0) return true;
  ++stats_.undone;
  return false;
}

int CallEngine::Install(const Envelope& to, int fd, bool close_on_exec) {
  auto it = listeners_.find(to.listener);
  if (it == listeners_.end()) return -ENOENT;
  seccomp_notif_addfd add{};
  add.id = to.id;
  add.flags = SECCOMP_ADDFD_FLAG_SEND;
  add.srcfd = static_cast<uint32_t>(fd);
  add.newfd_flags = close_on_exec ? O_CLOEXEC : 0;
  int number = ioctl(it->second->fd.get(), SECCOMP_IOCTL_NOTIF_ADDFD, &add);
  ++stats_.answered;
  if (number >= 0) return number;
  int error = errno;
  if (error == EMFILE || error == ENFILE || error == ENOMEM) return Answer(to, -int64_t{error}) ? -error : -ENOENT;
  ++stats_.undone;
  return -ENOENT;
}

bool CallEngine::Replace(const Envelope& to, int fd, int number, bool close_on_exec) {
  auto it = listeners_.find(to.listener);
  if (it == listeners_.end()) return false;
  seccomp_notif_addfd add{};
  add.id = to.id;
  add.flags = SECCOMP_ADDFD_FLAG_SETFD;
  add.srcfd = static_cast<uint32_t>(fd);
  add.newfd = static_cast<uint32_t>(number);
  add.newfd_flags = close_on_exec ? O_CLOEXEC : 0;
  return ioctl(it->second->fd.get(), SECCOMP_IOCTL_NOTIF_ADDFD, &add) >= 0;
}

void CallEngine::Result(const Envelope& to, int64_t value, std::span<const ResultPart> parts, StandIn* owner, DeliveryDone done) {
  const bool report = done != nullptr;
  if (report) awaiting_[{to.listener, to.id}] = Awaiting{owner, std::move(done), next_result_++};
  SendResult(to, value, parts, report);
}

void CallEngine::ResultOrUndo(const Envelope& to, int64_t value, std::span<const ResultPart> parts, StandIn* owner,
                              DeliveryDone undo) {
  // Enough for those before it: it is heard of that they were delivered.
  const bool report = unreported_.size() >= kMostUnreported;
  unreported_.emplace_back(next_result_, ResultKey{to.listener, to.id});
  awaiting_[{to.listener, to.id}] = Awaiting{owner, std::move(undo), next_result_++};
  SendResult(to, value, parts, report);
}

void CallEngine::SendResult(const Envelope& to, int64_t value, std::span<const ResultPart> parts, bool report) {
  calls::Result head;
  head.envelope = to;
  head.envelope.type = MessageType::kResult;
  head.envelope.worker = static_cast<uint8_t>(shard_);
  head.value = value;
  head.count = static_cast<uint32_t>(parts.size());
  head.report = report ? 1 : 0;
  size_t size = sizeof head + parts.size() * sizeof(calls::PartResult);
  for (const ResultPart& p : parts) size += p.name.size() + p.control.size() + p.data.size();
  std::vector<uint8_t> message(size);
  memcpy(message.data(), &head, sizeof head);
  uint8_t* table = message.data() + sizeof head;
  uint8_t* out = table + parts.size() * sizeof(calls::PartResult);
  for (const ResultPart& p : parts) {
    calls::PartResult r;
    r.name_length = p.name_length;
    r.control_length = static_cast<uint32_t>(p.control.size());
    r.data_length = static_cast<uint32_t>(p.data.size());
    r.return_value = p.return_value;
    r.msg_flags = p.msg_flags;
    memcpy(table, &r, sizeof r);
    table += sizeof r;
    for (Bytes b : {p.name, p.control, p.data}) {
      if (!b.empty()) memcpy(out, b.data(), b.size());
      out += b.size();
    }
  }
  ++stats_.answered;
  Send(message, -1, UniqueFd());
}

// -- tables

void CallEngine::Own(std::unique_ptr<StandIn> s, SocketCount count) {
  s->count_ = std::move(count);
  StandIn* key = s.get();
  owned_[key] = std::move(s);
}

std::shared_ptr<ContainerUse> CallEngine::ContainerOf(const Envelope& call) const {
  auto it = listeners_.find(call.listener);
  return it == listeners_.end() ? nullptr : it->second->container;
}

// What the program closed before it asks for a socket makes room for it, whoever has it.
SocketCount CallEngine::RoomForSocket(const std::shared_ptr<ContainerUse>& container) {
  SocketCount room = hub_.use().Take(container);
  if (!room) {
    FindAllCloses(container);
    room = hub_.use().Take(container);
  }
  if (!room) ++container->refused_sockets;
  return room;
}

template <typename Waiter>
SocketCount CallEngine::RoomOrWait(const std::shared_ptr<ContainerUse>& container, Waiter* waiter,
                                   std::unordered_set<Waiter*>& waiters) {
  SocketCount room = hub_.use().Take(container);
  if (room) return room;
  waiters.insert(waiter);
  hub_.WaitForRoom(shard_);
  // What went in between was not told.
  if (!alone()) room = hub_.use().Take(container);
  if (!room) ++container->refused_sockets;
  return room;
}

SocketCount CallEngine::RoomForConnection(const std::shared_ptr<ContainerUse>& container, StandIn* s) {
  return RoomOrWait(container, s, wait_for_room_);
}

SocketCount CallEngine::RoomForConnection(const std::shared_ptr<ContainerUse>& container, ListenerShare* share) {
  return RoomOrWait(container, share, shares_wait_);
}

void CallEngine::OnRoom() {
  for (StandIn* waiting : std::exchange(wait_for_room_, {})) waiting->MarkDirty();
  for (ListenerShare* waiting : std::exchange(shares_wait_, {})) waiting->MarkDirty();
}

bool CallEngine::RoomForHeld(ContainerUse& container, size_t size) const {
  if (container.held_bytes + size <= options_.container_held_bytes) return true;
  ++container.refused_calls;
  return false;
}

StandIn* CallEngine::Find(uint64_t cookie) const {
  auto it = by_cookie_.find(cookie);
  return it == by_cookie_.end() ? nullptr : it->second;
}

void CallEngine::Destroy(StandIn* s) {
  if (s->dead_) return;
  s->dead_ = true;
  if (s->cookie_ != 0) NoteGone(s->cookie_);
  s->Forget();
  std::erase_if(awaiting_, [s](const auto& a) { return a.second.owner == s; });
  if (s->fetching_) std::erase_if(fetches_, [s](const auto& f) { return f.second == s; });
  wait_for_room_.erase(s);
  auto it = owned_.find(s);
  if (it != owned_.end()) {
    it->second->count_ = SocketCount();
    graveyard_.push_back(std::move(it->second));
    owned_.erase(it);
  }
  OnRoom();
  hub_.TellOfRoom();
}

// The front forgets the routes of what is gone some at a time: their cookies do not come again.
void CallEngine::NoteGone(uint64_t cookie) {
  constexpr size_t kBatch = 64;
  if (front()) return;
  gone_.push_back(cookie);
  if (gone_.size() < kBatch) return;
  hub_.Post(0, [gone = std::exchange(gone_, {})](CallEngine& front) {
    for (const uint64_t c : gone) front.ForgetRoute(c);
  });
}

void CallEngine::Announce(uint64_t cookie, int family) {
  if (front()) return;
  hub_.Post(0, [cookie, family, shard = shard_](CallEngine& front) { front.SetRoute(cookie, shard, family); });
}

// The front's own sockets have no route.
void CallEngine::AnnounceMoved(uint64_t cookie, int family, uint32_t shard) {
  if (shard == 0) return;
  if (front()) return SetRoute(cookie, shard, family);
  hub_.Post(0, [cookie, family, shard](CallEngine& front) { front.SetRoute(cookie, shard, family); });
}

void CallEngine::SetOptionSlot(uint32_t slot, StandIn* s) {
  if (by_option_slot_.size() <= slot) by_option_slot_.resize(slot + 1);
  by_option_slot_[slot] = s;
}

// -- listening sockets in several stacks

ListenerShare* CallEngine::FindShare(uint64_t listener) const {
  auto it = shares_.find(listener);
  return it == shares_.end() ? nullptr : it->second.get();
}

// What the program closed before it binds is closed.
Errno CallEngine::AddShare(uint64_t listener, std::unique_ptr<ListenerShare> share, const Endpoint& local) {
  OnCloses();
  const Errno error = share->Bind(local);
  if (error == Errno::kOk) shares_[listener] = std::move(share);
  return error;
}

void CallEngine::RemoveShare(uint64_t listener) { shares_.erase(listener); }

void CallEngine::ForgetShare(ListenerShare* share) {
  std::erase(dirty_shares_, share);
  shares_wait_.erase(share);
}

void CallEngine::FlushDead() {
  if (graveyard_.empty()) return;
  for (auto* list : {&dirty_, &postponed_}) std::erase_if(*list, [](StandIn* s) { return s->dead_; });
  graveyard_.clear();
}

// Asked when the worker is about to sleep: from here on a set option wakes it.
bool CallEngine::HasWork() const {
  if (!dirty_.empty() || !postponed_.empty() || !dirty_shares_.empty()) return true;
  return front() && options_.native_options != nullptr && options_.native_options->PrepareSleep();
}

void CallEngine::TakePostedOptions() {
  for (const uint32_t slot : native_options()->Posted()) {
    const uint32_t owner = hub_.SlotOwner(slot);
    if (owner == shard_) {
      TakeOptionsOf(slot);
    } else {
      hub_.Post(owner, [slot](CallEngine& other) { other.TakeOptionsOf(slot); });
    }
  }
}

void CallEngine::TakeOptionsOf(uint32_t slot) {
  StandIn* s = slot < by_option_slot_.size() ? by_option_slot_[slot] : nullptr;
  if (s != nullptr && !s->dead_) s->OnOptionsPosted();
}

bool CallEngine::OnTurn() {
  if (!queue_.empty()) FlushQueue();
  if (front() && native_options() != nullptr) TakePostedOptions();
  turn_left_ = kTurnBytes;
  if (WorkDirty()) return true;
  if (stats_.listeners > 0 || !shares_.empty()) spare_ends_.Refill();
  return false;
}

void CallEngine::Postpone(StandIn* s) {
  if (s->dirty_ || s->dead_) return;
  s->dirty_ = true;
  postponed_.push_back(s);
}

bool CallEngine::WorkDirty() {
  if (dirty_.empty() && postponed_.empty() && graveyard_.empty() && dirty_shares_.empty()) return false;
  // Connections before those who made them: a connect() that has returned is one that can be accepted.
  for (ListenerShare* share : std::exchange(dirty_shares_, {})) share->TakeConnections();
  working_.swap(postponed_);
  working_.insert(working_.end(), dirty_.begin(), dirty_.end());
  dirty_.clear();
  share_ = std::max(kLeastShare, kTurnBytes / std::max<size_t>(working_.size(), 1));
  for (StandIn* s : working_) {
    s->dirty_ = false;
    if (!s->dead_) s->OnWork();
  }
  working_.clear();
  FlushDead();
  return true;
}

// -- timers

void CallEngine::Schedule(Timer& timer, Instant deadline) {
  timers_.Schedule(timer, deadline);
  ArmTimer();
}

void CallEngine::ArmTimer() {
  std::optional<Instant> next = timers_.NextDeadline();
  Instant want = next ? *next : Instant::Max();
  // Earlier than armed only: a timer that was cancelled costs one idle wake-up at most.
  if (want >= armed_ || want == Instant::Max()) return;
  armed_ = want;
  itimerspec spec{};
  int64_t ns = std::max<int64_t>(want.ns(), 1);
  spec.it_value.tv_sec = ns / 1000000000;
  spec.it_value.tv_nsec = ns % 1000000000;
  timerfd_settime(timerfd_.get(), TFD_TIMER_ABSTIME, &spec, nullptr);
}

void CallEngine::OnTimer() {
  uint64_t ticks;
  (void)!read(timerfd_.get(), &ticks, sizeof ticks);
  armed_ = Instant::Max();
  timers_.Advance(Now());
  ArmTimer();
}

void CallEngine::OnConfig() {
  sysctls_.reset();
  if (!front()) return;
  netlink_->OnConfig();
  backend_->FinishShown();
}

std::vector<std::shared_ptr<const ContainerUse>> CallEngine::Containers() const {
  std::vector<std::shared_ptr<const ContainerUse>> out;
  for (const auto& [id, use] : containers_) out.push_back(use);
  return out;
}

std::vector<CallServer::Owner> CallEngine::Owners() const {
  std::vector<CallServer::Owner> out;
  for (const auto& [s, owner] : owned_) out.push_back({static_cast<uint32_t>(s->cookie_), s->tid_, s->number_});
  return out;
}

}  // namespace sluice
