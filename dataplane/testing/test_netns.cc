#include "dataplane/testing/test_netns.h"

#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>

#include "base/check.h"

namespace sluice::testing {
namespace {

// The thread's own: /proc/self is the main thread's.
UniqueFd CurrentNetns() { return UniqueFd(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)); }

}  // namespace

std::string WhyNoNetns() {
  if (geteuid() != 0) return "needs root: makes network namespaces";
  UniqueFd before = CurrentNetns();
  if (unshare(CLONE_NEWNET) != 0) return "needs CAP_SYS_ADMIN: makes network namespaces";
  SLUICE_CHECK(setns(before.get(), CLONE_NEWNET) == 0);
  return {};
}

UniqueFd NewNetns() {
  UniqueFd before = CurrentNetns();
  SLUICE_CHECK(unshare(CLONE_NEWNET) == 0);
  UniqueFd made = CurrentNetns();
  SLUICE_CHECK(setns(before.get(), CLONE_NEWNET) == 0);
  return made;
}

InNetns::InNetns(int netns) : before_(CurrentNetns()) { SLUICE_CHECK(setns(netns, CLONE_NEWNET) == 0); }
InNetns::~InNetns() { SLUICE_CHECK(setns(before_.get(), CLONE_NEWNET) == 0); }

int VethPair::Run(int netns, const std::string& command, std::string* output) const {
  InNetns in(netns);
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  SLUICE_CHECK(pipe != nullptr);
  std::string text;
  char buffer[4096];
  for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) text.append(buffer, n);
  const int status = pclose(pipe);
  if (output != nullptr)
    *output = text;
  else if (status != 0)
    std::fprintf(stderr, "%s: %s\n", command.c_str(), text.c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

VethPair::VethPair(int queues) : ours_(NewNetns()), peer_(NewNetns()) {
  const std::string peer_path = "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(peer_.get());
  for (int ns : {ours_.get(), peer_.get()}) {
    SLUICE_CHECK(Run(ns,
                     "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6; "
                     "ip link set lo up") == 0);
  }
  const std::string number = std::to_string(queues);
  const std::string with = queues == 0 ? "" : " numtxqueues " + number + " numrxqueues " + number;
  SLUICE_CHECK(Run(ours_.get(), "ip link add sl0" + with + " type veth peer name pe0" + with + " netns " + peer_path) == 0);
  if (queues != 0) {  // all of them are in use when they are named
    SLUICE_CHECK(Run(ours_.get(), "ethtool -L sl0 rx 1 tx 1") == 0);
    SLUICE_CHECK(Run(peer_.get(), "ethtool -L pe0 rx 1 tx 1") == 0);
  }
  SLUICE_CHECK(Run(ours_.get(), "ip addr add 10.77.0.1/24 dev sl0 && ip link set sl0 up") == 0);
  SLUICE_CHECK(Run(peer_.get(), "ip addr add 10.77.0.2/24 dev pe0 && ip link set pe0 up") == 0);
  {
    InNetns in(ours_.get());
    our_index_ = static_cast<IfIndex>(if_nametoindex("sl0"));
  }
  InNetns in(peer_.get());
  peer_index_ = static_cast<IfIndex>(if_nametoindex("pe0"));
}

VethPair::~VethPair() { Run(ours_.get(), "ip link del sl0 2>/dev/null || true"); }

}  // namespace sluice::testing
