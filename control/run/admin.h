// The sentry's side of the admin socket (admin_protocol.h). Served by the control thread; what belongs to the workers is
// asked there by Worker::Post. No client can hold up either.
#pragma once

#include <poll.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "control/flags.h"
#include "control/run/device_faults.h"
#include "dataplane/worker_group.h"
#include "netstack/packet.h"
#include "sentry/call_server.h"

namespace sluice {

struct AdminContext {
  const Flags& flags;
  WorkerGroup& group;
  CallServer& calls;
  const std::map<IfIndex, DeviceFaults>& device_faults;  // the first worker's
};

class AdminServer {
 public:
  AdminServer(int listener, const AdminContext& context);
  ~AdminServer();
  void AddPolled(std::vector<pollfd>* polled);
  void OnPolled(const std::vector<pollfd>& polled);

 private:
  struct Client;
  using ClientPtr = std::shared_ptr<Client>;
  void Accept();
  void Receive(const ClientPtr& client);
  void Ask(const ClientPtr& client);
  void StartCapture(const ClientPtr& client, const std::string& options);
  void StopCapture(Client& client);
  void Send(Client& client);
  void Wake() const;

  int listener_;
  AdminContext context_;
  std::vector<ClientPtr> clients_;
  UniqueFd wake_;  // eventfd: the worker has an answer or frames
  size_t first_polled_ = 0;
};

}  // namespace sluice
