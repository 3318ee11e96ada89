#include "control/oci/port_forward_relay.h"

#include <poll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <list>
#include <string>
#include <vector>

#include "control/os.h"

namespace sluice::oci {
namespace {

constexpr size_t kConnections = 64;
constexpr size_t kBuffer = 64 << 10;  // per direction

// One end of a forwarded connection, and what was read from it and is still owed to the other.
struct End {
  UniqueFd fd;
  std::string owed;
  bool ended = false;   // nothing more comes from it
  bool passed = false;  // and the other was told so
  bool deaf = false;    // it takes nothing more

  short events(const End& other) const {
    return static_cast<short>((owed.empty() && !ended ? POLLIN : 0) | (other.owed.empty() ? 0 : POLLOUT));
  }
};

class Connection {
 public:
  Connection(UniqueFd kernel, const ForwardedConnection& to) {
    kernel_.fd = std::move(kernel);
    const LoopbackAddress address(to.family, to.port);
    ours_.fd.Reset(socket(to.family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    over_ = !ours_.fd || (connect(ours_.fd.get(), address.get(), address.size()) < 0 && errno != EINPROGRESS);
  }

  bool over() const { return over_; }

  void AddPolled(std::vector<pollfd>* polled) const {
    // An end that has said all and takes nothing would only repeat that it hung up.
    const auto wait = [](const End& end, short events) { return pollfd{events == 0 ? -1 : end.fd.get(), events, 0}; };
    polled->push_back(wait(ours_, connecting_ ? POLLOUT : ours_.events(kernel_)));
    polled->push_back(wait(kernel_, connecting_ ? short{0} : kernel_.events(ours_)));
  }

  void OnPolled(const pollfd* polled) {
    if (polled[0].revents == 0 && polled[1].revents == 0) return;
    if (connecting_ && !Connected()) {
      over_ = true;
      return;
    }
    if (!Pass(ours_, kernel_) || !Pass(kernel_, ours_)) {
      over_ = true;
      return Abort();
    }
    over_ = ours_.passed && kernel_.passed;
    if (!over_) return;
    const linger none{0, 0};  // whole in both directions
    setsockopt(kernel_.fd.get(), SOL_SOCKET, SO_LINGER, &none, sizeof none);
  }

 private:
  bool Connected() {
    int error = 0;
    socklen_t size = sizeof error;
    connecting_ = false;
    return getsockopt(ours_.fd.get(), SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0;
  }

  // The kernel's end is reset by its close; so is ours.
  void Abort() const {
    const linger reset{1, 0};
    setsockopt(ours_.fd.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  }

  static bool Transient() { return errno == EAGAIN || errno == EINTR; }

  // False where the connection was cut.
  static bool Pass(End& from, End& to) {
    static std::array<char, kBuffer> buffer;
    if (from.owed.empty() && !from.ended) {
      const ssize_t n = recv(from.fd.get(), buffer.data(), buffer.size(), 0);
      if (n < 0 && !Transient()) return false;
      if (n > 0) from.owed.assign(buffer.data(), static_cast<size_t>(n));
      from.ended = n == 0;
    }
    if (!from.owed.empty() && !to.deaf) {
      const ssize_t n = send(to.fd.get(), from.owed.data(), from.owed.size(), MSG_NOSIGNAL);
      if (n < 0 && errno != EPIPE && !Transient()) return false;
      to.deaf = n < 0 && errno == EPIPE;
      if (n > 0) from.owed.erase(0, static_cast<size_t>(n));
    }
    // What nobody takes is read all the same: its sender may still wait for what we owe it.
    if (to.deaf) from.owed.clear();
    if (from.ended && from.owed.empty() && !from.passed) {
      from.passed = true;
      if (!to.deaf) shutdown(to.fd.get(), SHUT_WR);
    }
    return true;
  }

  End kernel_, ours_;
  bool connecting_ = true, over_ = false;
};

class PortForwardRelay final : public RelayBody {
 public:
  explicit PortForwardRelay(UniqueFd channel) : channel_(std::move(channel)) {}

  [[noreturn]] void Run() override {
    for (;;) {
      std::vector<pollfd> polled{{channel_.get(), POLLIN, 0}};
      for (const Connection& c : connections_) c.AddPolled(&polled);
      if (poll(polled.data(), polled.size(), -1) < 0) continue;
      size_t i = 1;
      for (Connection& c : connections_) {
        c.OnPolled(&polled[i]);
        i += 2;
      }
      connections_.remove_if([](const Connection& c) { return c.over(); });
      if (polled[0].revents != 0) Take();
    }
  }

 private:
  // Beyond the bound a connection is reset: its descriptor is closed.
  void Take() {
    Record record;
    const int n = ReceiveRecord(channel_.get(), &record, sizeof(ForwardedConnection), 1, MSG_DONTWAIT);
    if (n == 0) _exit(0);
    ForwardedConnection what;
    if (n < 0 || record.data.size() != sizeof what || record.fds.size() != 1 || connections_.size() >= kConnections) return;
    std::memcpy(&what, record.data.data(), sizeof what);
    connections_.emplace_back(std::move(record.fds[0]), what);
    if (connections_.back().over()) connections_.pop_back();
  }

  UniqueFd channel_;
  std::list<Connection> connections_;
};

}  // namespace

std::unique_ptr<RelayBody> MakePortForwardRelay(UniqueFd channel) {
  return std::make_unique<PortForwardRelay>(std::move(channel));
}

}  // namespace sluice::oci
