#include "sentry/spare_ends.h"

#include <sys/socket.h>

#include <utility>

#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83
#endif

namespace sluice {

void RefuseDescriptors(int end) {
  const int off = 0;
  setsockopt(end, SOL_SOCKET, SO_PASSRIGHTS, &off, sizeof off);
}

UniqueFd SpareEnds::Make() {
  UniqueFd end(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (end) RefuseDescriptors(end.get());
  return end;
}

UniqueFd SpareEnds::Take() {
  if (ends_.empty()) return Make();
  UniqueFd end = std::move(ends_.back());
  ends_.pop_back();
  return end;
}

void SpareEnds::Refill() {
  if (ends_.size() >= kMost) return;
  if (UniqueFd end = Make()) ends_.push_back(std::move(end));
}

}  // namespace sluice
