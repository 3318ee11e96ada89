// For tests: a backend with a configuration that the test sets, and changes that wait until the test answers them.
#pragma once

#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "sentry/netlink/netlink_server.h"

namespace sluice::netlink::testing {

class FakeBackend final : public Backend {
 public:
  struct Pending {
    NetChange change;
    Caller caller;
    ChangeDone done;
  };

  FakeBackend() : config_(std::make_shared<NetConfig>(LoopbackOnlyConfig())) {}
  std::shared_ptr<const NetConfig> config() const override { return config_; }
  Route Lookup(const RouteQuery&) override { return route; }
  std::vector<NeighborInfo> Neighbors() const override { return neighbors; }
  std::vector<SocketInfo> Sockets(bool) const override { return sockets; }
  Stack::LinkCounters link_counters(IfIndex) const override { return counters; }
  void RequestChange(const NetChange& change, const Caller& caller, ChangeDone done) override {
    if (answer_at_once) return done({});
    pending.push_back({change, caller, std::move(done)});
  }

  // A changed copy of the configuration takes the place of the present one.
  template <typename Edit>
  void Change(Edit edit) {
    auto next = std::make_shared<NetConfig>(*config_);
    ++next->generation;
    edit(*next);
    config_ = std::move(next);
  }

  Route route;
  std::vector<NeighborInfo> neighbors;
  std::vector<SocketInfo> sockets;
  Stack::LinkCounters counters{};
  std::deque<Pending> pending;
  bool answer_at_once = false;

 private:
  std::shared_ptr<const NetConfig> config_;
};

}  // namespace sluice::netlink::testing
