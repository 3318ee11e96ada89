#include "dataplane/pcap_port.h"

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace sluice {
namespace {

constexpr uint32_t kSectionHeader = 0x0a0d0d0a, kInterfaceDescription = 1, kEnhancedPacket = 6;
constexpr uint16_t kOptEnd = 0, kOptUserApplication = 4, kIfName = 2, kIfTsresol = 9, kEpbFlags = 2;
constexpr uint16_t kLinkTypeEthernet = 1;
constexpr size_t kFlushAt = 256 << 10;

size_t Padded(size_t n) { return (n + 3) & ~size_t{3}; }
size_t OptionSize(size_t n) { return 4 + Padded(n); }

}  // namespace

PcapWriter::PcapWriter(UniqueFd fd, uint32_t snaplen) : fd_(std::move(fd)), snaplen_(snaplen) {
  static constexpr char kApplication[] = "sluice";
  buffer_.reserve(kFlushAt + (128 << 10));
  const auto length = static_cast<uint32_t>(28 + OptionSize(sizeof kApplication - 1) + 4);
  Append32(kSectionHeader);
  Append32(length);
  Append32(0x1a2b3c4d);
  const uint16_t version[] = {1, 0};
  Append(version, sizeof version);
  const int64_t unknown = -1;
  Append(&unknown, sizeof unknown);
  AppendOption(kOptUserApplication, kApplication, sizeof kApplication - 1);
  AppendOption(kOptEnd, nullptr, 0);
  Append32(length);
}

PcapWriter::~PcapWriter() { Flush(); }

void PcapWriter::Append(const void* data, size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  buffer_.insert(buffer_.end(), bytes, bytes + size);
}

void PcapWriter::AppendOption(uint16_t code, const void* data, size_t size) {
  const uint16_t head[] = {code, static_cast<uint16_t>(size)};
  Append(head, sizeof head);
  if (size != 0) Append(data, size);
  buffer_.resize(Padded(buffer_.size()));
}

uint32_t PcapWriter::AddInterface(const std::string& name) {
  const auto length = static_cast<uint32_t>(20 + OptionSize(name.size()) + OptionSize(1) + 4);
  Append32(kInterfaceDescription);
  Append32(length);
  const uint16_t link[] = {kLinkTypeEthernet, 0};
  Append(link, sizeof link);
  Append32(snaplen_);
  AppendOption(kIfName, name.data(), name.size());
  const uint8_t nanoseconds = 9;
  AppendOption(kIfTsresol, &nanoseconds, 1);
  AppendOption(kOptEnd, nullptr, 0);
  Append32(length);
  return interfaces_++;
}

void PcapWriter::Write(uint32_t interface, Direction direction, const Packet& frame) {
  if (error_ != 0) return;
  const size_t size = frame.size(), captured = snaplen_ != 0 ? std::min<size_t>(size, snaplen_) : size;
  const auto length = static_cast<uint32_t>(28 + Padded(captured) + OptionSize(4) + 4 + 4);
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  const uint64_t time = static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
  const uint32_t head[] = {kEnhancedPacket,
                           length,
                           interface,
                           static_cast<uint32_t>(time >> 32),
                           static_cast<uint32_t>(time),
                           static_cast<uint32_t>(captured),
                           static_cast<uint32_t>(size)};
  Append(head, sizeof head);
  const size_t at = buffer_.size();
  buffer_.resize(at + Padded(captured));
  frame.CopyOut(0, MutableBytes{buffer_.data() + at, captured});
  const auto flags = static_cast<uint32_t>(direction);
  AppendOption(kEpbFlags, &flags, sizeof flags);
  AppendOption(kOptEnd, nullptr, 0);
  Append32(length);
  ++frames_;
  if (buffer_.size() >= kFlushAt) Flush();
}

void PcapWriter::Flush() {
  for (size_t at = 0; at < buffer_.size() && error_ == 0;) {
    const ssize_t n = write(fd_.get(), buffer_.data() + at, buffer_.size() - at);
    if (n >= 0) {
      at += static_cast<size_t>(n);
    } else if (errno != EINTR) {
      error_ = errno;
    }
  }
  buffer_.clear();
}

PcapPort::PcapPort(std::unique_ptr<Port> inner, std::shared_ptr<PcapWriter> writer, const std::string& device_name)
    : WrappedPort(std::move(inner)), writer_(std::move(writer)), interface_(writer_->AddInterface(device_name)) {}

PcapPort::~PcapPort() { writer_->Flush(); }

size_t PcapPort::Receive(std::span<Packet> out) {
  const size_t n = inner_->Receive(out);
  for (const Packet& frame : out.first(n)) writer_->Write(interface_, PcapWriter::Direction::kIn, frame);
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
      if (copies[i]) writer_->Write(interface_, PcapWriter::Direction::kOut, copies[i]);
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
