#include "control/oci/annotations.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace sluice::oci {
namespace {

using nlohmann::json;

Status Apply(const json& annotations, Flags* flags) { return ApplyAnnotations({{"annotations", annotations}}, flags); }

TEST(AnnotationsTest, EveryRuleIsOfAFlagAndItsValues) {
  for (const AnnotationRule& rule : AnnotationRules()) {
    const FlagSpec* flag = FindFlag(rule.flag);
    ASSERT_NE(flag, nullptr) << rule.flag;
    std::string_view list = rule.tighter;
    while (!list.empty()) {
      const size_t comma = list.find(", ");
      Flags flags;
      EXPECT_TRUE(SetFlag(*flag, list.substr(0, comma), &flags).ok()) << rule.flag;
      list.remove_prefix(comma == std::string_view::npos ? list.size() : comma + 2);
    }
  }
}

// What would write to or name files of the host, or decide about annotations.
TEST(AnnotationsTest, SomeFlagsAreTheAdministrators) {
  for (const char* name : {"root", "log", "log-format", "debug", "pcap-log", "metrics", "systemd-cgroup", "rootless",
                           "allow-flag-override", "sentry-memory", "container-sockets"}) {
    Flags flags;
    flags.allow_flag_override = true;
    const Flags before = flags;
    const std::string key = std::string("dev.sluice.flag.") + name;
    EXPECT_EQ(Apply({{key, "true"}}, &flags).line(),
              "annotation " + key + ": --" + name + " is the administrator's: no annotation may set it");
    EXPECT_EQ(flags, before);
  }
}

TEST(AnnotationsTest, TighteningIsTaken) {
  Flags flags;
  flags.net_raw = true;
  flags.netfilter = NetfilterPolicy::kIgnore;
  const Status status = Apply({{"dev.sluice.flag.network", "none"},
                               {"dev.sluice.flag.net-raw", "false"},
                               {"dev.sluice.flag.netfilter", "refuse"},
                               {"dev.sluice.flag.poll", "interrupt"},
                               {"dev.sluice.flag.gso", "true"},  // as it is
                               {"other.example/x", "y"}},
                              &flags);
  ASSERT_TRUE(status.ok()) << status.line();
  EXPECT_EQ(flags.network, NetworkMode::kNone);
  EXPECT_FALSE(flags.net_raw);
  EXPECT_EQ(flags.netfilter, NetfilterPolicy::kRefuse);
  EXPECT_EQ(flags.poll, PollMode::kInterrupt);
}

TEST(AnnotationsTest, LooseningNeedsTheOverride) {
  const json loose{{"dev.sluice.flag.network", "host"},     {"dev.sluice.flag.net-raw", "true"},
                   {"dev.sluice.flag.netfilter", "ignore"}, {"dev.sluice.flag.poll", "busy"},
                   {"dev.sluice.flag.gso", "false"},        {"dev.sluice.flag.sysctl", "net.ipv4.ip_default_ttl=33"}};
  for (const auto& [key, value] : loose.items()) {
    Flags flags;
    const std::string line = Apply({{key, value}}, &flags).line();
    EXPECT_NE(line.find("annotation " + key + ": --"), std::string::npos) << line;
    EXPECT_NE(line.find("needs a runtime with --allow-flag-override"), std::string::npos) << line;
    EXPECT_EQ(flags, Flags());
  }
  Flags flags;
  flags.allow_flag_override = true;
  const Status status = Apply(loose, &flags);
  ASSERT_TRUE(status.ok()) << status.line();
  EXPECT_EQ(flags.network, NetworkMode::kHost);
  EXPECT_TRUE(flags.net_raw);
  EXPECT_FALSE(flags.gso);
  EXPECT_EQ(flags.sysctls["net.ipv4.ip_default_ttl"], "33");
}

TEST(AnnotationsTest, HostMayBecomeASandbox) {
  Flags flags;
  flags.network = NetworkMode::kHost;
  ASSERT_TRUE(Apply({{"dev.sluice.flag.network", "sandbox"}}, &flags).ok());
  EXPECT_EQ(flags.network, NetworkMode::kSandbox);
}

TEST(AnnotationsTest, WrongOnesAreRefused) {
  const json wrong{{"dev.sluice.flag.nonsense", "1"}, {"dev.sluice.flags.gso", "true"}, {"dev.sluice.flag", "x"},
                   {"dev.sluice.flag.", "x"},         {"dev.sluice.gso", "true"},       {"dev.sluice.flag.network", "vpn"},
                   {"dev.sluice.flag.gso", true},     {"dev.sluice.flag.gro", ""}};
  for (const auto& [key, value] : wrong.items()) {
    Flags flags;
    EXPECT_EQ(Apply({{key, value}}, &flags).line().rfind("annotation " + key + ": ", 0), 0u) << key;
  }
  Flags flags;
  EXPECT_TRUE(ApplyAnnotations(json::object(), &flags).ok());
  EXPECT_TRUE(ApplyAnnotations({{"annotations", nullptr}}, &flags).ok());
}

}  // namespace
}  // namespace sluice::oci
