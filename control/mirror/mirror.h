// Reads the kernel's tables of the namespace and follows them. An event only says which table changed; the table is then read
// again whole, so a lost event or an unusual order of events cannot leave the mirror wrong. One thread, the sentry's control
// thread; the sockets were opened by somebody inside the namespace.
#pragma once

#include <map>
#include <vector>

#include "base/unique_fd.h"
#include "control/mirror/tables.h"
#include "control/rtnl.h"

namespace sluice {

class Mirror {
 public:
  // Groups that `events` has to be a member of.
  static std::vector<int> Groups();
  Mirror(UniqueFd events, UniqueFd dumps);

  int event_fd() const { return events_.fd(); }  // readable: call Follow
  // Reads every table.
  Status ReadAll();
  // Takes the events that wait and reads the tables they name. `changed`: something was read.
  Status Follow(bool* changed);
  const KernelTables& tables() const { return tables_; }
  // Of the devices that are there and were seen to change, since the first reading. Exact, as each change has its event, but
  // where events were lost: then what differs afterwards counts once.
  struct LinkChanges {
    uint64_t downs = 0, mtu_changes = 0;
  };
  const std::map<IfIndex, LinkChanges>& link_changes() const { return link_changes_; }

 private:
  enum Table : unsigned { kLinks = 1, kAddresses = 2, kRoutes = 4, kRules = 8, kNeighbors = 16, kAll = 31 };
  unsigned DrainEvents();
  void OnLinkEvent(const nlmsghdr* message);
  void NoteLink(const LinkConfig& link);
  void NoteLinksAfterLoss();
  Status Read(unsigned tables);
  template <typename T>
  int ReadTable(uint16_t type, size_t header_size, bool (*parse)(const nlmsghdr*, T*), std::vector<T>* out);

  NetlinkClient events_, dumps_;
  KernelTables tables_;
  struct LinkState {
    bool up = false;
    uint32_t mtu = 0;
  };
  std::map<IfIndex, LinkState> seen_;  // as of the first reading, then of each event
  std::map<IfIndex, LinkChanges> link_changes_;
  bool lost_ = false;  // events, since the links were read
};

}  // namespace sluice
