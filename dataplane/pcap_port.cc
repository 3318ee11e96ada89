#include "dataplane/pcap_port.h"

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace sluice {
namespace {

constexpr size_t kFlushAt = 256 << 10;

uint64_t RealTime() {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace

PcapWriter::PcapWriter(UniqueFd fd, uint32_t snaplen) : fd_(std::move(fd)), snaplen_(snaplen) {
  blocks_.bytes().reserve(kFlushAt + (128 << 10));
}

PcapWriter::~PcapWriter() { Flush(); }

void PcapWriter::Write(uint32_t interface, FrameTap::Direction direction, const Packet& frame) {
  const std::lock_guard lock(mutex_);
  if (error_ != 0) return;
  const size_t size = frame.size(), captured = snaplen_ != 0 ? std::min<size_t>(size, snaplen_) : size;
  frame.CopyOut(0, blocks_.AddFrame({interface, direction, RealTime(), captured, size}));
  ++frames_;
  if (blocks_.bytes().size() >= kFlushAt) FlushLocked();
}

uint32_t PcapWriter::AddInterface(const std::string& name) {
  const std::lock_guard lock(mutex_);
  const auto known = interfaces_.find(name);
  if (known != interfaces_.end()) return known->second;
  return interfaces_[name] = blocks_.AddInterface(name, snaplen_);
}

void PcapWriter::Flush() {
  const std::lock_guard lock(mutex_);
  FlushLocked();
}

void PcapWriter::FlushLocked() {
  const std::vector<uint8_t>& bytes = blocks_.bytes();
  for (size_t at = 0; at < bytes.size() && error_ == 0;) {
    const ssize_t n = write(fd_.get(), bytes.data() + at, bytes.size() - at);
    if (n >= 0) {
      at += static_cast<size_t>(n);
    } else if (errno != EINTR) {
      error_ = errno;
    }
  }
  blocks_.bytes().clear();
}

PcapPort::PcapPort(std::unique_ptr<Port> inner, std::shared_ptr<PcapWriter> writer, const std::string& device_name)
    : WrappedPort(std::move(inner)), writer_(std::move(writer)), interface_(writer_->AddInterface(device_name)) {}

PcapPort::~PcapPort() { writer_->Flush(); }

size_t PcapPort::Receive(std::span<Packet> out) {
  const size_t n = inner_->Receive(out);
  for (const Packet& frame : out.first(n)) writer_->Write(interface_, FrameTap::Direction::kIn, frame);
  return n;
}

// A frame taken is gone when Transmit returns, and one not taken comes again: a clone of the burst's handles tells after the call
// which is which. It shares the payload; only headers are copied.
size_t PcapPort::Transmit(std::span<Packet> burst) {
  static constexpr size_t kChunk = 32;
  size_t total = 0;
  while (total < burst.size() || burst.empty()) {
    const std::span<Packet> chunk = burst.subspan(total, std::min(kChunk, burst.size() - total));
    std::array<Packet, kChunk> copies;
    for (size_t i = 0; i < chunk.size(); ++i) {
      BlockPool* pool = chunk[i].head_block()->pool;
      if (writer_->error() == 0) copies[i] = chunk[i].Clone(*pool);
    }
    const size_t taken = inner_->Transmit(chunk);
    for (size_t i = 0; i < taken; ++i) {
      if (copies[i]) writer_->Write(interface_, FrameTap::Direction::kOut, copies[i]);
    }
    total += taken;
    if (taken < chunk.size() || burst.empty()) break;
  }
  return total;
}

bool PcapPort::ArmWakeup() {
  writer_->Flush();
  return inner_->ArmWakeup();
}

std::vector<std::string> PcapPort::describe() const {
  std::vector<std::string> lines = inner_->describe();
  lines.push_back("pcap_frames=" + std::to_string(writer_->frames()));
  if (writer_->error() != 0) lines.push_back(std::string("pcap_error=") + std::strerror(writer_->error()));
  return lines;
}

}  // namespace sluice
