#include "dataplane/frame_ring.h"

#include <cstring>
#include <type_traits>

namespace sluice {
namespace {

struct Record {
  Offload offload;
  Instant received;
  uint32_t word;
  IfIndex ifindex;
  uint16_t vlan_tci;
  uint8_t tag;
  uint8_t link_type;
  bool has_vlan;
};
static_assert(std::is_trivially_copyable_v<Record>);

}  // namespace

bool FrameRing::Send(const Packet& packet, uint8_t tag, uint32_t word) {
  const MutableBytes room = ring_.Reserve(sizeof(Record) + packet.size());
  if (room.data() == nullptr) return false;
  const Record record{packet.offload,   packet.received, word, packet.ifindex, packet.vlan_tci, tag,
                      packet.link_type, packet.has_vlan};
  std::memcpy(room.data(), &record, sizeof record);
  packet.CopyOut(0, room.subspan(sizeof record));
  ring_.Commit();
  return true;
}

FrameRing::Received FrameRing::Receive(BlockPool& pool) {
  Received out;
  const Bytes bytes = ring_.Front();
  if (bytes.data() == nullptr) return out;
  out.any = true;
  Record record;
  std::memcpy(&record, bytes.data(), sizeof record);
  out.tag = record.tag;
  out.word = record.word;
  const size_t size = bytes.size() - sizeof record;
  out.packet = Packet::Allocate(pool, size);
  if (out.packet) {
    Packet& p = out.packet;
    std::memcpy(p.Append(size), bytes.data() + sizeof record, size);
    p.offload = record.offload;
    p.received = record.received;
    p.ifindex = record.ifindex;
    p.vlan_tci = record.vlan_tci;
    p.link_type = record.link_type;
    p.has_vlan = record.has_vlan;
  }
  ring_.Pop();
  return out;
}

}  // namespace sluice
