// The admin socket of a sandbox: one request per connection, a word ("stats", "sockets" ...) and a newline; the answer is one
// JSON object, then the end. Served by the control thread; what belongs to the worker is asked there by Worker::Post.
#pragma once

#include <poll.h>

#include <memory>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "control/flags.h"
#include "dataplane/worker.h"
#include "netstack/packet.h"
#include "sentry/call_server.h"

namespace sluice {

struct AdminContext {
  const Flags& flags;
  Worker& worker;
  CallServer& calls;
  HeapBlockPool& pool;
};

class AdminServer {
 public:
  AdminServer(int listener, const AdminContext& context);
  ~AdminServer();
  void AddPolled(std::vector<pollfd>* polled);
  void OnPolled(const std::vector<pollfd>& polled);

 private:
  struct Client;
  void Accept();
  void OnClient(Client& client, short events);
  void Ask(Client& client);

  int listener_;
  AdminContext context_;
  std::vector<std::shared_ptr<Client>> clients_;
  UniqueFd answered_;  // eventfd: the worker has an answer
  size_t first_polled_ = 0;
};

}  // namespace sluice
