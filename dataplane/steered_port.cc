#include "dataplane/steered_port.h"

namespace sluice {

// False where it was for another shard.
bool SteeredPort::Keep(Packet& frame) {
  const Bytes untagged = frame.has_vlan ? Bytes{} : frame.linear();
  const uint32_t home = wire::SteeringHash(mail_.key(), untagged) % mail_.count();
  if (wire::ConcernsEveryShard(untagged)) {
    for (uint32_t to = 0; to < mail_.count(); ++to) {
      if (to != mail_.self()) mail_.SendFrame(to, frame, to != home);
    }
    frame.answered = mail_.self() != home;
    return true;
  }
  if (home == mail_.self()) return true;
  mail_.SendFrame(home, frame, false);
  return false;
}

size_t SteeredPort::Receive(std::span<Packet> out) {
  const size_t n = inner_->Receive(out);
  size_t kept = 0;
  for (size_t i = 0; i < n; ++i) {
    if (!Keep(out[i])) {
      out[i] = Packet();
      continue;
    }
    if (kept != i) out[kept] = std::move(out[i]);
    ++kept;
  }
  mail_.WakeReceivers();
  return kept;
}

std::vector<std::string> SteeredPort::describe() const {
  std::vector<std::string> lines = inner_->describe();
  lines.push_back("shard=" + std::to_string(mail_.self()) + "/" + std::to_string(mail_.count()));
  const ShardMailStats& s = mail_.stats();
  lines.push_back("mailed_frames=" + std::to_string(s.frames_sent));
  lines.push_back("mail_dropped=" + std::to_string(s.dropped));
  return lines;
}

}  // namespace sluice
