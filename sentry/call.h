// A notified call as the broker passed it on.
#pragma once

#include <fcntl.h>

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "base/bytes.h"
#include "base/time.h"
#include "base/unique_fd.h"
#include "sentry/broker_protocol.h"
#include "sentry/container_use.h"

namespace sluice {

struct CallPart {
  calls::Part head;
  Bytes name, control, data;
};

// A view of one message; the bytes belong to `storage` where the call is held, to the receive buffer otherwise.
struct IncomingCall {
  calls::Call head;
  std::array<CallPart, calls::kMaxParts> parts;
  UniqueFd fd;  // the program's end of the stand-in, where the call needs it

  // False where the message is not well formed.
  bool Parse(Bytes message);
  size_t count() const { return head.count; }
  const calls::Envelope& envelope() const { return head.envelope; }
  bool nonblocking() const { return (head.file_flags & O_NONBLOCK) != 0; }
  int64_t arg(int i) const { return static_cast<int64_t>(head.args[i]); }
  int int_arg(int i) const { return static_cast<int>(head.args[i]); }
};

// A call on its way to another worker.
struct CarriedCall {
  explicit CarriedCall(IncomingCall& from, Bytes message) : storage(message.begin(), message.end()) {
    (void)call.Parse(storage);
    call.fd = std::move(from.fd);
  }
  CarriedCall(const CarriedCall&) = delete;
  CarriedCall& operator=(const CarriedCall&) = delete;
  IncomingCall call;
  std::vector<uint8_t> storage;
};

// A blocking call that waits: the notification is held, no thread is. The caller may be interrupted or die at any moment without
// a word; whoever answers it learns that from the answer's failure.
struct HeldCall {
  // A copy of the whole message, which counts in `use`; the descriptor is the caller's to move in.
  HeldCall(Bytes message, std::shared_ptr<ContainerUse> use);
  ~HeldCall() { container->held_bytes -= storage.size(); }
  HeldCall(const HeldCall&) = delete;
  HeldCall& operator=(const HeldCall&) = delete;
  IncomingCall call;
  std::vector<uint8_t> storage;
  std::shared_ptr<ContainerUse> container;
  std::optional<Instant> deadline;  // SO_RCVTIMEO, SO_SNDTIMEO
  Duration check_interval{0};       // since the last look whether the caller still waits
  Instant next_check = Instant::Max();
};

}  // namespace sluice
