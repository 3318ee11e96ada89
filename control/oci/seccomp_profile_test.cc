// What runc would make of a merged profile is built with libseccomp as runc does, and the resulting BPF program is run on many
// calls: its verdicts must be those of the profile and of the interception's table together.
#include "control/oci/seccomp_profile.h"

#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <map>
#include <random>
#include <set>

#include "base/unique_fd.h"
#include "sentry/filter_table.h"

namespace sluice::oci {
namespace {

using nlohmann::json;

uint32_t ActionOf(const std::string& name, uint32_t error) {
  if (name == "SCMP_ACT_ALLOW") return SCMP_ACT_ALLOW;
  if (name == "SCMP_ACT_LOG") return SCMP_ACT_LOG;
  if (name == "SCMP_ACT_NOTIFY") return SCMP_ACT_NOTIFY;
  return SCMP_ACT_ERRNO(error);
}

scmp_compare CompareOf(const std::string& op) {
  if (op == "SCMP_CMP_NE") return SCMP_CMP_NE;
  return op == "SCMP_CMP_EQ" ? SCMP_CMP_EQ : SCMP_CMP_MASKED_EQ;
}

// As runc's libcontainer/seccomp does it.
std::vector<sock_filter> Compile(const json& profile) {
  const uint32_t initial = ActionOf(profile["defaultAction"], profile.value("defaultErrnoRet", 1u));
  scmp_filter_ctx ctx = seccomp_init(initial);
  for (const json& rule : profile["syscalls"]) {
    const uint32_t action = ActionOf(rule["action"], rule.value("errnoRet", 1u));
    if (action == initial) continue;
    for (const json& name : rule["names"]) {
      std::vector<scmp_arg_cmp> args;
      std::set<unsigned> seen;
      for (const json& a : rule.value("args", json::array())) {
        args.push_back(
            {a["index"].get<unsigned>(), CompareOf(a["op"]), a["value"].get<uint64_t>(), a.value("valueTwo", uint64_t{0})});
        EXPECT_TRUE(seen.insert(a["index"].get<unsigned>()).second) << "runc would take these for alternatives: " << rule;
      }
      const int nr = seccomp_syscall_resolve_name(name.get<std::string>().c_str());
      EXPECT_EQ(seccomp_rule_add_array(ctx, action, nr, static_cast<unsigned>(args.size()), args.data()), 0) << rule;
    }
  }
  const int fd = memfd_create("bpf", MFD_CLOEXEC);
  EXPECT_EQ(seccomp_export_bpf(ctx, fd), 0);
  seccomp_release(ctx);
  std::vector<sock_filter> program(static_cast<size_t>(lseek(fd, 0, SEEK_END)) / sizeof(sock_filter));
  EXPECT_EQ(pread(fd, program.data(), program.size() * sizeof(sock_filter), 0),
            static_cast<ssize_t>(program.size() * sizeof(sock_filter)));
  close(fd);
  return program;
}

// The part of classic BPF that libseccomp emits.
uint32_t Run(const std::vector<sock_filter>& program, const seccomp_data& data) {
  uint32_t a = 0;
  for (size_t pc = 0; pc < program.size(); ++pc) {
    const sock_filter& i = program[pc];
    switch (i.code) {
      case BPF_LD | BPF_W | BPF_ABS:
        std::memcpy(&a, reinterpret_cast<const char*>(&data) + i.k, 4);
        break;
      case BPF_ALU | BPF_AND | BPF_K:
        a &= i.k;
        break;
      case BPF_JMP | BPF_JA:
        pc += i.k;
        break;
      case BPF_JMP | BPF_JEQ | BPF_K:
        pc += a == i.k ? i.jt : i.jf;
        break;
      case BPF_JMP | BPF_JGT | BPF_K:
        pc += a > i.k ? i.jt : i.jf;
        break;
      case BPF_JMP | BPF_JGE | BPF_K:
        pc += a >= i.k ? i.jt : i.jf;
        break;
      case BPF_RET | BPF_K:
        return i.k;
      default:
        ADD_FAILURE() << "unexpected instruction " << i.code;
        return 0;
    }
  }
  return 0;
}

uint32_t Verdict(const std::vector<sock_filter>& program, int nr, const std::array<uint64_t, 6>& args) {
  seccomp_data data{};
  data.nr = nr;
  data.arch = AUDIT_ARCH_X86_64;
  std::memcpy(data.args, args.data(), sizeof data.args);
  return Run(program, data);
}

// What the table says where the profile allows the call.
uint32_t TableVerdict(int nr, const std::array<uint64_t, 6>& args) {
  for (const filter::Rule& rule : filter::ProgramRules()) {
    if (rule.nr != nr || !filter::Holds(rule.tests, args)) continue;
    return rule.error == 0 ? SECCOMP_RET_USER_NOTIF : SECCOMP_RET_ERRNO | static_cast<uint32_t>(rule.error);
  }
  return SECCOMP_RET_ALLOW;
}

class Arguments {
 public:
  std::array<uint64_t, 6> Next() {
    std::array<uint64_t, 6> args;
    for (uint64_t& a : args) a = One();
    return args;
  }

 private:
  uint64_t One() {
    constexpr uint64_t kInteresting[] = {
        0,   1,   2,    3,      8,      9,      10,         12,         13,         15,        16,     17,
        20,  23,  24,   25,     27,     28,     29,         32,         40,         41,        110,    127,
        128, 129, 0x20, 0x2000, 0x2020, 0x5411, 0x5421,     0x8900,     0x8912,     0x89ff,    0x8a00, 0x88ff,
        16,  2,   40,   0x5401, 0x541b, 0x54ca, 0x400454ca, 0x400454cb, 0x7fffffff, 0xffffffff};
    uint64_t value = rng_() % 4 == 0 ? rng_() : kInteresting[rng_() % std::size(kInteresting)];
    if (rng_() % 8 == 0) value ^= uint64_t{1} << (rng_() % 64);
    if (rng_() % 16 == 0) value |= uint64_t{1} << 32;
    return value;
  }
  std::mt19937_64 rng_{1};
};

json Docker() {
  return json::parse(
      R"({"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],"syscalls":[
    {"names":["read","write","socket","socketpair","bind","connect","listen","accept","accept4","shutdown","getsockname","getpeername","getsockopt",
      "setsockopt","sendto","recvfrom","sendmsg","recvmsg","sendmmsg","recvmmsg","ioctl","io_uring_setup","io_uring_enter","seccomp"],"action":"SCMP_ACT_ALLOW"},
    {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]},
    {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]})");
}

json Merged(const json& profile) {
  json config{{"linux", {{"seccomp", profile}}}};
  const Status status = MergeProfile(&config, "/run/sluice/oci/x/listener");
  EXPECT_TRUE(status.ok()) << status.line();
  return config["linux"]["seccomp"];
}

std::set<int> Intercepted() {
  std::set<int> out;
  for (const filter::Rule& rule : filter::ProgramRules()) out.insert(rule.nr);
  return out;
}

TEST(SeccompProfileTest, DockersProfileAndTheTableTogether) {
  const auto program = Compile(Merged(Docker()));
  EXPECT_LT(program.size(), 4096u);
  Arguments arguments;
  for (int i = 0; i < 20000; ++i) {
    const auto args = arguments.Next();
    for (const int nr : Intercepted()) {
      const bool named = nr != SYS_bpf && nr != SYS_userfaultfd && nr != SYS_io_uring_register;
      const uint32_t expected = named ? TableVerdict(nr, args) : SECCOMP_RET_ERRNO | EPERM;
      ASSERT_EQ(Verdict(program, nr, args), expected)
          << "call " << nr << std::hex << " " << args[0] << " " << args[1] << " " << args[2] << " " << args[3] << " " << args[4];
    }
  }
  EXPECT_EQ(Verdict(program, SYS_read, {}), SECCOMP_RET_ALLOW);
  EXPECT_EQ(Verdict(program, SYS_mount, {}), SECCOMP_RET_ERRNO | EPERM);
  EXPECT_EQ(Verdict(program, SYS_clone3, {}), SECCOMP_RET_ERRNO | ENOSYS);
}

TEST(SeccompProfileTest, WithoutAProfileTheTableAlone) {
  json config{{"ociVersion", "1.0.2"}};
  ASSERT_TRUE(MergeProfile(&config, "/l").ok());
  EXPECT_EQ(config["linux"]["seccomp"]["listenerPath"], "/l");
  EXPECT_EQ(config["ociVersion"], "1.0.2");
  const auto program = Compile(config["linux"]["seccomp"]);
  Arguments arguments;
  for (int i = 0; i < 20000; ++i) {
    const auto args = arguments.Next();
    for (const int nr : Intercepted()) ASSERT_EQ(Verdict(program, nr, args), TableVerdict(nr, args)) << "call " << nr;
  }
  EXPECT_EQ(Verdict(program, SYS_mount, {}), SECCOMP_RET_ALLOW);
}

// Newer engines: every family but VSOCK.
TEST(SeccompProfileTest, ConditionsOnSocketAreKept) {
  json profile = Docker();
  auto& names = profile["syscalls"][0]["names"];
  names.erase(std::find(names.begin(), names.end(), json("socket")));
  profile["syscalls"].push_back(
      {{"names", {"socket"}}, {"action", "SCMP_ACT_ALLOW"}, {"args", {{{"index", 0}, {"value", 40}, {"op", "SCMP_CMP_NE"}}}}});
  const auto program = Compile(Merged(profile));
  EXPECT_EQ(Verdict(program, SYS_socket, {40}), SECCOMP_RET_ERRNO | EPERM);
  EXPECT_EQ(Verdict(program, SYS_socket, {AF_UNIX}), SECCOMP_RET_ALLOW);
  for (const uint64_t family : {0, 2, 10, 16, 17, 39, 41})
    EXPECT_EQ(Verdict(program, SYS_socket, {family}), SECCOMP_RET_USER_NOTIF) << family;
}

// podman's: everything but the audit protocol of netlink, which is refused in words of its own.
TEST(SeccompProfileTest, RefusalsOnAConditionAreKept) {
  json profile = Docker();
  auto& names = profile["syscalls"][0]["names"];
  names.erase(std::find(names.begin(), names.end(), json("socket")));
  const auto condition = [](int index, int value, const char* op) {
    return json{{"index", index}, {"value", value}, {"op", op}};
  };
  profile["syscalls"].push_back({{"names", {"socket"}},
                                 {"action", "SCMP_ACT_ERRNO"},
                                 {"errnoRet", EINVAL},
                                 {"args", {condition(0, 16, "SCMP_CMP_EQ"), condition(2, 9, "SCMP_CMP_EQ")}}});
  profile["syscalls"].push_back(
      {{"names", {"socket"}}, {"action", "SCMP_ACT_ALLOW"}, {"args", json::array({condition(2, 9, "SCMP_CMP_NE")})}});
  profile["syscalls"].push_back(
      {{"names", {"socket"}}, {"action", "SCMP_ACT_ALLOW"}, {"args", json::array({condition(0, 16, "SCMP_CMP_NE")})}});
  const auto program = Compile(Merged(profile));
  Arguments arguments;
  for (int i = 0; i < 20000; ++i) {
    auto args = arguments.Next();
    if (i % 3 == 0) args[0] = 16;
    if (i % 5 == 0) args[2] = 9;
    const uint32_t expected = args[0] == 16 && args[2] == 9 ? SECCOMP_RET_ERRNO | EINVAL : TableVerdict(SYS_socket, args);
    ASSERT_EQ(Verdict(program, SYS_socket, args), expected) << args[0] << " " << args[2];
  }
}

TEST(SeccompProfileTest, RefusalsAreExceptionsWhereAllElseIsAllowed) {
  const json profile = {{"defaultAction", "SCMP_ACT_ALLOW"},
                        {"syscalls",
                         {{{"names", {"socket"}},
                           {"action", "SCMP_ACT_ERRNO"},
                           {"args", json::array({{{"index", 0}, {"value", AF_PACKET}, {"op", "SCMP_CMP_EQ"}}})}}}}};
  const auto program = Compile(Merged(profile));
  Arguments arguments;
  for (int i = 0; i < 20000; ++i) {
    const auto args = arguments.Next();
    const uint32_t expected = args[0] == AF_PACKET ? SECCOMP_RET_ERRNO | EPERM : TableVerdict(SYS_socket, args);
    ASSERT_EQ(Verdict(program, SYS_socket, args), expected) << args[0];
  }
}

TEST(SeccompProfileTest, WhatIsRefusedStaysRefused) {
  json only_unix = Docker();
  only_unix["syscalls"][0]["names"] = {"read", "write", "bind"};
  only_unix["syscalls"].push_back(
      {{"names", {"socket"}}, {"action", "SCMP_ACT_ALLOW"}, {"args", {{{"index", 0}, {"value", 1}, {"op", "SCMP_CMP_EQ"}}}}});
  const auto program = Compile(Merged(only_unix));
  EXPECT_EQ(Verdict(program, SYS_socket, {AF_INET}), SECCOMP_RET_ERRNO | EPERM);
  EXPECT_EQ(Verdict(program, SYS_socket, {AF_UNIX}), SECCOMP_RET_ALLOW);
  EXPECT_EQ(Verdict(program, SYS_connect, {3, 0, 16}), SECCOMP_RET_ERRNO | EPERM);
  EXPECT_EQ(Verdict(program, SYS_bind, {3, 0, 16}), SECCOMP_RET_USER_NOTIF);

  json denies = {{"defaultAction", "SCMP_ACT_ALLOW"},
                 {"syscalls", {{{"names", {"connect", "mount"}}, {"action", "SCMP_ACT_ERRNO"}}}}};
  const auto denying = Compile(Merged(denies));
  EXPECT_EQ(Verdict(denying, SYS_connect, {3, 0, 16}), SECCOMP_RET_ERRNO | EPERM);
  EXPECT_EQ(Verdict(denying, SYS_mount, {}), SECCOMP_RET_ERRNO | EPERM);
  EXPECT_EQ(Verdict(denying, SYS_listen, {}), SECCOMP_RET_USER_NOTIF);
}

// libseccomp takes the first of two rules for all of a call: an allowing one must not come before the refusal.
TEST(SeccompProfileTest, ARefusalBesideAnAllowanceHolds) {
  json profile = Docker();
  profile["syscalls"].push_back({{"names", {"socket"}}, {"action", "SCMP_ACT_ERRNO"}, {"errnoRet", EACCES}});
  const auto program = Compile(Merged(profile));
  for (const uint64_t family : {AF_UNIX, AF_INET}) EXPECT_EQ(Verdict(program, SYS_socket, {family}), SECCOMP_RET_ERRNO | EACCES);
}

TEST(SeccompProfileTest, ConditionsThatExplodeAreRefused) {
  json profile = Docker();
  auto& names = profile["syscalls"][0]["names"];
  names.erase(std::find(names.begin(), names.end(), json("socket")));
  for (unsigned i = 0; i < 64; ++i) {
    json args = json::array();
    for (unsigned index = 0; index < 3; ++index)
      args.push_back({{"index", index}, {"value", 1ull << i}, {"valueTwo", 1ull << i}, {"op", "SCMP_CMP_MASKED_EQ"}});
    profile["syscalls"].push_back({{"names", {"socket"}}, {"action", "SCMP_ACT_ALLOW"}, {"args", args}});
  }
  json config{{"linux", {{"seccomp", profile}}}};
  EXPECT_NE(MergeProfile(&config, "/l").line().find("socket are too many"), std::string::npos);
  // A name that is repeated a million times costs its length.
  json repeated = Docker();
  repeated["syscalls"][0]["names"] = std::vector<std::string>(1000000, "socket");
  EXPECT_LT(Merged(repeated)["syscalls"].size(), 10u);
}

TEST(SeccompProfileTest, UnknownMembersSurvive) {
  json profile = Docker();
  profile["flags"] = {"SECCOMP_FILTER_FLAG_LOG"};
  profile["futureMember"] = {{"a", 1}};
  profile["syscalls"][0]["comment"] = "ours";
  const json merged = Merged(profile);
  EXPECT_EQ(merged["flags"], profile["flags"]);
  EXPECT_EQ(merged["futureMember"], profile["futureMember"]);
  EXPECT_EQ(merged["syscalls"][0]["comment"], "ours");
}

TEST(SeccompProfileTest, WhatCannotBeMergedIsNamed) {
  const auto error = [](json profile) {
    json config{{"linux", {{"seccomp", std::move(profile)}}}};
    return MergeProfile(&config, "/l").line();
  };
  json own_listener = Docker();
  own_listener["listenerPath"] = "/run/agent";
  EXPECT_NE(error(own_listener).find("listener of its own"), std::string::npos);
  json notifier = Docker();
  notifier["syscalls"].push_back({{"names", {"mkdir"}}, {"action", "SCMP_ACT_NOTIFY"}});
  EXPECT_NE(error(notifier).find("SCMP_ACT_NOTIFY"), std::string::npos);
  json range = Docker();
  range["syscalls"][0]["args"] = {{{"index", 0}, {"value", 4}, {"op", "SCMP_CMP_LT"}}};
  EXPECT_NE(error(range).find("SCMP_CMP_LT"), std::string::npos);
  json arm = Docker();
  arm["architectures"] = {"SCMP_ARCH_AARCH64"};
  EXPECT_NE(error(arm).find("x86_64"), std::string::npos);
  EXPECT_NE(error(json("text")).find("not an object"), std::string::npos);
  EXPECT_NE(error(json::object()).find("defaultAction"), std::string::npos);
}

}  // namespace
}  // namespace sluice::oci
