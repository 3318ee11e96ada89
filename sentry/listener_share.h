// A listening TCP socket of the program in the stack of a worker other than the first, which has the stand-in: it holds the same
// port and takes the connections whose home is that stack. They stay with the worker; the stand-in hears of each and gives it to
// the program. Everything runs on the worker's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_set>

#include "netstack/socket/socket.h"
#include "sentry/container_use.h"
#include "sentry/inet_stand_in.h"

namespace sluice {

class StreamStandIn;

// What the stand-in passes on.
struct ListenerFacts {
  uint64_t cookie = 0;  // of the stand-in
  int family = 0, protocol = 0;
  StandInOptions options;
  std::shared_ptr<ContainerUse> container;
  std::shared_ptr<const StreamSettings> settings;
};

class ListenerShare final : private SocketObserver {
 public:
  // The engine's stack has no memory for it: `socket` stays empty, and Bind fails.
  ListenerShare(CallEngine& engine, ListenerFacts facts);
  ~ListenerShare() override;

  Errno Bind(const Endpoint& local);
  Errno Listen(int backlog);
  void TakeSettings(const ListenerFacts& facts);

  void MarkDirty();
  void TakeConnections();
  // `connection` is not offered any more.
  void OnTaken(StreamStandIn* connection);

 private:
  void OnSocketEvents(uint32_t) override { MarkDirty(); }
  void Offer(StreamStandIn* connection);

  CallEngine& engine_;
  ListenerFacts facts_;
  StreamSocket* socket_;
  bool dirty_ = false;
  std::unordered_set<StreamStandIn*> offered_;  // that wait for an accept
};

}  // namespace sluice
