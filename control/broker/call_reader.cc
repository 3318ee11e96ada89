#include "control/broker/call_reader.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>

#include <algorithm>

#include "sentry/netlink/if_ioctl.h"

namespace sluice {

using calls::CallKind;
using calls::Part;

namespace {

constexpr size_t kMaxVector = 1024;            // UIO_MAXIOV
constexpr uint64_t kMaxTransfer = 0x7ffff000;  // MAX_RW_COUNT

bool IsSend(int nr) { return nr == SYS_sendmsg || nr == SYS_sendmmsg; }
bool IsVector(int nr) { return nr == SYS_sendmmsg || nr == SYS_recvmmsg; }

// Reads struct msghdr and its vector; `ranges` gets the buffers. 0 or an errno, as ___sys_sendmsg and ___sys_recvmsg have them.
int ReadHeader(CallerMemory& memory, uint64_t address, msghdr* header, std::vector<RemoteRange>* ranges, uint64_t* total) {
  if (!ReadObject(memory, address, header)) return EFAULT;
  if (header->msg_name == nullptr) header->msg_namelen = 0;
  if (static_cast<int>(header->msg_namelen) < 0) return EINVAL;
  header->msg_namelen = std::min<socklen_t>(header->msg_namelen, calls::kMaxAddress);
  if (header->msg_iovlen > kMaxVector) return EMSGSIZE;
  std::vector<iovec> vec(header->msg_iovlen);
  if (!memory.Read(reinterpret_cast<uint64_t>(header->msg_iov),
                   {reinterpret_cast<uint8_t*>(vec.data()), vec.size() * sizeof(iovec)})) {
    return EFAULT;
  }
  *total = 0;
  ranges->clear();
  for (const iovec& v : vec) {
    if (static_cast<ssize_t>(v.iov_len) < 0) return EINVAL;
    uint64_t length = std::min<uint64_t>(v.iov_len, kMaxTransfer - *total);
    if (length > 0) ranges->push_back({reinterpret_cast<uint64_t>(v.iov_base), length});
    *total += length;
  }
  return 0;
}

}  // namespace

CallReader::CallReader() : buffer_(calls::kMaxMessage) {}

void CallReader::Begin(CallKind kind, size_t parts) {
  size_ = sizeof(calls::Call) + parts * sizeof(Part);
  memset(buffer_.data(), 0, size_);
  call().kind = kind;
  call().count = static_cast<uint8_t>(parts);
  call().timeout_ms = 0xffffffff;
}

int CallReader::AppendMemory(CallerMemory& memory, uint64_t address, size_t length) {
  if (size_ + length > buffer_.size()) return EMSGSIZE;
  if (!memory.Read(address, {buffer_.data() + size_, length})) return EFAULT;
  size_ += length;
  return 0;
}

int CallReader::AppendGather(CallerMemory& memory, const std::vector<RemoteRange>& ranges, size_t length) {
  if (size_ + length > buffer_.size()) return EMSGSIZE;
  if (memory.Gather(ranges, {buffer_.data() + size_, length}) != length) return EFAULT;
  size_ += length;
  return 0;
}

int CallReader::AnnounceName(uint64_t length_argument) {
  int length = static_cast<int>(length_argument);
  if (length < 0 || length > static_cast<int>(calls::kMaxAddress)) return EINVAL;
  part(0).has_name = 1;
  part(0).name_length = static_cast<uint32_t>(length);
  return 0;
}

int CallReader::ReadName(CallerMemory& memory, uint64_t address, uint64_t length_argument) {
  if (int error = AnnounceName(length_argument)) return error;
  return AppendMemory(memory, address, part(0).name_length);
}

int CallReader::ReadNameTarget(CallerMemory& memory, uint64_t address, uint64_t length_field, PendingCall* pending) {
  ResultTarget& target = pending->targets.emplace_back();
  if (address == 0) {
    // NULL means "no address wanted" to accept and recvfrom; to the others it is an address like any other.
    bool optional = call().kind == CallKind::kAccept || call().kind == CallKind::kReceive;
    int length = 0;
    if (!optional && (!ReadObject(memory, length_field, &length) || length > 0)) pending->late_error = EFAULT;
    return 0;
  }
  part(0).has_name = 1;
  target.name = address;
  target.name_length_field = length_field;
  int length = 0;
  // Linux reads the length after the call's work: ENOTCONN and the like come first.
  if (!ReadObject(memory, length_field, &length)) {
    pending->late_error = EFAULT;
  } else if (length < 0) {
    pending->late_error = EINVAL;
  } else {
    target.name_capacity = static_cast<uint64_t>(length);
  }
  part(0).name_length = static_cast<uint32_t>(std::min<uint64_t>(target.name_capacity, calls::kMaxAddress));
  return 0;
}

int CallReader::ReadSetOption(CallerMemory& memory, const uint64_t* args) {
  Begin(CallKind::kSetSockOpt, 1);
  int length = static_cast<int>(args[4]);
  if (length < 0) return EINVAL;
  part(0).total_length = static_cast<uint32_t>(length);
  size_t copied = std::min<size_t>(static_cast<size_t>(length), calls::kMaxOption);
  // The kernel reads as much as the option has, whatever length is claimed: what lies beyond need not be there.
  for (size_t shorter : {size_t{256}, size_t{64}, size_t{16}}) {
    part(0).data_length = static_cast<uint32_t>(copied);
    const int error = AppendMemory(memory, args[3], copied);
    if (error != EFAULT || copied <= shorter) return error;
    copied = shorter;
  }
  part(0).data_length = static_cast<uint32_t>(copied);
  return AppendMemory(memory, args[3], copied);
}

int CallReader::ReadGetOption(CallerMemory& memory, const uint64_t* args, PendingCall* pending) {
  Begin(CallKind::kGetSockOpt, 1);
  int length = 0;
  if (!ReadObject(memory, args[4], &length)) return EFAULT;
  if (length < 0) return EINVAL;
  part(0).total_length = static_cast<uint32_t>(length);
  ResultTarget& target = pending->targets.emplace_back();
  target.data.push_back({args[3], static_cast<uint64_t>(length)});
  target.data_capacity = static_cast<uint32_t>(length);
  pending->option_length_field = args[4];
  return 0;
}

int CallReader::ReadSendTo(CallerMemory& memory, const uint64_t* args) {
  Begin(CallKind::kSend, 1);
  uint64_t total = std::min<uint64_t>(args[2], kMaxTransfer);
  part(0).total_length = static_cast<uint32_t>(total);
  part(0).flags = static_cast<uint32_t>(args[3]);
  std::vector<RemoteRange> ranges;
  if (args[4] != 0) {
    if (int error = AnnounceName(args[5])) return error;
    ranges.push_back({args[4], part(0).name_length});
  }
  size_t copied = std::min<uint64_t>(total, calls::kMaxData);
  part(0).data_length = static_cast<uint32_t>(copied);
  ranges.push_back({args[1], copied});
  return AppendGather(memory, ranges, part(0).name_length + copied);
}

int CallReader::ReadReceiveFrom(CallerMemory& memory, const uint64_t* args, PendingCall* pending) {
  Begin(CallKind::kReceive, 1);
  part(0).flags = static_cast<uint32_t>(args[3]);
  if (int error = ReadNameTarget(memory, args[4], args[5], pending)) return error;
  uint64_t total = std::min<uint64_t>(args[2], kMaxTransfer);
  ResultTarget& target = pending->targets.front();
  target.data.push_back({args[1], total});
  target.data_capacity = static_cast<uint32_t>(std::min<uint64_t>(total, calls::kMaxData));
  part(0).data_length = target.data_capacity;
  part(0).total_length = static_cast<uint32_t>(total);
  return 0;
}

int CallReader::ReadSendHeader(CallerMemory& memory, uint64_t header, uint32_t flags, size_t index, size_t room, bool is_stream) {
  msghdr h;
  std::vector<RemoteRange> ranges;
  uint64_t total = 0;
  if (int error = ReadHeader(memory, header, &h, &ranges, &total)) return error;
  if (h.msg_controllen > INT_MAX || h.msg_controllen > calls::kMaxControl) return ENOBUFS;
  Part& p = part(index);
  p.flags = flags;
  p.total_length = static_cast<uint32_t>(total);
  size_t copied = std::min<uint64_t>(total, calls::kMaxData);
  // A later message that does not fit any more is left to the next call; a stream may always be cut.
  if (copied > room && !is_stream) return E2BIG;
  copied = std::min(copied, room);
  if (h.msg_name != nullptr) {
    p.has_name = 1;
    p.name_length = h.msg_namelen;
    if (int error = AppendMemory(memory, reinterpret_cast<uint64_t>(h.msg_name), h.msg_namelen)) return error;
  }
  if (h.msg_controllen > 0) {
    if (size_ + h.msg_controllen + copied > buffer_.size()) return index > 0 ? E2BIG : ENOBUFS;
    p.has_control = 1;
    p.control_length = static_cast<uint32_t>(h.msg_controllen);
    if (int error = AppendMemory(memory, reinterpret_cast<uint64_t>(h.msg_control), h.msg_controllen)) return error;
  }
  p.data_length = static_cast<uint32_t>(copied);
  return AppendGather(memory, ranges, copied);
}

int CallReader::ReadReceiveHeader(CallerMemory& memory, uint64_t header, uint32_t flags, size_t index, size_t room,
                                  ResultTarget* target) {
  msghdr h;
  uint64_t total = 0;
  if (int error = ReadHeader(memory, header, &h, &target->data, &total)) return error;
  uint64_t capacity = std::min<uint64_t>(total, calls::kMaxData);
  if (capacity > room) return E2BIG;
  target->header = header;
  target->data_capacity = static_cast<uint32_t>(capacity);
  target->name = reinterpret_cast<uint64_t>(h.msg_name);
  target->name_capacity = h.msg_namelen;
  target->control = reinterpret_cast<uint64_t>(h.msg_control);
  target->control_capacity = h.msg_control == nullptr ? 0 : std::min<uint64_t>(h.msg_controllen, calls::kMaxControl);
  Part& p = part(index);
  p.flags = flags;
  p.total_length = static_cast<uint32_t>(total);
  p.data_length = target->data_capacity;
  p.has_name = h.msg_name != nullptr;
  p.name_length = h.msg_namelen;
  p.has_control = target->control_capacity > 0;
  p.control_length = static_cast<uint32_t>(target->control_capacity);
  return 0;
}

int CallReader::ReadMessages(const seccomp_data& data, CallerMemory& memory, bool is_stream, PendingCall* pending) {
  bool send = IsSend(data.nr), vector = IsVector(data.nr);
  size_t wanted = vector ? std::min<size_t>(static_cast<uint32_t>(data.args[2]), kMaxVector) : 1;
  size_t count = std::min(wanted, calls::kMaxParts);
  uint32_t flags = static_cast<uint32_t>(vector ? data.args[3] : data.args[2]);
  Begin(send ? CallKind::kSend : CallKind::kReceive, count);
  if (data.nr == SYS_recvmmsg && data.args[4] != 0) {
    timespec t;
    if (!ReadObject(memory, data.args[4], &t)) return EFAULT;
    if (t.tv_sec < 0 || t.tv_nsec < 0 || t.tv_nsec >= 1000000000) return EINVAL;
    call().timeout_ms = static_cast<uint32_t>(std::min<int64_t>(t.tv_sec, 4000000) * 1000 + (t.tv_nsec + 999999) / 1000000);
  }
  size_t room = calls::kMaxData;
  for (size_t i = 0; i < count; ++i) {
    uint64_t header = data.args[1] + i * (sizeof(msghdr) + 8);
    ResultTarget& target = pending->targets.emplace_back();
    target.header = header;
    size_t before = size_;
    int error = send ? ReadSendHeader(memory, header, flags, i, room, is_stream)
                     : ReadReceiveHeader(memory, header, flags, i, room, &target);
    if (error != 0) {
      if (i == 0) return error;
      // What came before goes ahead, as Linux has it; the error shows at the next call.
      size_ = before;
      pending->targets.pop_back();
      size_t shift = (count - i) * sizeof(Part);
      uint8_t* bytes = buffer_.data() + sizeof(calls::Call) + count * sizeof(Part);
      memmove(bytes - shift, bytes, static_cast<size_t>(buffer_.data() + size_ - bytes));
      size_ -= shift;
      call().count = static_cast<uint8_t>(i);
      break;
    }
    room -= part(i).data_length;
  }
  return 0;
}

int CallReader::ReadIoctl(CallerMemory& memory, const uint64_t* args, PendingCall* pending) {
  Begin(CallKind::kIoctl, 1);
  ResultTarget& target = pending->targets.emplace_back();
  std::optional<netlink::IoctlShape> shape = netlink::ShapeOfIoctl(static_cast<uint32_t>(args[1]));
  if (!shape) {  // those that the sentry knows by itself give back an int
    target.data.push_back({args[2], sizeof(int)});
    target.data_capacity = sizeof(int);
    return 0;
  }
  target.data.push_back({args[2], shape->argument});
  target.data_capacity = shape->argument;
  part(0).data_length = shape->argument;
  size_t extra = 0;
  uint64_t pointer = 0;
  std::vector<uint8_t> argument(shape->argument);
  if (!memory.Read(args[2], argument)) return EFAULT;
  std::vector<uint8_t> second;
  if (shape->pointer_offset >= 0 && static_cast<size_t>(shape->pointer_offset) + 8 <= argument.size()) {
    memcpy(&pointer, argument.data() + shape->pointer_offset, 8);
    if (pointer != 0 && shape->extra_read_max > 0) {
      second.resize(shape->extra_read_max);
      RemoteRange range{pointer, second.size()};
      extra = memory.Gather({&range, 1}, second);
      if (extra < shape->extra_read_min) return EFAULT;
    }
    pending->extra = pointer;
    pending->extra_room = netlink::IoctlExtraRoom(static_cast<uint32_t>(args[1]), argument, Bytes(second).first(extra));
  }
  if (size_ + argument.size() + extra > buffer_.size()) return EINVAL;
  part(0).control_length = static_cast<uint32_t>(extra);
  // Order of the bytes: name, control, data.
  if (extra > 0) memcpy(buffer_.data() + size_, second.data(), extra);
  if (!argument.empty()) memcpy(buffer_.data() + size_ + extra, argument.data(), argument.size());
  size_ += extra + argument.size();
  return 0;
}

int CallReader::Dispatch(const seccomp_data& data, CallerMemory& memory, bool is_stream, PendingCall* pending) {
  uint64_t args[6];
  memcpy(args, data.args, sizeof args);
  switch (data.nr) {
    case SYS_socket:
      Begin(CallKind::kSocket, 0);
      return 0;
    case SYS_listen:
      Begin(CallKind::kListen, 0);
      return 0;
    case SYS_shutdown:
      Begin(CallKind::kShutdown, 0);
      return 0;
    case SYS_bind:
    case SYS_connect:
      Begin(data.nr == SYS_bind ? CallKind::kBind : CallKind::kConnect, 1);
      return ReadName(memory, args[1], args[2]);
    case SYS_accept:
    case SYS_accept4:
      Begin(CallKind::kAccept, 1);
      return ReadNameTarget(memory, args[1], args[2], pending);
    case SYS_getsockname:
      Begin(CallKind::kGetSockName, 1);
      return ReadNameTarget(memory, args[1], args[2], pending);
    case SYS_getpeername:
      Begin(CallKind::kGetPeerName, 1);
      return ReadNameTarget(memory, args[1], args[2], pending);
    case SYS_getsockopt:
      return ReadGetOption(memory, args, pending);
    case SYS_setsockopt:
      return ReadSetOption(memory, args);
    case SYS_sendto:
      return ReadSendTo(memory, args);
    case SYS_recvfrom:
      return ReadReceiveFrom(memory, args, pending);
    case SYS_sendmsg:
    case SYS_recvmsg:
    case SYS_sendmmsg:
    case SYS_recvmmsg:
      return ReadMessages(data, memory, is_stream, pending);
    case SYS_ioctl:
      return ReadIoctl(memory, args, pending);
    default:
      return ENOSYS;
  }
}

bool CallReader::Read(const seccomp_data& data, CallerMemory& memory, bool is_stream, PendingCall* pending, int* error) {
  pending->targets.clear();
  pending->extra = pending->extra_room = 0;
  pending->option_length_field = 0;
  pending->late_error = 0;
  *error = Dispatch(data, memory, is_stream, pending);
  if (*error != 0) return false;
  pending->kind = call().kind;
  pending->nr = data.nr;
  call().nr = data.nr;
  memcpy(call().args, data.args, sizeof call().args);
  if (data.nr == SYS_accept) call().args[3] = 0;
  memcpy(pending->args, call().args, sizeof pending->args);
  return true;
}

bool CallReader::PlainStreamCall(const seccomp_data& data, CallerMemory& memory) {
  const bool send = data.nr == SYS_sendmsg || data.nr == SYS_sendmmsg;
  if (send && (data.args[data.nr == SYS_sendmsg ? 2 : 3] & MSG_FASTOPEN) != 0) return false;
  const auto plain = [send](const msghdr& h) { return h.msg_name == nullptr && (!send || h.msg_controllen == 0); };
  // A bad pointer is the kernel's to refuse.
  if (data.nr == SYS_sendmsg || data.nr == SYS_recvmsg) {
    msghdr h;
    return !ReadObject(memory, data.args[1], &h) || plain(h);
  }
  if (data.nr != SYS_sendmmsg && data.nr != SYS_recvmmsg) return false;
  size_t count = std::min<size_t>(static_cast<uint32_t>(data.args[2]), kMaxVector);
  std::vector<mmsghdr> headers(count);
  if (!memory.Read(data.args[1], {reinterpret_cast<uint8_t*>(headers.data()), count * sizeof(mmsghdr)})) return true;
  return std::all_of(headers.begin(), headers.end(), [plain](const mmsghdr& m) { return plain(m.msg_hdr); });
}

}  // namespace sluice
