// Request/response over one byte: how long a round trip takes.
//
//   rr serve PORT                     answers TCP and UDP on PORT, byte for byte; prints "listening"
//   rr tcp|crr|udp HOST PORT SECONDS  one request at a time (crr: a connection for each); prints JSON: count, rate, quantiles
//   rr hold HOST PORT COUNT           opens COUNT TCP connections, one round trip on each; prints "holding", ends with its input
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

[[noreturn]] void Serve(const char* port) {
  const sockaddr_in a = Address("0.0.0.0", port);
  const int listener = Open(SOCK_STREAM), datagrams = Open(SOCK_DGRAM), one = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener, reinterpret_cast<const sockaddr*>(&a), sizeof a) != 0 || listen(listener, 512) != 0) Die("listen");
  if (bind(datagrams, reinterpret_cast<const sockaddr*>(&a), sizeof a) != 0) Die("bind");
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  Watch(epoll, listener);
  Watch(epoll, datagrams);
  std::printf("listening\n");
  std::fflush(stdout);
  char buffer[65536];
  while (true) {
    epoll_event events[64];
    const int n = epoll_wait(epoll, events, 64, -1);
    for (int i = 0; i < n; ++i) {
      const int fd = events[i].data.fd;
      if (fd == listener) {
        const int c = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
        if (c < 0) continue;
        NoDelay(c);
        Watch(epoll, c);
      } else if (fd == datagrams) {
        sockaddr_in from{};
        socklen_t length = sizeof from;
        const ssize_t got = recvfrom(fd, buffer, sizeof buffer, 0, reinterpret_cast<sockaddr*>(&from), &length);
        if (got >= 0) sendto(fd, buffer, static_cast<size_t>(got), 0, reinterpret_cast<sockaddr*>(&from), length);
      } else {
        const ssize_t got = read(fd, buffer, sizeof buffer);
        if (got <= 0 || send(fd, buffer, static_cast<size_t>(got), MSG_NOSIGNAL) != got) close(fd);
      }
    }
  }
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
  if (kind == "hold" && argc == 5) return Hold(Address(argv[2], argv[3]), std::atoi(argv[4]));
  std::fprintf(stderr, "usage: rr serve PORT | rr tcp|crr|udp HOST PORT SECONDS | rr hold HOST PORT COUNT\n");
  return 2;
}
