// Netlink messages: writing them, and reading hostile ones. Formats: linux/netlink.h; alignment 4, host byte order.
#pragma once

#include <linux/netlink.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/bytes.h"
#include "base/errno.h"
#include "netstack/ip/address.h"

namespace sluice::netlink {

using Buffer = std::vector<uint8_t>;

constexpr size_t Align4(size_t n) { return (n + 3) & ~size_t{3}; }

template <typename T>
Bytes AsBytes(const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  return {reinterpret_cast<const uint8_t*>(&value), sizeof value};
}

// Copies a T out of the front of `bytes`; what is missing stays zero.
template <typename T>
T LoadPrefix(Bytes bytes) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value{};
  if (!bytes.empty()) std::memcpy(&value, bytes.data(), bytes.size() < sizeof value ? bytes.size() : sizeof value);
  return value;
}

inline int ToAf(Family f) { return f == Family::kIpv4 ? 2 : f == Family::kIpv6 ? 10 : 0; }
inline Family ToFamily(int af) { return af == 2 ? Family::kIpv4 : af == 10 ? Family::kIpv6 : Family::kNone; }
inline size_t AddressSize(int af) { return af == 2 ? 4 : af == 10 ? 16 : 0; }

// Appends one message to a buffer. The message's length is set when the writer ends (Finish or destructor); lengths never
// exceed what the caller appends, an attribute longer than 64 KiB is a bug of the caller.
class MessageWriter {
 public:
  MessageWriter(Buffer* out, uint16_t type, uint16_t flags = 0, uint32_t seq = 0, uint32_t portid = 0);
  ~MessageWriter() { Finish(); }
  MessageWriter(const MessageWriter&) = delete;
  MessageWriter& operator=(const MessageWriter&) = delete;

  void Raw(Bytes bytes);  // padded to 4
  template <typename T>
  void Header(const T& header) {
    Raw(AsBytes(header));
  }
  void Attr(uint16_t type, Bytes value);
  void Attr(uint16_t type, std::string_view text_with_terminator) = delete;
  void U8(uint16_t type, uint8_t v) { Attr(type, AsBytes(v)); }
  void U16(uint16_t type, uint16_t v) { Attr(type, AsBytes(v)); }
  void U32(uint16_t type, uint32_t v) { Attr(type, AsBytes(v)); }
  void Text(uint16_t type, std::string_view text);  // a zero is appended
  void Address(uint16_t type, const IpAddress& address) { Attr(type, address.bytes()); }
  template <typename T>
  void Struct(uint16_t type, const T& value) {
    Attr(type, AsBytes(value));
  }
  // Nested attributes: everything written between BeginNest and EndNest.
  size_t BeginNest(uint16_t type);
  void EndNest(size_t nest);
  void Finish();
  size_t size() const { return out_->size() - start_; }

 private:
  Buffer* out_;
  size_t start_;
};

// What a failed request says beside its errno (NETLINK_EXT_ACK).
struct ExtAck {
  std::string message;
  std::optional<uint32_t> offset;  // of the bad attribute, from the start of the message
};

struct Attribute {
  bool present = false;
  bool nested = false;  // NLA_F_NESTED was set
  Bytes value;
  uint32_t offset = 0;  // of its header, from the start of the message (of the enclosing Parse)

  explicit operator bool() const { return present; }
  uint8_t u8() const { return LoadPrefix<uint8_t>(value); }
  uint16_t u16() const { return LoadPrefix<uint16_t>(value); }
  uint32_t u32() const { return LoadPrefix<uint32_t>(value); }
  std::string_view text() const;  // up to the first zero
};

// How an attribute must look; as the kernel's policies: a value too short or too long is ERANGE, a wrong form EINVAL.
enum class Shape : uint8_t { kAny, kU8, kU16, kU32, kU64, kText, kMaxBytes, kMinBytes, kNested, kReject };
struct AttributeRule {
  uint16_t type;
  Shape shape;
  uint16_t length = 0;  // kText: longest without the zero; kMaxBytes, kMinBytes
};

inline constexpr int kMaxAttributes = 80;

// Attributes 1..max of one nesting level, by type; of several with one type the last counts, as in the kernel.
class AttributeTable {
 public:
  // `strict` refuses what the kernel's strict checking refuses: unknown types, trailing bytes. `base`: offset of `bytes` in the
  // message, for `ack`.
  Errno Parse(Bytes bytes, uint16_t max, std::span<const AttributeRule> rules, bool strict, uint32_t base, ExtAck* ack);
  const Attribute& operator[](int type) const { return table_[static_cast<size_t>(type)]; }
  int max() const { return max_; }

 private:
  std::array<Attribute, kMaxAttributes> table_{};
  int max_ = 0;
};

// Walks the attributes in `bytes` without a table: calls visit(type without flags, value) for each well-formed one.
template <typename Visit>
void ForEachAttribute(Bytes bytes, Visit visit) {
  while (bytes.size() >= sizeof(nlattr)) {
    const nlattr a = LoadPrefix<nlattr>(bytes);
    if (a.nla_len < sizeof(nlattr) || a.nla_len > bytes.size()) return;
    visit(static_cast<uint16_t>(a.nla_type & NLA_TYPE_MASK), bytes.subspan(sizeof(nlattr), a.nla_len - sizeof(nlattr)));
    const size_t step = Align4(a.nla_len);
    if (step >= bytes.size()) return;
    bytes = bytes.subspan(step);
  }
}

// The value of the first attribute of `type` in a message (header of `fixed` bytes after nlmsghdr), empty where there is none.
Bytes FindAttribute(Bytes message, size_t fixed, uint16_t type);

// True where `message` starts with a header whose length fits it and `fixed` bytes follow.
bool WellFormed(Bytes message, size_t fixed);

// Sets length, flags, sequence number and port id of the message that starts at `at`.
void PatchHeader(Buffer* buffer, size_t at, uint16_t flags, uint32_t seq, uint32_t portid);

}  // namespace sluice::netlink
