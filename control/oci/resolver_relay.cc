#include "control/oci/resolver_relay.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>

#include <array>
#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "control/log.h"
#include "xdp/engine_flows.h"

namespace sluice::oci {
namespace {

constexpr size_t kQueries = 64;      // by UDP, under way
constexpr size_t kConnections = 16;  // by TCP
constexpr int64_t kQueryMs = 15000;  // the resolver itself gives up after less
constexpr size_t kMaxMessage = 65535;

int64_t NowMs() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

sockaddr_in ResolverAddress() {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(53);
  address.sin_addr.s_addr = htonl(0x7f00000b);
  return address;
}

class Relay final : public RelayBody {
 public:
  void OpenGate(UniqueFd map) {
    if (map && gate_.Open(map.get()) != Errno::kOk)
      LogLine(LogLevel::kWarning, "names outside will not resolve through the engine");
  }

  bool BeforeFilter() override {
    const sockaddr_in resolver = ResolverAddress();
    for (Query& query : queries_) {
      query.kernel.Reset(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
      if (!query.kernel || connect(query.kernel.get(), reinterpret_cast<const sockaddr*>(&resolver), sizeof resolver) < 0)
        return false;
    }
    for (Connection& c : connections_) {
      c.kernel.Reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
      if (!c.kernel) return false;
    }
    return true;
  }

  bool UnderFilter() override {
    const sockaddr_in address = ResolverAddress();
    const int on = 1;
    datagrams_.Reset(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    stream_.Reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    for (const int fd : {datagrams_.get(), stream_.get()}) {
      if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0) return false;
      if (bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) return false;
    }
    return listen(stream_.get(), kConnections) == 0;
  }

  [[noreturn]] void Run() override {
    for (;;) {
      std::vector<pollfd> polled{{datagrams_.get(), POLLIN, 0}, {HasRoom() ? stream_.get() : -1, POLLIN, 0}};
      for (const Query& query : queries_) polled.push_back({query.sent_ms != 0 ? query.kernel.get() : -1, POLLIN, 0});
      for (const Connection& c : connections_) {
        // A side is read when what came before has been written to the other.
        polled.push_back({c.ours.get(), Events(c.to_kernel, c.to_ours), 0});
        polled.push_back({c.ours ? c.kernel.get() : -1, Events(c.to_ours, c.to_kernel), 0});
      }
      if (poll(polled.data(), polled.size(), -1) < 0) continue;
      if (polled[0].revents != 0) TakeQueries();
      for (size_t i = 0; i < kQueries; ++i) {
        if (polled[2 + i].revents != 0) Reply(queries_[i]);
      }
      for (size_t i = 0; i < kConnections; ++i) {
        if (polled[2 + kQueries + 2 * i].revents != 0 || polled[3 + kQueries + 2 * i].revents != 0) Move(connections_[i]);
      }
      if (polled[1].revents != 0) Accept();
    }
  }

 private:
  struct Query {
    UniqueFd kernel;
    sockaddr_in client{};
    int64_t sent_ms = 0;  // 0: free
  };
  struct Connection {
    UniqueFd kernel, ours;  // ours: only while it is in use
    std::string to_kernel, to_ours;
  };

  static short Events(const std::string& read_into, const std::string& to_write) {
    return static_cast<short>((read_into.empty() ? POLLIN : 0) | (to_write.empty() ? 0 : POLLOUT));
  }

  bool HasRoom() const {
    for (const Connection& c : connections_) {
      if (!c.ours) return true;
    }
    return false;
  }

  void TakeQueries() {
    for (;;) {
      sockaddr_in client{};
      socklen_t size = sizeof client;
      const ssize_t n =
          recvfrom(datagrams_.get(), buffer_.data(), buffer_.size(), 0, reinterpret_cast<sockaddr*>(&client), &size);
      if (n < 0) return;
      Query& query = FreeQuery();
      // What still comes for whoever asked before is not for this client.
      while (recv(query.kernel.get(), late_.data(), late_.size(), 0) >= 0) {
      }
      query.client = client;
      query.sent_ms = NowMs();
      gate_.Ask();
      if (send(query.kernel.get(), buffer_.data(), static_cast<size_t>(n), MSG_NOSIGNAL) < 0)
        query.sent_ms = 0;  // the client asks again
    }
  }

  // One that waits for nothing, else the one that has waited longest.
  Query& FreeQuery() {
    Query* oldest = &queries_[0];
    for (Query& query : queries_) {
      if (query.sent_ms == 0 || NowMs() - query.sent_ms > kQueryMs) return query;
      if (query.sent_ms < oldest->sent_ms) oldest = &query;
    }
    return *oldest;
  }

  void Reply(Query& query) {
    const ssize_t n = recv(query.kernel.get(), buffer_.data(), buffer_.size(), 0);
    query.sent_ms = 0;
    if (n < 0) return;  // no resolver is there: the client's own timeout tells it
    sendto(datagrams_.get(), buffer_.data(), static_cast<size_t>(n), MSG_NOSIGNAL,
           reinterpret_cast<const sockaddr*>(&query.client), sizeof query.client);
  }

  void Accept() {
    UniqueFd peer(accept4(stream_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    for (Connection& c : connections_) {
      if (!peer || c.ours) continue;
      const sockaddr_in resolver = ResolverAddress();
      const int result = connect(c.kernel.get(), reinterpret_cast<const sockaddr*>(&resolver), sizeof resolver);
      if (result == 0 || errno == EINPROGRESS) c.ours = std::move(peer);
      return;
    }
  }

  void Move(Connection& c) {
    gate_.Ask();
    if (Pass(c.ours.get(), c.kernel.get(), &c.to_kernel) && Pass(c.kernel.get(), c.ours.get(), &c.to_ours)) return;
    c.ours.Reset();
    c.to_kernel.clear();
    c.to_ours.clear();
    sockaddr none{};
    none.sa_family = AF_UNSPEC;  // the socket is used again: there is no way to a new one
    connect(c.kernel.get(), &none, sizeof none);
  }

  // False where the connection is over: a query and its answer are whole by then.
  bool Pass(int from, int to, std::string* rest) {
    if (rest->empty()) {
      const ssize_t n = recv(from, buffer_.data(), buffer_.size(), 0);
      if (n < 0) return errno == EAGAIN || errno == EINTR || errno == ENOTCONN;
      if (n == 0) return false;
      rest->assign(buffer_.data(), static_cast<size_t>(n));
    }
    const ssize_t n = send(to, rest->data(), rest->size(), MSG_NOSIGNAL);
    if (n < 0) return errno == EAGAIN || errno == EINTR || errno == ENOTCONN;
    rest->erase(0, static_cast<size_t>(n));
    return true;
  }

  FlowGate gate_;
  std::array<Query, kQueries> queries_;
  std::array<Connection, kConnections> connections_;
  UniqueFd datagrams_, stream_;
  std::array<char, kMaxMessage> buffer_{}, late_{};
};

}  // namespace

Status ResolverRelay::Start(int gate, UniqueFd* listener) {
  const auto make = [gate] {
    auto relay = std::make_unique<Relay>();
    relay->OpenGate(UniqueFd(gate));
    return relay;
  };
  return process_.Start("sluice-resolver", "the relay to Docker's resolver",
                        gate >= 0 ? std::vector<int>{gate} : std::vector<int>{}, make, listener);
}

}  // namespace sluice::oci
