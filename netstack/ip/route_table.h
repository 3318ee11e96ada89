// The forwarding tables of a configuration, as linux/net/ipv4/fib_*: rules choose a table, a table gives the longest prefix, the
// best metric, a next hop. Both families. Immutable once built.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "base/errno.h"
#include "netstack/config.h"
#include "netstack/ip/ip.h"

namespace sluice {

// linux/rtnetlink.h
enum RouteType : uint8_t {
  kRtnUnicast = 1,
  kRtnLocal = 2,
  kRtnBroadcast = 3,
  kRtnAnycast = 4,
  kRtnMulticast = 5,
  kRtnBlackhole = 6,
  kRtnUnreachable = 7,
  kRtnProhibit = 8,
  kRtnThrow = 9,
};
inline constexpr uint8_t kScopeUniverse = 0, kScopeLink = 253, kScopeHost = 254;
inline constexpr uint32_t kTableLocal = 255, kTableMain = 254;

class RouteTable {
 public:
  // Keeps pointers into `config`.
  explicit RouteTable(std::shared_ptr<const NetConfig> config);

  struct Match {
    Errno error = Errno::kENETUNREACH;  // kOk: `route` is set (and `hop`, for types that have one)
    const RouteConfig* route = nullptr;
    const NextHop* hop = nullptr;
    bool multipath = false;  // the flow hash had a say
  };
  Match Find(const RouteQuery& query) const;

  bool IsLocal(const IpAddress& address) const;
  bool IsBroadcast(const IpAddress& address, IfIndex ifindex) const;  // ifindex 0: of any device
  // The source for packets that leave by `ifindex` towards `towards` (as linux inet_select_addr), none where there is none.
  IpAddress SelectSource(IfIndex ifindex, const IpAddress& towards, uint8_t scope) const;
  // The device that has `address`, or 0.
  IfIndex DeviceOf(const IpAddress& address) const;

 private:
  struct Key {
    uint32_t table;
    uint8_t prefix_len;
    IpAddress prefix;
    bool operator==(const Key&) const = default;
    template <typename H>
    friend H AbslHashValue(H h, const Key& k) {
      return H::combine(std::move(h), k.table, k.prefix_len, k.prefix);
    }
  };
  struct TableId {
    uint32_t table;
    Family family;
    auto operator<=>(const TableId&) const = default;
  };
  bool RuleMatches(const RuleConfig& rule, const RouteQuery& query) const;
  // False: nothing here, go on with the next rule.
  bool FindIn(uint32_t table, const RouteQuery& query, Match* match) const;
  bool Take(const RouteConfig& route, const RouteQuery& query, Match* match) const;
  bool HopUsable(const NextHop& hop, const RouteQuery& query) const;
  const std::string* NameOf(IfIndex ifindex) const;

  std::shared_ptr<const NetConfig> config_;
  absl::flat_hash_map<Key, std::vector<const RouteConfig*>> routes_;  // best first
  std::map<TableId, std::vector<uint8_t>> lengths_;                   // present prefix lengths, longest first
  std::vector<const RuleConfig*> rules_[2];                           // by priority; [0] IPv4, [1] IPv6
  absl::flat_hash_set<IfIndex> up_;
  absl::flat_hash_set<IpAddress> local_;
  std::vector<const RouteConfig*> local_prefixes_;
  std::vector<std::pair<IpAddress, IfIndex>> broadcast_;
};

// The network part of an address.
IpAddress MaskAddress(const IpAddress& address, int prefix_len);

}  // namespace sluice
