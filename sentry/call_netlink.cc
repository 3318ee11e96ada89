#include "sentry/call_netlink.h"

#include <errno.h>

#include <algorithm>
#include <iterator>
#include <mutex>

namespace sluice {

using calls::Envelope;
using calls::MessageType;

namespace {
constexpr int kTcpListen = 10;
}  // namespace

uint64_t CallEngine::NetlinkBackend::Remember(const Envelope& e) {
  uint64_t number = next_++;
  calls_[number] = e;
  if (calls_.size() > 1024) calls_.erase(calls_.begin());
  return number;
}

void CallEngine::NetlinkBackend::RequestChange(const netlink::NetChange& change, const netlink::Caller& caller, ChangeDone done) {
  auto it = calls_.find(caller.call);
  if ((caller.sender == nullptr && it == calls_.end()) || !engine_.connected()) {
    netlink::NetChangeResult r;
    r.error = EPERM;
    return done(r);
  }
  calls::NetChangeRequest request;
  if (caller.sender == nullptr) request.envelope = it->second;
  request.envelope.type = MessageType::kNetChange;
  request.sender_uid = caller.uid;
  request.token = next_++;
  request.change = change;
  waiting_[request.token] = Waiting{std::move(done), change, std::nullopt, {}};
  engine_.Send({reinterpret_cast<uint8_t*>(&request), sizeof request}, caller.sender ? caller.sender->get() : -1, UniqueFd());
}

void CallEngine::NetlinkBackend::OnChanged(const calls::NetChanged& c) {
  auto it = waiting_.find(c.token);
  if (it == waiting_.end()) return;
  if (c.result.error != 0 || netlink::ConfigShows(*config(), it->second.change)) return Finish(it, c.result);
  // The mirror shows it in a moment (OnConfig). What cannot be told from the configuration does not hold the caller for long.
  it->second.result = c.result;
  it->second.give_up = Now() + Duration::Milliseconds(300);
  engine_.Schedule(timer_, it->second.give_up);
}

std::vector<SocketInfo> CallEngine::NetlinkBackend::Sockets(bool with_tcp_info) const {
  engine_.FindCloses();
  std::vector<SocketInfo> all = StackBackend::Sockets(with_tcp_info);
  if (engine_.alone()) return all;
  std::mutex mutex;
  engine_.hub().AskOthers(engine_, [&](CallEngine& other) {
    other.OnCloses();
    other.FindCloses();
    std::vector<SocketInfo> some = other.stack().Sockets(with_tcp_info);
    const std::lock_guard lock(mutex);
    std::ranges::copy_if(some, std::back_inserter(all), [](const SocketInfo& s) { return s.state != kTcpListen; });
  });
  return all;
}

Stack::LinkCounters CallEngine::NetlinkBackend::link_counters(IfIndex ifindex) const {
  Stack::LinkCounters sum = StackBackend::link_counters(ifindex);
  if (engine_.alone()) return sum;
  std::mutex mutex;
  engine_.hub().AskOthers(engine_, [&](CallEngine& other) {
    const std::lock_guard lock(mutex);
    sum += other.stack().link_counters(ifindex);
  });
  return sum;
}

void CallEngine::NetlinkBackend::FinishShown() {
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    auto next = std::next(it);
    if (it->second.result && netlink::ConfigShows(*config(), it->second.change)) Finish(it, *it->second.result);
    it = next;
  }
}

void CallEngine::NetlinkBackend::Abandon() {
  netlink::NetChangeResult r;
  r.error = EIO;
  while (!waiting_.empty()) Finish(waiting_.begin(), r);
}

void CallEngine::NetlinkBackend::Finish(std::map<uint64_t, Waiting>::iterator it, netlink::NetChangeResult result) {
  ChangeDone done = std::move(it->second.done);
  waiting_.erase(it);
  done(result);
}

void CallEngine::NetlinkBackend::OnTimer(void* self) {
  auto* b = static_cast<NetlinkBackend*>(self);
  Instant now = Now();
  std::optional<Instant> next;
  for (auto it = b->waiting_.begin(); it != b->waiting_.end();) {
    auto after = std::next(it);
    if (it->second.result && it->second.give_up <= now) {
      b->Finish(it, *it->second.result);
    } else if (it->second.result) {
      next = next ? std::min(*next, it->second.give_up) : it->second.give_up;
    }
    it = after;
  }
  if (next) b->engine_.Schedule(b->timer_, *next);
}

}  // namespace sluice
