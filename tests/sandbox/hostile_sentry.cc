// sluice with a sentry that was taken over: what it does is named by SLUICE_HOSTILE. For tests of broker and guard; linked in
// place of the real one (control/run/sentry.cc), jailed as that is.
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "control/log.h"
#include "control/run/control_protocol.h"
#include "control/run/plan.h"
#include "sentry/broker_protocol.h"

namespace sluice {
namespace {

using calls::Envelope;
using calls::MessageType;
using control::Type;

template <typename T>
Bytes AsBytes(const T& value) {
  return {reinterpret_cast<const uint8_t*>(&value), sizeof value};
}

class HostileSentry {
 public:
  explicit HostileSentry(SandboxPlan& plan) : calls_(plan.calls.b.get()), control_(plan.control.b.get()) {}

  [[noreturn]] void Run(const std::string& deed) {
    const std::map<std::string, std::function<void()>> deeds = {
        {"noise", [this] { Noise(); }},
        {"flood", [this] { Flood(); }},
        {"descriptors", [this] { SendRecord(calls_, AsBytes(Envelope{MessageType::kFetch}), {0, 0, 0}); }},
        {"misfit", [this] { Misfit(); }},
        {"foreign-change", [this] { ForeignChange(); }},
        {"foreign-files", [this] { ForeignFiles(); }},
        {"ready-twice", [this] { Say(Type::kReady); }},
        {"listening-twice", [this] { ListenTwice(); }},
        {"odd-record", [this] { Say(static_cast<Type>(77)); }},
        {"fatal-text", [this] { Say(Type::kFatal, 0, "over\x1b[31m and \nout" + std::string(5000, 'x')); }},
        {"wake-kernel", [this] { WakeKernel(); }},
        {"loopback", [this] { Loopback(); }},
    };
    Say(Type::kReady);
    AwaitListener();
    deeds.at(deed)();
    for (;;) EndWhereAsked(-1);
  }

 private:
  void Say(Type type, int32_t number = 0, std::string_view body = {}) {
    SendRecord(control_, control::Encode(type, number, body), {});
  }

  Record Hear(int socket) {
    Record record;
    if (ReceiveRecord(socket, &record, calls::kMaxMessage, 8) != 1) _exit(1);
    return record;
  }

  // So that the tests need not wait: the program's end is not held up.
  void EndWhereAsked(int timeout_ms) {
    pollfd polled{control_, POLLIN, 0};
    if (poll(&polled, 1, timeout_ms) <= 0) return;
    const Record record = Hear(control_);
    control::Header header;
    std::string_view body;
    if (control::Decode(record.data, &header, &body) && header.type == Type::kDrain) Say(Type::kDrained);
  }

  void AwaitListener() { Hear(calls_); }

  // The first call of the program that is passed on.
  calls::Call AwaitCall() {
    calls::Call call;
    const Record record = Hear(calls_);
    if (record.data.size() < sizeof call || record.data[0] != static_cast<uint8_t>(MessageType::kCall)) _exit(1);
    memcpy(&call, record.data.data(), sizeof call);
    return call;
  }

  void Noise() {
    for (;;) {
      uint8_t bytes[64];
      if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes) continue;
      SendRecord(calls_, {bytes, 1 + bytes[0] % (sizeof bytes - 1)}, {});
    }
  }

  // Answers that nobody waits for, as fast as they go; what comes back is not read.
  void Flood() {
    calls::Result result;
    result.envelope = {MessageType::kResult, 0, 1, 1, 1};
    for (;;) {
      if (!SendRecord(calls_, AsBytes(result), {}, MSG_DONTWAIT)) EndWhereAsked(20);
    }
  }

  // Faster than it is heard: the guard would open and close sockets without end.
  void ListenTwice() {
    Say(Type::kListening, 0, std::string(sizeof(control::LoopbackListener), '\1'));
    Say(Type::kListening);
  }

  void Misfit() {
    calls::Result result;
    result.envelope = AwaitCall().envelope;
    result.envelope.type = MessageType::kResult;
    result.count = 1;
    std::vector<uint8_t> message(sizeof result + sizeof(calls::PartResult) + 100);
    memcpy(message.data(), &result, sizeof result);
    SendRecord(calls_, message, {});
  }

  void ForeignChange() {
    calls::NetChangeRequest request{};
    request.envelope = AwaitCall().envelope;
    request.envelope.type = MessageType::kNetChange;
    request.change.kind = netlink::NetChangeKind::kSetLink;
    request.change.link.ifindex = 1;
    request.change.link.has_up = 1;
    SendRecord(calls_, AsBytes(request), {});
  }

  // Descriptors of whoever there is.
  void ForeignFiles() {
    const calls::Call call = AwaitCall();
    int got = 0;
    for (uint32_t tid = 1; tid <= 400; ++tid) {
      calls::Fetch fetch;
      fetch.envelope = {MessageType::kFetch, 0, call.envelope.listener, tid, tid};
      fetch.fd = static_cast<int>(tid % 4);
      SendRecord(calls_, AsBytes(fetch), {});
      got += Hear(calls_).fds.empty() ? 0 : 1;
    }
    Log(LogLevel::kWarning, "fetched %d descriptors", got);
  }

  // The broker's own answer to kOpenPort: a port, or a refusal.
  Type Ask(int32_t ifindex) {
    Say(Type::kOpenPort, ifindex);
    for (;;) {
      const Record record = Hear(control_);
      control::Header header;
      std::string_view body;
      if (control::Decode(record.data, &header, &body) && (header.type == Type::kPort || header.type == Type::kPortFailed))
        return header.type;
    }
  }

  void WakeKernel() {
    for (int32_t i = 2; i < 100; ++i) {
      if (Ask(i) == Type::kPort) Say(Type::kClosePort, i);
    }
    Log(LogLevel::kWarning, "said that every device is gone");
  }

  void Loopback() { Log(LogLevel::kWarning, "the loopback was %s", Ask(1) == Type::kPort ? "opened" : "refused"); }

  int calls_, control_;
};

}  // namespace

void RunSentry(SandboxPlan& plan) {
  const char* deed = getenv("SLUICE_HOSTILE");
  HostileSentry(plan).Run(deed == nullptr ? "" : deed);
}

}  // namespace sluice
