// Rules: RTM_GETRULE, RTM_NEWRULE, RTM_DELRULE (linux/fib_rules.h).
#include <linux/fib_rules.h>
#include <linux/if.h>

#include <algorithm>

#include "sentry/netlink/server_impl.h"

namespace sluice::netlink {
namespace {

constexpr uint16_t kMaxRuleAttribute = FRA_DPORT_RANGE + 8;  // newer kernels have some more
constexpr uint32_t kNoGroup = 0xffffffff;

constexpr AttributeRule kRuleRules[] = {{FRA_IIFNAME, Shape::kText, IFNAMSIZ - 1},
                                        {FRA_OIFNAME, Shape::kText, IFNAMSIZ - 1},
                                        {FRA_PRIORITY, Shape::kU32},
                                        {FRA_FWMARK, Shape::kU32},
                                        {FRA_FWMASK, Shape::kU32},
                                        {FRA_FLOW, Shape::kU32},
                                        {FRA_TUN_ID, Shape::kU64},
                                        {FRA_TABLE, Shape::kU32},
                                        {FRA_SUPPRESS_PREFIXLEN, Shape::kU32},
                                        {FRA_SUPPRESS_IFGROUP, Shape::kU32},
                                        {FRA_GOTO, Shape::kU32},
                                        {FRA_L3MDEV, Shape::kU8},
                                        {FRA_UID_RANGE, Shape::kMinBytes, 8},
                                        {FRA_PROTOCOL, Shape::kU8},
                                        {FRA_IP_PROTO, Shape::kU8},
                                        {FRA_SPORT_RANGE, Shape::kMinBytes, 4},
                                        {FRA_DPORT_RANGE, Shape::kMinBytes, 4}};

void ComposeRule(const RuleConfig& rule, Buffer* out) {
  MessageWriter w(out, RTM_NEWRULE);
  w.Header(fib_rule_hdr{.family = static_cast<uint8_t>(ToAf(rule.family)),
                        .dst_len = rule.dst_len,
                        .src_len = rule.src_len,
                        .tos = rule.tos,
                        .table = static_cast<uint8_t>(rule.table < 256 ? rule.table : RT_TABLE_COMPAT),
                        .action = rule.action,
                        .flags = rule.invert ? uint32_t{FIB_RULE_INVERT} : 0});
  w.U32(FRA_TABLE, rule.table);
  w.U32(FRA_SUPPRESS_PREFIXLEN, kNoGroup);
  w.U8(FRA_PROTOCOL, RTPROT_KERNEL);
  if (!rule.iif.empty()) w.Text(FRA_IIFNAME, rule.iif);
  if (!rule.oif.empty()) w.Text(FRA_OIFNAME, rule.oif);
  if (rule.priority != 0) w.U32(FRA_PRIORITY, rule.priority);
  if (rule.fwmark != 0) w.U32(FRA_FWMARK, rule.fwmark);
  if (rule.fwmark != 0 || rule.fwmask != 0) w.U32(FRA_FWMASK, rule.fwmask);
  if (rule.goto_target != 0) w.U32(FRA_GOTO, rule.goto_target);
  if (rule.dst_len != 0) w.Address(FRA_DST, rule.dst);
  if (rule.src_len != 0) w.Address(FRA_SRC, rule.src);
}

// Selectors that our stack does not apply: refused, because a rule without its selector would match other packets.
Errno RefuseUnsupported(Request& r, const AttributeTable& table) {
  for (int type = 1; type <= table.max(); ++type) {
    if (!table[type]) continue;
    switch (type) {
      case FRA_DST:
      case FRA_SRC:
      case FRA_IIFNAME:
      case FRA_OIFNAME:
      case FRA_GOTO:
      case FRA_PRIORITY:
      case FRA_FWMARK:
      case FRA_FWMASK:
      case FRA_TABLE:
      case FRA_PROTOCOL:
      case FRA_PAD:
        break;
      case FRA_SUPPRESS_PREFIXLEN:
      case FRA_SUPPRESS_IFGROUP:
        if (table[type].u32() == kNoGroup) break;
        [[fallthrough]];
      default:
        return r.Refuse(Errno::kEOPNOTSUPP, "sluice: rules select by from, to, tos, fwmark, iif and oif only", table[type]);
    }
  }
  return Errno::kOk;
}

Errno ReadRulePrefixes(Request& r, const AttributeTable& table, const fib_rule_hdr& header, RuleChange* change) {
  const auto bits = static_cast<uint8_t>(AddressSize(header.family) * 8);
  if (header.src_len > bits || header.dst_len > bits) return r.Refuse(Errno::kEINVAL, "a prefix is longer than an address");
  if ((header.src_len != 0 && !table[FRA_SRC]) || (header.dst_len != 0 && !table[FRA_DST])) {
    return r.Refuse(Errno::kEINVAL, "a prefix length without its address");
  }
  for (const auto& [type, field] : {std::pair{FRA_SRC, &change->src}, {FRA_DST, &change->dst}}) {
    if (table[type] && !ReadAddress(table[type], header.family, field)) {
      return r.Refuse(Errno::kEINVAL, "the address has a wrong length", table[type]);
    }
  }
  return Errno::kOk;
}

}  // namespace

void AppendRule(const RuleConfig& rule, Buffer* out) {
  if (!WellFormed(rule.netlink, sizeof(fib_rule_hdr))) return ComposeRule(rule, out);
  MessageWriter w(out, RTM_NEWRULE);
  w.Raw(Bytes(rule.netlink).subspan(sizeof(nlmsghdr)));
}

Errno DumpRules(Request& r) {
  const int af = r.Fixed<rtgenmsg>().rtgen_family;
  if (r.strict) {
    if (r.payload().size() < sizeof(fib_rule_hdr)) return r.Refuse(Errno::kEINVAL, "the header of a rule dump is too short");
    auto header = r.Fixed<fib_rule_hdr>();
    header.family = 0;
    const fib_rule_hdr zero{};
    if (std::memcmp(&header, &zero, sizeof zero) != 0 || r.payload().size() > sizeof header) {
      return r.Refuse(Errno::kEINVAL, "a rule dump takes only the family");
    }
  }
  const bool multicast = af == RTNL_FAMILY_IPMR || af == RTNL_FAMILY_IP6MR;
  if (multicast) return DumpNothing(r);
  if (af != AF_UNSPEC && af != AF_INET && af != AF_INET6) return Errno::kEAFNOSUPPORT;
  const Family family = ToFamily(af);
  r.dump = std::make_unique<ConfigDump>(r.backend.config(), [family](const NetConfig& c, size_t i, Buffer* out) {
    const size_t n = c.rules.size();
    if (i >= 2 * n) return false;
    const Family pass = i < n ? Family::kIpv4 : Family::kIpv6;
    const RuleConfig& rule = c.rules[i % n];
    if (rule.family == pass && (family == Family::kNone || family == pass)) AppendRule(rule, out);
    return true;
  });
  return Errno::kOk;
}

Errno ChangeRule(Request& r) {
  AttributeTable table;
  if (const Errno e = r.Parse<fib_rule_hdr>(&table, kMaxRuleAttribute, kRuleRules, false); e != Errno::kOk) return e;
  const auto header = r.Fixed<fib_rule_hdr>();
  if (header.family != AF_INET && header.family != AF_INET6) return Errno::kEAFNOSUPPORT;
  if (const Errno e = RefuseUnsupported(r, table); e != Errno::kOk) return e;
  if ((header.flags & ~uint32_t{FIB_RULE_INVERT | FIB_RULE_PERMANENT}) != 0) {
    return r.Refuse(Errno::kEOPNOTSUPP, "sluice: this flag of rules is not supported");
  }
  RuleChange change{.family = header.family, .src_len = header.src_len, .dst_len = header.dst_len, .tos = header.tos};
  if (const Errno e = ReadRulePrefixes(r, table, header, &change); e != Errno::kOk) return e;
  change.action = header.action;
  change.invert = (header.flags & FIB_RULE_INVERT) != 0;
  change.table = table[FRA_TABLE] ? table[FRA_TABLE].u32() : header.table;
  change.protocol = table[FRA_PROTOCOL] ? table[FRA_PROTOCOL].u8() : 0;
  if (table[FRA_PRIORITY]) change.has_priority = true, change.priority = table[FRA_PRIORITY].u32();
  if (table[FRA_FWMARK]) change.has_fwmark = true, change.fwmark = table[FRA_FWMARK].u32();
  if (table[FRA_FWMASK]) change.has_fwmask = true, change.fwmask = table[FRA_FWMASK].u32();
  if (table[FRA_GOTO]) change.goto_target = table[FRA_GOTO].u32();
  if (table[FRA_IIFNAME]) change.iif = ToNetName(table[FRA_IIFNAME].text());
  if (table[FRA_OIFNAME]) change.oif = ToNetName(table[FRA_OIFNAME].text());
  r.Change(r.header.nlmsg_type == RTM_NEWRULE ? NetChangeKind::kNewRule : NetChangeKind::kDeleteRule).rule = change;
  return Errno::kOk;
}

}  // namespace sluice::netlink
