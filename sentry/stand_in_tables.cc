// How a stand-in comes into the tables of its engine and leaves them, and how the last close of its program's end is seen.
#include <poll.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "sentry/call_engine.h"

namespace sluice {

bool StandIn::Adopt(int p) { return AdoptUnwatched(p) && Watch(p); }

bool StandIn::AdoptUnwatched(int p) {
  struct stat st;
  uint64_t cookie = 0;
  socklen_t length = sizeof cookie;
  if (fstat(p, &st) != 0 || getsockopt(p, SOL_SOCKET, SO_COOKIE, &cookie, &length) != 0) return false;
  inode_ = st.st_ino;
  Enter(cookie);
  if (engine_.native_options() == nullptr) return true;
  option_slot_ = engine_.hub_.AddOptionSlot(engine_.shard_, p, option_kind());
  if (option_slot_ == 0) return false;
  engine_.SetOptionSlot(option_slot_, this);
  return true;
}

bool StandIn::ReserveSlot(sluice_mark* mark) {
  if (engine_.native_options() == nullptr) return true;
  *mark = engine_.hub_.ReserveOptionSlot(engine_.shard_, option_kind());
  option_slot_ = mark->slot;
  if (option_slot_ != 0) engine_.SetOptionSlot(option_slot_, this);
  return option_slot_ != 0;
}

bool StandIn::Watch(int p) {
  std::string path = "/proc/self/fd/" + std::to_string(p);
  watch_ = inotify_add_watch(engine_.inotify_.get(), path.c_str(), IN_CLOSE);
  if (watch_ < 0) return false;
  engine_.by_watch_[watch_] = this;
  return true;
}

void StandIn::Enter(uint64_t cookie) {
  cookie_ = cookie;
  engine_.by_cookie_[cookie] = this;
}

void StandIn::Rename(uint64_t cookie, uint64_t inode) {
  engine_.by_cookie_.erase(cookie_);
  Enter(cookie);
  inode_ = inode;
}

// The slot goes with it: what the program sets meanwhile is in it.
bool StandIn::AdoptMoved(int p, uint64_t cookie, uint64_t inode, uint32_t option_slot) {
  Enter(cookie);
  inode_ = inode;
  option_slot_ = option_slot;
  if (option_slot != 0) engine_.SetOptionSlot(option_slot, this);
  return Watch(p);
}

void StandIn::GiveAway(uint32_t shard) {
  if (option_slot_ != 0) {
    engine_.by_option_slot_[option_slot_] = nullptr;
    engine_.hub_.SetSlotOwner(option_slot_, shard);
    option_slot_ = 0;
  }
  Forget();
}

void StandIn::Forget() {
  if (cookie_ != 0) {
    auto it = engine_.by_cookie_.find(cookie_);
    if (it != engine_.by_cookie_.end() && it->second == this) engine_.by_cookie_.erase(it);
    cookie_ = 0;
  }
  if (watch_ >= 0) {
    inotify_rm_watch(engine_.inotify_.get(), watch_);
    engine_.by_watch_.erase(watch_);
    watch_ = -1;
  }
  if (option_slot_ != 0) {
    engine_.hub_.RemoveOptionSlot(option_slot_);
    engine_.by_option_slot_[option_slot_] = nullptr;
    option_slot_ = 0;
  }
}

// -- closes

// All that happened before: as long as a read fills the buffer there may be more.
void CallEngine::OnCloses() {
  alignas(inotify_event) char buffer[8192];
  bool any = false;
  ssize_t n = 0;
  do {
    n = read(inotify_.get(), buffer, sizeof buffer);
    any |= n > 0;
    for (char* p = buffer; n > 0 && p < buffer + n;) {
      auto* e = reinterpret_cast<inotify_event*>(p);
      p += sizeof *e + e->len;
      // IN_Q_OVERFLOW cannot happen with one event per watch and max_queued_events above our number of sockets.
      auto it = by_watch_.find(e->wd);
      if (it == by_watch_.end() || (e->mask & IN_CLOSE) == 0) continue;
      StandIn* s = it->second;
      if (!s->dead_) s->OnLastClose();
    }
  } while (n == sizeof buffer);
  if (any) WorkDirty();
}

void CallEngine::FindCloses(const ContainerUse* of) {
  std::vector<StandIn*> unwatched;
  std::vector<pollfd> ends;
  for (const auto& [s, owner] : owned_) {
    if (of != nullptr && s->container().get() != of) continue;
    if (const int end = s->unwatched_end(); end >= 0) {
      unwatched.push_back(s);
      ends.push_back({end, POLLRDHUP, 0});
    }
  }
  if (ends.empty() || poll(ends.data(), ends.size(), 0) <= 0) return;
  for (size_t i = 0; i < ends.size(); ++i) {
    if (ends[i].revents == 0 || unwatched[i]->dead_) continue;
    unwatched[i]->OnEndClosed();
    unwatched[i]->OnWork();
  }
}

void CallEngine::FindAllCloses(std::shared_ptr<const ContainerUse> of) {
  const auto look = [&of](CallEngine& engine) {
    engine.OnCloses();
    engine.FindCloses(of.get());
  };
  look(*this);
  if (front() && !alone()) hub_.AskOthers(*this, look);
}

}  // namespace sluice
