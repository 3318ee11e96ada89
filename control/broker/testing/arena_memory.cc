#include "control/broker/testing/arena_memory.h"

#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace sluice {

void ArenaMemory::Fill(Bytes image) { std::copy_n(image.begin(), std::min(image.size(), bytes_.size()), bytes_.begin()); }

void ArenaMemory::PutAddress(size_t offset, size_t target) {
  const uint64_t address = kBase + target % kSize;
  offset = std::min(offset % kSize, kSize - sizeof address);
  std::memcpy(&bytes_[offset], &address, sizeof address);
}

void ArenaMemory::Allow(const PendingCall& pending) {
  for (const ResultTarget& t : pending.targets) {
    allowed_.insert(allowed_.end(), t.data.begin(), t.data.end());
    if (t.name != 0) allowed_.push_back({t.name, t.name_capacity});
    if (t.name_length_field != 0) allowed_.push_back({t.name_length_field, sizeof(int)});
    if (t.control != 0) allowed_.push_back({t.control, t.control_capacity});
    if (t.header != 0)
      allowed_.push_back({t.header, pending.nr == SYS_sendmmsg || pending.nr == SYS_recvmmsg ? sizeof(mmsghdr) : sizeof(msghdr)});
  }
  if (pending.extra != 0) allowed_.push_back({pending.extra, pending.extra_room});
  if (pending.option_length_field != 0) allowed_.push_back({pending.option_length_field, sizeof(int)});
}

// How much of what is wanted of a range is there.
size_t ArenaMemory::Mapped(const RemoteRange& range, size_t wanted) {
  const uint64_t length = std::min<uint64_t>(range.length, wanted);
  if (range.address < kBase || range.address >= kBase + kSize) return 0;
  return std::min<uint64_t>(length, kBase + kSize - range.address);
}

bool ArenaMemory::Allowed(uint64_t address, size_t length) const {
  return std::any_of(allowed_.begin(), allowed_.end(), [=](const RemoteRange& r) {
    return address >= r.address && length <= r.length && address - r.address <= r.length - length;
  });
}

size_t ArenaMemory::Gather(std::span<const RemoteRange> ranges, MutableBytes out) {
  size_t done = 0;
  for (const RemoteRange& r : ranges) {
    const size_t wanted = std::min<uint64_t>(r.length, out.size() - done), n = Mapped(r, wanted);
    if (n > 0) std::memcpy(out.data() + done, at(r.address), n);
    done += n;
    if (n != wanted || done == out.size()) break;
  }
  return done;
}

size_t ArenaMemory::Scatter(std::span<const RemoteRange> ranges, Bytes data) {
  size_t done = 0;
  for (const RemoteRange& r : ranges) {
    const size_t wanted = std::min<uint64_t>(r.length, data.size() - done), n = Mapped(r, wanted);
    if (wanted > 0 && !Allowed(r.address, wanted)) std::abort();
    if (n > 0) std::memcpy(at(r.address), data.data() + done, n);
    done += n;
    if (n != wanted || done == data.size()) break;
  }
  return done;
}

}  // namespace sluice
