#include "control/netfilter_check.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <linux/netfilter_ipv6/ip6_tables.h>
#include <linux/pkt_sched.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <map>
#include <sstream>

#include "control/os.h"
#include "xdp/bpf_calls.h"
#include "xdp/silence.h"

namespace sluice {
namespace {

Status Found(const std::string& what) {
  return Status::Error("packet filters in the namespace would be bypassed: " + what +
                       ". Remove them, or start with --netfilter=ignore");
}

const char* NftFamily(uint8_t family) {
  switch (family) {
    case NFPROTO_INET:
      return "inet";
    case NFPROTO_IPV4:
      return "ip";
    case NFPROTO_IPV6:
      return "ip6";
    case NFPROTO_ARP:
      return "arp";
    case NFPROTO_BRIDGE:
      return "bridge";
    case NFPROTO_NETDEV:
      return "netdev";
    default:
      return "other";
  }
}

std::string Quoted(const std::string& name) { return "\"" + name + "\""; }

// Are these rules of table ip nat (how many, by chain) those of Docker's resolver? A jump from OUTPUT and from POSTROUTING to its
// own two chains, with one rule for UDP and one for TCP each.
bool AreDockersResolver(const std::map<std::string, int>& rules) {
  return rules == std::map<std::string, int>{{"DOCKER_OUTPUT", 2}, {"DOCKER_POSTROUTING", 2}, {"OUTPUT", 1}, {"POSTROUTING", 1}};
}

// nftables (and iptables-nft, which is the same to the kernel): a rule, or a base chain whose policy drops.
Status CheckNftables(bool* resolver) {
  UniqueFd fd;
  if (!NetlinkClient::Open({}, &fd, NETLINK_NETFILTER).ok()) return {};  // a kernel without it
  NetlinkClient client(std::move(fd));
  std::string found;
  const auto dump = [&](uint16_t what, const auto& each) {
    NetlinkMessage request(static_cast<uint16_t>(NFNL_SUBSYS_NFTABLES << 8 | what), NLM_F_REQUEST | NLM_F_DUMP);
    request.Header(nfgenmsg{NFPROTO_UNSPEC, NFNETLINK_V0, 0});
    client.Dump(
        request,
        [&](const nlmsghdr* m) {
          nfgenmsg header;
          Attributes a;
          if (found.empty() && ParseMessage(m, &header, &a)) each(header, a);
        },
        [] {});
  };
  std::map<std::string, int> nat;
  dump(NFT_MSG_GETRULE, [&](const nfgenmsg& header, const Attributes& a) {
    if (resolver != nullptr && header.nfgen_family == NFPROTO_IPV4 && a.str(NFTA_RULE_TABLE) == "nat") {
      ++nat[a.str(NFTA_RULE_CHAIN)];
      return;
    }
    found = std::string("nftables table ") + NftFamily(header.nfgen_family) + " " + Quoted(a.str(NFTA_RULE_TABLE)) +
            " has rules in chain " + Quoted(a.str(NFTA_RULE_CHAIN));
  });
  dump(NFT_MSG_GETCHAIN, [&](const nfgenmsg& header, const Attributes& a) {
    if (!a.has(NFTA_CHAIN_HOOK) || ntohl(a.u32(NFTA_CHAIN_POLICY, htonl(NF_ACCEPT))) != NF_DROP) return;
    found = std::string("nftables table ") + NftFamily(header.nfgen_family) + " " + Quoted(a.str(NFTA_CHAIN_TABLE)) +
            " drops by policy in chain " + Quoted(a.str(NFTA_CHAIN_NAME));
  });
  if (resolver != nullptr) *resolver = AreDockersResolver(nat);
  if (found.empty() && !nat.empty() && !*resolver)
    found = "nftables table ip \"nat\" has rules in chain " + Quoted(nat.begin()->first);
  return found.empty() ? Status() : Found(found);
}

// The tables of iptables-legacy: more entries than the policies of its hooks and the end mark.
Status CheckLegacyTables(int family, const char* names_file, int level, int option, const char* tool) {
  std::istringstream names(ReadSmallFile(names_file).value_or(""));
  UniqueFd fd(socket(family, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW));
  for (std::string name; fd && std::getline(names, name);) {
    ipt_getinfo info{};
    std::memcpy(info.name, name.c_str(), std::min(name.size(), sizeof info.name - 1));
    socklen_t size = sizeof info;
    if (getsockopt(fd.get(), level, option, &info, &size) < 0) continue;
    if (info.num_entries > static_cast<unsigned>(std::popcount(info.valid_hooks)) + 1) {
      return Found(std::string(tool) + " table " + Quoted(name) +
                   Format(" has %u entries", info.num_entries - std::popcount(info.valid_hooks) - 1));
    }
  }
  return {};
}

// `target`: a device's index, or a descriptor of a control group.
int CountPrograms(int target, uint32_t attach_type, uint32_t flags = 0) {
  bpf_attr attr{};
  attr.query.target_fd = static_cast<uint32_t>(target);
  attr.query.attach_type = attach_type;
  attr.query.query_flags = flags;
  return syscall(SYS_bpf, BPF_PROG_QUERY, &attr, sizeof attr) == 0 ? static_cast<int>(attr.query.prog_cnt) : 0;
}

bool HasTcFilter(NetlinkClient& client, int ifindex, uint32_t parent) {
  NetlinkMessage request(RTM_GETTFILTER, NLM_F_REQUEST | NLM_F_DUMP);
  tcmsg header{};
  header.tcm_family = AF_UNSPEC;
  header.tcm_ifindex = ifindex;
  header.tcm_parent = parent;
  request.Header(header);
  bool found = false;
  client.Dump(request, [&](const nlmsghdr* m) { found = found || m->nlmsg_type == RTM_NEWTFILTER; }, [&] { found = false; });
  return found;
}

Status CheckDevice(NetlinkClient& client, const LinkInfo& device) {
  if (device.xdp) return Found("an XDP program on device " + device.name);
  if (CountTcx(device.index, bpf::kTcxIngress) > 0) return Found("a BPF program (tcx) on ingress of device " + device.name);
  if (CountTcx(device.index, bpf::kTcxEgress) > 0) return Found("a BPF program (tcx) on egress of device " + device.name);
  constexpr uint32_t kParents[] = {TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS), TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS), TC_H_ROOT};
  for (const uint32_t parent : kParents) {
    if (HasTcFilter(client, device.index, parent)) return Found("a tc filter on device " + device.name);
  }
  return {};
}

// The control group of this process in the unified hierarchy, in which the program will be; empty where it is not mounted.
std::string OwnControlGroup() {
  std::string path, mounted;
  std::istringstream groups(ReadSmallFile("/proc/self/cgroup").value_or(""));
  for (std::string line; std::getline(groups, line);) {
    if (line.rfind("0::", 0) == 0) path = line.substr(3);
  }
  std::istringstream mounts(ReadSmallFile("/proc/self/mounts").value_or(""));
  for (std::string line; mounted.empty() && std::getline(mounts, line);) {
    std::istringstream fields(line);
    std::string device, where, type;
    if (fields >> device >> where >> type && type == "cgroup2") mounted = where;
  }
  return path.empty() || mounted.empty() ? "" : mounted + path;
}

}  // namespace

Status CheckControlGroup() {
  constexpr struct {
    bpf_attach_type type;
    const char* what;
  } kHooks[] = {{BPF_CGROUP_INET_INGRESS, "ingress"},
                {BPF_CGROUP_INET_EGRESS, "egress"},
                {BPF_CGROUP_INET_SOCK_CREATE, "socket creation"},
                {BPF_CGROUP_INET4_BIND, "bind"},
                {BPF_CGROUP_INET6_BIND, "bind"},
                {BPF_CGROUP_INET4_CONNECT, "connect"},
                {BPF_CGROUP_INET6_CONNECT, "connect"},
                {BPF_CGROUP_INET4_POST_BIND, "bind"},
                {BPF_CGROUP_INET6_POST_BIND, "bind"},
                {BPF_CGROUP_UDP4_SENDMSG, "sending of UDP"},
                {BPF_CGROUP_UDP6_SENDMSG, "sending of UDP"},
                {BPF_CGROUP_UDP4_RECVMSG, "receiving of UDP"},
                {BPF_CGROUP_UDP6_RECVMSG, "receiving of UDP"},
                {BPF_CGROUP_SOCK_OPS, "TCP sockets"}};
  const std::string path = OwnControlGroup();
  UniqueFd group(path.empty() ? -1 : open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  for (const auto& hook : kHooks) {
    if (!group || CountPrograms(group.get(), hook.type, BPF_F_QUERY_EFFECTIVE) == 0) continue;
    return Found(std::string("a BPF program on ") + hook.what + " of the cgroup " + path);
  }
  return {};
}

Status CheckPacketFilters(const std::vector<LinkInfo>& devices, bool* resolver) {
  SLUICE_RETURN_IF_ERROR(CheckNftables(resolver));
  SLUICE_RETURN_IF_ERROR(CheckLegacyTables(AF_INET, "/proc/self/net/ip_tables_names", IPPROTO_IP, IPT_SO_GET_INFO, "iptables"));
  SLUICE_RETURN_IF_ERROR(
      CheckLegacyTables(AF_INET6, "/proc/self/net/ip6_tables_names", IPPROTO_IPV6, IP6T_SO_GET_INFO, "ip6tables"));
  UniqueFd fd;
  SLUICE_RETURN_IF_ERROR(NetlinkClient::Open({}, &fd));
  NetlinkClient client(std::move(fd));
  for (const LinkInfo& device : devices) SLUICE_RETURN_IF_ERROR(CheckDevice(client, device));
  return {};
}

}  // namespace sluice
