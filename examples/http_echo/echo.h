// RFC 862: what comes goes back, over TCP and UDP.
#pragma once

#include "examples/http_echo/stream_server.h"

namespace sluice::example {

class EchoConnection final : public Connection {
 public:
  EchoConnection(StreamServer& server, StreamSocket* socket, BlockPool& pool) : Connection(server, socket), pool_(pool) {}
  bool Work() override;

 private:
  BlockPool& pool_;
};

class UdpEcho final : public TurnTask, private SocketObserver {
 public:
  explicit UdpEcho(Worker& worker) : worker_(worker) {}
  ~UdpEcho() override;
  Errno Bind(const Endpoint& local);
  bool OnTurn() override;
  bool HasWork() const override { return readable_; }

 private:
  void OnSocketEvents(uint32_t events) override { readable_ |= (events & (kReadable | kWritable)) != 0; }
  bool EchoOne();

  Worker& worker_;
  DatagramSocket* socket_ = nullptr;
  bool readable_ = false;
};

}  // namespace sluice::example
