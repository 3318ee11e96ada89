#include "control/oci/port_forward.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "control/log.h"
#include "control/oci/port_forward_relay.h"
#include "control/os.h"

namespace sluice::oci {
namespace {

constexpr int kBacklog = 32;

// Invalid where the port is taken, or the namespace's kernel has no such family.
UniqueFd ListenOnLoopback(uint16_t port, int family) {
  UniqueFd fd(socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const LoopbackAddress address(family, port);
  const int on = 1;
  if (!fd || setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0) return {};
  if (family == AF_INET6 && setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) < 0) return {};
  if (bind(fd.get(), address.get(), address.size()) < 0 || listen(fd.get(), kBacklog) < 0) return {};
  return fd;
}

}  // namespace

Status PortForward::Start(UniqueFd* listener) {
  SocketPair pair;
  SLUICE_RETURN_IF_ERROR(MakeSeqpacketPair(&pair));
  const int theirs = pair.b.get();
  SLUICE_RETURN_IF_ERROR(process_.Start(
      "sluice-forward", "the relay of port-forward", {theirs}, [theirs] { return MakePortForwardRelay(UniqueFd(theirs)); },
      listener));
  channel_ = std::move(pair.a);
  return {};
}

bool PortForward::Has(uint16_t port, int family) const {
  return std::any_of(listeners_.begin(), listeners_.end(),
                     [&](const Listener& l) { return l.port == port && l.family == family; });
}

void PortForward::ListenFor(std::span<const control::LoopbackListener> wanted) {
  std::erase_if(listeners_, [&](const Listener& l) {
    return std::none_of(wanted.begin(), wanted.end(), [&](const control::LoopbackListener& w) {
      return w.port == l.port && (l.family == AF_INET ? w.v4 : w.v6) != 0;
    });
  });
  if (!running()) return;
  for (const control::LoopbackListener& w : wanted) {
    for (const int family : {AF_INET, AF_INET6}) {
      if ((family == AF_INET ? w.v4 : w.v6) == 0 || w.port == 0 || Has(w.port, family)) continue;
      Listener made{w.port, family, ListenOnLoopback(w.port, family)};
      if (made.socket) {
        listeners_.push_back(std::move(made));
      } else {
        Log(LogLevel::kDebug, "port-forward: cannot listen at port %d of the namespace's loopback%s", w.port,
            ErrnoText(errno).c_str());
      }
    }
  }
}

void PortForward::AddPolled(std::vector<pollfd>* polled) const {
  polled->push_back({process_.pidfd(), POLLIN, 0});
  for (const Listener& l : listeners_) polled->push_back({l.socket.get(), POLLIN, 0});
}

bool PortForward::OnPolled(const pollfd* polled) {
  if (polled[0].revents != 0) return false;
  for (size_t i = 0; i < listeners_.size(); ++i) {
    if (polled[1 + i].revents != 0) HandOver(listeners_[i]);
  }
  return true;
}

void PortForward::HandOver(const Listener& from) {
  UniqueFd peer(accept4(from.socket.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  // However the relay ends, a stream that was cut is reset. The relay takes it back where the stream is complete.
  const linger reset{1, 0};
  if (!peer || setsockopt(peer.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset) < 0) return;
  const ForwardedConnection what{from.family, from.port};
  SendRecord(channel_.get(), Bytes(reinterpret_cast<const uint8_t*>(&what), sizeof what), {peer.get()}, MSG_DONTWAIT);
}

void PortForward::Stop() {
  listeners_.clear();
  process_.Stop();
  channel_.Reset();
}

}  // namespace sluice::oci
