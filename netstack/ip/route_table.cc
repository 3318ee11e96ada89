#include "netstack/ip/route_table.h"

#include <algorithm>

namespace sluice {
namespace {

constexpr uint8_t kFrActToTable = 1, kFrActGoto = 2, kFrActNop = 3, kFrActBlackhole = 6, kFrActUnreachable = 7,
                  kFrActProhibit = 8;
constexpr uint32_t kHopDead = 1, kHopLinkDown = 16;  // RTNH_F_*
constexpr uint32_t kAddressSecondary = 0x01;         // IFA_F_SECONDARY

// linux fib_props: what a route of a type answers.
Errno TypeError(uint8_t type) {
  switch (type) {
    case kRtnBlackhole:
      return Errno::kEINVAL;
    case kRtnUnreachable:
      return Errno::kEHOSTUNREACH;
    case kRtnProhibit:
      return Errno::kEACCES;
    default:
      return Errno::kOk;
  }
}

}  // namespace

IpAddress MaskAddress(const IpAddress& address, int prefix_len) {
  uint8_t bytes[16];
  const size_t size = address.bytes().size();
  std::memcpy(bytes, address.bytes().data(), size);
  for (size_t i = 0; i < size; ++i) {
    const int bits = std::clamp(prefix_len - static_cast<int>(8 * i), 0, 8);
    bytes[i] &= static_cast<uint8_t>(0xff00 >> bits);
  }
  return IpAddress::FromBytes({bytes, size});
}

RouteTable::RouteTable(std::shared_ptr<const NetConfig> config) : config_(std::move(config)) {
  for (const LinkConfig& l : config_->links) {
    if (l.up()) up_.insert(l.index);
  }
  for (const AddressConfig& a : config_->addresses) {
    local_.insert(a.local);
    if (a.broadcast) broadcast_.emplace_back(a.broadcast, a.ifindex);
  }
  for (const RouteConfig& r : config_->routes) {
    if (!r.dst) continue;
    const int max_len = r.dst.is_v4() ? 32 : 128;
    if (r.prefix_len > max_len) continue;
    routes_[Key{r.table, r.prefix_len, MaskAddress(r.dst, r.prefix_len)}].push_back(&r);
    lengths_[TableId{r.table, r.dst.family()}].push_back(r.prefix_len);
    if (r.type == kRtnLocal) {
      if (r.prefix_len == max_len) {
        local_.insert(r.dst);
      } else {
        local_prefixes_.push_back(&r);
      }
    }
    if (r.type == kRtnBroadcast && r.prefix_len == max_len) {
      broadcast_.emplace_back(r.dst, r.next_hops.empty() ? 0 : r.next_hops[0].ifindex);
    }
  }
  for (auto& [key, list] : routes_) {
    // A route of the asked TOS comes before those of any, then the metric decides; the order of the configuration breaks ties.
    std::stable_sort(list.begin(), list.end(), [](const RouteConfig* a, const RouteConfig* b) {
      return a->tos != b->tos ? a->tos > b->tos : a->priority < b->priority;
    });
  }
  for (auto& [id, lengths] : lengths_) {
    std::sort(lengths.begin(), lengths.end(), std::greater<>());
    lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  }
  for (const RuleConfig& r : config_->rules) rules_[r.family == Family::kIpv6 ? 1 : 0].push_back(&r);
  for (auto& list : rules_) {
    std::stable_sort(list.begin(), list.end(),
                     [](const RuleConfig* a, const RuleConfig* b) { return a->priority < b->priority; });
  }
}

const std::string* RouteTable::NameOf(IfIndex ifindex) const {
  for (const LinkConfig& l : config_->links) {
    if (l.index == ifindex) return &l.name;
  }
  return nullptr;
}

bool RouteTable::RuleMatches(const RuleConfig& rule, const RouteQuery& q) const {
  auto matches = [&] {
    if (rule.src_len > 0 && !(q.source && q.source.InPrefix(rule.src, rule.src_len))) return false;
    if (rule.dst_len > 0 && !q.destination.InPrefix(rule.dst, rule.dst_len)) return false;
    if (rule.tos != 0 && rule.tos != (q.tos & 0x1c)) return false;
    if (((q.mark ^ rule.fwmark) & rule.fwmask) != 0) return false;
    if (!rule.iif.empty() && rule.iif != "lo") return false;  // what a host sends itself comes in by the loopback
    if (!rule.oif.empty()) {
      const std::string* name = NameOf(q.ifindex);
      if (name == nullptr || *name != rule.oif) return false;
    }
    return true;
  };
  return matches() != rule.invert;
}

bool RouteTable::HopUsable(const NextHop& hop, const RouteQuery& q) const {
  if ((hop.flags & (kHopDead | kHopLinkDown)) != 0) return false;
  if (q.ifindex != 0 && hop.ifindex != q.ifindex) return false;
  return up_.contains(hop.ifindex);
}

bool RouteTable::Take(const RouteConfig& r, const RouteQuery& q, Match* match) const {
  if (r.tos != 0 && r.tos != (q.tos & 0x1c)) return false;
  if (const Errno error = TypeError(r.type); error != Errno::kOk) {
    *match = Match{error, &r, nullptr, false};
    return true;
  }
  if (q.dont_route && r.scope < kScopeLink) return false;
  uint32_t total = 0;
  const NextHop* only = nullptr;
  for (const NextHop& h : r.next_hops) {
    if (!HopUsable(h, q)) continue;
    total += h.weight;
    only = &h;
  }
  if (only == nullptr) return false;
  *match = Match{Errno::kOk, &r, only, false};
  if (r.next_hops.size() > 1 && total > 0) {
    // The hash space is divided by weight, so that a flow stays on its path.
    match->multipath = true;
    uint32_t at = static_cast<uint32_t>((uint64_t{q.flow_hash} * total) >> 32);
    for (const NextHop& h : r.next_hops) {
      if (!HopUsable(h, q)) continue;
      match->hop = &h;
      if (at < h.weight) break;
      at -= h.weight;
    }
  }
  return true;
}

bool RouteTable::FindIn(uint32_t table, const RouteQuery& q, Match* match) const {
  const auto lengths = lengths_.find(TableId{table, q.destination.family()});
  if (lengths == lengths_.end()) return false;
  for (const uint8_t len : lengths->second) {
    const auto it = routes_.find(Key{table, len, MaskAddress(q.destination, len)});
    if (it == routes_.end()) continue;
    for (const RouteConfig* r : it->second) {
      if (r->type == kRtnThrow && (r->tos == 0 || r->tos == (q.tos & 0x1c))) return false;
      if (Take(*r, q, match)) return true;
    }
  }
  return false;
}

RouteTable::Match RouteTable::Find(const RouteQuery& q) const {
  Match match;
  const auto& rules = rules_[q.destination.is_v6() ? 1 : 0];
  for (size_t i = 0; i < rules.size(); ++i) {
    const RuleConfig& rule = *rules[i];
    if (!RuleMatches(rule, q)) continue;
    switch (rule.action) {
      case kFrActToTable:
        if (FindIn(rule.table, q, &match)) return match;
        break;
      case kFrActGoto: {
        size_t to = i + 1;  // only forward (as the kernel enforces), so this ends
        while (to < rules.size() && rules[to]->priority < rule.goto_target) ++to;
        i = to - 1;
        break;
      }
      case kFrActBlackhole:
        return Match{Errno::kEINVAL};
      case kFrActUnreachable:
        return Match{Errno::kENETUNREACH};
      case kFrActProhibit:
        return Match{Errno::kEACCES};
      case kFrActNop:
      default:
        break;
    }
  }
  return match;
}

bool RouteTable::IsLocal(const IpAddress& address) const {
  if (address.IsLoopback() || local_.contains(address)) return true;
  for (const RouteConfig* r : local_prefixes_) {
    if (address.InPrefix(r->dst, r->prefix_len)) return true;
  }
  return false;
}

bool RouteTable::IsBroadcast(const IpAddress& address, IfIndex ifindex) const {
  if (address.IsLimitedBroadcast()) return true;
  for (const auto& [broadcast, device] : broadcast_) {
    if (broadcast == address && (ifindex == 0 || ifindex == device)) return true;
  }
  return false;
}

IpAddress RouteTable::SelectSource(IfIndex ifindex, const IpAddress& towards, uint8_t scope) const {
  IpAddress first, elsewhere;
  for (const AddressConfig& a : config_->addresses) {
    if (a.local.family() != towards.family() || a.scope > scope) continue;
    if (a.ifindex == ifindex) {
      if ((a.flags & kAddressSecondary) != 0) continue;
      if (towards.InPrefix(a.peer ? a.peer : a.local, a.prefix_len)) return a.local;
      if (!first) first = a.local;
    } else if (!elsewhere && a.scope != kScopeLink) {
      elsewhere = a.local;
    }
  }
  return first ? first : elsewhere;
}

IfIndex RouteTable::DeviceOf(const IpAddress& address) const {
  for (const AddressConfig& a : config_->addresses) {
    if (a.local == address) return a.ifindex;
  }
  return 0;
}

}  // namespace sluice
