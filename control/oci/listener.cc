#include "control/oci/listener.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>

#include "control/os.h"

namespace sluice::oci {
namespace {

// runc sends the moment it is connected.
constexpr int kPatienceMs = 5000;
constexpr size_t kMaxState = 1 << 20;  // annotations are part of it

}  // namespace

Status AcceptDelivery(int listening, SeccompDelivery* out) {
  UniqueFd peer(accept4(listening, nullptr, nullptr, SOCK_CLOEXEC));
  if (!peer) return Status::Error("nobody delivers a seccomp descriptor" + ErrnoText(errno));
  ucred who{};
  socklen_t size = sizeof who;
  if (getsockopt(peer.get(), SOL_SOCKET, SO_PEERCRED, &who, &size) < 0 || who.uid != 0) {
    return Status::Error(Format("process %d of user %u may not deliver a seccomp descriptor", who.pid, who.uid));
  }
  std::string text;
  std::vector<UniqueFd> fds;
  nlohmann::json state;
  // The descriptor comes with the first byte, the text perhaps in pieces. `runc run` keeps the connection for as long as it
  // lives.
  while (!state.is_object()) {
    pollfd p{peer.get(), POLLIN, 0};
    if (poll(&p, 1, kPatienceMs) <= 0) return Status::Error("runc does not send the seccomp descriptor that it announced");
    Record record;
    const int n = ReceiveRecord(peer.get(), &record, 65536, 4);
    if (n < 0) return Status::Error("cannot receive the seccomp descriptor" + ErrnoText(errno));
    if (n == 0) break;
    for (UniqueFd& fd : record.fds) fds.push_back(std::move(fd));
    text.append(reinterpret_cast<const char*>(record.data.data()), record.data.size());
    if (text.size() > kMaxState) return Status::Error("the state that runc sends is too long");
    state = nlohmann::json::parse(text, nullptr, false);
  }
  if (!state.is_object() || fds.size() != 1 || !state.contains("pid") || !state["pid"].is_number_integer()) {
    return Status::Error("what runc sent with the seccomp descriptor is not understood: runc 1.1 or later is needed");
  }
  out->seccomp = std::move(fds[0]);
  out->pid = state["pid"];
  fcntl(out->seccomp.get(), F_SETFD, FD_CLOEXEC);
  return {};
}

}  // namespace sluice::oci
