// A hostile sentry: a notified call of a program, read from a memory that the fuzzer made up, and then an answer of the fuzzer's.
// The broker may write only where that call pointed, and no more than it has room for.
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "control/broker/sentry_conduct.h"
#include "control/broker/sentry_message.h"
#include "control/broker/testing/arena_memory.h"

namespace sluice {
namespace {

constexpr int kCalls[] = {SYS_socket,   SYS_bind,        SYS_connect,     SYS_listen,     SYS_accept,     SYS_accept4,
                          SYS_shutdown, SYS_getsockname, SYS_getpeername, SYS_getsockopt, SYS_setsockopt, SYS_sendto,
                          SYS_recvfrom, SYS_sendmsg,     SYS_recvmsg,     SYS_sendmmsg,   SYS_recvmmsg,   SYS_ioctl};

template <typename T>
T Take(Bytes* data) {
  T value{};
  const size_t n = std::min(sizeof value, data->size());
  if (n > 0) std::memcpy(&value, data->data(), n);
  *data = data->subspan(n);
  return value;
}

// An argument: mostly an address within the arena, sometimes a number.
uint64_t Argument(Bytes* data) {
  const uint16_t v = Take<uint16_t>(data);
  return (v & 0x8000) != 0 ? v & 0xff : ArenaMemory::kBase + v % ArenaMemory::kSize;
}

void Answer(Bytes data) {
  const size_t descriptors = Take<uint8_t>(&data) % 3;
  ArenaMemory memory;
  seccomp_data call{};
  call.nr = kCalls[Take<uint8_t>(&data) % std::size(kCalls)];
  const bool is_stream = (Take<uint8_t>(&data) & 1) != 0;
  for (auto& a : call.args) a = Argument(&data);
  if (call.nr == SYS_ioctl) call.args[1] = 0x8900u | Take<uint8_t>(&data);
  // What lies where the call points; addresses within are made to point into the arena more often than chance would.
  const size_t image = std::min<size_t>(Take<uint16_t>(&data), data.size());
  memory.Fill(data.first(image));
  data = data.subspan(image);
  for (int i = Take<uint8_t>(&data) % 8; i > 0; --i) memory.PutAddress(Take<uint16_t>(&data), Take<uint16_t>(&data));

  CallReader reader;
  PendingCall pending;
  int error = 0;
  if (!reader.Read(call, memory, is_stream, &pending, &error)) {
    if (error <= 0) std::abort();
    return;
  }
  if (reader.message_size() > calls::kMaxMessage) std::abort();

  std::vector<uint64_t> aligned((data.size() + 7) / 8);
  if (!data.empty()) std::memcpy(aligned.data(), data.data(), data.size());
  const Bytes message{reinterpret_cast<const uint8_t*>(aligned.data()), data.size()};
  SentryMessage parsed;
  if (ParseSentryMessage(message, descriptors, &parsed) != Violation::kNone || parsed.type != calls::MessageType::kResult) return;
  memory.Allow(pending);
  uint32_t written = 0;
  const int result = WriteResult(pending, parsed.result, memory, &written);
  if (result < 0 || written > calls::kMaxParts) std::abort();
  if (result == EPROTO && written != 0) std::abort();
}

void Conduct(Bytes data) {
  SentryConduct conduct;
  while (!data.empty()) {
    const size_t n = std::min<size_t>(data[0] & 0x1f, data.size());
    if ((data[0] & 0x20) != 0) conduct.OnAsked((data[0] & 0x80) != 0 ? control::Type::kDrain : control::Type::kSynchronize);
    control::Header header;
    std::string_view body;
    const char* wrong = conduct.Judge(data.first(n), (data[0] & 0x40) != 0, &header, &body);
    if (wrong == nullptr && header.type != control::Type::kFatal && !body.empty()) std::abort();
    data = data.subspan(std::max<size_t>(n, 1));
  }
}

}  // namespace
}  // namespace sluice

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const sluice::Bytes rest{data + 1, size - 1};
  if (data[0] % 16 == 0) {
    sluice::Conduct(rest);
  } else {
    sluice::Answer(rest);
  }
  return 0;
}
