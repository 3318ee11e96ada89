// HTTP/1.1 (RFC 9112) as far as a benchmark wants it: GET and HEAD, keep-alive, pipelining. "/" gives a line of text, "/N" a body
// of N bytes. A response is sent as slices of memory that all connections share: no byte of it is copied in user space.
#pragma once

#include <map>
#include <string>

#include "examples/http_echo/stream_server.h"

namespace sluice::example {

// What all connections share: responses by size of body.
class HttpContent {
 public:
  explicit HttpContent(BlockPool& pool);
  // Header, and up to kBlock bytes of the body. No block where memory is at its bound.
  Slice Response(uint64_t body, bool with_body);
  Slice Body(uint64_t bytes) const;  // at most kBlock
  static constexpr uint64_t kBlock = 65536;
  static constexpr uint64_t kMaxBody = uint64_t{1} << 40;

 private:
  BlockPool& pool_;
  BlockRef body_;
  std::map<uint64_t, Slice> whole_;  // small responses that were asked for
};

class HttpConnection final : public Connection {
 public:
  HttpConnection(StreamServer& server, StreamSocket* socket, HttpContent& content, BlockPool& pool)
      : Connection(server, socket), content_(content), pool_(pool) {}
  bool Work() override;

 private:
  static constexpr size_t kMaxRequest = 8192;

  bool ReadRequests();
  bool Answer(std::string_view head);
  bool Reply(std::string_view status, std::string_view text);
  bool SendBody();

  HttpContent& content_;
  BlockPool& pool_;
  std::string input_;       // of a request that is not whole yet
  uint64_t body_left_ = 0;  // of the response under way
  bool close_ = false;      // after it
};

}  // namespace sluice::example
