#include "examples/http_echo/bulk.h"

#include <array>

namespace sluice::example {

bool DiscardConnection::Work() {
  std::array<Bytes, 16> spans;
  for (size_t count; (count = socket_->Peek(spans)) > 0;) {
    size_t bytes = 0;
    for (size_t i = 0; i < count; ++i) bytes += spans[i].size();
    socket_->Consume(bytes);
  }
  return !gone() && !socket_->at_end();
}

bool ChargenConnection::Work() {
  while (!gone() && socket_->send_space() > 0) {
    if (socket_->Send(content_, false) != Errno::kOk) return false;
  }
  return !gone() && !socket_->at_end();
}

}  // namespace sluice::example
