#include "sentry/netlink/message.h"

#include <algorithm>

namespace sluice::netlink {

MessageWriter::MessageWriter(Buffer* out, uint16_t type, uint16_t flags, uint32_t seq, uint32_t portid)
    : out_(out), start_(out->size()) {
  const nlmsghdr header{.nlmsg_len = 0, .nlmsg_type = type, .nlmsg_flags = flags, .nlmsg_seq = seq, .nlmsg_pid = portid};
  Raw(AsBytes(header));
}

void MessageWriter::Raw(Bytes bytes) {
  out_->insert(out_->end(), bytes.begin(), bytes.end());
  out_->resize(start_ + Align4(size()));
}

void MessageWriter::Attr(uint16_t type, Bytes value) {
  const nlattr header{.nla_len = static_cast<uint16_t>(sizeof(nlattr) + value.size()), .nla_type = type};
  Raw(AsBytes(header));
  Raw(value);
}

void MessageWriter::Text(uint16_t type, std::string_view text) {
  const nlattr header{.nla_len = static_cast<uint16_t>(sizeof(nlattr) + text.size() + 1), .nla_type = type};
  Raw(AsBytes(header));
  out_->insert(out_->end(), text.begin(), text.end());
  out_->push_back(0);
  out_->resize(start_ + Align4(size()));
}

size_t MessageWriter::BeginNest(uint16_t type) {
  const size_t nest = out_->size();
  Attr(type, Bytes{});
  return nest;
}

void MessageWriter::EndNest(size_t nest) {
  const auto length = static_cast<uint16_t>(out_->size() - nest);
  std::memcpy(out_->data() + nest, &length, sizeof length);
}

void MessageWriter::Finish() {
  const auto length = static_cast<uint32_t>(size());
  std::memcpy(out_->data() + start_, &length, sizeof length);
}

std::string_view Attribute::text() const {
  if (value.empty()) return {};
  const auto* begin = reinterpret_cast<const char*>(value.data());
  return {begin, strnlen(begin, value.size())};
}

namespace {

Errno CheckShape(const AttributeRule& rule, const Attribute& a, bool strict) {
  const size_t n = a.value.size();
  auto at_least = [n](size_t want) { return n < want ? Errno::kERANGE : Errno::kOk; };
  switch (rule.shape) {
    case Shape::kAny:
      return Errno::kOk;
    case Shape::kU8:
      return at_least(1);
    case Shape::kU16:
      return at_least(2);
    case Shape::kU32:
      return at_least(4);
    case Shape::kU64:
      return at_least(8);
    case Shape::kText: {
      // As the kernel's NLA_STRING: at least one byte, a final zero does not count.
      if (n < 1) return Errno::kERANGE;
      const size_t length = a.value[n - 1] == 0 ? n - 1 : n;
      return length > rule.length ? Errno::kERANGE : Errno::kOk;
    }
    case Shape::kMaxBytes:
      return n > rule.length ? Errno::kERANGE : Errno::kOk;
    case Shape::kMinBytes:
      return at_least(rule.length);
    case Shape::kNested:
      if (strict && !a.nested) return Errno::kEINVAL;
      return n == 0 || n >= sizeof(nlattr) ? Errno::kOk : Errno::kERANGE;
    case Shape::kReject:
      return Errno::kEINVAL;
  }
  return Errno::kEINVAL;
}

}  // namespace

Errno AttributeTable::Parse(Bytes bytes, uint16_t max, std::span<const AttributeRule> rules, bool strict, uint32_t base,
                            ExtAck* ack) {
  table_ = {};
  max_ = std::min<int>(max, kMaxAttributes - 1);
  size_t at = 0;
  while (bytes.size() - at >= sizeof(nlattr)) {
    const nlattr header = LoadPrefix<nlattr>(bytes.subspan(at));
    if (header.nla_len < sizeof(nlattr) || header.nla_len > bytes.size() - at) break;
    const int type = header.nla_type & NLA_TYPE_MASK;
    const auto offset = static_cast<uint32_t>(base + at);
    Attribute a{.present = true,
                .nested = (header.nla_type & NLA_F_NESTED) != 0,
                .value = bytes.subspan(at + sizeof(nlattr), header.nla_len - sizeof(nlattr)),
                .offset = offset};
    at += std::min(Align4(header.nla_len), bytes.size() - at);
    if (type == 0 || type > max_) {
      if (!strict) continue;
      *ack = {"attribute of a type that is not known here", offset};
      return Errno::kEINVAL;
    }
    const auto rule = std::find_if(rules.begin(), rules.end(), [type](const AttributeRule& r) { return r.type == type; });
    if (rule != rules.end()) {
      if (const Errno e = CheckShape(*rule, a, strict); e != Errno::kOk) {
        *ack = {"attribute of a wrong form or length", offset};
        return e;
      }
    }
    table_[static_cast<size_t>(type)] = a;
  }
  if (strict && at < bytes.size()) {
    *ack = {"bytes left over behind the attributes", std::nullopt};
    return Errno::kEINVAL;
  }
  return Errno::kOk;
}

bool WellFormed(Bytes message, size_t fixed) {
  if (message.size() < sizeof(nlmsghdr) + fixed) return false;
  const uint32_t length = LoadPrefix<nlmsghdr>(message).nlmsg_len;
  return length >= sizeof(nlmsghdr) + fixed && length <= message.size();
}

Bytes FindAttribute(Bytes message, size_t fixed, uint16_t type) {
  Bytes found;
  if (!WellFormed(message, fixed)) return found;
  const size_t skip = sizeof(nlmsghdr) + Align4(fixed);
  if (message.size() <= skip) return found;
  bool seen = false;
  ForEachAttribute(message.subspan(skip), [&](uint16_t t, Bytes value) {
    if (t != type || seen) return;
    found = value;
    seen = true;
  });
  return found;
}

void PatchHeader(Buffer* buffer, size_t at, uint16_t flags, uint32_t seq, uint32_t portid) {
  nlmsghdr header = LoadPrefix<nlmsghdr>(Bytes(*buffer).subspan(at));
  header.nlmsg_flags = flags;
  header.nlmsg_seq = seq;
  header.nlmsg_pid = portid;
  std::memcpy(buffer->data() + at, &header, sizeof header);
}

}  // namespace sluice::netlink
