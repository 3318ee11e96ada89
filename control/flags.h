// The command line. One table (FlagTable) drives parsing (by CLI11), `--help`, `sluice flags` and docs/flags.md.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/time.h"
#include "control/status.h"
#include "dataplane/qdisc.h"
#include "dataplane/worker.h"
#include "netstack/config.h"
#include "xdp/xsk.h"

namespace sluice {

enum class NetworkMode : uint8_t { kSandbox, kHost, kNone };
enum class LinkFlag : uint8_t { kAuto, kXdp, kPacket, kTap, kDpdk };
enum class Tristate : uint8_t { kAuto, kTrue, kFalse };
enum class NetfilterPolicy : uint8_t { kRefuse, kIgnore };

inline constexpr uint32_t kMaxNetworkChannels = 16;

struct Flags {
  NetworkMode network = NetworkMode::kSandbox;
  bool gso = true, software_gso = true, gro = true, tcx = false;
  LinkFlag link = LinkFlag::kAuto;
  PollMode poll = PollMode::kAdaptive;
  Duration poll_spin{0};  // zero: measured at start
  Tristate tx_checksum_offload = Tristate::kAuto, rx_checksum_offload = Tristate::kAuto;
  QdiscOptions qdisc;
  bool net_raw = false;
  NetfilterPolicy netfilter = NetfilterPolicy::kRefuse;
  SysctlMap sysctls;
  std::string pcap_log;
  std::string metrics;  // address.h; empty: none
  std::string root = "/run/sluice";
  bool root_given = false;
  std::string log;
  bool log_json = false;
  bool debug = false;
  bool systemd_cgroup = false;  // these two are runc's alone
  std::string rootless;
  bool allow_flag_override = false;
  size_t container_sockets = 0;  // 0: auto
  uint32_t num_network_channels = 1;
  uint64_t sentry_memory = 0;  // bytes; 0: unlimited
  bool operator==(const Flags&) const = default;
};

// `sluice do`.
struct DoOptions {
  std::string netns;                 // name or path; empty: one is made
  std::vector<std::string> devices;  // empty: all of the namespace
  std::vector<std::string> env;      // K=V
  std::vector<std::string> command;
};

// A command about a running sandbox.
struct QueryOptions {
  bool json = false;
  std::string netns;   // --netns=NAME|PATH
  std::string target;  // name of a namespace, or process id
};

// `sluice capture`.
struct CaptureOptions {
  std::string file;                  // empty: standard output
  std::vector<std::string> devices;  // empty: all, and the loopback
  uint64_t count = 0;                // 0: until a signal or the sandbox's end
  uint32_t snaplen = 262144;
};

// `sluice top`.
struct TopOptions {
  bool once = false, json = false;
  uint32_t interval = 1;             // seconds
  std::vector<std::string> targets;  // empty: all
};

// `sluice bench`.
enum class BenchMode : uint8_t { kRx, kTx, kEcho, kL2Forward };
struct BenchOptions {
  BenchMode mode = BenchMode::kRx;
  std::string mode_name;
  std::vector<std::string> devices;
  std::string netns;     // empty: the one sluice runs in
  uint32_t seconds = 0;  // 0: until a signal
  uint32_t size = 64;    // of a sent frame, without FCS
  uint32_t flows = 1;    // source ports of sent frames
  uint32_t workers = 1;  // threads, with a queue of each device each
  XdpMode xdp_mode = XdpMode::kAuto;
  bool json = false;
};

// `sluice install` and `uninstall`.
struct InstallOptions {
  std::string runtime = "sluice";
  std::vector<std::string> engines;  // docker, containerd, podman; empty: those that are found
  std::string config;                // of the only engine; empty: where it looks for it
  bool dry_run = false;
  std::vector<std::string> flags;  // what stands behind "--"
};

struct CommandLine {
  Flags flags;
  std::string command;  // "do", "stats" ...; "help", "version" for the flags of that name
  bool help = false;    // of `command`
  std::string form;     // of `flags`: "markdown", "man", "completion"; empty: text
  DoOptions do_options;
  BenchOptions bench;
  QueryOptions query;
  CaptureOptions capture;
  TopOptions top;
  InstallOptions install;
  std::vector<std::string> arguments;  // of an OCI command: runc judges them
};

struct FlagSpec {
  std::string_view name;
  std::string_view type;     // bool, enum, string, duration, size, rate, key=value
  std::string_view initial;  // default, as it would be typed
  std::string_view allowed;  // values of this build
  std::string_view later;    // values that exist by design and not in this build; "*": the whole flag
  std::string_view help;
  bool (*set)(Flags& flags, std::string_view value);  // false: the value is not allowed
};
std::span<const FlagSpec> FlagTable();
const FlagSpec* FindFlag(std::string_view name);  // null: there is none
// An error names the flag, the value and what is allowed.
Status SetFlag(const FlagSpec& flag, std::string_view value, Flags* flags);
// Flags that need one another.
Status CheckFlagsTogether(const Flags& flags);

// Flags that a container's annotation dev.sluice.flag.NAME may set: to any value where --allow-flag-override is given; without it
// only further right in `tighter`, the values from the loosest to the tightest. A flag that has no rule is the administrator's.
struct AnnotationRule {
  std::string_view flag;
  std::string_view tighter;  // empty: there is no such order
};
std::span<const AnnotationRule> AnnotationRules();
const AnnotationRule* FindAnnotationRule(std::string_view flag);  // null: no annotation may set it

// Where flags of engines that pass no arguments stand (flags_file.h).
struct FlagsFile {
  std::string path;
  bool required = false;  // an error where it does not exist
};

struct CommandSpec {
  std::string_view name;
  std::string_view usage;
  std::string_view help;
};
std::span<const CommandSpec> CommandTable();

// `flags_file`: whose flags come before those of `args` where the command is a container's; null: none. On an error the log that
// `args` name is in out->flags all the same.
Status ParseCommandLine(const std::vector<std::string>& args, CommandLine* out, const FlagsFile* flags_file = nullptr);

std::string HelpText();
std::string CommandHelpText(std::string_view command);
std::string FlagsText();      // `sluice flags`
std::string FlagsMarkdown();  // docs/flags.md
std::string VersionText();
std::string_view VersionNumber();

}  // namespace sluice
