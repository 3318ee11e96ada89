#include "control/oci/engine_config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "control/oci/install.h"

namespace sluice::oci {
namespace {

using nlohmann::json;

std::string Edited(const std::string& text, const std::string& path, const std::vector<std::string>& flags = {}) {
  std::string out;
  const Status status = EditDockerConfig(text, "sluice", path, flags, &out);
  EXPECT_TRUE(status.ok()) << status.line();
  return out;
}

TEST(DockerConfigTest, MakesAConfigurationWhereThereIsNone) {
  EXPECT_EQ(json::parse(Edited("", "/usr/bin/sluice", {"--gso=false"})),
            json::parse(R"({"runtimes":{"sluice":{"path":"/usr/bin/sluice","runtimeArgs":["--gso=false"]}}})"));
}

TEST(DockerConfigTest, KeepsWhatElseIsThereInItsOrder) {
  const std::string before = R"({"zeta": 1, "alpha": {"x": [1, 2]}, "runtimes": {"other": {"path": "/o"}}, "last": true})";
  const std::string after = Edited(before, "/s");
  EXPECT_LT(after.find("zeta"), after.find("alpha"));
  EXPECT_LT(after.find("alpha"), after.find("last"));
  json expected = json::parse(before);
  expected["runtimes"]["sluice"] = {{"path", "/s"}};
  EXPECT_EQ(json::parse(after), expected);
}

TEST(DockerConfigTest, TwiceIsOnceAndUninstallUndoesIt) {
  const std::string before = "{\n  \"debug\": true\n}\n";
  const std::string once = Edited(before, "/s", {"--network=none"});
  EXPECT_EQ(Edited(once, "/s", {"--network=none"}), once);
  EXPECT_EQ(Edited(once, ""), before);
  EXPECT_EQ(Edited(before, ""), before);
  EXPECT_EQ(json::parse(Edited(once, "/s"))["runtimes"]["sluice"].count("runtimeArgs"), 0u);
}

TEST(DockerConfigTest, ABrokenConfigurationIsLeftAlone) {
  std::string out;
  for (const char* text : {"{", "[]", "text", R"({"runtimes": []})"})
    EXPECT_FALSE(EditDockerConfig(text, "sluice", "/s", {}, &out).ok()) << text;
}

std::string Containerd(const std::string& text, const std::string& path, const std::string& name = "sluice") {
  std::string out;
  const Status status = EditContainerdConfig(text, name, path, &out);
  EXPECT_TRUE(status.ok()) << status.line();
  return out;
}

std::string ContainerdError(const std::string& text, const std::string& path) {
  std::string out;
  return EditContainerdConfig(text, "sluice", path, &out).line();
}

TEST(ContainerdConfigTest, ABlockAtTheEndInTheLayoutOfTheVersion) {
  EXPECT_EQ(Containerd("", "/usr/bin/sluice"),
            "version = 2\n\n"
            "# Made by sluice install: runtime sluice {\n"
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.\"sluice\"]\n"
            "  runtime_type = \"io.containerd.runc.v2\"\n"
            "  pod_annotations = [\"dev.sluice.flag.*\"]\n"
            "  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.\"sluice\".options]\n"
            "    BinaryName = \"/usr/bin/sluice\"\n"
            "# } runtime sluice\n");
  EXPECT_NE(Containerd("version = 3\n", "/s").find("\n[plugins.\"io.containerd.cri.v1.runtime\".containerd"), std::string::npos);
  EXPECT_NE(Containerd("disabled_plugins = []\n", "/s").find("\n[plugins.\"cri\".containerd"), std::string::npos);
  EXPECT_EQ(ContainerdError("version = 4\n", "/s"), "version = 4 is not known (1 to 3 are)");
}

TEST(ContainerdConfigTest, WhatElseIsThereStaysByteForByte) {
  const std::string before =
      "# mine\nversion=2\n\n[plugins.'io.containerd.grpc.v1.cri']   # cri\n\tsandbox_image = \"a\"\r\n"
      "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\nSystemdCgroup = true\n";
  const std::string once = Containerd(before, "/s");
  EXPECT_EQ(once.rfind(before, 0), 0u);
  EXPECT_NE(once.find("    SystemdCgroup = true\n# }"), std::string::npos);  // as for runc
  EXPECT_EQ(Containerd(once, "/s"), once);
  EXPECT_EQ(Containerd(once, ""), before);
  EXPECT_EQ(Containerd(before, ""), before);
  EXPECT_EQ(Containerd("", ""), "");
  // Others below, and a second runtime of ours whose name begins alike.
  const std::string two = Containerd(once + "[debug]\nlevel = \"info\"\n", "/two", "sluice-two");
  const std::string moved = Containerd(two, "/t");
  EXPECT_NE(moved.find("BinaryName = \"/t\"\n    SystemdCgroup = true\n# } runtime sluice\n[debug]\nlevel = \"info\"\n# Made"),
            std::string::npos)
      << moved;
  EXPECT_NE(moved.find("BinaryName = \"/two\""), std::string::npos);
  EXPECT_EQ(Containerd(Containerd(moved, "", "sluice-two"), ""), before + "[debug]\nlevel = \"info\"\n");
  EXPECT_EQ(Containerd("version = 2", "/s").rfind("version = 2\n# Made", 0), 0u);  // no end of line
}

TEST(ContainerdConfigTest, WhatCannotBeEditedIsSaid) {
  EXPECT_EQ(ContainerdError("version = 2\n[plugins\n", "/s").rfind("line 2: ", 0), 0u);
  const std::string theirs =
      "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.sluice]\nruntime_type = \"x\"\n";
  EXPECT_NE(ContainerdError(theirs, "/s").find("has a runtime sluice that sluice install did not make"), std::string::npos);
  EXPECT_NE(ContainerdError(theirs, "").find("take it out by hand"), std::string::npos);
  // A table that is closed takes no more.
  const std::string closed = "version = 2\nplugins = { x = { y = 1 } }\n";
  EXPECT_NE(ContainerdError(closed, "/s").find("takes no further table"), std::string::npos);
}

TEST(ContainerdConfigTest, CriThatIsOffIsSeen) {
  EXPECT_EQ(CriIsDisabled("disabled_plugins = [\"cri\"]\n"), "disabled_plugins has \"cri\"");
  EXPECT_NE(CriIsDisabled("version = 2\ndisabled_plugins = [\"x\", \"io.containerd.grpc.v1.cri\"]\n"), "");
  for (const char* text : {"", "version = 2\n", "disabled_plugins = [\"io.containerd.snapshotter.v1.zfs\"]\n", "["})
    EXPECT_EQ(CriIsDisabled(text), "") << text;
}

TEST(PodmanConfigTest, AFileOfOurOwn) {
  std::string out;
  ASSERT_TRUE(EditPodmanConfig("", "sluice", "/usr/bin/sluice", &out).ok());
  EXPECT_EQ(out, "# Made by sluice install.\n[engine.runtimes]\n\"sluice\" = [\"/usr/bin/sluice\"]\n");
  const std::string once = out;
  ASSERT_TRUE(EditPodmanConfig(once, "sluice", "/usr/bin/sluice", &out).ok());
  EXPECT_EQ(out, once);
  ASSERT_TRUE(EditPodmanConfig(once, "sluice", "", &out).ok());
  EXPECT_EQ(out, "");
  EXPECT_FALSE(EditPodmanConfig("[engine]\n", "sluice", "/s", &out).ok());
}

TEST(FlagsFileTextTest, OneFlagALine) {
  EXPECT_EQ(FlagsFileText({"--gso=false", "--network", "none", "--net-raw", "--sysctl", "net.ipv4.tcp_rmem=1 2 3"}),
            "# Made by sluice install.\n--gso=false\n--network=none\n--net-raw\n--sysctl=net.ipv4.tcp_rmem=1 2 3\n");
}

}  // namespace
}  // namespace sluice::oci
