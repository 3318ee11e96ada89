#include "netstack/tcp/fast_open.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>

namespace sluice::tcp {
namespace {

constexpr Duration kResetCounts = Duration::Seconds(60);
constexpr int kMostDoublings = 6;
constexpr Duration kMostPaused = Duration::Seconds(int64_t{1} << 32);  // for ever

uint64_t LoadLe64(const uint8_t* p) {
  uint64_t v = 0;
  for (int i = 7; i >= 0; --i) v = v << 8 | p[i];
  return v;
}
void StoreLe64(uint8_t* p, uint64_t v) {
  for (int i = 0; i < 8; ++i) p[i] = static_cast<uint8_t>(v >> 8 * i);
}

SipKey KeyFrom(const uint8_t* p) { return {LoadLe64(p), LoadLe64(p + 8)}; }

// Four words of up to eight hexadecimal digits; each is four bytes of the key, the lowest first.
bool ParseKey(std::string_view text, uint8_t* out) {
  for (int word = 0; word < 4; ++word) {
    uint32_t v = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), v, 16);
    if (error != std::errc()) return false;
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    for (int i = 0; i < 4; ++i) *out++ = static_cast<uint8_t>(v >> 8 * i);
    if (word == 3) break;
    if (text.empty() || text[0] != '-') return false;
    text.remove_prefix(1);
  }
  return text.empty();
}

}  // namespace

// --- keys and cookies

std::optional<FastOpenKeys> FastOpenKeys::FromBytes(Bytes bytes) {
  if (bytes.size() != kKeySize && bytes.size() != 2 * kKeySize) return std::nullopt;
  FastOpenKeys k;
  for (; k.count < bytes.size() / kKeySize; ++k.count) k.keys[k.count] = KeyFrom(bytes.data() + k.count * kKeySize);
  return k;
}

std::vector<uint8_t> FastOpenKeys::ToBytes() const {
  std::vector<uint8_t> out(count * kKeySize);
  for (size_t i = 0; i < count; ++i) {
    StoreLe64(out.data() + i * kKeySize, keys[i].k0);
    StoreLe64(out.data() + i * kKeySize + 8, keys[i].k1);
  }
  return out;
}

std::optional<FastOpenKeys> FastOpenKeys::FromText(std::string_view text) {
  std::array<uint8_t, 2 * kKeySize> bytes{};
  const size_t comma = text.find(',');
  if (!ParseKey(text.substr(0, comma), bytes.data())) return std::nullopt;
  const bool two = comma != std::string_view::npos;
  if (two && !ParseKey(text.substr(comma + 1), bytes.data() + kKeySize)) return std::nullopt;
  if (!two && std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == 0; })) return FastOpenKeys{};
  return FromBytes(Bytes(bytes).first(two ? 2 * kKeySize : kKeySize));
}

std::string FastOpenKeys::ToText() const {
  std::string text;
  for (size_t i = 0; i < std::max<size_t>(count, 1); ++i) {
    const SipKey k = count == 0 ? SipKey{} : keys[i];
    char one[40];
    std::snprintf(one, sizeof one, "%08x-%08x-%08x-%08x", static_cast<uint32_t>(k.k0), static_cast<uint32_t>(k.k0 >> 32),
                  static_cast<uint32_t>(k.k1), static_cast<uint32_t>(k.k1 >> 32));
    text += (text.empty() ? "" : ",") + std::string(one);
  }
  return text;
}

FastOpenCookie MakeFastOpenCookie(const SipKey& key, const FlowKey& flow) {
  std::array<uint8_t, 32> in{};
  const auto client = flow.remote.bytes(), server = flow.local.bytes();
  std::copy(client.begin(), client.end(), in.begin());
  std::copy(server.begin(), server.end(), in.begin() + static_cast<ptrdiff_t>(client.size()));
  FastOpenCookie cookie;
  cookie.length = 8;
  StoreLe64(cookie.bytes.data(), SipHash24(key, Bytes(in).first(client.size() + server.size())));
  return cookie;
}

// --- a listener's queue

bool FastOpenQueue::HasRoom(uint32_t most, Instant now) {
  if (pending_ < most) return true;
  if (resets_.empty() || resets_.front() > now) return false;
  resets_.pop_front();
  --pending_;
  return true;
}

void FastOpenQueue::Remove(bool reset, Instant now) {
  if (reset)
    resets_.push_back(now + kResetCounts);
  else
    --pending_;
}

// --- what a client remembers

FastOpenClient::FastOpenClient(SecureRng& secure) { secure.Fill({reinterpret_cast<uint8_t*>(&salt_), sizeof salt_}); }

FastOpenClient::Set& FastOpenClient::SetOf(const IpAddress& local, const IpAddress& remote) const {
  std::array<uint8_t, 32> in{};
  std::copy(local.bytes().begin(), local.bytes().end(), in.begin());
  std::copy(remote.bytes().begin(), remote.bytes().end(), in.begin() + 16);
  return (*sets_)[SipHash24(salt_, in) % kSets];
}

const FastOpenClient::Server* FastOpenClient::Find(const IpAddress& local, const IpAddress& remote) const {
  if (sets_ == nullptr) return nullptr;
  for (const Entry& e : SetOf(local, remote)) {
    if (e.used && e.local == local && e.remote == remote) return &e.server;
  }
  return nullptr;
}

void FastOpenClient::Remember(const IpAddress& local, const IpAddress& remote, uint16_t mss, const FastOpenCookie& cookie,
                              Instant now) {
  Server* known = const_cast<Server*>(Find(local, remote));
  if (known == nullptr) {
    if (!cookie.has_cookie()) return;
    if (sets_ == nullptr) sets_ = std::make_unique<std::array<Set, kSets>>();
    Set& set = SetOf(local, remote);
    Entry& e = *std::min_element(set.begin(), set.end(),
                                 [](const Entry& a, const Entry& b) { return a.used != b.used ? !a.used : a.since < b.since; });
    e = Entry{local, remote, {}, now, true};
    known = &e.server;
  }
  if (mss != 0) known->mss = mss;
  if (cookie.has_cookie()) known->cookie = cookie;
}

bool FastOpenClient::Paused(Duration timeout, Instant now) const {
  if (pauses_ == 0 || timeout <= Duration()) return false;
  const int doublings = std::min(static_cast<int>(std::min(pauses_, 64u)) - 1, kMostDoublings);
  const int64_t times = int64_t{1} << doublings;
  return now < paused_at_ + std::min(timeout, kMostPaused / times) * times;
}

void FastOpenClient::Pause(Instant now) {
  paused_at_ = now;
  ++pauses_;
}

}  // namespace sluice::tcp
