#include "netstack/wire/steering.h"

#include <cstring>

#include "netstack/wire/headers.h"

struct sluice_frame {
  sluice::Bytes bytes;
};

static int sluice_load(const struct sluice_frame* frame, sluice_u32 at, void* to, sluice_u32 size) {
  if (at > frame->bytes.size() || frame->bytes.size() - at < size) return -1;
  std::memcpy(to, frame->bytes.data() + at, size);
  return 0;
}

#include "base/steering_frame.h"

namespace sluice::wire {
namespace {

uint32_t Fold(const IpAddress& address) {
  if (address.is_v4()) return address.v4();
  uint32_t folded = 0;
  for (size_t at = 0; at + 4 <= address.bytes().size(); at += 4) folded ^= LoadBe32(address.bytes().data() + at);
  return folded;
}

}  // namespace

SteeringKey NewSteeringKey(SecureRng& secure) {
  SteeringKey key{};
  secure.Fill({reinterpret_cast<uint8_t*>(&key), sizeof key});
  return key;
}

uint32_t SteeringHash(const SteeringKey& key, Bytes frame) {
  const sluice_frame whole{frame};
  return sluice_steer(&key, &whole);
}

uint32_t SteeringHash(const SteeringKey& key, const IpAddress& a, uint16_t a_port, const IpAddress& b, uint16_t b_port) {
  return sluice_flow_hash(&key, Fold(a), a_port, Fold(b), b_port);
}

bool ConcernsEveryShard(Bytes frame) {
  return frame.size() >= kEthernetHeader && ((frame[0] & 1) != 0 || LoadBe16(frame.data() + 12) == kEtherArp);
}

}  // namespace sluice::wire
