#include "control/namespaces.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/magic.h>
#include <linux/nsfs.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "control/os.h"
#include "control/rtnl.h"

namespace sluice {
namespace {

struct Prefix {
  uint32_t address;
  int length;
};

// Every IPv4 prefix that the host's tables route somewhere, defaults left out.
Status UsedPrefixes(NetlinkClient& client, std::vector<Prefix>* out) {
  NetlinkMessage request(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP);
  rtmsg header{};
  header.rtm_family = AF_INET;
  request.Header(header);
  const int error = client.Dump(
      request,
      [&](const nlmsghdr* m) {
        rtmsg route;
        Attributes attributes;
        if (m->nlmsg_type != RTM_NEWROUTE || !ParseMessage(m, &route, &attributes) || route.rtm_dst_len == 0) return;
        out->push_back({ntohl(attributes.u32(RTA_DST)), route.rtm_dst_len});
      },
      [&] { out->clear(); });
  if (error != 0) return Status::Error("cannot read the host's routes" + ErrnoText(error));
  return {};
}

bool Overlap(const Prefix& a, const Prefix& b) {
  const int length = std::min(a.length, b.length);
  const uint32_t mask = length == 0 ? 0 : ~uint32_t{0} << (32 - length);
  return (a.address & mask) == (b.address & mask);
}

Status AddAddress(NetlinkClient& client, int index, uint32_t address) {
  NetlinkMessage request(RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
  ifaddrmsg header{};
  header.ifa_family = AF_INET;
  header.ifa_prefixlen = 30;
  header.ifa_index = static_cast<uint32_t>(index);
  request.Header(header).Attr(IFA_LOCAL, htonl(address)).Attr(IFA_ADDRESS, htonl(address));
  if (const int error = client.Transact(request)) return Status::Error("cannot add an address to our device" + ErrnoText(error));
  return {};
}

Status SetUp(NetlinkClient& client, int index) {
  NetlinkMessage request(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK);
  ifinfomsg header{};
  header.ifi_index = index;
  header.ifi_flags = IFF_UP;
  header.ifi_change = IFF_UP;
  request.Header(header);
  if (const int error = client.Transact(request)) return Status::Error("cannot set a device up" + ErrnoText(error));
  return {};
}

std::string Dotted(uint32_t address) {
  const in_addr in{htonl(address)};
  char text[INET_ADDRSTRLEN];
  return inet_ntop(AF_INET, &in, text, sizeof text);
}

Status CreatePair(NetlinkClient& client, int netns_fd, const OwnLink& veth) {
  NetlinkMessage request(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
  request.Header(ifinfomsg{}).Attr(IFLA_IFNAME, veth.host_name);
  nlattr* info = request.Begin(IFLA_LINKINFO);
  request.Attr(IFLA_INFO_KIND, std::string_view("veth"));
  nlattr* data = request.Begin(IFLA_INFO_DATA);
  nlattr* peer = request.Begin(VETH_INFO_PEER);
  request.Header(ifinfomsg{}).Attr(IFLA_IFNAME, veth.inside_name).Attr(IFLA_NET_NS_FD, static_cast<uint32_t>(netns_fd));
  request.End(peer);
  request.End(data);
  request.End(info);
  std::string reason;
  if (const int error = client.Transact(request, &reason)) {
    return Status::Error("cannot make a veth pair " + veth.host_name + ErrnoText(error) +
                         (reason.empty() ? "" : " (" + reason + ")"));
  }
  return {};
}

Status CreateTaps(int netns_fd, OwnLinkKind kind, uint32_t queues, const wire::SteeringKey& key, OwnLink* link) {
  std::string error;
  TapOptions options{.name = link->host_name, .queues = queues, .vnet_header = kind == OwnLinkKind::kTap};
  if (queues > 1) options.steering = key;
  if (OpenTap(options, &link->tap, &error) != Errno::kOk) {
    return Status::Error("--link=tap: cannot make " + error);
  }
  ScopedNetns inside(netns_fd);
  if (!inside.ok()) return Status::Error("cannot enter our network namespace" + ErrnoText(errno));
  if (OpenTap({.name = link->inside_name}, &link->holder, &error) != Errno::kOk)
    return Status::Error("--link=tap: cannot make " + error);
  return {};
}

// Two sluices that start together must not choose the same /30: the choice and the address on the host are one step.
Status ChooseSubnet(NetlinkClient& client, OwnLink* link, uint32_t* network) {
  std::vector<Prefix> used;
  SLUICE_RETURN_IF_ERROR(UsedPrefixes(client, &used));
  constexpr uint32_t kBase = 0x0ac80000;  // 10.200.0.0/16: 16384 subnets
  constexpr uint32_t kCount = 16384;
  const uint32_t start = static_cast<uint32_t>(getpid()) % kCount;
  for (uint32_t i = 0; i < kCount; ++i) {
    const Prefix candidate{kBase + ((start + i) % kCount) * 4, 30};
    bool free = true;
    for (const Prefix& p : used) free = free && !Overlap(p, candidate);
    if (!free) continue;
    *network = candidate.address;
    link->host_address = Dotted(candidate.address + 1);
    link->inside_address = Dotted(candidate.address + 2);
    return {};
  }
  return Status::Error("no private /30 of 10.200.0.0/16 is free on the host: name a namespace that is set up (--netns)");
}

}  // namespace

Status OpenNetns(const std::string& name_or_path, UniqueFd* out, std::string* name) {
  const bool is_path = name_or_path.find('/') != std::string::npos;
  const std::string path = is_path ? name_or_path : "/run/netns/" + name_or_path;
  if (!is_path) *name = name_or_path;
  if (is_path && path.rfind("/run/netns/", 0) == 0) *name = path.substr(11);
  if (is_path && path.rfind("/var/run/netns/", 0) == 0) *name = path.substr(15);
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) {
    return Status::Error("--netns=" + name_or_path + ": cannot open " + path + ErrnoText(errno) +
                         (errno == ENOENT && !is_path ? " (make it with ip netns add " + name_or_path + ")" : ""));
  }
  if (ioctl(fd.get(), NS_GET_NSTYPE) != CLONE_NEWNET)
    return Status::Error("--netns=" + name_or_path + ": " + path + " is not a network namespace");
  *out = std::move(fd);
  return {};
}

std::vector<pid_t> ProcessesIn(const NamespaceId& netns) {
  std::vector<pid_t> out;
  DIR* dir = opendir("/proc");
  if (dir == nullptr) return out;
  while (const dirent* entry = readdir(dir)) {
    const pid_t pid = atoi(entry->d_name);
    struct stat st{};
    if (pid <= 0 || stat(Format("/proc/%d/ns/net", pid).c_str(), &st) < 0) continue;
    if (st.st_ino == netns.inode && st.st_dev == netns.device) out.push_back(pid);
  }
  closedir(dir);
  return out;
}

Status MakeNetns(UniqueFd* out) {
  UniqueFd back(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  if (!back) return Status::Error("cannot open our network namespace" + ErrnoText(errno));
  if (unshare(CLONE_NEWNET) < 0) return Status::Error("cannot make a network namespace" + ErrnoText(errno));
  UniqueFd made(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  const int error = errno;
  if (setns(back.get(), CLONE_NEWNET) < 0) return Status::Error("cannot return to our network namespace" + ErrnoText(errno));
  if (!made) return Status::Error("cannot open a network namespace" + ErrnoText(error));
  *out = std::move(made);
  return {};
}

Status MakeStandinNetns(UniqueFd* out, uint64_t* cookie) {
  SLUICE_RETURN_IF_ERROR(MakeNetns(out));
  ScopedNetns inside(out->get());
  if (!inside.ok()) return Status::Error("cannot enter a network namespace" + ErrnoText(errno));
  if (!WriteSmallFile("/proc/sys/net/unix/max_dgram_qlen", "100000")) {
    return Status::Error("cannot set net.unix.max_dgram_qlen of the stand-ins' namespace" + ErrnoText(errno));
  }
  UniqueFd probe(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  socklen_t size = sizeof *cookie;
  if (!probe || getsockopt(probe.get(), SOL_SOCKET, SO_NETNS_COOKIE, cookie, &size) < 0) {
    return Status::Error("cannot read SO_NETNS_COOKIE (Linux 5.14 or later is needed)" + ErrnoText(errno));
  }
  return {};
}

Status MakeOwnLink(int netns_fd, OwnLinkKind kind, uint32_t queues, const wire::SteeringKey& key, OwnLink* out) {
  out->host_name = Format("slu%d", getpid());
  UniqueFd fd;
  SLUICE_RETURN_IF_ERROR(NetlinkClient::Open({}, &fd));
  NetlinkClient host(std::move(fd));
  SLUICE_RETURN_IF_ERROR(kind == OwnLinkKind::kVeth ? CreatePair(host, netns_fd, *out)
                                                    : CreateTaps(netns_fd, kind, queues, key, out));
  const auto host_index = static_cast<int>(if_nametoindex(out->host_name.c_str()));
  UniqueFd lock(open("/run/sluice/subnets.lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock || flock(lock.get(), LOCK_EX) < 0) return Status::Error("cannot lock /run/sluice/subnets.lock" + ErrnoText(errno));
  uint32_t network = 0;
  SLUICE_RETURN_IF_ERROR(ChooseSubnet(host, out, &network));
  SLUICE_RETURN_IF_ERROR(AddAddress(host, host_index, network + 1));
  SLUICE_RETURN_IF_ERROR(SetUp(host, host_index));
  ScopedNetns inside(netns_fd);
  if (!inside.ok()) return Status::Error("cannot enter our network namespace" + ErrnoText(errno));
  out->inside_index = static_cast<int>(if_nametoindex(out->inside_name.c_str()));
  SLUICE_RETURN_IF_ERROR(NetlinkClient::Open({}, &fd));
  NetlinkClient client(std::move(fd));
  return AddAddress(client, out->inside_index, network + 2);
}

Status StartOwnLink(const OwnLink& link) {
  UniqueFd fd;
  SLUICE_RETURN_IF_ERROR(NetlinkClient::Open({}, &fd));
  NetlinkClient client(std::move(fd));
  SLUICE_RETURN_IF_ERROR(SetUp(client, link.inside_index));
  NetlinkMessage request(RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
  rtmsg header{};
  header.rtm_family = AF_INET;
  header.rtm_table = RT_TABLE_MAIN;
  header.rtm_protocol = RTPROT_BOOT;
  header.rtm_type = RTN_UNICAST;
  in_addr gateway{};
  inet_pton(AF_INET, link.host_address.c_str(), &gateway);
  request.Header(header).Attr(RTA_GATEWAY, gateway.s_addr).Attr(RTA_OIF, static_cast<uint32_t>(link.inside_index));
  if (const int error = client.Transact(request)) return Status::Error("cannot add the default route" + ErrnoText(error));
  return {};
}

Status SetLinkUp(const std::string& name) {
  UniqueFd fd;
  SLUICE_RETURN_IF_ERROR(NetlinkClient::Open({}, &fd));
  NetlinkClient client(std::move(fd));
  return SetUp(client, static_cast<int>(if_nametoindex(name.c_str())));
}

}  // namespace sluice
