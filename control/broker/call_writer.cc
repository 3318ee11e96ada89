#include "control/broker/call_writer.h"

#include <errno.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>

#include "absl/container/inlined_vector.h"

namespace sluice {

using calls::CallKind;
using calls::PartResult;

namespace {

// The bytes of one part.
struct PartView {
  const PartResult* result;
  Bytes name, control, data;
};

size_t NameBytes(const ResultTarget& t, const PartResult& r) { return std::min<size_t>(r.name_length, t.name_capacity); }

// Cuts the message into parts; false where a length exceeds what the call has room for.
bool Split(const PendingCall& pending, const ResultView& view, std::vector<PartView>* out) {
  if (view.header->count > pending.targets.size()) return false;
  Bytes rest = view.bytes;
  for (uint32_t i = 0; i < view.header->count; ++i) {
    const PartResult& r = view.parts[i];
    const ResultTarget& t = pending.targets[i];
    size_t name = std::min<size_t>(NameBytes(t, r), calls::kMaxAddress);
    size_t control_room = pending.kind == CallKind::kIoctl ? pending.extra_room : t.control_capacity;
    if (r.control_length > control_room || r.data_length > t.data_capacity) return false;
    if (name + r.control_length + r.data_length > rest.size()) return false;
    out->push_back(
        {&r, rest.first(name), rest.subspan(name, r.control_length), rest.subspan(name + r.control_length, r.data_length)});
    rest = rest.subspan(name + r.control_length + r.data_length);
  }
  return true;
}

// What one part writes, in the order in which the kernel does, in one go.
class Writes {
 public:
  void Add(uint64_t address, Bytes data) {
    if (!data.empty()) list_.push_back({address, data});
  }
  // Refers to `value` until Commit.
  template <typename T>
  void AddValue(uint64_t address, const T& value) {
    Add(address, {reinterpret_cast<const uint8_t*>(&value), sizeof value});
  }
  // Over the front of the call's buffers, which have room for it.
  void AddData(const ResultTarget& t, Bytes data) {
    for (const RemoteRange& r : t.data) {
      const Bytes here = data.first(std::min<uint64_t>(r.length, data.size()));
      Add(r.address, here);
      data = data.subspan(here.size());
    }
  }
  int Commit(CallerMemory& memory) const { return memory.WriteAll(list_) ? 0 : EFAULT; }

 private:
  absl::InlinedVector<RemoteWrite, 8> list_;
};

// An address and its length, as move_addr_to_user.
int WriteName(CallerMemory& memory, Writes& writes, const PendingCall& pending, const ResultTarget& t, const PartView& part) {
  if (pending.late_error == 0 && t.name != 0) {
    writes.Add(t.name, part.name);
    writes.AddValue(t.name_length_field, part.result->name_length);
  }
  const int error = writes.Commit(memory);
  return error != 0 ? error : pending.late_error;
}

int WriteHeader(CallerMemory& memory, Writes& writes, const PendingCall& pending, const ResultTarget& t, const PartView& part) {
  const uint64_t control_length = part.control.size();
  if (t.name != 0) {
    writes.Add(t.name, part.name);
    writes.AddValue(t.header + offsetof(msghdr, msg_namelen), part.result->name_length);
  }
  if (t.control != 0) writes.Add(t.control, part.control);
  writes.AddValue(t.header + offsetof(msghdr, msg_controllen), control_length);
  writes.AddValue(t.header + offsetof(msghdr, msg_flags), part.result->msg_flags);
  if (pending.nr == SYS_recvmmsg) writes.AddValue(t.header + offsetof(mmsghdr, msg_len), part.result->return_value);
  return writes.Commit(memory);
}

int WriteReceived(CallerMemory& memory, const PendingCall& pending, const ResultTarget& t, const PartView& part) {
  Writes writes;
  writes.AddData(t, part.data);
  return pending.nr == SYS_recvfrom ? WriteName(memory, writes, pending, t, part) : WriteHeader(memory, writes, pending, t, part);
}

int WriteOption(CallerMemory& memory, const PendingCall& pending, const ResultTarget& t, const PartView& part) {
  Writes writes;
  writes.AddData(t, part.data);
  writes.AddValue(pending.option_length_field, part.result->return_value);
  return writes.Commit(memory);
}

int WriteIoctl(CallerMemory& memory, const PendingCall& pending, const ResultTarget& t, const PartView& part) {
  if (!part.control.empty() && pending.extra == 0) return EFAULT;
  Writes writes;
  writes.Add(pending.extra, part.control);
  writes.AddData(t, part.data);
  return writes.Commit(memory);
}

int WritePart(CallerMemory& memory, const PendingCall& pending, const ResultTarget& t, const PartView& part) {
  switch (pending.kind) {
    case CallKind::kGetSockName:
    case CallKind::kGetPeerName: {
      Writes writes;
      return WriteName(memory, writes, pending, t, part);
    }
    case CallKind::kGetSockOpt:
      return WriteOption(memory, pending, t, part);
    case CallKind::kReceive:
      return WriteReceived(memory, pending, t, part);
    case CallKind::kIoctl:
      return WriteIoctl(memory, pending, t, part);
    case CallKind::kSend:
      if (pending.nr != SYS_sendmmsg) return 0;
      return WriteObject(memory, t.header + offsetof(mmsghdr, msg_len), part.result->return_value) ? 0 : EFAULT;
    default:
      return EPROTO;
  }
}

}  // namespace

bool ParseResult(Bytes message, ResultView* out) {
  if (message.size() < sizeof(calls::Result)) return false;
  out->header = reinterpret_cast<const calls::Result*>(message.data());
  if (out->header->count > calls::kMaxParts) return false;
  size_t parts = out->header->count * sizeof(PartResult);
  if (message.size() < sizeof(calls::Result) + parts) return false;
  out->parts = reinterpret_cast<const PartResult*>(message.data() + sizeof(calls::Result));
  out->bytes = message.subspan(sizeof(calls::Result) + parts);
  return true;
}

int WritePeerName(const PendingCall& accept, Bytes name, CallerMemory& memory) {
  const ResultTarget& target = accept.targets.at(0);
  const PartResult result{.name_length = static_cast<uint32_t>(name.size())};
  Writes writes;
  return WriteName(memory, writes, accept, target, {&result, name.first(NameBytes(target, result)), {}, {}});
}

int WriteResult(const PendingCall& pending, const ResultView& result, CallerMemory& memory, uint32_t* written) {
  *written = 0;
  std::vector<PartView> parts;
  if (!Split(pending, result, &parts)) return EPROTO;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (int error = WritePart(memory, pending, pending.targets[i], parts[i])) return error;
    ++*written;
  }
  return 0;
}

}  // namespace sluice
