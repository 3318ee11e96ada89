#include "control/flags_file.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

namespace sluice {
namespace {

std::string ErrorOf(std::string_view text) {
  Flags flags;
  return ParseFlagsText(text, "/etc/sluice/x.flags", &flags).line();
}

TEST(FlagsFileTest, NamedByTheNameTheProgramIsCalledBy) {
  EXPECT_EQ(FlagsFileOf("sluice").path, "/etc/sluice/sluice.flags");
  EXPECT_FALSE(FlagsFileOf("/usr/bin/sluice").required);
  EXPECT_EQ(FlagsFileOf("/etc/sluice/sluice-none").path, "/etc/sluice/sluice-none.flags");
  EXPECT_TRUE(FlagsFileOf("../sluice-none").required);
  EXPECT_EQ(FlagsFileOf("").path, "/etc/sluice/sluice.flags");
  EXPECT_EQ(FlagsFileOf("..").path, "/etc/sluice/...flags");
}

TEST(FlagsFileTest, OneFlagALine) {
  Flags flags;
  const Status status = ParseFlagsText(
      "# for everybody\n\n  --network=none \r\n--net-raw\n--gso=false\n--sysctl=net.ipv4.tcp_rmem=4096 131072 6291456\n"
      "--sysctl=net.ipv4.ip_default_ttl=33\n\t# and no more\n--poll=busy",
      "f", &flags);
  ASSERT_TRUE(status.ok()) << status.line();
  EXPECT_EQ(flags.network, NetworkMode::kNone);
  EXPECT_TRUE(flags.net_raw);
  EXPECT_FALSE(flags.gso);
  EXPECT_EQ(flags.sysctls["net.ipv4.tcp_rmem"], "4096 131072 6291456");
  EXPECT_EQ(flags.sysctls["net.ipv4.ip_default_ttl"], "33");
  EXPECT_EQ(flags.poll, PollMode::kBusy);
}

TEST(FlagsFileTest, WrongLinesAreNamed) {
  EXPECT_EQ(ErrorOf("--gso=false\n\n--frobnicate=1\n"), "/etc/sluice/x.flags:3: --frobnicate: unknown flag (see sluice flags)");
  EXPECT_EQ(ErrorOf("--network=vpn"), "/etc/sluice/x.flags:1: --network=vpn: not a valid value (allowed: sandbox, host, none)");
  EXPECT_EQ(ErrorOf("network=none"), "/etc/sluice/x.flags:1: network=none: not a flag (one --flag=value a line, # for comments)");
  EXPECT_EQ(ErrorOf("--network"), "/etc/sluice/x.flags:1: --network: a value is missing (--network=VALUE)");
  EXPECT_EQ(ErrorOf("--network="), "/etc/sluice/x.flags:1: --network=: a value is missing (--network=VALUE)");
  for (const char* text : {"--", "--=x", "--network none", "--gso=false # no", "--gso --gro", "-gso", "--version", "--help"})
    EXPECT_NE(ErrorOf(text), "") << text;
}

TEST(FlagsFileTest, OnlyRootMayBeAbleToWriteIt) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to own files";
  std::string folder = testing::TempDir() + "/sluice-flags-XXXXXX";
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  const std::string path = folder + "/x.flags";
  std::ofstream(path) << "--gso=false\n";
  const auto line = [&] {
    Flags flags;
    const Status status = ReadFlagsFile({path, true}, &flags);
    EXPECT_EQ(status.ok(), !flags.gso);
    return status.line();
  };
  EXPECT_EQ(chmod(path.c_str(), 0644), 0);
  EXPECT_EQ(line(), "");
  for (const mode_t mode : {0664, 0646}) {
    EXPECT_EQ(chmod(path.c_str(), mode), 0);
    EXPECT_NE(line().find(path + ": others than root can change it"), std::string::npos);
  }
  EXPECT_EQ(chmod(path.c_str(), 0600), 0);
  EXPECT_EQ(chown(path.c_str(), 1000, 0), 0);
  EXPECT_NE(line().find("owner 1000"), std::string::npos);
  EXPECT_EQ(chown(path.c_str(), 0, 0), 0);
  EXPECT_EQ(chmod(folder.c_str(), 0777), 0);
  EXPECT_EQ(line().rfind(folder + ": others", 0), 0u);
  EXPECT_EQ(chmod(folder.c_str(), 0700), 0);
  EXPECT_EQ(rename(path.c_str(), (path + "2").c_str()), 0);
  EXPECT_NE(line().find("does not exist"), std::string::npos);
  Flags flags;
  EXPECT_TRUE(ReadFlagsFile({path, false}, &flags).ok());
  EXPECT_EQ(symlink("x.flags2", path.c_str()), 0);
  EXPECT_NE(line().find("symbolic link"), std::string::npos);
  for (const char* name : {"", "2"}) EXPECT_EQ(unlink((path + name).c_str()), 0);
  EXPECT_EQ(rmdir(folder.c_str()), 0);
}

TEST(FlagsFileTest, TheCommandLineComesAfterTheFile) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to own files";
  std::string folder = testing::TempDir() + "/sluice-flags-XXXXXX";
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  const FlagsFile file{folder + "/x.flags", true};
  std::ofstream(file.path) << "--network=none\n--gso=false\n";
  EXPECT_EQ(chmod(file.path.c_str(), 0600), 0);
  const auto parse = [&](const std::vector<std::string>& args, CommandLine* line) { return ParseCommandLine(args, line, &file); };
  CommandLine line, of_do, wrong;
  ASSERT_TRUE(parse({"--network=host", "create", "x"}, &line).ok());
  EXPECT_EQ(line.flags.network, NetworkMode::kHost);
  EXPECT_FALSE(line.flags.gso);
  // The file is for engines alone.
  ASSERT_TRUE(parse({"do", "true"}, &of_do).ok());
  EXPECT_TRUE(of_do.flags.gso);
  // An error of the file can go to the log that the command line names.
  std::ofstream(file.path) << "--gso=maybe\n";
  EXPECT_FALSE(parse({"--log", "/l", "--log-format=json", "create", "x"}, &wrong).ok());
  EXPECT_EQ(wrong.flags.log, "/l");
  EXPECT_TRUE(wrong.flags.log_json);
  EXPECT_EQ(unlink(file.path.c_str()), 0);
  EXPECT_EQ(rmdir(folder.c_str()), 0);
}

}  // namespace
}  // namespace sluice
