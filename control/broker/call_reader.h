// Copies what a notified call names in the program's memory into a message for the sentry, and remembers where its results go.
// Mirrors the kernel's own copying (net/socket.c): lengths, limits and errno. All input is hostile.
#pragma once

#include <linux/seccomp.h>
#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "control/broker/caller_memory.h"
#include "sentry/broker_protocol.h"

namespace sluice {

// Where the results of one message of a call go. An address of 0: nowhere.
struct ResultTarget {
  std::vector<RemoteRange> data;
  uint64_t name = 0, name_capacity = 0, name_length_field = 0;
  uint64_t control = 0, control_capacity = 0;
  uint64_t header = 0;  // struct msghdr or mmsghdr
  uint32_t data_capacity = 0;
};

// A call that the sentry may answer with results in memory.
struct PendingCall {
  calls::Envelope envelope;
  calls::CallKind kind{};
  int nr = 0;
  uint64_t cookie = 0;    // of the stand-in
  uint64_t order = 0;     // of its coming
  uint64_t args[6] = {};  // as the program passed them, those of accept4 for accept, too
  std::vector<ResultTarget> targets;
  uint64_t extra = 0;                // ioctl: the second buffer,
  size_t extra_room = 0;             // and how much of it the request lets an answer fill
  uint64_t option_length_field = 0;  // getsockopt
  int late_error = 0;                // a fault that Linux finds only after the call's work (EFAULT, EINVAL)
};

class CallReader {
 public:
  CallReader();

  // Reads the call into message(); false where it is to be answered with errno `error` at once. `is_stream`: the stand-in is a
  // stream, whose payload is not copied (recvmsg and the like still name their buffers). envelope is the caller's to fill in.
  bool Read(const seccomp_data& data, CallerMemory& memory, bool is_stream, PendingCall* pending, int* error);

  // sendmsg, recvmsg and their kin on a stream: true where every message is without a name and, if it is sent, control data, so
  // that the native call does the same.
  static bool PlainStreamCall(const seccomp_data& data, CallerMemory& memory);

  calls::Call& call() { return *reinterpret_cast<calls::Call*>(buffer_.data()); }
  size_t message_size() const { return size_; }
  const uint8_t* message() const { return buffer_.data(); }

 private:
  calls::Part& part(size_t i) {
    return *reinterpret_cast<calls::Part*>(buffer_.data() + sizeof(calls::Call) + i * sizeof(calls::Part));
  }
  void Begin(calls::CallKind kind, size_t parts);
  int AppendMemory(CallerMemory& memory, uint64_t address, size_t length);
  int AppendGather(CallerMemory& memory, const std::vector<RemoteRange>& ranges, size_t length);

  int AnnounceName(uint64_t length_argument);
  int ReadName(CallerMemory& memory, uint64_t address, uint64_t length_argument);
  int ReadNameTarget(CallerMemory& memory, uint64_t address, uint64_t length_field, PendingCall* pending);
  int ReadSetOption(CallerMemory& memory, const uint64_t* args);
  int ReadGetOption(CallerMemory& memory, const uint64_t* args, PendingCall* pending);
  int ReadSendTo(CallerMemory& memory, const uint64_t* args);
  int ReadReceiveFrom(CallerMemory& memory, const uint64_t* args, PendingCall* pending);
  int ReadMessages(const seccomp_data& data, CallerMemory& memory, bool is_stream, PendingCall* pending);
  int ReadSendHeader(CallerMemory& memory, uint64_t header, uint32_t flags, size_t index, size_t room, bool is_stream);
  int ReadReceiveHeader(CallerMemory& memory, uint64_t header, uint32_t flags, size_t index, size_t room, ResultTarget* target);
  int ReadIoctl(CallerMemory& memory, const uint64_t* args, PendingCall* pending);
  int Dispatch(const seccomp_data& data, CallerMemory& memory, bool is_stream, PendingCall* pending);

  std::vector<uint8_t> buffer_;
  size_t size_ = 0;
};

}  // namespace sluice
