// A TCP server in the worker's own thread: sockets say that something happened, the server looks after them once per turn.
#pragma once

#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "dataplane/worker.h"

namespace sluice::example {

class StreamServer;

// One accepted connection.
class Connection : public SocketObserver {
 public:
  Connection(StreamServer& server, StreamSocket* socket) : server_(server), socket_(socket) { socket_->set_observer(this); }
  ~Connection() override { socket_->Close(); }
  void OnSocketEvents(uint32_t events) final;
  // Reads and writes what can be; false where the connection is done with.
  virtual bool Work() = 0;

 protected:
  bool gone() const { return (socket_->events() & (kError | kHangup)) != 0; }
  StreamServer& server_;
  StreamSocket* socket_;

 private:
  friend class StreamServer;
  bool dirty_ = false;
};

class StreamServer final : public TurnTask, private SocketObserver {
 public:
  using Factory = std::function<std::unique_ptr<Connection>(StreamServer&, StreamSocket*)>;
  StreamServer(Worker& worker, Factory factory) : worker_(worker), factory_(std::move(factory)) {}
  ~StreamServer() override;
  Errno Listen(const Endpoint& local, int backlog = 1024);

  bool OnTurn() override;
  bool HasWork() const override { return accept_ || !dirty_.empty(); }
  uint64_t accepted() const { return accepted_; }

 private:
  friend class Connection;
  void OnSocketEvents(uint32_t) override { accept_ = true; }
  void AcceptAll();

  Worker& worker_;
  Factory factory_;
  StreamSocket* listener_ = nullptr;
  bool accept_ = false;
  uint64_t accepted_ = 0;
  std::unordered_map<Connection*, std::unique_ptr<Connection>> connections_;
  std::vector<Connection*> dirty_, working_;
};

}  // namespace sluice::example
