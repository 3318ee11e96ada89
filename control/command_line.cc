#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <charconv>

#include "control/command_parser.h"
#include "control/flags.h"
#include "control/flags_file.h"
#include "control/oci/front_end.h"

namespace sluice {
namespace {

constexpr CommandSpec kCommands[] = {
    {"do", "do [--netns=NAME|PATH] [--device=NAME]... [--env K=V]... [--] CMD [ARG]...",
     "runs CMD with its network on our stack. Without --netns: in a network namespace of its own with a veth pair to the host "
     "(private /30, "
     "default route, no NAT), undone at exit. The exit status is CMD's (128 + signal)"},
    {"stats", "stats [--json] [--netns=NAME|PATH] [NAME|ID|PID]",
     "counters, drop reasons, ports and workers of a running sandbox"},
    {"sockets", "sockets [--json] [--netns=NAME|PATH] [NAME|ID|PID]", "its sockets"},
    {"routes", "routes [--json] [--netns=NAME|PATH] [NAME|ID|PID]", "its routes as the stack has them"},
    {"neigh", "neigh [--json] [--netns=NAME|PATH] [NAME|ID|PID]", "its neighbours"},
    {"drops", "drops [--json] [--netns=NAME|PATH] [NAME|ID|PID]", "what it dropped, by reason"},
    {"top", "top [--once] [--json] [--interval=SECONDS] [NAME|ID|PID]...",
     "what running sandboxes do, as a table that is drawn anew every second (all of them, or those named): packets and bytes per "
     "second in and out, connections, retransmissions, drops, CPU time of the sentry. q or Ctrl-C ends it. --once: one table "
     "over "
     "one interval; --json: one line of JSON each time"},
    {"capture", "capture [-w FILE] [--device=NAME]... [--count=N] [--snaplen=BYTES] [--netns=NAME|PATH] [NAME|ID|PID]",
     "the frames of a running sandbox as pcapng, from all its devices and the loopback, to FILE or to standard output (sluice "
     "capture web | wireshark -k -i -). Ends with a signal, with its reader, after --count frames, or with the sandbox. "
     "Super-segments are one frame; checksums that the device makes are not made yet. A reader that is too slow loses frames, "
     "which are counted, and never slows the sandbox"},
    {"sandboxes", "sandboxes [--json]", "running sandboxes"},
    {"bench",
     "bench rx|tx|echo|l2fwd --device=NAME... [--netns=NAME|PATH] [--seconds=N] [--size=BYTES] [--flows=N] [--workers=N] "
     "[--xdp-mode=MODE] "
     "[--json]",
     "a packet tool over the port that --link names, without a stack. rx: counts and drops what comes. tx: sends UDP frames of "
     "--size bytes (64; "
     "above 1514: super-segments) from 198.18.0.1 to 198.18.0.2. echo: sends everything back. l2fwd: from each device to the "
     "next. Runs until a "
     "signal or for --seconds. The kernel still gets its copy of what the packet port receives. --link=tap makes the device; "
     "with --link=dpdk a device is "
     "what DPDK calls one, such as net_af_xdp0,iface=eth0. --xdp-mode: auto, native, generic. "
     "--workers=N: N threads, each with a queue of every device, to which flows are steered by a hash; xdp: the device uses one "
     "receive queue, which all share, or one for each; dpdk has one"},
    {"flags", "flags [--markdown] [--man] [--completion]",
     "every global flag with default and allowed values; --man: the manual page; --completion: a script for bash"},
    {"install", "install [--engine=docker|containerd|podman]... [--runtime=NAME] [--config=FILE] [--dry-run] [-- FLAG...]",
     "makes sluice a runtime of these engines (those that are found), with these flags; keeps what else is in their "
     "configuration, and a copy. Flags of containerd and podman go to /etc/sluice/NAME.flags"},
    {"uninstall", "uninstall [--engine=docker|containerd|podman]... [--runtime=NAME] [--config=FILE] [--dry-run]",
     "takes it out again"},
    {"create", "create|run [--bundle=DIR] [--pid-file=FILE] [--console-socket=PATH] ... ID",
     "makes a container as runc does, with its network on our stack. Container engines call it; all options are runc's"},
    {"start", "start|state|kill|delete|exec|ps|list|events|update|pause|resume|spec|features ...",
     "as runc, whose arguments, output and exit status they have"},
};

constexpr std::string_view kLaterCommands[] = {"checkpoint", "restore"};

// What follows a flag's or a command's own options is not CLI11's to look at (it would interpret "--" and "[a,b]" in the
// arguments of CMD), so the global flags and each command have a parser of their own, and all of them stop at the first other
// word.

std::string Str(std::string_view s) { return std::string(s); }

Status ParseDo(const std::vector<std::string>& args, CommandLine* out) {
  DoOptions& options = out->do_options;
  CLI::App app;
  CommandParser parser(&app, &out->help);
  app.prefix_command();
  CLI::Option* netns = parser.Option("--netns");
  CLI::Option* device = parser.Option("--device");
  CLI::Option* env = parser.Option("--env");
  SLUICE_RETURN_IF_ERROR(parser.Parse(args));
  options.command = app.remaining();
  if (!options.command.empty() && options.command[0] == "--") {
    options.command.erase(options.command.begin());
  } else if (!options.command.empty() && options.command[0].rfind('-', 0) == 0) {
    const std::string& arg = options.command[0];
    const bool global =
        std::ranges::any_of(FlagTable(), [&](const FlagSpec& f) { return OptionName(arg) == "--" + Str(f.name); });
    return UsageError(arg + (global ? ": a global flag stands before the command (sluice " + arg + " do ...)"
                                    : ": unknown option of do (allowed: --netns, --device, --env)"));
  }
  if (out->help) return {};
  if (out->flags.systemd_cgroup) return UsageError("--systemd-cgroup: only for containers, not for do");
  if (!out->flags.rootless.empty()) return UsageError("--rootless: only for containers, not for do");
  if (netns->count() != 0) options.netns = netns->results().back();
  options.devices = device->results();
  options.env = env->results();
  for (const std::string& e : options.env) {
    if (e.find('=') == std::string::npos || e[0] == '=')
      return UsageError("--env=" + e + ": not a valid value (allowed: KEY=VALUE)");
  }
  if (options.command.empty()) return UsageError("do: no command is given (usage: sluice " + Str(kCommands[0].usage) + ")");
  if (options.netns.empty() && !options.devices.empty()) {
    return UsageError("--device=" + options.devices[0] + ": needs --netns (a namespace of our own has one device)");
  }
  return {};
}

Status ParseFlags(const std::vector<std::string>& args, CommandLine* out) {
  CLI::App app;
  CommandParser parser(&app, &out->help);
  for (const char* form : {"markdown", "man", "completion"})
    app.add_flag_callback(std::string("--") + form, [out, form] { out->form = form; });
  SLUICE_RETURN_IF_ERROR(parser.Parse(args));
  return parser.NothingLeft("flags");
}

template <typename T>
Status ParseNumber(const std::string& name, const CLI::Option* option, T least, T most, T* out) {
  if (option->count() == 0) return {};
  const std::string& text = option->results().back();
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
  if (error == std::errc() && end == text.data() + text.size() && *out >= least && *out <= most) return {};
  return UsageError(name + "=" + text + ": not a valid value (allowed: " + std::to_string(least) + " to " + std::to_string(most) +
                    ")");
}

template <typename T, size_t kCount>
bool FindWord(const std::pair<std::string_view, T> (&words)[kCount], std::string_view word, T* out) {
  const auto found = std::ranges::find(words, word, &std::pair<std::string_view, T>::first);
  if (found == std::end(words)) return false;
  *out = found->second;
  return true;
}

Status ParseBench(const std::vector<std::string>& args, CommandLine* out) {
  constexpr std::pair<std::string_view, BenchMode> kModes[] = {
      {"rx", BenchMode::kRx}, {"tx", BenchMode::kTx}, {"echo", BenchMode::kEcho}, {"l2fwd", BenchMode::kL2Forward}};
  constexpr std::pair<std::string_view, XdpMode> kXdpModes[] = {
      {"auto", XdpMode::kAuto}, {"native", XdpMode::kNative}, {"generic", XdpMode::kGeneric}};
  BenchOptions& bench = out->bench;
  CLI::App app;
  CommandParser parser(&app, &out->help);
  app.add_option("mode", bench.mode_name);
  app.add_option("--netns", bench.netns);
  app.add_flag("--json", bench.json);
  CLI::Option* device = parser.Option("--device");
  CLI::Option* seconds = parser.Option("--seconds");
  CLI::Option* size = parser.Option("--size");
  CLI::Option* flows = parser.Option("--flows");
  CLI::Option* workers = parser.Option("--workers");
  CLI::Option* xdp_mode = parser.Option("--xdp-mode");
  SLUICE_RETURN_IF_ERROR(parser.Parse(args));
  SLUICE_RETURN_IF_ERROR(parser.NothingLeft("bench"));
  if (out->help) return {};
  bench.devices = device->results();
  if (!FindWord(kModes, bench.mode_name, &bench.mode)) {
    return UsageError("bench: " + (bench.mode_name.empty() ? "no mode is given" : bench.mode_name + ": unknown mode") +
                      " (allowed: rx, tx, echo, l2fwd)");
  }
  if (xdp_mode->count() != 0 && !FindWord(kXdpModes, xdp_mode->results().back(), &bench.xdp_mode)) {
    return UsageError("--xdp-mode=" + xdp_mode->results().back() + ": not a valid value (allowed: auto, native, generic)");
  }
  SLUICE_RETURN_IF_ERROR(ParseNumber("--seconds", seconds, 1u, 1000000u, &bench.seconds));
  SLUICE_RETURN_IF_ERROR(ParseNumber("--size", size, 42u, 65000u, &bench.size));
  SLUICE_RETURN_IF_ERROR(ParseNumber("--flows", flows, 1u, 32768u, &bench.flows));
  SLUICE_RETURN_IF_ERROR(ParseNumber("--workers", workers, 1u, ShardPeers::kMax, &bench.workers));
  if (bench.devices.empty()) return UsageError("bench: no device is named (--device=NAME)");
  if (bench.mode == BenchMode::kL2Forward && bench.devices.size() < 2)
    return UsageError("bench l2fwd: needs two devices (--device=NAME twice); echo needs one");
  return {};
}

Status ParseInstall(const std::vector<std::string>& args, CommandLine* out) {
  InstallOptions& options = out->install;
  CLI::App app;
  CommandParser parser(&app, &out->help);
  app.prefix_command();
  app.add_option("--runtime", options.runtime);
  app.add_option("--config", options.config);
  const CLI::Option* engine = parser.Option("--engine");
  app.add_flag("--dry-run", options.dry_run);
  SLUICE_RETURN_IF_ERROR(parser.Parse(args));
  options.engines = engine->results();
  for (const std::string& name : options.engines) {
    if (name != "docker" && name != "containerd" && name != "podman")
      return UsageError("--engine=" + name + ": not a valid value (allowed: docker, containerd, podman)");
  }
  if (!options.config.empty() && options.engines.size() != 1)
    return UsageError("--config=" + options.config + ": needs one --engine, whose configuration it is");
  options.flags = app.remaining();
  if (options.flags.empty()) return {};
  if (options.flags[0] != "--" || out->command == "uninstall")
    return UsageError(options.flags[0] + ": unknown argument of " + out->command + " (flags for the runtime stand behind --)");
  options.flags.erase(options.flags.begin());
  return {};
}

Status CheckNamesOne(const CommandLine& line) {
  if (line.help || line.query.target.empty() != line.query.netns.empty()) return {};
  return UsageError(line.command + ": name one sandbox, by a container id, the name of its namespace, a process id or --netns");
}

Status ParseCapture(const std::vector<std::string>& args, CommandLine* out) {
  CaptureOptions& capture = out->capture;
  CLI::App app;
  CommandParser parser(&app, &out->help);
  app.add_option("--netns", out->query.netns);
  app.add_option("target", out->query.target);
  app.add_option("-w", capture.file);
  CLI::Option* device = parser.Option("--device");
  CLI::Option* count = parser.Option("--count");
  CLI::Option* snaplen = parser.Option("--snaplen");
  SLUICE_RETURN_IF_ERROR(parser.Parse(args));
  SLUICE_RETURN_IF_ERROR(parser.NothingLeft("capture"));
  capture.devices = device->results();
  SLUICE_RETURN_IF_ERROR(ParseNumber("--count", count, uint64_t{1}, uint64_t{1} << 62, &capture.count));
  SLUICE_RETURN_IF_ERROR(ParseNumber("--snaplen", snaplen, 1u, uint32_t{262144}, &capture.snaplen));
  for (const std::string& name : capture.devices) {
    if (name.size() > 15) return UsageError("--device=" + name + ": not a valid value (allowed: the name of a device)");
  }
  if (capture.devices.size() > 64) return UsageError("--device: at most 64 devices are allowed");
  return CheckNamesOne(*out);
}

Status ParseTop(const std::vector<std::string>& args, CommandLine* out) {
  TopOptions& top = out->top;
  CLI::App app;
  CommandParser parser(&app, &out->help);
  app.add_flag("--once", top.once);
  app.add_flag("--json", top.json);
  CLI::Option* interval = parser.Option("--interval");
  CLI::Option* targets = app.add_option("targets", top.targets);
  targets->expected(-1);
  SLUICE_RETURN_IF_ERROR(parser.Parse(args));
  SLUICE_RETURN_IF_ERROR(parser.NothingLeft("top"));
  return ParseNumber("--interval", interval, 1u, 3600u, &top.interval);
}

Status ParseQuery(const std::vector<std::string>& args, CommandLine* out) {
  QueryOptions& query = out->query;
  const bool names_sandbox = out->command != "sandboxes";
  CLI::App app;
  CommandParser parser(&app, &out->help);
  app.add_flag("--json", query.json);
  if (names_sandbox) {
    app.add_option("--netns", query.netns);
    app.add_option("target", query.target);
  }
  SLUICE_RETURN_IF_ERROR(parser.Parse(args));
  SLUICE_RETURN_IF_ERROR(parser.NothingLeft(out->command));
  return names_sandbox ? CheckNamesOne(*out) : Status();
}

Status ParseCommand(const std::vector<std::string>& args, CommandLine* out) {
  const std::string& command = out->command;
  if (command == "help") return {};
  if (oci::IsCommand(command)) {
    out->arguments = args;
    return {};
  }
  if (std::ranges::find(kLaterCommands, command) != std::end(kLaterCommands))
    return Status::Error(command + ": not available in this build");
  if (std::ranges::none_of(kCommands, [&](const CommandSpec& c) { return c.name == command; })) {
    return UsageError(command + ": unknown command (see sluice --help)");
  }
  if (command == "do") return ParseDo(args, out);
  if (command == "install" || command == "uninstall") return ParseInstall(args, out);
  if (command == "flags") return ParseFlags(args, out);
  if (command == "bench") return ParseBench(args, out);
  if (command == "top") return ParseTop(args, out);
  if (command == "capture") return ParseCapture(args, out);
  return ParseQuery(args, out);
}

// All that can be set are, so that an error can go to the log that is named; the first error is returned. `options`: one per flag
// of the table.
Status SetFlags(const std::vector<CLI::Option*>& options, Flags* flags) {
  Status first;
  for (size_t i = 0; i < options.size(); ++i) {
    for (const std::string& value : options[i]->results()) {
      const Status status = SetFlag(FlagTable()[i], value, flags);
      if (first.ok()) first = status;
    }
  }
  return first;
}

}  // namespace

std::span<const CommandSpec> CommandTable() { return kCommands; }

Status ParseCommandLine(const std::vector<std::string>& args, CommandLine* out, const FlagsFile* flags_file) {
  CLI::App app;
  bool help = false, version = false;
  CommandParser parser(&app, &help);
  app.prefix_command();
  app.add_flag("-v,--version", version);
  std::vector<CLI::Option*> options;
  for (const FlagSpec& flag : FlagTable())
    options.push_back(flag.type == "bool" ? parser.Flag("--" + Str(flag.name)) : parser.Option("--" + Str(flag.name)));
  SLUICE_RETURN_IF_ERROR(parser.Parse(args));
  std::vector<std::string> rest = app.remaining();
  if (!rest.empty() && rest[0].rfind('-', 0) == 0) return UsageError(rest[0] + ": unknown flag (see sluice flags)");
  if (help || version) {
    out->command = help ? "help" : "version";
    return {};
  }
  SLUICE_RETURN_IF_ERROR(SetFlags(options, &out->flags));
  if (rest.empty()) return UsageError("no command is given (see sluice --help)");
  out->command = rest[0];
  rest.erase(rest.begin());
  if (flags_file != nullptr && oci::IsCommand(out->command)) {
    Flags flags;
    SLUICE_RETURN_IF_ERROR(ReadFlagsFile(*flags_file, &flags));
    SLUICE_RETURN_IF_ERROR(SetFlags(options, &flags));
    out->flags = flags;
  } else {
    SLUICE_RETURN_IF_ERROR(CheckFlagsTogether(out->flags));
  }
  return ParseCommand(rest, out);
}

}  // namespace sluice
