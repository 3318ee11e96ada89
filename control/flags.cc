#include "control/flags.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>

#include "control/metrics/address.h"
#include "netstack/sysctls.h"

namespace sluice {
namespace {

bool SetBool(bool& to, std::string_view v) {
  if (v != "true" && v != "false") return false;
  to = v == "true";
  return true;
}

// "50us", "2ms", "1s"; a bare number has no unit and is refused.
std::optional<Duration> ParseDuration(std::string_view v) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(v.data(), v.data() + v.size(), number);
  if (error != std::errc() || number < 0) return std::nullopt;
  const std::string_view unit(end, static_cast<size_t>(v.data() + v.size() - end));
  const int64_t factor = unit == "ns" ? 1 : unit == "us" ? 1000 : unit == "ms" ? 1000000 : unit == "s" ? 1000000000 : 0;
  if (factor == 0 || number > Duration::Seconds(1).ns() / factor) return std::nullopt;
  return Duration(number * factor);
}

bool SetSpin(Flags& f, std::string_view v) {
  if (v == "auto") {
    f.poll_spin = Duration(0);
    return true;
  }
  const auto d = ParseDuration(v);
  if (!d || d->ns() == 0) return false;
  f.poll_spin = *d;
  return true;
}

bool SetSysctl(Flags& f, std::string_view v) {
  const size_t equals = v.find('=');
  if (equals == std::string_view::npos || equals == 0) return false;
  std::string key(v.substr(0, equals));
  std::replace(key.begin(), key.end(), '/', '.');
  const auto supported = SupportedSysctls();
  if (std::find(supported.begin(), supported.end(), key) == supported.end()) return false;
  std::vector<std::string> problems;
  SysctlMap one{{key, std::string(v.substr(equals + 1))}};
  ParseSysctls(one, &problems);
  if (!problems.empty()) return false;
  f.sysctls[key] = one[key];
  return true;
}

// "64m", "1g"; a bare number has no unit and is refused.
std::optional<uint64_t> ParseSize(std::string_view v) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(v.data(), v.data() + v.size(), number);
  const std::string_view unit(end, static_cast<size_t>(v.data() + v.size() - end));
  const int shift = unit == "k" ? 10 : unit == "m" ? 20 : unit == "g" ? 30 : 0;
  if (error != std::errc() || shift == 0 || number > (uint64_t{1} << 40) >> shift) return std::nullopt;
  return number << shift;
}

bool SetQdisc(Flags& f, std::string_view v) {
  constexpr std::pair<std::string_view, QdiscKind> kKinds[] = {
      {"none", QdiscKind::kNone}, {"fifo", QdiscKind::kFifo}, {"fq", QdiscKind::kFq}, {"tbf", QdiscKind::kTbf}};
  const auto kind = std::ranges::find(kKinds, v, &std::pair<std::string_view, QdiscKind>::first);
  if (kind == std::end(kKinds)) return false;
  f.qdisc.kind = kind->second;
  return true;
}

bool ParseNumber(std::string_view v, uint64_t* out) {
  const auto [end, error] = std::from_chars(v.data(), v.data() + v.size(), *out);
  return error == std::errc() && end == v.data() + v.size();
}

// Bytes per second, or bits with a unit as tc has them.
bool SetTbfRate(Flags& f, std::string_view v) {
  constexpr uint64_t kLeast = 1000, kMost = 1'000'000'000'000;
  constexpr std::pair<std::string_view, uint64_t> kUnits[] = {{"kbit", 1000}, {"mbit", 1'000'000}, {"gbit", 1'000'000'000}};
  uint64_t bits = 0;
  for (const auto& [unit, factor] : kUnits) {
    if (!v.ends_with(unit)) continue;
    bits = factor;
    v.remove_suffix(unit.size());
  }
  uint64_t number = 0;
  if (!ParseNumber(v, &number) || number > kMost) return false;
  const uint64_t rate = bits == 0 ? number : number > kMost * 8 / bits ? 0 : number * bits / 8;
  if (rate < kLeast) return false;
  f.qdisc.rate = rate;
  return true;
}

bool SetTbfBurst(Flags& f, std::string_view v) {
  constexpr uint64_t kLeast = 2048, kMost = UINT32_MAX;
  uint64_t bytes = 0;
  if (!ParseNumber(v, &bytes)) bytes = ParseSize(v).value_or(0);
  if (bytes < kLeast || bytes > kMost) return false;
  f.qdisc.burst = static_cast<uint32_t>(bytes);
  return true;
}

bool SetSentryMemory(Flags& f, std::string_view v) {
  constexpr uint64_t kLeast = uint64_t{64} << 20;
  if (v == "unlimited") {
    f.sentry_memory = 0;
    return true;
  }
  const auto size = ParseSize(v);
  if (!size || *size < kLeast) return false;
  f.sentry_memory = *size;
  return true;
}

bool SetContainerSockets(Flags& f, std::string_view v) {
  constexpr size_t kMost = 16384;
  size_t number = 0;
  const auto [end, error] = std::from_chars(v.data(), v.data() + v.size(), number);
  const bool is_number = error == std::errc() && end == v.data() + v.size() && number >= 1 && number <= kMost;
  f.container_sockets = is_number ? number : 0;
  return is_number || v == "auto";
}

bool SetNetworkChannels(Flags& f, std::string_view v) {
  uint64_t number = 1;
  if (v != "auto" && (!ParseNumber(v, &number) || number < 1 || number > kMaxNetworkChannels)) return false;
  f.num_network_channels = static_cast<uint32_t>(number);
  return true;
}

bool SetNonEmpty(std::string& to, std::string_view v) {
  to = v;
  return !v.empty();
}

constexpr std::string_view kBool = "true, false";

constexpr FlagSpec kFlags[] = {
    {"network", "enum", "sandbox", "sandbox, host, none", "",
     "what the program's network is: sandbox = our stack on all devices of the namespace; none = our stack, loopback only; "
     "host = the kernel's sockets of the namespace, weaker isolation",
     [](Flags& f, std::string_view v) {
       if (v != "sandbox" && v != "host" && v != "none") return false;
       f.network = v == "sandbox" ? NetworkMode::kSandbox : v == "host" ? NetworkMode::kHost : NetworkMode::kNone;
       return true;
     }},
    {"gso", "bool", "true", kBool, "",
     "segmentation offload by the device (virtio-net header); false works on old kernels and cuts in software",
     [](Flags& f, std::string_view v) { return SetBool(f.gso, v); }},
    {"software-gso", "bool", "true", kBool, "",
     "cut large segments in the dataplane where the device does not; false: TCP emits MTU-sized segments there",
     [](Flags& f, std::string_view v) { return SetBool(f.software_gso, v); }},
    {"tcx", "bool", "false", kBool, "",
     "true: silence the kernel by TCX links (Linux 6.6), which stay in front of programs that others attach later; each start "
     "and "
     "end waits for grace periods of the kernel. Always so on devices where others have TCX programs already",
     [](Flags& f, std::string_view v) { return SetBool(f.tcx, v); }},
    {"gro", "bool", "true", kBool, "", "coalesce received segments in the dataplane where the device did not",
     [](Flags& f, std::string_view v) { return SetBool(f.gro, v); }},
    {"link", "enum", "auto", "auto, packet, xdp, tap, dpdk", "",
     "how frames reach the device; tap: do without --netns, a TAP device to the host in place of a veth pair; dpdk: bench only",
     [](Flags& f, std::string_view v) {
       constexpr std::pair<std::string_view, LinkFlag> kLinks[] = {{"auto", LinkFlag::kAuto},
                                                                   {"packet", LinkFlag::kPacket},
                                                                   {"xdp", LinkFlag::kXdp},
                                                                   {"tap", LinkFlag::kTap},
                                                                   {"dpdk", LinkFlag::kDpdk}};
       const auto link = std::ranges::find(kLinks, v, &std::pair<std::string_view, LinkFlag>::first);
       if (link == std::end(kLinks)) return false;
       f.link = link->second;
       return true;
     }},
    {"num-network-channels", "number", "auto", "auto, or 1 to 16", "",
     "workers, each with a queue of every device, a stack and a share of the sockets; auto: 1 (docs/architecture.md)",
     SetNetworkChannels},
    {"poll", "enum", "adaptive", "adaptive, busy, interrupt", "",
     "how the worker waits for frames: spin a little then sleep, never sleep, always sleep",
     [](Flags& f, std::string_view v) {
       if (v != "adaptive" && v != "busy" && v != "interrupt") return false;
       f.poll = v == "adaptive" ? PollMode::kAdaptive : v == "busy" ? PollMode::kBusy : PollMode::kInterrupt;
       return true;
     }},
    {"poll-spin", "duration", "auto", "auto, or a time up to 1s such as 50us or 1ms", "",
     "how long the adaptive worker spins before it sleeps; auto: three times the cost of one wake-up, measured at start",
     SetSpin},
    {"tx-checksum-offload", "enum", "auto", "auto", "true, false", "checksums of sent segments by the device",
     [](Flags&, std::string_view v) { return v == "auto"; }},
    {"rx-checksum-offload", "enum", "auto", "auto", "true, false", "trust the device's check of received checksums",
     [](Flags&, std::string_view v) { return v == "auto"; }},
    {"qdisc", "enum", "fifo", "none, fifo, fq, tbf", "",
     "queueing discipline of the devices inside, for what is sent: none drops what a device does not take at once, fifo queues "
     "as "
     "many frames as the device's txqueuelen, fq has flows take turns and paces them, tbf is a token bucket, which needs the two "
     "flags below",
     SetQdisc},
    {"qdisc-tbf-rate", "rate", "", "bytes per second from 1000 on such as 12500000, or bits such as 100mbit (kbit, mbit, gbit)",
     "", "rate of --qdisc=tbf, of each device", SetTbfRate},
    {"qdisc-tbf-burst", "size", "", "bytes from 2048 to 4294967295 such as 65536, or with a unit such as 64k (k, m, g)", "",
     "bucket of --qdisc=tbf: what may leave at once. Longer super-segments are cut, longer frames dropped (an MTU of 9000 needs "
     "9014 and more)",
     SetTbfBurst},
    {"net-raw", "bool", "false", kBool, "", "raw sockets inside, for callers with CAP_NET_RAW; ping sockets need neither",
     [](Flags& f, std::string_view v) { return SetBool(f.net_raw, v); }},
    {"netfilter", "enum", "refuse", "refuse, ignore", "",
     "what to do where packet filters that others set in the namespace would be bypassed",
     [](Flags& f, std::string_view v) {
       if (v != "refuse" && v != "ignore") return false;
       f.netfilter = v == "refuse" ? NetfilterPolicy::kRefuse : NetfilterPolicy::kIgnore;
       return true;
     }},
    {"sysctl", "key=value", "",
     "a key that the stack uses with a value in its range, such as net.ipv4.tcp_rmem='4096 131072 6291456'", "",
     "sets a net.* key for the sandbox; may be repeated", SetSysctl},
    {"pcap-log", "string", "", "a file that can be written", "",
     "writes every frame of the sandbox's devices to the file (pcapng)",
     [](Flags& f, std::string_view v) { return SetNonEmpty(f.pcap_log, v); }},
    {"log-packets", "bool", "false", "", "*", "one log line per frame", nullptr},
    {"metrics", "string", "", "ADDRESS:PORT with a numeric address, or unix:/PATH", "",
     "where the counters are served for Prometheus (HTTP, /metrics), on the host's network; sandboxes that name the same address "
     "share it",
     [](Flags& f, std::string_view v) {
       f.metrics = v;
       return ParseMetricsAddress(v).has_value();
     }},
    {"root", "string", "/run/sluice", "an absolute path", "",
     "where running sandboxes are registered; for containers: runc's own directory (default: runc's)",
     [](Flags& f, std::string_view v) {
       f.root_given = true;
       return SetNonEmpty(f.root, v) && v[0] == '/';
     }},
    {"log", "string", "", "a file that can be written", "", "log file (appended); warnings and errors go to stderr in any case",
     [](Flags& f, std::string_view v) { return SetNonEmpty(f.log, v); }},
    {"log-format", "enum", "text", "text, json", "", "format of the log file",
     [](Flags& f, std::string_view v) {
       f.log_json = v == "json";
       return v == "text" || v == "json";
     }},
    {"debug", "bool", "false", kBool, "", "log more, to stderr where there is no --log",
     [](Flags& f, std::string_view v) { return SetBool(f.debug, v); }},
    {"systemd-cgroup", "bool", "false", kBool, "", "containers: have runc use systemd for cgroups",
     [](Flags& f, std::string_view v) { return SetBool(f.systemd_cgroup, v); }},
    {"rootless", "enum", "auto", "auto, true, false", "", "containers: as runc; sluice itself needs root",
     [](Flags& f, std::string_view v) {
       f.rootless = v;
       return v == "auto" || v == "true" || v == "false";
     }},
    {"sentry-memory", "size", "unlimited", "unlimited, or a size from 64m up to 1024g such as 512m", "",
     "packets in the stack's buffers get half of it, at most 512m, and what else sockets hold a part; containers: also the bound "
     "of all memory of the sandbox's own "
     "processes, in a control group beside the container's",
     SetSentryMemory},
    {"container-sockets", "number", "auto", "auto, or 1 to 16384", "",
     "sockets of one container, beyond them ENFILE; however high, it gets at most three times as many as the sandbox has free "
     "(auto: that alone)",
     SetContainerSockets},
    {"allow-flag-override", "bool", "false", kBool, "",
     "containers: annotations dev.sluice.flag.NAME may set NAME to any value; without it they may only tighten",
     [](Flags& f, std::string_view v) { return SetBool(f.allow_flag_override, v); }},
};

constexpr AnnotationRule kAnnotations[] = {
    {"network", "host, sandbox, none"},
    {"net-raw", "true, false"},
    {"netfilter", "ignore, refuse"},
    {"poll", "busy, adaptive, interrupt"},
    {"gso", ""},
    {"software-gso", ""},
    {"gro", ""},
    {"link", ""},
    {"num-network-channels", ""},
    {"poll-spin", ""},
    {"tx-checksum-offload", ""},
    {"rx-checksum-offload", ""},
    {"qdisc", ""},
    {"qdisc-tbf-rate", ""},
    {"qdisc-tbf-burst", ""},
    {"sysctl", ""},
};

// Cuts a comma-separated list.
bool ListHas(std::string_view list, std::string_view value) {
  while (!list.empty()) {
    const size_t comma = list.find(',');
    std::string_view item = list.substr(0, comma);
    while (!item.empty() && item.front() == ' ') item.remove_prefix(1);
    if (item == value) return true;
    if (comma == std::string_view::npos) break;
    list.remove_prefix(comma + 1);
  }
  return false;
}

// Is the value one of those that only a later build has?
bool IsLaterValue(const FlagSpec& flag, std::string_view value) { return ListHas(flag.later, value); }

std::string Str(std::string_view s) { return std::string(s); }

}  // namespace

std::span<const FlagSpec> FlagTable() { return kFlags; }

const FlagSpec* FindFlag(std::string_view name) {
  const auto* found = std::ranges::find(kFlags, name, &FlagSpec::name);
  return found == std::end(kFlags) ? nullptr : found;
}

std::span<const AnnotationRule> AnnotationRules() { return kAnnotations; }

const AnnotationRule* FindAnnotationRule(std::string_view flag) {
  const auto* found = std::ranges::find(kAnnotations, flag, &AnnotationRule::flag);
  return found == std::end(kAnnotations) ? nullptr : found;
}

Status SetFlag(const FlagSpec& flag, std::string_view value, Flags* flags) {
  const std::string shown = "--" + Str(flag.name) + "=" + Str(value);
  if (flag.later == "*") return Status::Error("--" + Str(flag.name) + ": not available in this build");
  if (IsLaterValue(flag, value))
    return Status::Error(shown + ": not available in this build (allowed: " + Str(flag.allowed) + ")");
  if (!flag.set(*flags, value)) return Status::Error(shown + ": not a valid value (allowed: " + Str(flag.allowed) + ")");
  return {};
}

Status CheckFlagsTogether(const Flags& flags) {
  const QdiscOptions& q = flags.qdisc;
  const bool tbf = q.kind == QdiscKind::kTbf;
  if (tbf && q.rate == 0) return Status::Error("--qdisc=tbf: needs --qdisc-tbf-rate");
  if (tbf && q.burst == 0) return Status::Error("--qdisc=tbf: needs --qdisc-tbf-burst");
  if (!tbf && q.rate != 0) return Status::Error("--qdisc-tbf-rate: needs --qdisc=tbf");
  if (!tbf && q.burst != 0) return Status::Error("--qdisc-tbf-burst: needs --qdisc=tbf");
  return {};
}

}  // namespace sluice
