// An impairing forwarder between two Ethernet devices, for tests of byte-exactness: loses, repeats, delays, reorders and marks
// segments.
//
//   impair --left=IF --right=IF [--loss=PERCENT] [--duplicate=PERCENT] [--reorder=PERCENT] [--mark=PERCENT] [--largest=BYTES]
//   [--delay-us=N]
//   [--seed=N]
//
// --largest drops frames beyond that size without a word (as a hole that swallows ICMP). Super-frames (GSO) are cut into wire
// segments first, with a segmentation of its own, so that what is tested is not also the judge. Checksums left to the device are
// completed. Random choices come from the seed; what was done is printed as JSON at SIGTERM/SIGINT. Runs in the namespace that
// holds both devices; needs CAP_NET_RAW.
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <queue>
#include <random>
#include <string>
#include <vector>

namespace {

using Frame = std::vector<uint8_t>;

// struct virtio_net_hdr; the kernel's header names a member "class" and is no C++.
struct VnetHeader {
  uint8_t flags, gso_type;
  uint16_t hdr_len, gso_size, csum_start, csum_offset;
};
constexpr int kNeedsChecksum = 1, kGsoTcpV4 = 1, kGsoEcn = 0x80;

struct Options {
  std::string left, right;
  double loss = 0, duplicate = 0, reorder = 0, mark = 0;  // percent of segments
  size_t largest = SIZE_MAX;                              // bytes of an Ethernet frame
  uint64_t delay_ns = 0;
  uint64_t seed = 1;
};

struct Direction {
  int in = -1, out = -1;
  uint64_t frames = 0, segments = 0, lost = 0, duplicated = 0, reordered = 0, marked = 0, too_large = 0, overflowed = 0,
           unsent = 0;
};

struct Delayed {
  uint64_t due;
  uint64_t order;  // keeps the order of frames that are due at once
  Direction* direction;
  Frame frame;
  bool operator<(const Delayed& o) const { return due != o.due ? due > o.due : order > o.order; }
};

constexpr size_t kMaxWaiting = 20000;  // frames; what comes beyond is dropped and counted, as a router's queue does
volatile sig_atomic_t stopping = 0;

[[noreturn]] void Die(const std::string& what) {
  std::fprintf(stderr, "impair: %s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(1);
}

uint64_t Now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(t.tv_nsec);
}

uint16_t Get16(const uint8_t* p) { return static_cast<uint16_t>(p[0] << 8 | p[1]); }
uint32_t Get32(const uint8_t* p) { return static_cast<uint32_t>(Get16(p)) << 16 | Get16(p + 2); }
void Put16(uint8_t* p, uint16_t v) {
  p[0] = static_cast<uint8_t>(v >> 8);
  p[1] = static_cast<uint8_t>(v);
}
void Put32(uint8_t* p, uint32_t v) {
  Put16(p, static_cast<uint16_t>(v >> 16));
  Put16(p + 2, static_cast<uint16_t>(v));
}

uint64_t Sum(const uint8_t* p, size_t n, uint64_t sum = 0) {
  for (size_t i = 0; i + 1 < n; i += 2) sum += Get16(p + i);
  if (n % 2 != 0) sum += static_cast<uint64_t>(p[n - 1]) << 8;
  return sum;
}

uint16_t Fold(uint64_t sum) {
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<uint16_t>(~sum);
}

// Completes a checksum of which the field holds the pseudo-header's sum.
void CompleteChecksum(Frame& f, size_t start, size_t offset) {
  if (start + offset + 2 > f.size()) return;
  const uint16_t sum = Fold(Sum(f.data() + start, f.size() - start));
  Put16(f.data() + start + offset, sum == 0 ? 0xffff : sum);
}

// Cuts a TCP over IPv4 super-frame whose payload is to travel in pieces of `size` bytes (RFC 9293 segments of the same stream).
std::vector<Frame> CutTcp4(const Frame& f, size_t size) {
  const size_t ip = ETH_HLEN;
  if (f.size() < ip + 20 || Get16(f.data() + 12) != ETH_P_IP || f[ip + 9] != IPPROTO_TCP) return {};
  const size_t tcp = ip + (f[ip] & 15u) * 4;
  if (f.size() < tcp + 20) return {};
  const size_t header = tcp + (f[tcp + 12] >> 4) * 4u;
  if (f.size() < header || size == 0) return {};
  std::vector<Frame> out;
  const uint32_t sequence = Get32(f.data() + tcp + 4);
  const uint16_t id = Get16(f.data() + ip + 4);
  for (size_t at = header; at < f.size(); at += size) {
    const size_t length = std::min(size, f.size() - at);
    Frame s(f.begin(), f.begin() + static_cast<std::ptrdiff_t>(header));
    s.insert(s.end(), f.begin() + static_cast<std::ptrdiff_t>(at), f.begin() + static_cast<std::ptrdiff_t>(at + length));
    Put16(s.data() + ip + 2, static_cast<uint16_t>(s.size() - ip));
    Put16(s.data() + ip + 4, static_cast<uint16_t>(id + out.size()));
    Put16(s.data() + ip + 10, 0);
    Put16(s.data() + ip + 10, Fold(Sum(s.data() + ip, tcp - ip)));
    Put32(s.data() + tcp + 4, sequence + static_cast<uint32_t>(at - header));
    const bool last = at + length == f.size();
    if (!last) s[tcp + 13] &= static_cast<uint8_t>(~0x09u);         // FIN and PSH belong to the last segment
    if (at != header) s[tcp + 13] &= static_cast<uint8_t>(~0x80u);  // CWR to the first
    Put16(s.data() + tcp + 16, 0);
    uint64_t sum = Sum(s.data() + ip + 12, 8) + IPPROTO_TCP + (s.size() - tcp);
    Put16(s.data() + tcp + 16, Fold(Sum(s.data() + tcp, s.size() - tcp, sum)));
    out.push_back(std::move(s));
  }
  return out;
}

// RFC 3168 5: congestion experienced. False where the sender does not say that it may be marked.
bool Mark(Frame& f) {
  const size_t ip = ETH_HLEN;
  if (f.size() < ip + 20 || Get16(f.data() + 12) != ETH_P_IP || (f[ip + 1] & 3) == 0) return false;
  f[ip + 1] |= 3;
  Put16(f.data() + ip + 10, 0);
  Put16(f.data() + ip + 10, Fold(Sum(f.data() + ip, (f[ip] & 15u) * 4)));
  return true;
}

int OpenDevice(const std::string& name) {
  const int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) Die("packet socket");
  const int one = 1;
  const int buffer = 64 << 20;
  if (setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one) != 0) Die("PACKET_VNET_HDR");
  if (setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one) != 0) Die("PACKET_IGNORE_OUTGOING");
  if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer) != 0) Die("SO_RCVBUFFORCE");
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_ALL);
  address.sll_ifindex = static_cast<int>(if_nametoindex(name.c_str()));
  if (address.sll_ifindex == 0) Die("device " + name);
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) Die("bind to " + name);
  return fd;
}

class Forwarder {
 public:
  explicit Forwarder(const Options& o) : options_(o), random_(o.seed) {
    const int left = OpenDevice(o.left), right = OpenDevice(o.right);
    directions_[0] = {.in = left, .out = right};
    directions_[1] = {.in = right, .out = left};
  }

  void Run() {
    std::printf("forwarding between %s and %s, seed %llu\n", options_.left.c_str(), options_.right.c_str(),
                static_cast<unsigned long long>(options_.seed));
    std::fflush(stdout);
    while (stopping == 0) {
      SendDue();
      pollfd fds[2] = {{directions_[0].in, POLLIN, 0}, {directions_[1].in, POLLIN, 0}};
      timespec wait{0, 200'000'000};
      if (!waiting_.empty()) {
        const uint64_t now = Now(), due = waiting_.top().due;
        wait = due <= now
                   ? timespec{0, 0}
                   : timespec{static_cast<time_t>((due - now) / 1'000'000'000), static_cast<long>((due - now) % 1'000'000'000)};
      }
      if (ppoll(fds, 2, &wait, nullptr) < 0 && errno != EINTR) Die("poll");
      for (Direction& d : directions_) ReceiveBurst(d);
    }
  }

  void Report() const {
    for (int i = 0; i < 2; ++i) {
      const Direction& d = directions_[i];
      std::printf(
          "{\"direction\": \"%s\", \"frames\": %llu, \"segments\": %llu, \"lost\": %llu, \"duplicated\": %llu, \"reordered\": "
          "%llu, \"marked\": %llu, \"too_large\": %llu, "
          "\"overflowed\": %llu, \"unsent\": %llu}\n",
          i == 0 ? "left to right" : "right to left", static_cast<unsigned long long>(d.frames),
          static_cast<unsigned long long>(d.segments), static_cast<unsigned long long>(d.lost),
          static_cast<unsigned long long>(d.duplicated), static_cast<unsigned long long>(d.reordered),
          static_cast<unsigned long long>(d.marked), static_cast<unsigned long long>(d.too_large),
          static_cast<unsigned long long>(d.overflowed), static_cast<unsigned long long>(d.unsent));
    }
  }

 private:
  bool Chance(double percent) { return percent > 0 && std::uniform_real_distribution<double>(0, 100)(random_) < percent; }

  void ReceiveBurst(Direction& d) {
    for (int i = 0; i < 64; ++i) {
      VnetHeader h;
      iovec v[2] = {{&h, sizeof h}, {buffer_.data(), buffer_.size()}};
      const ssize_t n = readv(d.in, v, 2);
      if (n < static_cast<ssize_t>(sizeof h)) return;
      ++d.frames;
      Frame f(buffer_.begin(), buffer_.begin() + (n - static_cast<ssize_t>(sizeof h)));
      const int type = h.gso_type & ~kGsoEcn;
      if (type == kGsoTcpV4) {
        for (Frame& s : CutTcp4(f, h.gso_size)) Impair(d, std::move(s));
      } else {
        if ((h.flags & kNeedsChecksum) != 0) CompleteChecksum(f, h.csum_start, h.csum_offset);
        Impair(d, std::move(f));
      }
    }
  }

  void Impair(Direction& d, Frame f) {
    ++d.segments;
    if (f.size() > options_.largest) {
      ++d.too_large;
      return;
    }
    if (Chance(options_.loss)) {
      ++d.lost;
      return;
    }
    if (Chance(options_.mark) && Mark(f)) ++d.marked;
    uint64_t delay = options_.delay_ns;
    if (Chance(options_.reorder)) {
      ++d.reordered;  // overtaken by what comes within the next 1 to 3 ms
      delay += std::uniform_int_distribution<uint64_t>(1'000'000, 3'000'000)(random_);
    }
    if (Chance(options_.duplicate)) {
      ++d.duplicated;
      Queue(d, delay + 100'000, f);
    }
    Queue(d, delay, std::move(f));
  }

  void Queue(Direction& d, uint64_t delay, Frame f) {
    if (waiting_.size() >= kMaxWaiting) {
      ++d.overflowed;
      return;
    }
    waiting_.push(Delayed{Now() + delay, order_++, &d, std::move(f)});
  }

  void SendDue() {
    while (!waiting_.empty() && waiting_.top().due <= Now()) {
      const Delayed& next = waiting_.top();
      VnetHeader h{};
      iovec v[2] = {{&h, sizeof h}, {const_cast<uint8_t*>(next.frame.data()), next.frame.size()}};
      if (writev(next.direction->out, v, 2) < 0) ++next.direction->unsent;
      waiting_.pop();
    }
  }

  Options options_;
  std::mt19937_64 random_;
  Direction directions_[2];
  std::priority_queue<Delayed> waiting_;
  uint64_t order_ = 0;
  std::vector<uint8_t> buffer_ = std::vector<uint8_t>(70000);
};

Options Parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string a = argv[i];
    const size_t eq = a.find('=');
    const std::string key = a.substr(0, eq), value = eq == std::string::npos ? "" : a.substr(eq + 1);
    if (key == "--left")
      o.left = value;
    else if (key == "--right")
      o.right = value;
    else if (key == "--loss")
      o.loss = std::stod(value);
    else if (key == "--duplicate")
      o.duplicate = std::stod(value);
    else if (key == "--reorder")
      o.reorder = std::stod(value);
    else if (key == "--mark")
      o.mark = std::stod(value);
    else if (key == "--largest")
      o.largest = std::stoull(value);
    else if (key == "--delay-us")
      o.delay_ns = std::stoull(value) * 1000;
    else if (key == "--seed")
      o.seed = std::stoull(value);
    else {
      std::fprintf(stderr, "impair: unknown argument %s\n", a.c_str());
      std::exit(2);
    }
  }
  if (o.left.empty() || o.right.empty()) {
    std::fprintf(stderr,
                 "usage: impair --left=IF --right=IF [--loss=PERCENT] [--duplicate=PERCENT] [--reorder=PERCENT] [--mark=PERCENT] "
                 "[--largest=BYTES] "
                 "[--delay-us=N] [--seed=N]\n");
    std::exit(2);
  }
  return o;
}

}  // namespace

int main(int argc, char** argv) {
  struct sigaction action{};
  action.sa_handler = [](int) { stopping = 1; };
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  Forwarder forwarder(Parse(argc, argv));
  forwarder.Run();
  forwarder.Report();
  return 0;
}
