#include "examples/http_echo/stream_server.h"

namespace sluice::example {

// The stack is in the middle of its work: only noted here.
void Connection::OnSocketEvents(uint32_t) {
  if (dirty_) return;
  dirty_ = true;
  server_.dirty_.push_back(this);
}

StreamServer::~StreamServer() {
  connections_.clear();
  if (listener_ == nullptr) return;
  worker_.RemoveTask(this);
  listener_->Close();
}

Errno StreamServer::Listen(const Endpoint& local, int backlog) {
  StreamSocket* socket = worker_.stack().NewTcpSocket(local.address.is_v4() ? Family::kIpv4 : Family::kIpv6);
  if (socket == nullptr) return Errno::kENOMEM;
  Errno e = socket->Bind(local);
  if (e == Errno::kOk) e = socket->Listen(backlog);
  if (e != Errno::kOk) {
    socket->Close();
    return e;
  }
  listener_ = socket;
  listener_->set_observer(this);
  worker_.AddTask(this);
  return Errno::kOk;
}

void StreamServer::AcceptAll() {
  accept_ = false;
  while (StreamSocket* socket = listener_->Accept()) {
    ++accepted_;
    std::unique_ptr<Connection> connection = factory_(*this, socket);
    Connection* c = connection.get();
    connections_.emplace(c, std::move(connection));
    c->OnSocketEvents(0);  // bytes may have come before it had an observer
  }
}

bool StreamServer::OnTurn() {
  if (!HasWork()) return false;
  if (accept_) AcceptAll();
  working_.swap(dirty_);
  for (Connection* c : working_) {
    c->dirty_ = false;
    if (!c->Work()) connections_.erase(c);
  }
  working_.clear();
  return true;
}

}  // namespace sluice::example
