// Neighbours: RTM_GETNEIGH from the stack's own table, RTM_NEWNEIGH and RTM_DELNEIGH of permanent entries (linux/neighbour.h).
#include <linux/neighbour.h>

#include <algorithm>

#include "sentry/netlink/server_impl.h"

namespace sluice::netlink {
namespace {

constexpr AttributeRule kNeighborRules[] = {{NDA_DST, Shape::kMaxBytes, 32},
                                            {NDA_LLADDR, Shape::kMaxBytes, 32},
                                            {NDA_CACHEINFO, Shape::kMinBytes, 16},
                                            {NDA_PROBES, Shape::kU32},
                                            {NDA_VLAN, Shape::kU16},
                                            {NDA_PORT, Shape::kU16},
                                            {NDA_VNI, Shape::kU32},
                                            {NDA_IFINDEX, Shape::kU32},
                                            {NDA_MASTER, Shape::kU32},
                                            {NDA_PROTOCOL, Shape::kU8},
                                            {NDA_NH_ID, Shape::kU32},
                                            {NDA_FLAGS_EXT, Shape::kU32},
                                            {NDA_FDB_EXT_ATTRS, Shape::kNested}};
constexpr uint16_t kMaxNeighborAttribute = NDA_FLAGS_EXT + 2;

constexpr uint16_t kValidStates = NUD_PERMANENT | NUD_NOARP | NUD_REACHABLE | NUD_PROBE | NUD_STALE | NUD_DELAY;
constexpr int64_t kTicksPerSecond = 100;  // USER_HZ

uint32_t ToTicks(Duration d) {
  const int64_t ticks = std::max<int64_t>(0, d.ms() * kTicksPerSecond / 1000);
  return static_cast<uint32_t>(std::min<int64_t>(ticks, 0xffffffff));
}

struct Entry {
  NeighborInfo info;
  uint8_t flags = 0;  // NTF_*
};

// The stack's entries, and configured ones that it has not taken up (a device that is not attached).
std::vector<Entry> AllNeighbors(const Backend& backend, const NetConfig& config) {
  std::vector<Entry> all;
  for (const NeighborInfo& n : backend.Neighbors()) all.push_back({n, 0});
  for (const NeighborConfig& c : config.neighbors) {
    const auto same = [&](const Entry& e) { return e.info.ifindex == c.ifindex && e.info.address == c.address; };
    const auto it = std::find_if(all.begin(), all.end(), same);
    if (it != all.end()) {
      it->flags = c.flags;
    } else {
      all.push_back({{.ifindex = c.ifindex, .address = c.address, .mac = c.mac, .state = c.state, .probes = 0}, c.flags});
    }
  }
  return all;
}

struct NeighborFilter {
  int32_t ifindex = 0;
  int32_t master = 0;
};

Errno ReadNeighborFilter(Request& r, NeighborFilter* filter) {
  if (r.strict) {
    if (r.payload().size() < sizeof(ndmsg)) return r.Refuse(Errno::kEINVAL, "the header of a neighbour dump is too short");
    const auto header = r.Fixed<ndmsg>();
    if (header.ndm_ifindex != 0 || header.ndm_state != 0 || header.ndm_type != 0) {
      return r.Refuse(Errno::kEINVAL, "a neighbour dump takes only family and flags in its header");
    }
    if ((header.ndm_flags & ~NTF_PROXY) != 0) return r.Refuse(Errno::kEINVAL, "a neighbour dump takes only the flag for proxies");
  }
  AttributeTable table;
  if (r.payload().size() < sizeof(ndmsg)) return Errno::kOk;
  if (const Errno e = r.Parse<ndmsg>(&table, kMaxNeighborAttribute, kNeighborRules, r.strict); e != Errno::kOk) {
    if (r.strict) return e;
    r.ack = {};
    return Errno::kOk;
  }
  for (int type = 1; r.strict && type <= table.max(); ++type) {
    if (table[type] && type != NDA_IFINDEX && type != NDA_MASTER) {
      return r.Refuse(Errno::kEINVAL, "a neighbour dump cannot be filtered by this attribute", table[type]);
    }
  }
  if (table[NDA_IFINDEX]) filter->ifindex = static_cast<int32_t>(table[NDA_IFINDEX].u32());
  if (table[NDA_MASTER]) filter->master = static_cast<int32_t>(table[NDA_MASTER].u32());
  return Errno::kOk;
}

bool HasMaster(const NetConfig& config, IfIndex ifindex, int32_t master) {
  const LinkConfig* link = FindLink(config, ifindex);
  return link != nullptr && LoadPrefix<int32_t>(FindAttribute(link->netlink, sizeof(ifinfomsg), IFLA_MASTER)) == master;
}

}  // namespace

void AppendNeighbor(const NeighborInfo& n, uint8_t flags, Buffer* out) {
  MessageWriter w(out, RTM_NEWNEIGH);
  w.Header(ndmsg{.ndm_family = static_cast<uint8_t>(ToAf(n.address.family())),
                 .ndm_ifindex = n.ifindex,
                 .ndm_state = n.state,
                 .ndm_flags = flags,
                 .ndm_type = RTN_UNICAST});
  w.Address(NDA_DST, n.address);
  if ((n.state & kValidStates) != 0) w.Attr(NDA_LLADDR, n.mac.bytes);
  w.U32(NDA_PROBES, n.probes);
  w.Struct(NDA_CACHEINFO, nda_cacheinfo{.ndm_confirmed = ToTicks(n.confirmed_ago),
                                        .ndm_used = ToTicks(n.used_ago),
                                        .ndm_updated = ToTicks(n.updated_ago)});
}

Errno DumpNeighbors(Request& r) {
  const auto header = r.Fixed<ndmsg>();
  if (header.ndm_family == AF_BRIDGE) return DumpNothing(r);
  NeighborFilter filter;
  if (const Errno e = ReadNeighborFilter(r, &filter); e != Errno::kOk) return e;
  const auto config = r.backend.config();
  const bool proxies = header.ndm_flags == NTF_PROXY;
  std::vector<Buffer> messages;
  for (const Entry& e : AllNeighbors(r.backend, *config)) {
    if (proxies != ((e.flags & NTF_PROXY) != 0)) continue;
    if (header.ndm_family != AF_UNSPEC && ToAf(e.info.address.family()) != header.ndm_family) continue;
    if (filter.ifindex != 0 && e.info.ifindex != filter.ifindex) continue;
    if (filter.master != 0 && !HasMaster(*config, e.info.ifindex, filter.master)) continue;
    AppendNeighbor(e.info, e.flags, &messages.emplace_back());
  }
  r.dump = std::make_unique<ListDump>(std::move(messages));
  if (filter.ifindex != 0 || filter.master != 0) r.dump_flags = NLM_F_DUMP_FILTERED;
  return Errno::kOk;
}

Errno GetNeighbor(Request& r) {
  const auto header = r.Fixed<ndmsg>();
  if (header.ndm_family == AF_BRIDGE) return Errno::kEOPNOTSUPP;
  AttributeTable table;
  if (const Errno e = r.Parse<ndmsg>(&table, kMaxNeighborAttribute, kNeighborRules, r.strict); e != Errno::kOk) return e;
  if (AddressSize(header.ndm_family) == 0) return r.Refuse(Errno::kEAFNOSUPPORT, "there are no neighbours of this family");
  NetAddress address;
  if (!table[NDA_DST]) return r.Refuse(Errno::kEINVAL, "the request has no network address");
  if (table[NDA_DST].value.size() != AddressSize(header.ndm_family) ||
      !ReadAddress(table[NDA_DST], header.ndm_family, &address)) {
    return r.Refuse(Errno::kEINVAL, "the network address has a wrong length", table[NDA_DST]);
  }
  const auto config = r.backend.config();
  if (header.ndm_ifindex == 0 || FindLink(*config, header.ndm_ifindex) == nullptr) {
    return header.ndm_ifindex == 0 ? r.Refuse(Errno::kEINVAL, "the request names no device") : Errno::kENODEV;
  }
  for (const Entry& e : AllNeighbors(r.backend, *config)) {
    if (e.info.ifindex != header.ndm_ifindex || e.info.address != ToIpAddress(address)) continue;
    AppendNeighbor(e.info, e.flags, &r.replies.emplace_back());
    return Errno::kOk;
  }
  return r.Refuse(Errno::kENOENT, "there is no such neighbour");
}

// Only permanent entries live in the namespace; what is learnt from frames is the stack's own.
Errno ChangeNeighbor(Request& r) {
  const auto header = r.Fixed<ndmsg>();
  if (header.ndm_family == AF_BRIDGE) return Errno::kEOPNOTSUPP;
  const bool add = r.header.nlmsg_type == RTM_NEWNEIGH;
  AttributeTable table;
  if (const Errno e = r.Parse<ndmsg>(&table, kMaxNeighborAttribute, kNeighborRules, false); e != Errno::kOk) return e;
  if (AddressSize(header.ndm_family) == 0) return Errno::kEAFNOSUPPORT;
  NeighborChange change{
      .ifindex = header.ndm_ifindex, .family = header.ndm_family, .flags = header.ndm_flags, .state = header.ndm_state};
  if (!table[NDA_DST] || !ReadAddress(table[NDA_DST], header.ndm_family, &change.dst)) {
    return r.Refuse(Errno::kEINVAL, "the request has no network address of its family");
  }
  if (FindLink(*r.backend.config(), header.ndm_ifindex) == nullptr) return Errno::kENODEV;
  if (add && (header.ndm_state & (NUD_PERMANENT | NUD_NOARP)) == 0) {
    return r.Refuse(Errno::kEOPNOTSUPP, "sluice: only permanent and noarp neighbours are set from inside");
  }
  if (add && header.ndm_flags != 0) return r.Refuse(Errno::kEOPNOTSUPP, "sluice: flags of neighbours are not supported");
  for (const int type : {int{NDA_VLAN}, int{NDA_PORT}, int{NDA_VNI}, int{NDA_NH_ID}, int{NDA_FLAGS_EXT}}) {
    if (table[type]) return r.Refuse(Errno::kEOPNOTSUPP, "sluice: this attribute of neighbours is not supported", table[type]);
  }
  if (table[NDA_LLADDR]) {
    if (table[NDA_LLADDR].value.size() < change.lladdr.size()) {
      return r.Refuse(Errno::kEINVAL, "the hardware address is too short", table[NDA_LLADDR]);
    }
    change.has_lladdr = true;
    std::copy_n(table[NDA_LLADDR].value.begin(), change.lladdr.size(), change.lladdr.begin());
  }
  r.Change(add ? NetChangeKind::kNewNeighbor : NetChangeKind::kDeleteNeighbor).neighbor = change;
  return Errno::kOk;
}

}  // namespace sluice::netlink
