// RFC 863 and RFC 864 over TCP: what comes is thrown away, and bytes without end for whoever connects.
#pragma once

#include "examples/http_echo/stream_server.h"

namespace sluice::example {

class DiscardConnection final : public Connection {
 public:
  using Connection::Connection;
  bool Work() override;
};

// What it sends lies in one block, which every segment refers to: nothing is copied.
class ChargenConnection final : public Connection {
 public:
  ChargenConnection(StreamServer& server, StreamSocket* socket, Slice content)
      : Connection(server, socket), content_(std::move(content)) {}
  bool Work() override;

 private:
  Slice content_;
};

}  // namespace sluice::example
