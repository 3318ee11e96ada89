// Sequences of segments, socket calls and waits against one stack. Every segment carries what the peer's stream has at its
// sequence number, so whatever arrives must be a prefix of that stream; what leaves must be what was written. Nothing crashes,
// and memory stays bounded.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>

#include "base/check.h"
#include "netstack/tcp/testing/programs.h"
#include "netstack/tcp/testing/wire_peer.h"

namespace sluice::testing {
namespace {

constexpr uint64_t kPeerStream = 1, kHostStream = 2;
constexpr size_t kMemoryBound = 16 << 20;
constexpr size_t kMaxOperations = 400;

class Input {
 public:
  Input(const uint8_t* data, size_t size) : p_(data), end_(data + size) {}
  bool empty() const { return p_ == end_; }
  uint32_t Byte() { return p_ == end_ ? 0 : *p_++; }
  uint32_t Word() { return Byte() << 8 | Byte(); }
  uint32_t Long() { return Word() << 16 | Word(); }

 private:
  const uint8_t* p_;
  const uint8_t* end_;
};

class Session {
 public:
  Session(const uint8_t* data, size_t size) : in_(data, size) {}
  void Run();

 private:
  void Open();
  void Segment();
  void Call();
  void Accept();
  void Read(size_t most);
  void Write(size_t n);
  void Observe();
  uint32_t Near(uint32_t exact);
  std::string Payload(uint32_t seq, size_t n) const;

  Input in_;
  WirePeer peer_;
  StreamSocket* socket_ = nullptr;
  bool passive_ = false;
  uint32_t next_ = 1;       // what the peer would send next
  uint32_t host_next_ = 1;  // the highest number seen from the host
  uint64_t read_ = 0, written_ = 0;
};

// Mostly right, often a little off, sometimes anything.
uint32_t Session::Near(uint32_t exact) {
  const uint32_t how = in_.Byte();
  if (how < 128) return exact;
  if (how < 192) return exact + in_.Byte() - 128;
  if (how < 240) return exact + in_.Word() - 32768;
  return in_.Long();
}

std::string Session::Payload(uint32_t seq, size_t n) const {
  std::string s(n, '\0');
  for (size_t i = 0; i < n; ++i) s[i] = static_cast<char>(StreamByte(kPeerStream, seq + static_cast<uint32_t>(i) - 1));
  return s;
}

void Session::Open() {
  const uint32_t how = in_.Byte();
  peer_.timestamps = (how & 1) != 0;
  peer_.sack = (how & 2) != 0;
  if ((how & 4) != 0) peer_.wscale = static_cast<uint8_t>(in_.Byte() % 16);
  peer_.mss = static_cast<uint16_t>((how & 8) != 0 ? in_.Word() : 1460);
  passive_ = (how & 16) != 0;
  const char* const control = (how & 64) != 0 ? "bbr" : "cubic";
  if (passive_) {
    peer_.Listener(static_cast<int>(in_.Byte() % 3));
    SLUICE_CHECK(peer_.listener->SetCongestionControl(control) == Errno::kOk);
    peer_.Send(tcp::kSyn, 0, 0);
  } else {
    socket_ = peer_.Socket();
    SLUICE_CHECK(socket_->SetCongestionControl(control) == Errno::kOk);
    SLUICE_CHECK(socket_->Connect({IpAddress::V4(10, 0, 0, 2), peer_.port}) == Errno::kEINPROGRESS);
    peer_.host.Turn();
  }
  for (const Seen& s : peer_.Take()) peer_.host_port = s.raw.source_port;
  if ((how & 32) != 0) return;  // the handshake is the input's affair, too
  peer_.Send(passive_ ? tcp::kAck : tcp::kSyn | tcp::kAck, passive_ ? 1 : 0, 1);
}

void Session::Segment() {
  const uint32_t kind = in_.Byte();
  uint8_t flags = tcp::kAck;
  if (kind < 16)
    flags = static_cast<uint8_t>(in_.Byte());
  else if (kind < 24)
    flags |= tcp::kFin;
  else if (kind < 26)
    flags = tcp::kRst;
  else if (kind < 32)
    flags |= tcp::kUrg;
  size_t length = 0;
  if ((kind & 1) != 0) length = in_.Byte() < 200 ? in_.Byte() * 8 : in_.Word() % 20000;
  // A SYN always names the one stream; in established states it is as foreign as any other.
  const uint32_t seq = (flags & tcp::kSyn) != 0 ? 0 : Near(next_);
  tcp::HeaderSpec h = peer_.Header(flags, seq, Near(host_next_));
  h.window = static_cast<uint16_t>((kind & 2) != 0 ? in_.Word() : 65535);
  h.urgent = static_cast<uint16_t>((flags & tcp::kUrg) != 0 ? in_.Byte() : 0);
  if ((kind & 4) != 0) {
    h.sack_count = static_cast<uint8_t>(in_.Byte() % (h.has_timestamps ? 4 : 5));
    for (size_t i = 0; i < h.sack_count; ++i) {
      const SeqNum start = peer_.host_iss + Near(host_next_);
      h.sack[i] = {start, start + in_.Word()};
    }
  }
  if (h.has_timestamps) {
    peer_.ts_val += in_.Byte() / 16;
    h.ts_val = Near(peer_.ts_val);
  }
  if ((flags & tcp::kSyn) != 0) length = 0;
  const uint16_t gso = length > 1460 ? static_cast<uint16_t>(in_.Byte() * 8 + 1) : 0;
  peer_.Send(h, Payload(seq, length), gso);
  if (seq == next_) next_ += static_cast<uint32_t>(length);
}

void Session::Read(size_t most) {
  if (socket_ == nullptr || socket_->listening()) return;
  Bytes spans[4];
  while (most > 0) {
    if (socket_->Peek(std::span(spans, 1)) == 0) break;
    const size_t n = std::min(spans[0].size(), most);
    for (size_t i = 0; i < n; ++i) SLUICE_CHECK(spans[0][i] == StreamByte(kPeerStream, read_ + i));
    socket_->Consume(n);
    read_ += n;
    most -= n;
  }
}

void Session::Write(size_t n) {
  if (socket_ == nullptr || socket_->send_space() == 0 || n == 0) return;
  Block* b = peer_.host.pool().Allocate(n);
  if (b == nullptr) return;
  for (size_t i = 0; i < n; ++i) b->data[i] = StreamByte(kHostStream, written_ + i);
  if (socket_->Send(Slice{BlockRef(b), 0, static_cast<uint32_t>(n)}, in_.Byte() < 32) == Errno::kOk) written_ += n;
}

// One connection only: a second one would have streams of its own.
void Session::Accept() {
  if (socket_ != nullptr || peer_.listener == nullptr) return;
  socket_ = peer_.listener->Accept();
  if (socket_ == nullptr) return;
  peer_.listener->Close();
  peer_.listener = nullptr;
}

void Session::Call() {
  Accept();
  if (socket_ == nullptr) return;
  (void)socket_->events();
  switch (in_.Byte() % 10) {
    case 0:
      Read(in_.Byte());
      break;
    case 1:
      Read(SIZE_MAX);
      break;
    case 2:
      Write(in_.Byte());
      break;
    case 3:
      Write(in_.Word());
      break;
    case 4:
      (void)socket_->Shutdown(in_.Byte() < 20, in_.Byte() < 60);
      break;
    case 5:
      (void)socket_->SetOption(static_cast<SockOpt>(in_.Byte() % static_cast<uint32_t>(SockOpt::kCount)), in_.Word());
      break;
    case 6:
      (void)socket_->info();
      if (in_.Byte() < 16) (void)socket_->SetCongestionControl(in_.Byte() < 128 ? "bbr" : "reno");
      break;
    case 7:
      (void)socket_->urgent_mark();
      break;
    case 8:
      (void)socket_->TakeError();
      break;
    case 9:
      if (in_.Byte() > 20) break;
      if (in_.Byte() < 128)
        socket_->Close();
      else
        socket_->Abort();
      socket_ = nullptr;
      break;
  }
}

// What left is what was written, at its place; and no more than exists.
void Session::Observe() {
  for (const Seen& s : peer_.Take()) {
    peer_.host_port = s.raw.source_port;
    if (s.payload.empty() || s.raw.Has(tcp::kSyn)) continue;
    SLUICE_CHECK(s.seq >= 1 && s.seq - 1 + s.payload.size() <= written_);
    for (size_t i = 0; i < s.payload.size(); ++i) {
      SLUICE_CHECK(static_cast<uint8_t>(s.payload[i]) == StreamByte(kHostStream, s.seq - 1 + i));
    }
    const auto end = static_cast<uint32_t>(s.seq + s.payload.size());
    if (end > host_next_) host_next_ = end;
  }
  SLUICE_CHECK(peer_.host.pool().bytes_in_use() < kMemoryBound);
}

void Session::Run() {
  Open();
  for (size_t i = 0; i < kMaxOperations && !in_.empty(); ++i) {
    const uint32_t operation = in_.Byte();
    if (operation < 150)
      Segment();
    else if (operation < 220)
      Call();
    else if (operation < 250)
      peer_.host.Advance(Duration::Milliseconds(in_.Byte() * 2));
    else
      peer_.host.Advance(Duration::Seconds(in_.Byte()));
    peer_.host.Turn();
    Observe();
  }
  Accept();
  Read(SIZE_MAX);
  if (socket_ != nullptr) socket_->Close();
  peer_.host.Turn();
}

}  // namespace
}  // namespace sluice::testing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  sluice::testing::Session(data, size).Run();
  return 0;
}
