#include "control/mirror/mirror.h"

#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace sluice {

std::vector<int> Mirror::Groups() {
  return {RTNLGRP_LINK,       RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV4_ROUTE,
          RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV4_RULE,   RTNLGRP_IPV6_RULE,   RTNLGRP_NEIGH};
}

Mirror::Mirror(UniqueFd events, UniqueFd dumps) : events_(std::move(events)), dumps_(std::move(dumps)) {
  events_.SetNonblocking();
}

Status Mirror::ReadAll() {
  DrainEvents();
  return Read(kAll);
}

Status Mirror::Follow(bool* changed) {
  const unsigned dirty = DrainEvents();
  *changed = dirty != 0;
  return dirty != 0 ? Read(dirty) : Status();
}

unsigned Mirror::DrainEvents() {
  unsigned dirty = 0;
  for (;;) {
    const int error = events_.ReadEvents([&](const nlmsghdr* m) {
      switch (m->nlmsg_type) {
        // A device that goes down or away takes routes along, for which the kernel sends no events.
        case RTM_NEWLINK:
        case RTM_DELLINK:
          OnLinkEvent(m);
          dirty |= kLinks | kAddresses | kRoutes | kNeighbors;
          break;
        case RTM_NEWADDR:
        case RTM_DELADDR:
          dirty |= kAddresses | kRoutes;
          break;
        case RTM_NEWROUTE:
        case RTM_DELROUTE:
          dirty |= kRoutes;
          break;
        case RTM_NEWRULE:
        case RTM_DELRULE:
          dirty |= kRules;
          break;
        case RTM_NEWNEIGH:
        case RTM_DELNEIGH:
          dirty |= kNeighbors;
          break;
        default:
          break;
      }
    });
    if (error == ENOBUFS) {  // events were lost
      dirty = kAll;
      lost_ = true;
    } else if (error != 0) {
      return dirty;
    }
  }
}

void Mirror::OnLinkEvent(const nlmsghdr* message) {
  LinkConfig link;
  if (ParseLink(message, &link)) return NoteLink(link);
  ifinfomsg header;
  Attributes unused;
  // A bridge says RTM_DELLINK of a device that leaves it, in its own family.
  if (message->nlmsg_type != RTM_DELLINK || !ParseMessage(message, &header, &unused) || header.ifi_family != AF_UNSPEC) return;
  // Its index may come back, as another device's.
  seen_.erase(header.ifi_index);
  link_changes_.erase(header.ifi_index);
}

void Mirror::NoteLink(const LinkConfig& link) {
  const auto seen = seen_.find(link.index);
  if (seen == seen_.end()) return;
  if (seen->second.up && !link.up()) ++link_changes_[link.index].downs;
  if (seen->second.mtu != link.mtu) ++link_changes_[link.index].mtu_changes;
  seen->second = {link.up(), link.mtu};
}

void Mirror::NoteLinksAfterLoss() {
  for (const LinkConfig& link : tables_.links) NoteLink(link);
  const auto is_gone = [this](const auto& entry) {
    return std::ranges::find(tables_.links, entry.first, &LinkConfig::index) == tables_.links.end();
  };
  std::erase_if(seen_, is_gone);
  std::erase_if(link_changes_, is_gone);
}

template <typename T>
int Mirror::ReadTable(uint16_t type, size_t header_size, bool (*parse)(const nlmsghdr*, T*), std::vector<T>* out) {
  NetlinkMessage request(type, NLM_F_REQUEST | NLM_F_DUMP);
  const std::vector<uint8_t> header(header_size);  // family 0: all
  request.Raw(header.data(), header.size());
  std::vector<T> fresh;
  const int error = dumps_.Dump(
      request,
      [&](const nlmsghdr* m) {
        T one;
        if (parse(m, &one)) fresh.push_back(std::move(one));
      },
      [&] { fresh.clear(); });
  if (error == 0) *out = std::move(fresh);
  return error;
}

Status Mirror::Read(unsigned tables) {
  int error = 0;
  if ((tables & kLinks) != 0 && error == 0) error = ReadTable(RTM_GETLINK, sizeof(ifinfomsg), ParseLink, &tables_.links);
  if ((tables & kAddresses) != 0 && error == 0)
    error = ReadTable(RTM_GETADDR, sizeof(ifaddrmsg), ParseAddress, &tables_.addresses);
  if ((tables & kRoutes) != 0 && error == 0) error = ReadTable(RTM_GETROUTE, sizeof(rtmsg), ParseRoute, &tables_.routes);
  if ((tables & kRules) != 0 && error == 0) error = ReadTable(RTM_GETRULE, sizeof(fib_rule_hdr), ParseRule, &tables_.rules);
  if ((tables & kNeighbors) != 0 && error == 0) error = ReadTable(RTM_GETNEIGH, sizeof(ndmsg), ParseNeighbor, &tables_.neighbors);
  if (error != 0) return Status::Error("cannot read the tables of the namespace" + ErrnoText(error));
  if (std::exchange(lost_, false)) NoteLinksAfterLoss();
  for (const LinkConfig& link : tables_.links) seen_.try_emplace(link.index, LinkState{link.up(), link.mtu});
  return {};
}

}  // namespace sluice
