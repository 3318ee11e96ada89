#include "control/broker/caller_memory.h"

#include <sys/uio.h>

#include <algorithm>
#include <array>

namespace sluice {
namespace {

constexpr size_t kBatch = 64;  // ranges per system call

iovec Remote(uint64_t address, size_t length) { return {reinterpret_cast<void*>(address), length}; }

// Moves bytes between `local` and the front of `ranges` by `call`; returns how many were moved.
template <typename Call>
size_t Transfer(std::span<const RemoteRange> ranges, uint8_t* local, size_t size, Call call) {
  size_t done = 0;
  size_t next = 0;
  while (done < size && next < ranges.size()) {
    std::array<iovec, kBatch> remote;
    size_t count = 0, bytes = 0;
    while (next < ranges.size() && count < kBatch && done + bytes < size) {
      size_t length = static_cast<size_t>(std::min<uint64_t>(ranges[next].length, size - done - bytes));
      if (length > 0) remote[count++] = Remote(ranges[next].address, length);
      bytes += length;
      ++next;
    }
    if (bytes == 0) continue;
    iovec here{local + done, bytes};
    ssize_t n = call(&here, remote.data(), count);
    if (n > 0) done += static_cast<size_t>(n);
    if (n != static_cast<ssize_t>(bytes)) break;
  }
  return done;
}

}  // namespace

bool CallerMemory::Read(uint64_t address, MutableBytes out) {
  const RemoteRange range{address, out.size()};
  return out.empty() || Gather({&range, 1}, out) == out.size();
}

bool CallerMemory::Write(uint64_t address, Bytes data) {
  const RemoteRange range{address, data.size()};
  return data.empty() || Scatter({&range, 1}, data) == data.size();
}

bool CallerMemory::WriteAll(std::span<const RemoteWrite> writes) {
  return std::ranges::all_of(writes, [this](const RemoteWrite& w) { return Write(w.address, w.data); });
}

size_t ThreadMemory::Gather(std::span<const RemoteRange> ranges, MutableBytes out) {
  return Transfer(ranges, out.data(), out.size(), [this](const iovec* local, const iovec* remote, size_t count) {
    return process_vm_readv(tid_, local, 1, remote, count, 0);
  });
}

size_t ThreadMemory::Scatter(std::span<const RemoteRange> ranges, Bytes data) {
  return Transfer(ranges, const_cast<uint8_t*>(data.data()), data.size(),
                  [this](const iovec* local, const iovec* remote, size_t count) {
                    return process_vm_writev(tid_, local, 1, remote, count, 0);
                  });
}

// In one system call, which costs more than the bytes.
bool ThreadMemory::WriteAll(std::span<const RemoteWrite> writes) {
  for (; !writes.empty(); writes = writes.subspan(std::min(writes.size(), kBatch))) {
    std::array<iovec, kBatch> local, remote;
    size_t count = 0, bytes = 0;
    for (; count < std::min(writes.size(), kBatch); ++count) {
      const RemoteWrite& w = writes[count];
      local[count] = {const_cast<uint8_t*>(w.data.data()), w.data.size()};
      remote[count] = Remote(w.address, w.data.size());
      bytes += w.data.size();
    }
    if (bytes > 0 && process_vm_writev(tid_, local.data(), count, remote.data(), count, 0) != static_cast<ssize_t>(bytes))
      return false;
  }
  return true;
}

}  // namespace sluice
