#include "dataplane/pcapng.h"

namespace sluice {
namespace {

constexpr uint32_t kSectionHeader = 0x0a0d0d0a, kInterfaceDescription = 1, kInterfaceStatistics = 5, kEnhancedPacket = 6;
constexpr uint16_t kOptEnd = 0, kOptUserApplication = 4, kIfName = 2, kIfTsresol = 9, kEpbFlags = 2, kIsbIfRecv = 4,
                   kIsbIfDrop = 5;
constexpr uint16_t kLinkTypeEthernet = 1;

size_t Padded(size_t n) { return (n + 3) & ~size_t{3}; }
size_t OptionSize(size_t n) { return 4 + Padded(n); }

}  // namespace

PcapngEncoder::PcapngEncoder() {
  static constexpr char kApplication[] = "sluice";
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

void PcapngEncoder::Append(const void* data, size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  bytes_.insert(bytes_.end(), bytes, bytes + size);
}

void PcapngEncoder::AppendTime(uint64_t time_ns) {
  Append32(static_cast<uint32_t>(time_ns >> 32));
  Append32(static_cast<uint32_t>(time_ns));
}

void PcapngEncoder::AppendOption(uint16_t code, const void* data, size_t size) {
  const uint16_t head[] = {code, static_cast<uint16_t>(size)};
  Append(head, sizeof head);
  if (size != 0) Append(data, size);
  bytes_.resize(bytes_.size() + Padded(size) - size);
}

uint32_t PcapngEncoder::AddInterface(std::string_view name, uint32_t snaplen) {
  const auto length = static_cast<uint32_t>(20 + OptionSize(name.size()) + OptionSize(1) + 4);
  Append32(kInterfaceDescription);
  Append32(length);
  const uint16_t link[] = {kLinkTypeEthernet, 0};
  Append(link, sizeof link);
  Append32(snaplen);
  AppendOption(kIfName, name.data(), name.size());
  const uint8_t nanoseconds = 9;
  AppendOption(kIfTsresol, &nanoseconds, 1);
  AppendOption(kOptEnd, nullptr, 0);
  Append32(length);
  return interfaces_++;
}

MutableBytes PcapngEncoder::AddFrame(const Frame& frame) {
  const size_t padded = Padded(frame.captured);
  const auto length = static_cast<uint32_t>(28 + padded + OptionSize(4) + 4 + 4);
  Append32(kEnhancedPacket);
  Append32(length);
  Append32(frame.interface);
  AppendTime(frame.time_ns);
  Append32(static_cast<uint32_t>(frame.captured));
  Append32(static_cast<uint32_t>(frame.original));
  const size_t at = bytes_.size();
  bytes_.resize(at + padded);
  const auto flags = static_cast<uint32_t>(frame.direction);
  AppendOption(kEpbFlags, &flags, sizeof flags);
  AppendOption(kOptEnd, nullptr, 0);
  Append32(length);
  return {bytes_.data() + at, frame.captured};
}

void PcapngEncoder::AddStatistics(uint32_t interface, uint64_t time_ns, uint64_t received, uint64_t dropped) {
  const auto length = static_cast<uint32_t>(20 + 2 * OptionSize(8) + 4 + 4);
  Append32(kInterfaceStatistics);
  Append32(length);
  Append32(interface);
  AppendTime(time_ns);
  AppendCount(kIsbIfRecv, received);
  AppendCount(kIsbIfDrop, dropped);
  AppendOption(kOptEnd, nullptr, 0);
  Append32(length);
}

}  // namespace sluice
