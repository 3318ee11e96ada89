// A listening TCP socket of the program in the stack of a worker other than the first, which has the stand-in: it holds the same
// port and takes the connections whose home is that stack. They stay with the worker; the stand-in hears of each and gives it to
// the program. Everything runs on the worker's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>

#include "base/unique_fd.h"
#include "netstack/socket/socket.h"
#include "sentry/container_use.h"
#include "sentry/inet_stand_in.h"

namespace sluice {

class StreamStandIn;

// An accept whose token was taken off the queue, to be completed by the worker that has the connection.
struct AcceptCall {
  calls::Envelope to;
  bool close_on_exec = false;
  bool has_name = false;
  uint32_t name_length = 0;  // capacity
};

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
  // Connections that nobody has accepted are reset.
  ~ListenerShare() override;

  Errno Bind(const Endpoint& local);
  Errno Listen(int backlog);
  void TakeSettings(const ListenerFacts& facts);

  void MarkDirty();
  void TakeConnections();
  // Completes an accept of connection `number`, whose end `end` the program is to get.
  void Accept(const AcceptCall& accept, uint64_t number, UniqueFd end);
  // The stand-in cannot offer it to the program.
  void Refuse(uint64_t number);
  // Has the stand-in offer the connection, whose P is `end`, to the program: a new one, or one whose accept failed.
  void Offer(StreamStandIn* connection, UniqueFd end);
  // It is gone.
  void Forget(uint64_t number) { offered_.erase(number); }

 private:
  void OnSocketEvents(uint32_t) override { MarkDirty(); }
  StreamStandIn* Make(StreamSocket* accepted, SocketCount room, UniqueFd* end);

  CallEngine& engine_;
  ListenerFacts facts_;
  StreamSocket* socket_;
  bool dirty_ = false;
  std::unordered_map<uint64_t, StreamStandIn*> offered_;
};

}  // namespace sluice
