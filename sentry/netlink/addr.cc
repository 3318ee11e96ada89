// Addresses: RTM_GETADDR, RTM_NEWADDR, RTM_DELADDR (linux/if_addr.h).
#include <linux/if.h>
#include <linux/if_addr.h>

#include <algorithm>

#include "sentry/netlink/server_impl.h"

namespace sluice::netlink {
namespace {

constexpr AttributeRule kAddressRules4[] = {
    {IFA_ADDRESS, Shape::kU32},       {IFA_LOCAL, Shape::kU32},
    {IFA_BROADCAST, Shape::kU32},     {IFA_LABEL, Shape::kText, IFNAMSIZ - 1},
    {IFA_FLAGS, Shape::kU32},         {IFA_CACHEINFO, Shape::kMinBytes, sizeof(ifa_cacheinfo)},
    {IFA_RT_PRIORITY, Shape::kU32},   {IFA_PROTO, Shape::kU8},
    {IFA_TARGET_NETNSID, Shape::kU32}};
constexpr AttributeRule kAddressRules6[] = {{IFA_ADDRESS, Shape::kMinBytes, 16},
                                            {IFA_LOCAL, Shape::kMinBytes, 16},
                                            {IFA_FLAGS, Shape::kU32},
                                            {IFA_CACHEINFO, Shape::kMinBytes, sizeof(ifa_cacheinfo)},
                                            {IFA_RT_PRIORITY, Shape::kU32},
                                            {IFA_PROTO, Shape::kU8},
                                            {IFA_TARGET_NETNSID, Shape::kU32}};
constexpr uint16_t kMaxAddressAttribute = IFA_PROTO;

constexpr uint32_t kForever = 0xffffffff;
constexpr uint8_t kProtoKernelLoopback = 1;  // IFAPROT_KERNEL_LO

void ComposeAddress(const AddressConfig& a, Buffer* out) {
  MessageWriter w(out, RTM_NEWADDR);
  w.Header(ifaddrmsg{.ifa_family = static_cast<uint8_t>(ToAf(a.local.family())),
                     .ifa_prefixlen = a.prefix_len,
                     .ifa_flags = static_cast<uint8_t>(a.flags),
                     .ifa_scope = a.scope,
                     .ifa_index = static_cast<uint32_t>(a.ifindex)});
  const ifa_cacheinfo lifetime{.ifa_prefered = kForever, .ifa_valid = kForever};
  if (a.local.is_v6()) {
    if (a.peer && a.peer != a.local) {
      w.Address(IFA_LOCAL, a.local);
      w.Address(IFA_ADDRESS, a.peer);
    } else {
      w.Address(IFA_ADDRESS, a.local);
    }
    w.Struct(IFA_CACHEINFO, lifetime);
    w.U32(IFA_FLAGS, a.flags);
    if (a.local.IsLoopback()) w.U8(IFA_PROTO, kProtoKernelLoopback);
    return;
  }
  w.Address(IFA_ADDRESS, a.peer ? a.peer : a.local);
  w.Address(IFA_LOCAL, a.local);
  if (a.broadcast) w.Address(IFA_BROADCAST, a.broadcast);
  if (!a.label.empty()) w.Text(IFA_LABEL, a.label);
  w.U32(IFA_FLAGS, a.flags);
  w.Struct(IFA_CACHEINFO, lifetime);
}

Errno ReadAddressFilter(Request& r, int32_t* ifindex) {
  *ifindex = 0;
  if (!r.strict) return Errno::kOk;
  if (r.payload().size() < sizeof(ifaddrmsg)) return r.Refuse(Errno::kEINVAL, "the header of an address dump is too short");
  const auto header = r.Fixed<ifaddrmsg>();
  if (header.ifa_prefixlen != 0 || header.ifa_flags != 0 || header.ifa_scope != 0) {
    return r.Refuse(Errno::kEINVAL, "an address dump takes only family and device in its header");
  }
  AttributeTable table;
  if (const Errno e = r.Parse<ifaddrmsg>(&table, kMaxAddressAttribute, kAddressRules4, true); e != Errno::kOk) return e;
  for (int type = 1; type <= table.max(); ++type) {
    if (table[type]) return r.Refuse(Errno::kEINVAL, "an address dump cannot be filtered by this attribute", table[type]);
  }
  *ifindex = static_cast<int32_t>(header.ifa_index);
  return Errno::kOk;
}

// The cacheinfo's lifetimes; without one an address lives for ever.
void ReadLifetime(const Attribute& attribute, AddressChange* change) {
  if (!attribute) return;
  const auto info = LoadPrefix<ifa_cacheinfo>(attribute.value);
  change->has_cacheinfo = true;
  change->preferred = info.ifa_prefered;
  change->valid = info.ifa_valid;
}

}  // namespace

void AppendAddress(const AddressConfig& address, Buffer* out) {
  if (!WellFormed(address.netlink, sizeof(ifaddrmsg))) return ComposeAddress(address, out);
  MessageWriter w(out, RTM_NEWADDR);
  w.Raw(Bytes(address.netlink).subspan(sizeof(nlmsghdr)));
}

Errno DumpAddresses(Request& r) {
  const Family family = ToFamily(r.Fixed<rtgenmsg>().rtgen_family);
  int32_t ifindex = 0;
  if (const Errno e = ReadAddressFilter(r, &ifindex); e != Errno::kOk) return e;
  if (ifindex != 0) r.dump_flags = r.done_flags = NLM_F_DUMP_FILTERED;
  const auto config = r.backend.config();
  if (ifindex != 0 && family != Family::kNone && FindLink(*config, ifindex) == nullptr) return Errno::kENODEV;
  // Of both families IPv4 comes first.
  r.dump = std::make_unique<ConfigDump>(config, [family, ifindex](const NetConfig& c, size_t i, Buffer* out) {
    const size_t n = c.addresses.size();
    if (i >= 2 * n) return false;
    const AddressConfig& address = c.addresses[i % n];
    const Family pass = i < n ? Family::kIpv4 : Family::kIpv6;
    if (address.local.family() != pass || (family != Family::kNone && family != pass)) return true;
    if (ifindex == 0 || address.ifindex == ifindex) AppendAddress(address, out);
    return true;
  });
  return Errno::kOk;
}

// A single address can be asked for in IPv6 only, as in Linux.
Errno GetAddress(Request& r) {
  const auto header = r.Fixed<ifaddrmsg>();
  if (header.ifa_family != AF_INET6) return Errno::kEOPNOTSUPP;
  AttributeTable table;
  if (const Errno e = r.Parse<ifaddrmsg>(&table, kMaxAddressAttribute, kAddressRules6, r.strict); e != Errno::kOk) return e;
  const Attribute& wanted = table[IFA_LOCAL] ? table[IFA_LOCAL] : table[IFA_ADDRESS];
  NetAddress address;
  if (!wanted || !ReadAddress(wanted, AF_INET6, &address)) return Errno::kEINVAL;
  const auto config = r.backend.config();
  for (const AddressConfig& a : config->addresses) {
    if (a.local == ToIpAddress(address) && (header.ifa_index == 0 || a.ifindex == static_cast<IfIndex>(header.ifa_index))) {
      AppendAddress(a, &r.replies.emplace_back());
      return Errno::kOk;
    }
  }
  return Errno::kEADDRNOTAVAIL;
}

Errno ChangeAddress(Request& r) {
  const int family = r.Fixed<rtgenmsg>().rtgen_family;
  const bool add = r.header.nlmsg_type == RTM_NEWADDR;
  if (family != AF_INET && family != AF_INET6) return Errno::kEOPNOTSUPP;
  AttributeTable table;
  const std::span<const AttributeRule> rules =
      family == AF_INET ? std::span<const AttributeRule>(kAddressRules4) : kAddressRules6;
  if (const Errno e = r.Parse<ifaddrmsg>(&table, kMaxAddressAttribute, rules, false); e != Errno::kOk) return e;
  if (table[IFA_TARGET_NETNSID]) {
    return r.Refuse(Errno::kEINVAL, "other network namespaces cannot be changed", table[IFA_TARGET_NETNSID]);
  }
  const auto header = r.Fixed<ifaddrmsg>();
  AddressChange change{.ifindex = static_cast<int32_t>(header.ifa_index),
                       .family = header.ifa_family,
                       .prefix_len = header.ifa_prefixlen,
                       .scope = header.ifa_scope};
  for (const auto& [type, field] :
       {std::pair{IFA_LOCAL, &change.local}, {IFA_ADDRESS, &change.address}, {IFA_BROADCAST, &change.broadcast}}) {
    if (table[type] && !ReadAddress(table[type], family, field)) {
      return r.Refuse(Errno::kEINVAL, "the address has a wrong length", table[type]);
    }
  }
  if (add && change.local.family == 0 && (family == AF_INET || change.address.family == 0)) {
    return r.Refuse(Errno::kEINVAL, "the request has no local address");
  }
  if ((add || change.ifindex != 0) && FindLink(*r.backend.config(), change.ifindex) == nullptr) return Errno::kENODEV;
  if (table[IFA_LABEL]) change.label = ToNetName(table[IFA_LABEL].text());
  change.flags = table[IFA_FLAGS] ? table[IFA_FLAGS].u32() : header.ifa_flags;
  change.proto = table[IFA_PROTO] ? table[IFA_PROTO].u8() : 0;
  change.route_priority = table[IFA_RT_PRIORITY] ? table[IFA_RT_PRIORITY].u32() : 0;
  ReadLifetime(table[IFA_CACHEINFO], &change);
  r.Change(add ? NetChangeKind::kNewAddress : NetChangeKind::kDeleteAddress).address = change;
  return Errno::kOk;
}

bool ReadAddress(const Attribute& attribute, int af, NetAddress* out) {
  const size_t size = AddressSize(af);
  if (size == 0 || attribute.value.size() < size) return false;
  out->family = static_cast<uint8_t>(af);
  std::copy_n(attribute.value.begin(), size, out->bytes.begin());
  return true;
}

IpAddress ToIpAddress(const NetAddress& address) {
  return IpAddress::FromBytes(Bytes(address.bytes).first(AddressSize(address.family)));
}

NetName ToNetName(std::string_view text) {
  NetName name{};
  std::copy_n(text.begin(), std::min(text.size(), name.size() - 1), name.begin());
  return name;
}

}  // namespace sluice::netlink
