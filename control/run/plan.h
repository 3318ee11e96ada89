// What the guard decides and opens before it forks the other processes of a sandbox; each inherits it and closes what it does not
// need.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <map>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "control/flags.h"
#include "control/namespaces.h"
#include "control/os.h"
#include "control/rtnl.h"
#include "control/run/sandbox_groups.h"
#include "netstack/wire/steering.h"
#include "xdp/engine_flows.h"
#include "xdp/native_options.h"
#include "xdp/silence.h"

namespace sluice {

// Egress mark by which the silencing program knows our frames.
inline constexpr uint32_t kSluiceMark = 0x736c7563;  // "sluc"

// The control group of the sentry with its BPF program (option_group.h). Empty where options are notified.
struct OptionGroup {
  UniqueFd fd;  // the group
  UniqueFd program;
  NativeOptionMaps maps;  // for the sentry
};

struct SandboxPlan {
  Flags flags;
  DoOptions options;
  pid_t guard_pid = 0;
  std::vector<int> inherited;  // descriptors above 2 that the user gave to CMD
  sigset_t user_mask{};        // signal mask at start

  UniqueFd netns;          // the sandbox's network namespace
  std::string netns_name;  // as of ip netns; may be empty
  NamespaceId netns_id;
  bool own_netns = false;
  bool tell_listening = false;       // the guard hears of the ports at which the stack listens
  std::vector<LinkInfo> devices;     // those whose frames are ours
  std::map<int, Silence> silenced;   // by index
  bool engine_flows = false;         // wanted: a container engine's resolver may work in the namespace
  EngineFlowMaps flow_maps;          // none where they cannot be
  EngineFlowPrograms flow_programs;  // the broker's
  OwnLink own_link;                  // where the namespace is ours and has a device; its descriptors stay with guard and broker

  UniqueFd standin_netns;
  uint64_t standin_cookie = 0;

  OptionGroup option_group;

  // Of a container: /proc/PID/cgroup of its init, and its score for the OOM killer, which is the sentry's, too: the end of either
  // is the end of both.
  std::string container_groups;
  int oom_score = 0;
  std::vector<SandboxGroup> groups;

  UniqueFd lock;  // of the namespace; held by guard and broker

  SocketPair calls;                      // a: broker, b: sentry's worker
  SocketPair offers;                     // likewise; connections for accepts to come
  SocketPair control;                    // a: broker, b: sentry's control thread
  SocketPair guard;                      // a: guard, b: broker
  UniqueFd event_netlink, dump_netlink;  // opened in the namespace, used by the sentry
  UniqueFd admin_listener;
  UniqueFd pcap;
  UniqueFd sentry_log_read, sentry_log_write;
  UniqueFd init_ready_read, init_ready_write;  // init tells the number of the listener, then CMD's stops
  UniqueFd init_go_read, init_go_write;        // guard lets CMD start

  wire::SteeringKey steering_key{};  // which worker a frame belongs to

  bool native_options() const { return static_cast<bool>(option_group.fd); }
  bool intercepted() const { return flags.network != NetworkMode::kHost; }
};

// Closes every descriptor above 2 that is not in `keep` (any order).
void CloseAllBut(std::vector<int> keep);

// The processes. None returns.
[[noreturn]] void RunInit(SandboxPlan& plan);
[[noreturn]] void RunBroker(SandboxPlan& plan);
[[noreturn]] void RunKeeper(SandboxPlan& plan, int* sentry_pid);
// In the sentry, when it is jailed (jail.cc).
[[noreturn]] void RunSentry(SandboxPlan& plan);

}  // namespace sluice
