// segments_as_linux [-v] [FIRST [COUNT]]: sends the same pseudo-random sequences of segments and socket calls, one for each seed,
// to the kernel (by a TUN device, in a network namespace of its own) and to our stack (in virtual time), and compares after each
// step what both answer and what their sockets say. Status 0 where they say the same. Needs root.
//
// Segments are half right: numbers around what is expected and around the window's edges, odd flags, timestamps that are old or
// missing. Not compared is what timing decides (retransmissions, delayed acknowledgments, limits of rates, which are off), and
// what each side chooses for itself: windows, initial numbers, timestamps.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/tcp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/check.h"
#include "netstack/tcp/testing/wire_peer.h"
#include "xdp/unique_fd.h"

namespace sluice::testing {
namespace {

using tcp::HeaderSpec;
using tcp::kAck;
using tcp::kCwr;
using tcp::kEce;
using tcp::kFin;
using tcp::kPsh;
using tcp::kRst;
using tcp::kSyn;

constexpr int kSynSent = 2, kSynReceived = 3, kLastAck = 9, kClosing = 11;

// -- one side: a host with at most one connection that somebody owns

class Side {
 public:
  virtual ~Side() = default;
  virtual SegmentPeer& peer() = 0;
  virtual void Send(const HeaderSpec& h, std::string_view payload) = 0;
  virtual std::vector<Seen> Take() = 0;
  virtual void Listen(bool fast_open) = 0;
  virtual void Connect() = 0;
  virtual void Accept() = 0;
  virtual void Write(size_t n) = 0;
  virtual void Read() = 0;
  virtual void Shutdown() = 0;
  virtual void Close(bool abort) = 0;
  // State, bytes to read, pending error.
  virtual std::string Socket() = 0;

  // Sends to the step's host; what comes back, without what timing decides.
  std::string Answers();
  uint32_t Edge() const { return acked + window; }

  bool with_sack = true;           // as this step's answers are to be compared
  bool opens = false;              // actively
  uint32_t acked = 0, window = 0;  // the host's last acknowledgment, and its window
  uint32_t high = 0;               // behind the last number that the host has sent
  uint32_t origin = 0;             // of the connection that there is now
  uint32_t stamp = 0;              // of the SYN,ACK
  uint32_t sent = 0;               // the number of the segment that it is to answer
};

// Not what came twice and is still out of order (RFC 2883 4.2): Linux tells more of it.
size_t FirstSack(const tcp::Segment& s) {
  return s.sack_count > 1 && s.sack[1].start <= s.sack[0].start && s.sack[0].end <= s.sack[1].end ? 1 : 0;
}

std::string Side::Answers() {
  std::string text, pure;
  bool carried = false;
  const uint32_t before = acked;
  for (const Seen& s : Take()) {
    const std::string flags = s.Flags();
    if (s.raw.Has(kSyn)) {
      origin = s.ack - 1;
      stamp = s.raw.ts_val;
    }
    // Of an answer to what does not belong to the connection: relative to that.
    const uint32_t from = s.raw.Has(kRst) || s.raw.Has(kSyn) ? sent : origin;
    const std::string numbers = " " + (s.raw.seq == SeqNum(0) ? "zero" : std::to_string(static_cast<int32_t>(s.seq))) +
                                (s.raw.Has(kAck) ? "/" + std::to_string(static_cast<int32_t>(s.ack - from)) : std::string());
    if (s.raw.Has(kRst)) {
      text += flags + numbers + "; ";
      continue;
    }
    if (s.raw.Has(kAck)) {
      acked = s.ack;
      window = s.window;
    }
    if (s.raw.Has(kSyn)) {
      high = 1;
      if (s.raw.Has(kAck) && opens) {  // Linux's SYN,ACK of a simultaneous open repeats its SYN's options
        text += flags + numbers + "; ";
        continue;
      }
      text += flags + numbers + " mss " + std::to_string(s.raw.mss) + (s.raw.has_timestamps ? " ts" : "") +
              (s.raw.sack_permitted ? " sack" : "") + (s.raw.has_window_scale ? " ws" : "") + "; ";
      continue;
    }
    const uint32_t end = s.seq + s.raw.length();
    if (s.raw.length() > 0) {
      if (static_cast<int32_t>(end - high) <= 0) continue;  // retransmitted
      carried = true;
      text += std::string((s.tos & 3) != 0 ? "ect " : "") + (s.raw.Has(kEce) ? "ece " : "") + (s.raw.Has(kCwr) ? "cwr " : "") +
              (s.raw.Has(kFin) ? "fin to " : "data to ") + std::to_string(end) + "; ";
      high = end;
    } else {
      pure = (s.raw.Has(kEce) ? "AE" : "A") + numbers;
      for (size_t i = FirstSack(s.raw); i < s.raw.sack_count && with_sack; ++i) {
        const auto number = [&](SeqNum n) {
          const auto d = static_cast<int32_t>(n - peer().iss - Edge());
          return std::abs(d) < 3000 ? "edge" : std::to_string(static_cast<int32_t>(n - peer().iss - origin));
        };
        pure += " sack " + number(s.raw.sack[i].start) + "-" + number(s.raw.sack[i].end);
      }
      pure += "; ";
    }
  }
  if (!carried) text += pure;
  if (acked != before) text += "acked " + std::to_string(static_cast<int32_t>(acked - origin)) + "; ";
  return text;
}

// -- our stack

class OurSide final : public Side {
 public:
  OurSide() {
    wire_.host.config().sysctls["net.ipv4.tcp_invalid_ratelimit"] = "0";
    wire_.host.config().sysctls["net.ipv4.tcp_challenge_ack_limit"] = "2147483647";
    wire_.host.config().sysctls["net.ipv4.tcp_ecn"] = "1";
    wire_.host.config().sysctls["net.ipv4.tcp_fastopen"] = "515";  // servers, too, which need no cookie
    wire_.host.ApplyConfig();
    wire_.host.Turn();
  }
  ~OurSide() override {
    if (socket_ != nullptr) socket_->Close();
    if (listener_ != nullptr) listener_->Close();
  }
  SegmentPeer& peer() override { return wire_; }
  void Send(const HeaderSpec& h, std::string_view payload) override {
    wire_.Send(h, payload);
    text_came_ = !payload.empty() || (h.flags & kFin) != 0;
  }
  std::vector<Seen> Take() override {
    std::vector<Seen> all = wire_.Take();
    // An acknowledgment that waits is sent, nothing else: the kernel's side has a route without delay.
    if (!std::exchange(text_came_, false)) return all;
    const SeqNum next = all.empty() ? SeqNum(0) : all.back().raw.end();
    wire_.host.Advance(Ms(41));
    for (Seen& s : wire_.Take()) {
      if ((s.raw.flags & ~kEce) == kAck && s.raw.length() == 0 && (all.empty() || next <= s.raw.seq)) all.push_back(std::move(s));
    }
    return all;
  }
  void Listen(bool fast_open) override {
    listener_ = wire_.Listener(8);
    if (fast_open) SLUICE_CHECK(listener_->SetOption(SockOpt::kTcpFastOpen, 8) == Errno::kOk);
  }
  void Connect() override {
    socket_ = wire_.Socket();
    Prepare();
    SLUICE_CHECK(socket_->Connect({IpAddress::V4(10, 0, 0, 2), wire_.port}) == Errno::kEINPROGRESS);
    wire_.host_port = socket_->local().port;
    wire_.host.Turn();
  }
  void Accept() override {
    if (socket_ == nullptr && listener_ != nullptr && (socket_ = listener_->Accept()) != nullptr) Prepare();
  }
  void Write(size_t n) override {
    if (socket_ == nullptr) return;
    Block* b = wire_.host.pool().Allocate(n);
    memset(b->data, 'w', n);
    (void)ToInt(socket_->Send(Slice{BlockRef(b), 0, static_cast<uint32_t>(n)}, false));
    wire_.host.Turn();
  }
  void Read() override {
    if (socket_ != nullptr) wire_.Read(socket_);
  }
  void Shutdown() override {
    if (socket_ != nullptr) (void)ToInt(socket_->Shutdown(false, true));
    wire_.host.Turn();
  }
  void Close(bool abort) override {
    if (socket_ == nullptr) return;
    if (abort) socket_->SetLinger(0);
    std::exchange(socket_, nullptr)->Close();
    wire_.host.Turn();
  }
  std::string Socket() override {
    if (socket_ == nullptr) return "none";
    const size_t unread = socket_->state() == kSynReceived ? 0 : socket_->readable_bytes();  // as Linux' FIONREAD has it
    return "state " + std::to_string(socket_->state()) + " read " + std::to_string(unread) + " error " +
           std::to_string(ToInt(socket_->TakeError()));
  }

  // Of the peer's flow, whoever owns it; 0: there is none.
  int FlowState() {
    for (const SocketInfo& s : wire_.host.stack().Sockets(false)) {
      if (s.remote.port == wire_.port && s.state != kClosed) return s.state;
    }
    return 0;
  }
  bool request() const { return socket_ == nullptr || socket_->state() != kSynReceived; }

 private:
  void Prepare() { (void)ToInt(socket_->SetOption(SockOpt::kTcpNoDelay, 1)); }
  WirePeer wire_;
  bool text_came_ = false;
  StreamSocket *socket_ = nullptr, *listener_ = nullptr;
};

// -- the kernel

class Kernel {
 public:
  Kernel() {
    SLUICE_CHECK(unshare(CLONE_NEWNET) == 0);
    tun_ = UniqueFd(open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
    ifreq request{};
    strcpy(request.ifr_name, "wire");
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    SLUICE_CHECK(tun_ && ioctl(tun_.get(), TUNSETIFF, &request) == 0);
    SLUICE_CHECK(
        system(
            "set -e; cd /proc/sys/net; echo 1 >ipv6/conf/all/disable_ipv6; echo 0 >ipv4/conf/all/rp_filter\n"
            "echo 0 >ipv4/tcp_invalid_ratelimit; echo 2147483647 >ipv4/tcp_challenge_ack_limit\n"
            "echo 0 >ipv4/tcp_autocorking; echo 1 >ipv4/tcp_ecn; echo 1 >ipv4/tcp_no_metrics_save; echo 515 >ipv4/tcp_fastopen\n"
            "ip link set lo up; ip addr add 10.0.0.1/24 dev wire; ip link set wire up\n"
            "ip route replace 10.0.0.0/24 dev wire src 10.0.0.1 quickack 1") == 0);
  }
  int tun() const { return tun_.get(); }

 private:
  UniqueFd tun_;
};

class KernelSide final : public Side {
 public:
  // Every sequence has ports of its own, so that no other's leftovers answer.
  KernelSide(const Kernel& kernel, uint32_t number) : tun_(kernel.tun()) {
    peer_.port = static_cast<uint16_t>(1024 + number % 60000);
    peer_.host_port = static_cast<uint16_t>(1024 + number / 60000 % 60000);
    Take();
  }
  SegmentPeer& peer() override { return peer_; }
  void Send(const HeaderSpec& h, std::string_view payload) override {
    const std::vector<uint8_t> packet = SegmentPeer::Encode(h, payload, peer_.tos);
    SLUICE_CHECK(write(tun_, packet.data(), packet.size()) == static_cast<ssize_t>(packet.size()));
  }
  std::vector<Seen> Take() override {
    std::vector<Seen> all;
    std::array<uint8_t, 65536> packet;
    for (ssize_t n; (n = read(tun_, packet.data(), packet.size())) > 0;) {
      const Bytes bytes(packet.data(), static_cast<size_t>(n));
      if (bytes.size() < 40 || bytes[9] != IPPROTO_TCP || LoadBe16(bytes.data() + 22) != peer_.port) continue;
      if (std::optional<Seen> s = peer_.Decode(pool_, bytes)) all.push_back(std::move(*s));
    }
    return all;
  }
  void Listen(bool fast_open) override {
    listener_ = UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    const sockaddr_in here = Address(INADDR_ANY, peer_.host_port);
    const int on = 1;
    SLUICE_CHECK(setsockopt(listener_.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0);
    SLUICE_CHECK(bind(listener_.get(), reinterpret_cast<const sockaddr*>(&here), sizeof here) == 0);
    const int queue = 8;
    if (fast_open) SLUICE_CHECK(setsockopt(listener_.get(), IPPROTO_TCP, TCP_FASTOPEN, &queue, sizeof queue) == 0);
    SLUICE_CHECK(listen(listener_.get(), 8) == 0);
  }
  void Connect() override {
    socket_ = UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    Prepare();
    const sockaddr_in there = Address(0x0a000002, peer_.port);
    SLUICE_CHECK(connect(socket_.get(), reinterpret_cast<const sockaddr*>(&there), sizeof there) != 0 && errno == EINPROGRESS);
    sockaddr_in here{};
    socklen_t length = sizeof here;
    getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&here), &length);
    peer_.host_port = ntohs(here.sin_port);
  }
  void Accept() override {
    if (socket_ || !listener_) return;
    socket_ = UniqueFd(accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (socket_) Prepare();
  }
  void Write(size_t n) override {
    if (!socket_) return;
    const std::string bytes(n, 'w');
    (void)!send(socket_.get(), bytes.data(), n, MSG_NOSIGNAL);
  }
  void Read() override {
    char buffer[65536];
    while (socket_ && recv(socket_.get(), buffer, sizeof buffer, 0) > 0) continue;
  }
  void Shutdown() override {
    if (socket_) shutdown(socket_.get(), SHUT_WR);
  }
  void Close(bool abort) override {
    const linger l{1, 0};
    if (socket_ && abort) setsockopt(socket_.get(), SOL_SOCKET, SO_LINGER, &l, sizeof l);
    socket_.reset();
  }
  std::string Socket() override {
    if (!socket_) return "none";
    tcp_info info{};
    int unread = 0, error = 0;
    socklen_t length = sizeof info;
    getsockopt(socket_.get(), IPPROTO_TCP, TCP_INFO, &info, &length);
    length = sizeof error;
    getsockopt(socket_.get(), SOL_SOCKET, SO_ERROR, &error, &length);
    ioctl(socket_.get(), FIONREAD, &unread);
    return "state " + std::to_string(info.tcpi_state) + " read " + std::to_string(unread) + " error " + std::to_string(error);
  }

 private:
  static sockaddr_in Address(uint32_t address, uint16_t port) {
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_addr.s_addr = htonl(address);
    a.sin_port = htons(port);
    return a;
  }
  void Prepare() {
    const int on = 1;
    setsockopt(socket_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }
  const int tun_;
  SegmentPeer peer_;
  HeapBlockPool pool_{16 << 20};
  UniqueFd socket_, listener_;
};

// -- sequences

enum class From : uint8_t { kZero, kNext, kEdge };

// A segment as both sides get it, with their own numbers in it.
struct Shot {
  uint8_t flags = kAck;
  From seq_from = From::kNext;
  int32_t seq = 0;
  bool ack_from_high = true;
  int32_t ack = 0;
  uint16_t payload = 0, window = 65535;
  uint8_t tos = 0;
  int32_t ts = 1;
  bool without_ts = false, odd_echo = false;
};

class Sequence {
 public:
  Sequence(const Kernel& kernel, uint32_t seed, uint32_t attempt) : random_(seed), kernel_(kernel, 3 * seed + attempt) {}
  // False where the sides differ.
  bool Run();
  const std::string& text() const { return text_; }

 private:
  static constexpr int kSteps = 8;

  uint32_t Draw(uint32_t n) { return static_cast<uint32_t>(random_() % n); }
  template <typename T>
  T Pick(std::initializer_list<T> among) {
    return among.begin()[Draw(static_cast<uint32_t>(among.size()))];
  }
  bool Chance(uint32_t percent) { return Draw(100) < percent; }

  template <typename Call>
  bool Both(const std::string& what, Call call);
  bool Send(const Shot& shot);
  bool Open();
  bool OpenEarly(Shot syn);
  bool Progress();
  bool Step();
  bool Comparable(Shot* shot);
  bool Right(uint8_t flags, uint16_t payload = 0) {
    Shot s;
    s.flags = flags;
    s.payload = payload;
    if (ecn_) s.tos = Pick<uint8_t>({0, 2, 2, 3});
    return Send(s);
  }
  Shot Wild();

  std::mt19937 random_;
  bool early_ = false;                      // accepted in SYN-RECEIVED (Fast Open)
  bool ecn_ = false;                        // the peer asks, or agrees
  bool ahead_ = false, fin_ahead_ = false;  // text or a FIN may have come out of order
  OurSide ours_;
  KernelSide kernel_;
  std::string text_;
};

// Does it on both sides, and compares.
template <typename Call>
bool Sequence::Both(const std::string& what, Call call) {
  std::array<std::string, 2> said;
  size_t i = 0;
  for (Side* side : std::initializer_list<Side*>{&ours_, &kernel_}) {
    side->sent = side->origin;
    call(*side);
    said[i] = side->Answers();
    said[i] += side->Socket();
    ++i;
  }
  text_ += "  " + what + "\n      " + said[1] + "\n";
  if (said[0] == said[1]) return true;
  text_ += "ours: " + said[0] + "\n";
  return false;
}

bool Sequence::Send(const Shot& shot) {
  static constexpr const char* kFrom[] = {"", "next", "edge"};
  Seen name;
  name.raw.flags = shot.flags;
  const auto sign = [](int32_t n) { return (n >= 0 ? "+" : "") + std::to_string(n); };
  const std::string what = "> " + name.Flags() + " " + kFrom[static_cast<size_t>(shot.seq_from)] + sign(shot.seq) + " ack " +
                           (shot.ack_from_high ? "high" : "") + sign(shot.ack) + " len " + std::to_string(shot.payload) +
                           " win " + std::to_string(shot.window) + (ours_.peer().timestamps ? " ts " + sign(shot.ts) : "") +
                           (shot.without_ts ? " without ts" : "") + (shot.odd_echo ? " odd echo" : "") +
                           (shot.tos != 0 ? " tos " + std::to_string(shot.tos) : "");
  // Linux takes no echo of anything but its SYN,ACKs.
  const bool request = ours_.FlowState() == kSynReceived && ours_.request();
  // In the handshake and around a FIN Linux names more or fewer numbers that came twice.
  const bool with_sack = !fin_ahead_ && (shot.flags & kFin) == 0 && ours_.FlowState() != kSynReceived;
  return Both(what, [&shot, request, with_sack](Side& side) {
    side.with_sack = with_sack;
    const uint32_t from = shot.seq_from == From::kNext ? side.acked : shot.seq_from == From::kEdge ? side.Edge() : 0;
    SegmentPeer& peer = side.peer();
    peer.tos = shot.tos;
    side.sent = from + static_cast<uint32_t>(shot.seq);
    HeaderSpec h = peer.Header(shot.flags, side.sent, (shot.ack_from_high ? side.high : 0) + static_cast<uint32_t>(shot.ack));
    h.window = shot.window;
    peer.ts_val += static_cast<uint32_t>(shot.ts);
    h.ts_val = peer.ts_val;
    if (shot.ts < 0) peer.ts_val -= static_cast<uint32_t>(shot.ts);
    if (shot.without_ts) h.has_timestamps = false;
    if (request) h.ts_ecr = side.stamp;
    if (shot.odd_echo) h.ts_ecr += 1u << 30;
    side.Send(h, std::string(shot.payload, 'p'));
  });
}

// What Linux and the RFCs do not agree on, or what depends on the number of bytes in a window, is not sent.
bool Sequence::Comparable(Shot* shot) {
  const int state = ours_.FlowState();
  const bool exact = shot->seq_from == From::kNext && shot->seq == 0;
  // A RST or SYN anywhere in the window ends a request of Linux's; RFC 5961 challenges it.
  if (state == kSynReceived && (ours_.request() || early_)) {
    if ((shot->flags & kRst) != 0 && !exact) return false;
    const bool again = !early_ && shot->seq_from == From::kNext && shot->seq == -1;
    if ((shot->flags & (kSyn | kRst)) == kSyn && !again) return false;
  }
  // What is written before the handshake's end moves the window's edge, by a scale that rounds it.
  if (early_ && shot->seq_from == From::kEdge) return false;
  // Nor are text and FIN of a SYN,ACK for Linux; of one for a request it makes a connection that stays half open.
  if (state == kSynSent || (state == kSynReceived && (shot->flags & kSyn) != 0)) {
    shot->payload = 0;
    shot->flags &= static_cast<uint8_t>(~kFin);
  }
  // Some answers to a SYN that asks for ECN are of AccECN (RFC 9768) for Linux, whatever was asked for.
  if (state == kSynSent && (shot->flags & kSyn) != 0) shot->flags &= static_cast<uint8_t>(~kCwr);
  // A FIN that waited for the handshake's end leaves Linux before what comes with the handshake's end counts, ours behind it.
  // Its SYN is in flight till then, and an echo of a mark counts.
  if (state == kSynReceived) shot->tos = 0, shot->flags &= static_cast<uint8_t>(~kEce);
  // Linux takes an acknowledgment of nothing for that of its SYN.
  if (state == kSynReceived && shot->ack_from_high && shot->ack == -1) return false;
  // What is in order passes Linux's fast path, with text and timestamp, whatever old number it acknowledges; RFC 5961 5.2 drops
  // it.
  if (exact && shot->ack < 0) shot->ack = 0;
  // A FIN belongs behind all text.
  if (ahead_) shot->flags &= static_cast<uint8_t>(~kFin);
  if (fin_ahead_ && !exact) shot->payload = 0;
  const bool fin = (shot->flags & kFin) != 0;
  fin_ahead_ |= fin && !exact;
  ahead_ |= (fin || shot->payload > 0) && !exact;
  // Behind the peer's FIN text is to be ignored; Linux takes what overlaps it.
  const bool ended = state == kCloseWait || state == kLastAck || state == kClosing;
  if (ended && shot->seq < 0) {
    shot->payload = 0;
    shot->flags &= static_cast<uint8_t>(~kFin);
  }
  // The window's last byte is inside, the next one is not; Linux lets it in where nothing waits to be read.
  if (shot->seq_from == From::kEdge && (shot->seq == 0 || shot->seq == -1)) {
    if ((shot->flags & kSyn) != 0) return false;
    shot->payload = 0;
    shot->flags &= static_cast<uint8_t>(~kFin);
  }
  return true;
}

bool Sequence::Open() {
  SegmentPeer settings;
  settings.timestamps = Chance(50);
  settings.sack = Chance(50);
  if (Chance(50)) settings.wscale = Pick<uint8_t>({0, 7});
  for (Side* side : std::initializer_list<Side*>{&ours_, &kernel_}) {
    side->peer().timestamps = settings.timestamps;
    side->peer().sack = settings.sack;
    side->peer().wscale = settings.wscale;
  }
  text_ += settings.timestamps ? " timestamps\n" : " no timestamps\n";
  ecn_ = Chance(40);
  Shot syn;
  syn.flags = ecn_ ? kSyn | kEce | kCwr : kSyn;
  if (Chance(3)) syn.tos = Pick<uint8_t>({1, 2, 3});
  syn.seq_from = From::kZero;
  const uint32_t how = Draw(10);
  if (how >= 8) return OpenEarly(syn);
  if (how < 5) {
    if (!Both("listen", [](Side& s) { s.Listen(false); }) || !Send(syn)) return false;
    if (how == 0) return true;  // SYN-RECEIVED
    return Right(kAck) && Both("accept", [](Side& s) { s.Accept(); });
  }
  if (!Both("connect", [](Side& s) {
        s.opens = true;
        s.Connect();
      }))
    return false;
  if (how == 5) return true;       // SYN-SENT
  if (how == 6) return Send(syn);  // SYN-RECEIVED
  syn.flags = ecn_ ? kSyn | kAck | kEce : kSyn | kAck;
  return Send(syn);
}

// Fast Open: text in the SYN makes the connection, which is in SYN-RECEIVED.
bool Sequence::OpenEarly(Shot syn) {
  early_ = true;
  syn.payload = Pick<uint16_t>({1, 100, 1000, 1400});
  if (!Both("listen for Fast Open", [](Side& s) { s.Listen(true); }) || !Send(syn)) return false;
  if (!Both("accept", [](Side& s) { s.Accept(); })) return false;
  const uint32_t before = Draw(10);
  if (before < 3 && !Both("write", [](Side& s) { s.Write(100); })) return false;
  syn.payload = 0;
  if (before >= 8 && !Send(syn)) return false;  // as a client repeats it
  return Chance(50) || Right(kAck);
}

// Some way towards a close, as well-behaved ends go it.
bool Sequence::Progress() {
  if (ours_.FlowState() != kEstablished) return true;
  const auto fin = [this] {
    return Chance(50) ? Both("shutdown", [](Side& s) { s.Shutdown(); }) : Both("close", [](Side& s) { s.Close(false); });
  };
  switch (Draw(8)) {
    case 0:  // FIN-WAIT-1
      return fin();
    case 1:  // FIN-WAIT-2
      return fin() && Right(kAck);
    case 2: {  // CLOSING
      Shot s;
      s.flags = kFin | kAck;
      s.ack = -1;
      return fin() && Send(s);
    }
    case 3:  // TIME-WAIT
      return fin() && Right(kAck) && Right(kFin | kAck);
    case 4:  // CLOSE-WAIT
      return Right(kFin | kAck);
    case 5:  // LAST-ACK
      return Right(kFin | kAck) && fin();
    default:
      return true;
  }
}

Shot Sequence::Wild() {
  Shot s;
  s.flags = Pick<uint8_t>({kAck, kAck, kAck, kAck | kPsh, kFin | kAck, kFin | kAck, kRst, kRst, kRst | kAck, kSyn, kSyn,
                           kSyn | kAck, kFin, 0, kPsh, kSyn | kFin, kSyn | kRst, kFin | kRst});
  if (Chance(60)) {
    s.seq = Pick<int32_t>({0, 0, 0, -1, 1, 500, -1000, -100000, 100000});
  } else if (Chance(70)) {
    s.seq_from = From::kEdge;
    s.seq = Pick<int32_t>({-1, 0, 1, 1000});
  } else {
    s.seq = static_cast<int32_t>(random_());
  }
  if (Chance(30)) s.ack = Pick<int32_t>({-1, 1, -100, 100, -70000, 1000000});
  if (Chance(5)) s.ack = static_cast<int32_t>(random_());
  if (Chance(30)) s.payload = Pick<uint16_t>({1, 100, 1000});
  if (Chance(10)) s.window = Pick<uint16_t>({0, 2000});
  if (Chance(20)) s.ts = Pick<int32_t>({0, -1, -100, -100000, 1000});
  if (ecn_ || Chance(5)) {
    if (Chance(20)) s.flags |= kEce;
    if (Chance(20)) s.flags |= kCwr;
    s.tos = Pick<uint8_t>({0, 1, 2, 2, 3});
  }
  s.without_ts = Chance(5);
  s.odd_echo = Chance(5);
  return s;
}

bool Sequence::Step() {
  switch (Draw(20)) {
    case 0:
      return Both("write", [](Side& s) { s.Write(100); });
    case 1:
      return Both("read", [](Side& s) { s.Read(); });
    case 2:
      return Both("shutdown", [](Side& s) { s.Shutdown(); });
    case 3:
      if (ours_.FlowState() == kSynReceived) return true;  // Linux sends the FIN at once, ours with the handshake's end
      return Both("close", [](Side& s) { s.Close(false); });
    case 4:
      return Chance(30) ? Both("abort", [](Side& s) { s.Close(true); }) : Both("accept", [](Side& s) { s.Accept(); });
    case 5:
      return ours_.FlowState() == kSynReceived || Right(kAck | kPsh, 100);
    default: {
      Shot shot = Wild();
      return !Comparable(&shot) || Send(shot);
    }
  }
}

bool Sequence::Run() {
  if (!Open() || !Progress()) return false;
  for (int i = 0; i < kSteps; ++i) {
    if (!Step()) return false;
  }
  return true;
}

int Main(int argc, char** argv) {
  const bool verbose = argc > 1 && strcmp(argv[1], "-v") == 0;
  if (verbose) --argc, ++argv;
  const uint32_t first = argc > 1 ? static_cast<uint32_t>(atoi(argv[1])) : 1;
  const uint32_t count = argc > 2 ? static_cast<uint32_t>(atoi(argv[2])) : 1;
  const Kernel kernel;
  uint32_t differ = 0;
  for (uint32_t seed = first; seed < first + count; ++seed) {
    // The kernel's time is the machine's: where that stood still, its timers make a difference, once.
    std::string text;
    bool same = false;
    for (uint32_t attempt = 0; attempt < 3 && !same; ++attempt) {
      Sequence sequence(kernel, seed, attempt);
      same = sequence.Run();
      text = sequence.text();
    }
    if (!same) ++differ;
    if (!same || verbose) printf("seed %u:%s\n", seed, text.c_str());
  }
  printf("%u sequences, %u differ\n", count, differ);
  return differ == 0 ? 0 : 1;
}

}  // namespace
}  // namespace sluice::testing

int main(int argc, char** argv) { return sluice::testing::Main(argc, argv); }
