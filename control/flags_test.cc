#include "control/flags.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

namespace sluice {
namespace {

Status Parse(std::vector<std::string> args, CommandLine* line) { return ParseCommandLine(args, line); }

Status Parse(std::vector<std::string> args) {
  CommandLine line;
  return ParseCommandLine(args, &line);
}

TEST(Flags, DocumentIsCurrent) {
  std::ifstream file(std::string(SLUICE_SOURCE_DIR) + "/docs/flags.md");
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_EQ(text.str(), FlagsMarkdown()) << "run: sluice flags --markdown > docs/flags.md";
}

// A default that is shown but not what happens would be a lie.
TEST(Flags, EveryShownDefaultIsAcceptedAndChangesNothing) {
  for (const FlagSpec& flag : FlagTable()) {
    if (flag.set == nullptr || flag.initial.empty()) continue;
    Flags flags;
    EXPECT_TRUE(flag.set(flags, flag.initial)) << flag.name;
  }
}

TEST(Flags, TakesBothSpellingsAndBareBools) {
  CommandLine line;
  ASSERT_TRUE(
      Parse({"--gso=false", "--poll", "busy", "--net-raw", "--network", "none", "do", "--env=A=b=c", "--", "ls", "-l"}, &line)
          .ok());
  EXPECT_FALSE(line.flags.gso);
  EXPECT_TRUE(line.flags.net_raw);
  EXPECT_EQ(line.flags.poll, PollMode::kBusy);
  EXPECT_EQ(line.flags.network, NetworkMode::kNone);
  EXPECT_EQ(line.do_options.env, std::vector<std::string>{"A=b=c"});
  EXPECT_EQ(line.do_options.command, (std::vector<std::string>{"ls", "-l"}));
}

TEST(Flags, Sizes) {
  CommandLine line;
  ASSERT_TRUE(Parse({"--sentry-memory=64m", "do", "x"}, &line).ok());
  EXPECT_EQ(line.flags.sentry_memory, uint64_t{64} << 20);
  ASSERT_TRUE(Parse({"--sentry-memory=1024g", "do", "x"}, &line).ok());
  EXPECT_EQ(line.flags.sentry_memory, uint64_t{1} << 40);
  ASSERT_TRUE(Parse({"--sentry-memory=unlimited", "do", "x"}, &line).ok());
  EXPECT_EQ(line.flags.sentry_memory, 0u);
}

TEST(Flags, CommandNeedsNoDashes) {
  CommandLine line;
  ASSERT_TRUE(Parse({"do", "--netns", "n", "--device=eth0", "--device", "eth1", "ip", "--json", "addr"}, &line).ok());
  EXPECT_EQ(line.do_options.netns, "n");
  EXPECT_EQ(line.do_options.devices, (std::vector<std::string>{"eth0", "eth1"}));
  EXPECT_EQ(line.do_options.command, (std::vector<std::string>{"ip", "--json", "addr"}));
}

TEST(Flags, WrongValuesNameFlagValueAndWhatIsAllowed) {
  const struct {
    std::vector<std::string> args;
    const char* line;
    int exit_code;
  } cases[] = {
      {{"--network=bridge", "do", "x"}, "--network=bridge: not a valid value (allowed: sandbox, host, none)", 1},
      {{"--gso=maybe", "do", "x"}, "--gso=maybe: not a valid value (allowed: true, false)", 1},
      {{"--link", "dpdk:net_tap", "do", "x"},
       "--link=dpdk:net_tap: not a valid value (allowed: auto, packet, xdp, tap, dpdk)",
       1},
      {{"--num-network-channels=17", "do", "x"}, "--num-network-channels=17: not a valid value (allowed: auto, or 1 to 16)", 1},
      {{"--num-network-channels=0", "do", "x"}, "--num-network-channels=0: not a valid value (allowed: auto, or 1 to 16)", 1},
      {{"--metrics=:9000", "do", "x"},
       "--metrics=:9000: not a valid value (allowed: ADDRESS:PORT with a numeric address, or unix:/PATH)",
       1},
      {{"--poll-spin=5", "do", "x"},
       "--poll-spin=5: not a valid value (allowed: auto, or a time up to 1s such as 50us or 1ms)",
       1},
      {{"--container-sockets=0", "do", "x"}, "--container-sockets=0: not a valid value (allowed: auto, or 1 to 16384)", 1},
      {{"--container-sockets=16385", "do", "x"},
       "--container-sockets=16385: not a valid value (allowed: auto, or 1 to 16384)",
       1},
      {{"--container-sockets=5x", "do", "x"}, "--container-sockets=5x: not a valid value (allowed: auto, or 1 to 16384)", 1},
      {{"--sentry-memory=64", "do", "x"},
       "--sentry-memory=64: not a valid value (allowed: unlimited, or a size from 64m up to 1024g such as 512m)",
       1},
      {{"--sentry-memory=63m", "do", "x"},
       "--sentry-memory=63m: not a valid value (allowed: unlimited, or a size from 64m up to 1024g such as 512m)",
       1},
      {{"--sentry-memory=2000g", "do", "x"},
       "--sentry-memory=2000g: not a valid value (allowed: unlimited, or a size from 64m up to 1024g such as 512m)",
       1},
      {{"--nonsense", "do", "x"}, "--nonsense: unknown flag (see sluice flags)", 2},
      {{"--pcap-log=", "do", "x"}, "--pcap-log: an empty value is not allowed", 2},
      {{"--gso=", "do", "x"}, "--gso: an empty value is not allowed", 2},
      {{"--", "do", "x"}, "--: unknown flag (see sluice flags)", 2},
      {{"-x", "do"}, "-x: unknown flag (see sluice flags)", 2},
      {{"--network"}, "--network: a value is missing", 2},
      {{}, "no command is given (see sluice --help)", 2},
      {{"dance"}, "dance: unknown command (see sluice --help)", 2},
      {{"checkpoint"}, "checkpoint: not available in this build", 1},
      {{"do", "--netns"}, "--netns: a value is missing", 2},
      {{"do", "--env=X", "y"}, "--env=X: not a valid value (allowed: KEY=VALUE)", 2},
      {{"do", "--gso=false", "x"}, "--gso=false: a global flag stands before the command (sluice --gso=false do ...)", 2},
      {{"do", "--device=eth0", "x"}, "--device=eth0: needs --netns (a namespace of our own has one device)", 2},
      {{"do", "--netns=", "x"}, "--netns: an empty value is not allowed", 2},
      {{"do", "--netns", "", "x"}, "--netns: an empty value is not allowed", 2},
      {{"do", "-x", "y"}, "-x: unknown option of do (allowed: --netns, --device, --env)", 2},
      {{"do", "--"},
       "do: no command is given (usage: sluice do [--netns=NAME|PATH] [--device=NAME]... [--env K=V]... [--] CMD [ARG]...)",
       2},
      {{"sandboxes", "x"}, "x: unknown argument of sandboxes (see sluice sandboxes --help)", 2},
      {{"stats", "a", "b"}, "b: unknown argument of stats (see sluice stats --help)", 2},
      {{"flags", "--nonsense"}, "--nonsense: unknown argument of flags (see sluice flags --help)", 2},
      {{"stats"}, "stats: name one sandbox, by a container id, the name of its namespace, a process id or --netns", 2},
  };
  for (const auto& c : cases) {
    const Status status = Parse(c.args);
    EXPECT_EQ(status.line(), c.line);
    EXPECT_EQ(status.exit_code(), c.exit_code) << c.line;
  }
}

// What stands behind the command of `do` reaches it as it is.
TEST(Flags, ArgumentsOfTheProgramAreNotInterpreted) {
  const std::vector<std::vector<std::string>> commands = {{"stats", "--netns=x"},
                                                          {"ls", "--", "-l", "--"},
                                                          {"printf", "[1,2]", "++", "{}", ""},
                                                          {"env", "--env", "A=b", "--device", "--help", "-h"},
                                                          {"false"},
                                                          {"++", "-1"}};
  for (const auto& command : commands) {
    for (const bool dashes : {false, true}) {
      std::vector<std::string> args = {"--debug", "do", "--env", "[A=1,2]"};
      if (dashes) args.push_back("--");
      args.insert(args.end(), command.begin(), command.end());
      CommandLine line;
      ASSERT_TRUE(Parse(args, &line).ok()) << command[0];
      EXPECT_EQ(line.do_options.command, command);
      EXPECT_EQ(line.do_options.env, std::vector<std::string>{"[A=1,2]"});
      EXPECT_FALSE(line.help);
    }
  }
  CommandLine line;
  ASSERT_TRUE(Parse({"do", "--", "--gso=false"}, &line).ok());
  EXPECT_EQ(line.do_options.command, std::vector<std::string>{"--gso=false"});
}

TEST(Flags, LastOfSeveralValuesCounts) {
  CommandLine line;
  ASSERT_TRUE(Parse({"--poll=busy", "--poll", "interrupt", "--gso", "--gso=false", "sandboxes", "--json"}, &line).ok());
  EXPECT_EQ(line.flags.poll, PollMode::kInterrupt);
  EXPECT_FALSE(line.flags.gso);
  EXPECT_TRUE(line.query.json);
}

TEST(Flags, HelpAndVersion) {
  CommandLine line;
  ASSERT_TRUE(Parse({"--debug", "-h"}, &line).ok());
  EXPECT_EQ(line.command, "help");
  ASSERT_TRUE(Parse({"--version"}, &line).ok());
  EXPECT_EQ(line.command, "version");
  for (const char* command : {"do", "stats", "sandboxes", "flags"}) {
    CommandLine one;
    ASSERT_TRUE(Parse({command, "--help"}, &one).ok()) << command;
    EXPECT_TRUE(one.help);
    EXPECT_EQ(one.command, command);
  }
}

TEST(Flags, SysctlTakesWhatTheStackUsesOnly) {
  CommandLine line;
  ASSERT_TRUE(Parse({"--sysctl", "net/ipv4/tcp_rmem=4096 8192 65536", "do", "x"}, &line).ok());
  EXPECT_EQ(line.flags.sysctls.at("net.ipv4.tcp_rmem"), "4096 8192 65536");
  EXPECT_FALSE(Parse({"--sysctl=kernel.hostname=x", "do", "x"}).ok());
  EXPECT_FALSE(Parse({"--sysctl=net.ipv4.ip_default_ttl=-4", "do", "x"}).ok());
  EXPECT_FALSE(Parse({"--sysctl=net.ipv4.ip_default_ttl", "do", "x"}).ok());
}

TEST(Flags, InstallNamesEngines) {
  CommandLine line;
  ASSERT_TRUE(Parse({"install", "--engine=podman", "--engine", "containerd", "--", "--network=none"}, &line).ok());
  EXPECT_EQ(line.install.engines, (std::vector<std::string>{"podman", "containerd"}));
  EXPECT_EQ(line.install.flags, std::vector<std::string>{"--network=none"});
  EXPECT_EQ(Parse({"install", "--engine=lxc"}).line(), "--engine=lxc: not a valid value (allowed: docker, containerd, podman)");
  EXPECT_EQ(Parse({"install", "--config=/x"}).line(), "--config=/x: needs one --engine, whose configuration it is");
  EXPECT_FALSE(Parse({"uninstall", "--engine=podman", "--engine=docker", "--config=/x"}).ok());
}

}  // namespace
}  // namespace sluice
