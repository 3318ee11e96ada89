// Multicast notifications: what differs between two configurations, as the kernel would have told it change by change.
#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/neighbour.h>

#include <algorithm>

#include "sentry/netlink/server_impl.h"

namespace sluice::netlink {
namespace {

// A message without what changes by itself (counters, time stamps), to tell whether something was changed.
Buffer Canonical(Bytes message, size_t fixed, std::span<const uint16_t> ignored) {
  Buffer out;
  if (!WellFormed(message, fixed)) return out;
  MessageWriter w(&out, 0);
  w.Raw(message.subspan(sizeof(nlmsghdr), fixed));
  const size_t skip = sizeof(nlmsghdr) + Align4(fixed);
  if (message.size() <= skip) return out;
  ForEachAttribute(message.subspan(skip), [&](uint16_t type, Bytes value) {
    if (std::find(ignored.begin(), ignored.end(), type) == ignored.end()) w.Attr(type, value);
  });
  return out;
}

Buffer CanonicalLink(const LinkConfig& link) {
  static constexpr uint16_t kIgnored[] = {IFLA_STATS, IFLA_STATS64, IFLA_AF_SPEC, IFLA_EVENT};
  Buffer message;
  AppendLink(link, {}, RTEXT_FILTER_SKIP_STATS, 0, &message);
  return Canonical(message, sizeof(ifinfomsg), kIgnored);
}

Buffer CanonicalAddress(const AddressConfig& address) {
  static constexpr uint16_t kIgnored[] = {IFA_CACHEINFO};
  Buffer message;
  AppendAddress(address, &message);
  Buffer canonical = Canonical(message, sizeof(ifaddrmsg), kIgnored);
  // Lifetimes run down by themselves; the time of the last update tells when they were set anew.
  const auto lifetime = LoadPrefix<ifa_cacheinfo>(FindAttribute(message, sizeof(ifaddrmsg), IFA_CACHEINFO));
  const Bytes updated = AsBytes(lifetime.tstamp);
  canonical.insert(canonical.end(), updated.begin(), updated.end());
  return canonical;
}

Buffer CanonicalRoute(const RouteConfig& route) {
  static constexpr uint16_t kIgnored[] = {RTA_CACHEINFO, RTA_EXPIRES};
  Buffer message;
  AppendRoute(route, &message);
  return Canonical(message, sizeof(rtmsg), kIgnored);
}

Buffer CanonicalRule(const RuleConfig& rule) {
  Buffer message;
  AppendRule(rule, &message);
  return Canonical(message, sizeof(fib_rule_hdr), {});
}

void SetType(Buffer* message, uint16_t type) {
  auto header = LoadPrefix<nlmsghdr>(*message);
  header.nlmsg_type = type;
  std::memcpy(message->data(), &header, sizeof header);
}

template <typename Object>
using ByCanonical = std::map<Buffer, const Object*>;

template <typename Object, typename Canonicalize>
ByCanonical<Object> Index(const std::vector<Object>& objects, Canonicalize canonicalize) {
  ByCanonical<Object> index;
  for (const Object& o : objects) index.emplace(canonicalize(o), &o);
  return index;
}

// Objects without an identity of their own: what is gone is deleted, what is new is added. `same(before, after)` (may be nullptr)
// tells that an added object replaces a deleted one, of which then nothing is said.
template <typename Object, typename Canonicalize, typename Append, typename Group, typename Same>
void Diff(const std::vector<Object>& before, const std::vector<Object>& after, uint16_t new_type, uint16_t delete_type,
          Canonicalize canonicalize, Append append, Group group, Same same, std::vector<Notification>* out) {
  const auto old_index = Index(before, canonicalize);
  const auto new_index = Index(after, canonicalize);
  std::vector<const Object*> added;
  for (const Object& o : after) {
    if (!old_index.contains(canonicalize(o))) added.push_back(&o);
  }
  for (const Object& o : before) {
    if (new_index.contains(canonicalize(o))) continue;
    if constexpr (!std::is_null_pointer_v<Same>) {
      if (std::any_of(added.begin(), added.end(), [&](const Object* n) { return same(o, *n); })) continue;
    }
    Notification& n = out->emplace_back(Notification{.group = group(o), .message = {}});
    append(o, &n.message);
    SetType(&n.message, delete_type);
  }
  for (const Object* o : added) {
    Notification& n = out->emplace_back(Notification{.group = group(*o), .message = {}});
    append(*o, &n.message);
    SetType(&n.message, new_type);
  }
}

void DiffNeighbors(const NetConfig& before, const NetConfig& after, std::vector<Notification>* out) {
  auto key = [](const NeighborConfig& n) { return std::tuple(n.ifindex, n.address, n.mac, n.state, n.flags); };
  auto find = [&](const std::vector<NeighborConfig>& list, const NeighborConfig& wanted) {
    return std::any_of(list.begin(), list.end(), [&](const NeighborConfig& n) { return key(n) == key(wanted); });
  };
  auto add = [&](const NeighborConfig& n, uint16_t type) {
    Notification& note = out->emplace_back(Notification{.group = RTNLGRP_NEIGH, .message = {}});
    const NeighborInfo info{.ifindex = n.ifindex, .address = n.address, .mac = n.mac, .state = n.state, .probes = 0};
    AppendNeighbor(info, n.flags, &note.message);
    SetType(&note.message, type);
  };
  for (const NeighborConfig& n : before.neighbors) {
    if (!find(after.neighbors, n)) add(n, RTM_DELNEIGH);
  }
  for (const NeighborConfig& n : after.neighbors) {
    if (!find(before.neighbors, n)) add(n, RTM_NEWNEIGH);
  }
}

uint32_t ByFamily(Family family, uint32_t ipv4, uint32_t ipv6) { return family == Family::kIpv6 ? ipv6 : ipv4; }

}  // namespace

std::vector<Notification> Differences(const NetConfig& before, const NetConfig& after, const Backend& backend) {
  std::vector<Notification> out;
  auto append_link = [&](const LinkConfig& l, Buffer* m) { AppendLink(l, backend.link_counters(l.index), 0, 0xffffffff, m); };
  // The kernel's order when a device comes or goes: link, addresses, routes; the other way round matters to nobody.
  Diff(
      before.links, after.links, RTM_NEWLINK, RTM_DELLINK, CanonicalLink, append_link,
      [](const LinkConfig&) { return uint32_t{RTNLGRP_LINK}; },
      [](const LinkConfig& a, const LinkConfig& b) { return a.index == b.index; }, &out);
  Diff(
      before.addresses, after.addresses, RTM_NEWADDR, RTM_DELADDR, CanonicalAddress, AppendAddress,
      [](const AddressConfig& a) { return ByFamily(a.local.family(), RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR); },
      [](const AddressConfig& a, const AddressConfig& b) {
        return a.ifindex == b.ifindex && a.local == b.local && a.peer == b.peer && a.prefix_len == b.prefix_len;
      },
      &out);
  Diff(
      before.routes, after.routes, RTM_NEWROUTE, RTM_DELROUTE, CanonicalRoute, AppendRoute,
      [](const RouteConfig& r) { return ByFamily(r.dst.family(), RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE); }, nullptr, &out);
  Diff(
      before.rules, after.rules, RTM_NEWRULE, RTM_DELRULE, CanonicalRule, AppendRule,
      [](const RuleConfig& r) { return ByFamily(r.family, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_RULE); }, nullptr, &out);
  DiffNeighbors(before, after, &out);
  for (Notification& n : out) PatchHeader(&n.message, 0, 0, 0, 0);
  return out;
}

}  // namespace sluice::netlink
