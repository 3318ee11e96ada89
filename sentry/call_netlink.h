// The netlink server's view of the stack, and its way to the broker. The front's.
#pragma once

#include <map>
#include <optional>
#include <vector>

#include "base/timer_wheel.h"
#include "sentry/call_engine.h"

namespace sluice {

class CallEngine::NetlinkBackend final : public netlink::StackBackend {
 public:
  explicit NetlinkBackend(CallEngine& engine) : netlink::StackBackend(engine.stack()), engine_(engine) {}

  // The next free number for netlink::Caller::call, which stands for `e`.
  uint64_t Remember(const calls::Envelope& e);

  void RequestChange(const netlink::NetChange& change, const netlink::Caller& caller, ChangeDone done) override;
  // The broker's answer to it.
  void OnChanged(const calls::NetChanged& c);
  // Those whose change the configuration shows by now are told so.
  void FinishShown();
  // The broker is gone.
  void Abandon();

  // Sockets of all workers. The shares of a listener are one with it.
  std::vector<SocketInfo> Sockets(bool with_tcp_info) const override;
  Stack::LinkCounters link_counters(IfIndex ifindex) const override;

 private:
  struct Waiting {
    ChangeDone done;
    netlink::NetChange change;
    std::optional<netlink::NetChangeResult> result;
    Instant give_up;
  };
  void Finish(std::map<uint64_t, Waiting>::iterator it, netlink::NetChangeResult result);
  static void OnTimer(void* self);

  CallEngine& engine_;
  uint64_t next_ = 1;
  std::map<uint64_t, calls::Envelope> calls_;
  std::map<uint64_t, Waiting> waiting_;
  Timer timer_{OnTimer, this};
};

}  // namespace sluice
