#include "control/run/capture_queue.h"

#include <time.h>

#include <algorithm>
#include <cstring>

#include "base/bytes.h"

namespace sluice {
namespace {

constexpr uint16_t kEtherIpv4 = 0x0800, kEtherIpv6 = 0x86dd, kEtherVlan = 0x8100;
constexpr size_t kEthernetHeader = 14, kMacs = 12;

uint64_t RealTime() {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
}

// A frame as it is on the wire: what is put in front of the packet's bytes from `from` on.
struct Front {
  uint8_t bytes[kMacs + 4] = {};
  size_t size = 0, from = 0;
};

Front FrontOf(IfIndex ifindex, const Packet& frame) {
  Front front;
  if (ifindex == kLoopbackIfIndex) {  // zero addresses, as the kernel's loopback has them
    uint8_t first = 0;
    frame.CopyOut(0, {&first, std::min<size_t>(1, frame.size())});
    StoreBe16(front.bytes + kMacs, first >> 4 == 6 ? kEtherIpv6 : kEtherIpv4);
    front.size = kEthernetHeader;
  } else if (frame.has_vlan && frame.size() >= kMacs) {
    frame.CopyOut(0, {front.bytes, kMacs});
    StoreBe16(front.bytes + kMacs, kEtherVlan);
    StoreBe16(front.bytes + kMacs + 2, frame.vlan_tci);
    front.size = kMacs + 4;
    front.from = kMacs;
  }
  return front;
}

}  // namespace

void CaptureQueue::Append(const CaptureRecord& record) { waiting_.append(reinterpret_cast<const char*>(&record), sizeof record); }

// The first frame of an interface brings its name, which is small enough to need no bound of its own.
CaptureQueue::Interface& CaptureQueue::Find(const NetConfig& config, IfIndex ifindex) {
  const auto known = std::ranges::find(interfaces_, ifindex, &Interface::ifindex);
  if (known != interfaces_.end()) return *known;
  const auto& links = config.links;
  const auto link = std::ranges::find(links, ifindex, &LinkConfig::index);
  const std::string name = link != links.end() ? link->name : std::to_string(ifindex);
  const bool wanted = options_.devices.empty() || std::ranges::find(options_.devices, name) != options_.devices.end();
  if (wanted) {
    const auto size = static_cast<uint32_t>(name.size());
    Append({.kind = CaptureKind::kInterface, .ifindex = ifindex, .captured = size, .original = size});
    waiting_ += name;
  }
  return interfaces_.emplace_back(Interface{.ifindex = ifindex, .wanted = wanted});
}

void CaptureQueue::Tap(uint32_t worker, Stack& stack) {
  Place& place = places_[worker];
  if (place.over) return;
  place.tap = std::make_unique<StackTap>(*this, stack);
  stack.AddTap(place.tap.get());
}

void CaptureQueue::Untap(uint32_t worker, Stack& stack) {
  Place& place = places_[worker];
  place.over = true;
  if (place.tap != nullptr) stack.RemoveTap(place.tap.get());
}

void CaptureQueue::OnFrame(const NetConfig& config, IfIndex ifindex, FrameTap::Direction direction, const Packet& frame) {
  bool first;
  {
    const std::lock_guard lock(mutex_);
    first = waiting_.empty();
    Interface& interface = Find(config, ifindex);
    if (!interface.wanted) return;
    const Front front = FrontOf(ifindex, frame);
    const size_t original = front.size + frame.size() - front.from;
    const size_t captured = std::min<size_t>(original, options_.snaplen);
    if (waiting_.size() + sizeof(CaptureRecord) + captured > kMaxWaiting) {
      ++interface.dropped;
      return;
    }
    Append({.kind = CaptureKind::kFrame,
            .ifindex = ifindex,
            .value = RealTime(),
            .captured = static_cast<uint32_t>(captured),
            .original = static_cast<uint32_t>(original),
            .direction = static_cast<uint32_t>(direction)});
    const size_t at = waiting_.size(), before = std::min(front.size, captured);
    waiting_.resize(at + captured);
    auto* to = reinterpret_cast<uint8_t*>(waiting_.data()) + at;
    std::memcpy(to, front.bytes, before);
    frame.CopyOut(front.from, {to + before, captured - before});
  }
  if (first) wake_();
}

void CaptureQueue::Close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  wake_();
}

bool CaptureQueue::Take(std::string* out) {
  out->clear();
  const std::lock_guard lock(mutex_);
  out->swap(waiting_);
  for (Interface& interface : interfaces_) {
    if (interface.dropped == interface.told) continue;
    interface.told = interface.dropped;
    const CaptureRecord record{.kind = CaptureKind::kDropped, .ifindex = interface.ifindex, .value = interface.dropped};
    out->append(reinterpret_cast<const char*>(&record), sizeof record);
  }
  return !out->empty() || !closed_;
}

}  // namespace sluice
