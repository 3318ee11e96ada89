// Request/response over one byte: how long a round trip takes; and bulk, without iperf3's protocol.
//
//   rr serve PORT                     answers TCP and UDP on PORT, byte for byte; throws away what comes to PORT+1 and sends
//   without
//                                     end from PORT+2; prints "listening"
//   rr tcp|crr|udp HOST PORT SECONDS  one request at a time (crr: a connection for each); prints JSON: count, rate, quantiles
//   rr in|out HOST PORT SECONDS STREAMS   sends to (in) or reads from (out) PORT by so many connections, one thread; prints JSON:
//   Gbps rr hold HOST PORT COUNT           opens COUNT TCP connections, one round trip on each; prints "holding", ends with its
//   input
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

constexpr size_t kBuffer = 128 << 10;

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "rr: %s: %s\n", what, std::strerror(errno));
  std::exit(1);
}

uint64_t Now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(t.tv_nsec);
}

sockaddr_in Address(const char* host, const char* port) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(static_cast<uint16_t>(std::atoi(port)));
  if (inet_pton(AF_INET, host, &a.sin_addr) != 1) {
    std::fprintf(stderr, "rr: %s is no IPv4 address\n", host);
    std::exit(2);
  }
  return a;
}

int Open(int type) {
  const int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
  if (fd < 0) Die("socket");
  return fd;
}

void NoDelay(int fd) {
  const int one = 1;
  if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0) Die("TCP_NODELAY");
}

void Watch(int epoll, int fd) {
  epoll_event e{};
  e.events = EPOLLIN;
  e.data.fd = fd;
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) != 0) Die("epoll_ctl");
}

// As many descriptors as are allowed.
void RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

int Listen(const char* port, int more) {
  sockaddr_in a = Address("0.0.0.0", port);
  a.sin_port = htons(static_cast<uint16_t>(ntohs(a.sin_port) + more));
  const int fd = Open(SOCK_STREAM), one = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a) != 0 || listen(fd, 512) != 0) Die("listen");
  return fd;
}

class Server {
 public:
  explicit Server(const char* port) : echo_(Listen(port, 0)), discard_(Listen(port, 1)), source_(Listen(port, 2)) {
    const sockaddr_in a = Address("0.0.0.0", port);
    if (bind(datagrams_, reinterpret_cast<const sockaddr*>(&a), sizeof a) != 0) Die("bind");
    for (const int fd : {echo_, discard_, source_, datagrams_}) Watch(epoll_, fd);
  }

  [[noreturn]] void Run() {
    while (true) {
      epoll_event events[64];
      const int n = epoll_wait(epoll_, events, 64, -1);
      for (int i = 0; i < n; ++i) On(events[i].data.fd);
    }
  }

 private:
  enum class Kind : uint8_t { kEcho, kDiscard, kSource };

  void On(int fd) {
    if (fd == datagrams_) return EchoDatagram();
    if (fd == echo_) return Accept(fd, Kind::kEcho);
    if (fd == discard_) return Accept(fd, Kind::kDiscard);
    if (fd == source_) return Accept(fd, Kind::kSource);
    if (!Work(fd, kinds_[static_cast<size_t>(fd)])) close(fd);
  }

  void Accept(int listener, Kind kind) {
    const int c = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | (kind == Kind::kSource ? SOCK_NONBLOCK : 0));
    if (c < 0) return;
    if (kinds_.size() <= static_cast<size_t>(c)) kinds_.resize(static_cast<size_t>(c) + 1);
    kinds_[static_cast<size_t>(c)] = kind;
    if (kind == Kind::kEcho) NoDelay(c);
    epoll_event e{};
    e.events = kind == Kind::kSource ? EPOLLOUT : EPOLLIN;
    e.data.fd = c;
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, c, &e) != 0) Die("epoll_ctl");
  }

  bool Work(int fd, Kind kind) {
    if (kind == Kind::kSource) return send(fd, buffer_.data(), buffer_.size(), MSG_NOSIGNAL) > 0 || errno == EAGAIN;
    const ssize_t got = read(fd, buffer_.data(), buffer_.size());
    if (got <= 0) return false;
    return kind == Kind::kDiscard || send(fd, buffer_.data(), static_cast<size_t>(got), MSG_NOSIGNAL) == got;
  }

  void EchoDatagram() {
    sockaddr_in from{};
    socklen_t length = sizeof from;
    const ssize_t got = recvfrom(datagrams_, buffer_.data(), buffer_.size(), 0, reinterpret_cast<sockaddr*>(&from), &length);
    if (got >= 0) sendto(datagrams_, buffer_.data(), static_cast<size_t>(got), 0, reinterpret_cast<sockaddr*>(&from), length);
  }

  int echo_, discard_, source_, datagrams_ = Open(SOCK_DGRAM), epoll_ = epoll_create1(EPOLL_CLOEXEC);
  std::vector<Kind> kinds_;  // by descriptor
  std::vector<char> buffer_ = std::vector<char>(kBuffer);
};

[[noreturn]] void Serve(const char* port) {
  Server server(port);
  std::printf("listening\n");
  std::fflush(stdout);
  server.Run();
}

int Connect(const sockaddr_in& a, int type) {
  const int fd = Open(type);
  if (connect(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a) != 0) Die("connect");
  if (type == SOCK_STREAM) NoDelay(fd);
  return fd;
}

void RoundTrip(int fd) {
  char c = 'x';
  if (send(fd, &c, 1, MSG_NOSIGNAL) != 1) Die("send");
  if (recv(fd, &c, 1, 0) != 1) Die("recv");
}

int Measure(const std::string& kind, const sockaddr_in& a, double seconds) {
  const int type = kind == "udp" ? SOCK_DGRAM : SOCK_STREAM;
  const bool each = kind == "crr";
  std::vector<uint32_t> times;
  times.reserve(1 << 20);
  int fd = each ? -1 : Connect(a, type);
  if (type == SOCK_DGRAM) {  // a lost datagram ends the run with a message instead of a hang
    const timeval limit{5, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  }
  const uint64_t start = Now(), end = start + static_cast<uint64_t>(seconds * 1e9);
  uint64_t before = start;
  while (before < end) {
    if (each) fd = Connect(a, type);
    RoundTrip(fd);
    if (each) close(fd);
    const uint64_t now = Now();
    times.push_back(static_cast<uint32_t>(std::min<uint64_t>(now - before, UINT32_MAX)));
    before = now;
  }
  std::sort(times.begin(), times.end());
  const double elapsed = static_cast<double>(before - start) / 1e9;
  const auto at = [&](double q) { return times[static_cast<size_t>(q * static_cast<double>(times.size() - 1))] / 1e3; };
  std::printf("{\"kind\": \"%s\", \"count\": %zu, \"per_second\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f}\n",
              kind.c_str(), times.size(), static_cast<double>(times.size()) / elapsed, at(0.5), at(0.99), at(0.999));
  return 0;
}

// Bytes that went through in the time, by connections that are served as they are ready.
int Bulk(bool in, const sockaddr_in& a, double seconds, int streams) {
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  std::vector<char> buffer(kBuffer);
  for (int i = 0; i < streams; ++i) {
    const int fd = Open(SOCK_STREAM);
    if (connect(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a) != 0) Die("connect");
    epoll_event e{};
    e.events = in ? EPOLLOUT : EPOLLIN;
    e.data.fd = fd;
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) != 0) Die("epoll_ctl");
  }
  const uint64_t start = Now(), end = start + static_cast<uint64_t>(seconds * 1e9);
  uint64_t now = start, bytes = 0;
  while (now < end) {
    epoll_event events[64];
    const int n = epoll_wait(epoll, events, 64, 1000);
    for (int i = 0; i < n; ++i) {
      const int fd = events[i].data.fd;
      const ssize_t got = in ? send(fd, buffer.data(), buffer.size(), MSG_NOSIGNAL | MSG_DONTWAIT)
                             : recv(fd, buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (got == 0 || (got < 0 && errno != EAGAIN)) Die(in ? "send" : "recv");
      if (got > 0) bytes += static_cast<uint64_t>(got);
    }
    now = Now();
  }
  std::printf("{\"kind\": \"%s\", \"streams\": %d, \"gbps\": %.3f}\n", in ? "in" : "out", streams,
              static_cast<double>(bytes) * 8 / static_cast<double>(now - start));
  return 0;
}

int Hold(const sockaddr_in& a, int count) {
  for (int i = 0; i < count; ++i) RoundTrip(Connect(a, SOCK_STREAM));
  std::printf("holding\n");
  std::fflush(stdout);
  char c;
  while (read(STDIN_FILENO, &c, 1) > 0) continue;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  RaiseDescriptorLimit();
  const std::string kind = argc > 1 ? argv[1] : "";
  if (kind == "serve" && argc == 3) Serve(argv[2]);
  if ((kind == "tcp" || kind == "crr" || kind == "udp") && argc == 5)
    return Measure(kind, Address(argv[2], argv[3]), std::atof(argv[4]));
  if ((kind == "in" || kind == "out") && argc == 6)
    return Bulk(kind == "in", Address(argv[2], argv[3]), std::atof(argv[4]), std::atoi(argv[5]));
  if (kind == "hold" && argc == 5) return Hold(Address(argv[2], argv[3]), std::atoi(argv[4]));
  std::fprintf(stderr,
               "usage: rr serve PORT | rr tcp|crr|udp HOST PORT SECONDS | rr in|out HOST PORT SECONDS STREAMS | rr hold HOST "
               "PORT COUNT\n");
  return 2;
}
