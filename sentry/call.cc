#include "sentry/call.h"

namespace sluice {

bool IncomingCall::Parse(Bytes message) {
  if (message.size() < sizeof head) return false;
  memcpy(&head, message.data(), sizeof head);
  if (head.count > calls::kMaxParts) return false;
  size_t table = head.count * sizeof(calls::Part);
  if (message.size() < sizeof head + table) return false;
  Bytes rest = message.subspan(sizeof head + table);
  bool carries_bytes = head.kind != calls::CallKind::kReceive && head.kind != calls::CallKind::kAccept &&
                       head.kind != calls::CallKind::kGetSockName && head.kind != calls::CallKind::kGetPeerName &&
                       head.kind != calls::CallKind::kGetSockOpt;
  for (size_t i = 0; i < head.count; ++i) {
    CallPart& p = parts[i];
    memcpy(&p.head, message.data() + sizeof head + i * sizeof(calls::Part), sizeof p.head);
    p.name = p.control = p.data = Bytes();
    if (!carries_bytes) continue;
    size_t need = size_t{p.head.name_length} + p.head.control_length + p.head.data_length;
    if (need > rest.size()) return false;
    p.name = rest.first(p.head.name_length);
    p.control = rest.subspan(p.head.name_length, p.head.control_length);
    p.data = rest.subspan(size_t{p.head.name_length} + p.head.control_length, p.head.data_length);
    rest = rest.subspan(need);
  }
  return true;
}

HeldCall::HeldCall(Bytes message, std::shared_ptr<ContainerUse> use)
    : storage(message.begin(), message.end()), container(std::move(use)) {
  container->held_bytes += storage.size();
  (void)call.Parse(storage);
}

}  // namespace sluice
