#include "control/oci/bundle.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "control/oci/config_reader.h"
#include "control/os.h"

namespace sluice::oci {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class BundleTest : public testing::Test {
 protected:
  BundleTest() {
    char name[] = "/tmp/sluice-bundle-XXXXXX";
    directory_ = mkdtemp(name);
  }
  ~BundleTest() override { fs::remove_all(directory_); }

  void Put(const std::string& text) const { std::ofstream(directory_ + "/config.json") << text; }
  std::string Text() const { return ReadSmallFile(directory_ + "/config.json").value_or("none"); }
  size_t Files() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(directory_), fs::directory_iterator()));
  }
  std::string Error() const {
    Bundle bundle;
    return bundle.Read(directory_).line();
  }

  std::string directory_;
};

constexpr char kConfig[] = R"({"linux": {}, "unknown":1})";

TEST_F(BundleTest, IsEditedAndPutBackAsItWas) {
  Put(kConfig);
  chmod((directory_ + "/config.json").c_str(), 0640);
  {
    Bundle bundle;
    ASSERT_TRUE(bundle.Read(directory_).ok());
    bundle.config()["linux"]["seccomp"] = {{"defaultAction", "SCMP_ACT_ALLOW"}};
    ASSERT_TRUE(bundle.Write().ok());
    EXPECT_EQ(json::parse(Text())["unknown"], 1);
    EXPECT_NE(Text(), kConfig);
    struct stat st{};
    EXPECT_EQ(stat((directory_ + "/config.json").c_str(), &st), 0);
    EXPECT_EQ(st.st_mode & 07777, 0640u);
    bundle.Restore();
  }
  EXPECT_EQ(Text(), kConfig);
  EXPECT_EQ(Files(), 1u);
}

// Each point at which a front end may have been killed.
TEST_F(BundleTest, IsRecoveredAfterAFrontEndThatWasKilled) {
  Put(kConfig);
  const std::string config = directory_ + "/config.json", kept = config + ".before-sluice";
  std::ofstream(config + ".sluice-new") << "{";
  Bundle::Recover(directory_);
  EXPECT_EQ(Files(), 1u);
  ASSERT_EQ(link(config.c_str(), kept.c_str()), 0);
  Bundle::Recover(directory_);
  EXPECT_EQ(Files(), 1u);
  EXPECT_EQ(Text(), kConfig);
  ASSERT_EQ(rename(config.c_str(), kept.c_str()), 0);
  Put("edited");
  Bundle::Recover(directory_);
  EXPECT_EQ(Files(), 1u);
  EXPECT_EQ(Text(), kConfig);
}

TEST_F(BundleTest, NobodyRecoversWhatIsBeingEdited) {
  Put(kConfig);
  Bundle bundle;
  ASSERT_TRUE(bundle.Read(directory_).ok() && bundle.Write().ok());
  const std::string edited = Text();
  Bundle::Recover(directory_);
  EXPECT_EQ(Text(), edited);
  bundle.Restore();
  EXPECT_EQ(Text(), kConfig);
}

TEST_F(BundleTest, AConfigThatChangesMeanwhileIsTheirs) {
  Put(kConfig);
  Bundle before;
  ASSERT_TRUE(before.Read(directory_).ok());
  Put("theirs");
  EXPECT_NE(before.Write().line().find("somebody else changed it"), std::string::npos);
  EXPECT_EQ(Text(), "theirs");
  before.Restore();
  EXPECT_EQ(Files(), 1u);

  Put(kConfig);
  Bundle after;
  ASSERT_TRUE(after.Read(directory_).ok() && after.Write().ok());
  fs::remove(directory_ + "/config.json");
  Put("theirs");
  after.Restore();
  EXPECT_EQ(Text(), "theirs");
  EXPECT_EQ(Files(), 1u);
}

TEST_F(BundleTest, ASymbolicLinkStaysOne) {
  const std::string real = directory_ + "/real", config = directory_ + "/config.json";
  std::ofstream(real) << kConfig;
  fs::create_symlink("real", config);
  Bundle bundle;
  ASSERT_TRUE(bundle.Read(directory_).ok() && bundle.Write().ok());
  EXPECT_EQ(ReadSmallFile(real).value_or(""), kConfig);
  bundle.Restore();
  EXPECT_TRUE(fs::is_symlink(config));
  EXPECT_EQ(Text(), kConfig);
  EXPECT_EQ(Files(), 2u);
}

TEST_F(BundleTest, WhatIsNoConfigIsNamed) {
  EXPECT_EQ(Error(), "JSON specification file config.json not found");
  ASSERT_EQ(mkfifo((directory_ + "/config.json").c_str(), 0600), 0);
  EXPECT_NE(Error().find("not a regular file"), std::string::npos);
  fs::remove(directory_ + "/config.json");
  Put("");
  ASSERT_EQ(truncate((directory_ + "/config.json").c_str(), 100 << 20), 0);
  EXPECT_NE(Error().find("longer than 16 MiB"), std::string::npos);
  EXPECT_EQ(Files(), 1u);
}

std::string ParseError(const std::string& text) {
  json config;
  return ParseConfig(text, &config).line();
}

TEST(ConfigReaderTest, BrokenTextIsNamedInOneShortLine) {
  const auto error = [](const std::string& text, const char* what) {
    const std::string line = ParseError(text);
    EXPECT_NE(line.find(what), std::string::npos) << line;
    EXPECT_LT(line.size(), 300u);
  };
  error("", "not valid JSON");
  error(R"({"linux": {)", "not valid JSON");
  error("{} x", "not valid JSON");
  error("[]", "not a JSON object");
  error("{\"a\": \"\xff\"}", "UTF-8");
  error("{\"a\": \"" + std::string(1 << 20, 'x'), "not valid JSON");
  error(R"({"a": 1e999})", "not valid JSON");
  error(std::string(1 << 20, '['), "nested deeper than 500");
  error(R"({"process": {}, "linux": {"a": 1, "b": {}, "a": 1}})", R"("a" is there twice)");
  EXPECT_EQ(ParseError(R"({"linux": {"a": {"x": 1}, "b": [{"x": 1}, {"x": 2}]}, "process": {"a": 1}})"), "");
}

// A square would take hours.
TEST(ConfigReaderTest, ALongArrayCostsItsLength) {
  std::string text = R"({"a": [)";
  for (int i = 0; i < 1000000; ++i) text += "{},";
  EXPECT_EQ(ParseError(text + "{}]}"), "");
}

TEST(ConfigReaderTest, MembersOfAnotherTypeAreNamed) {
  const auto linux_part = [](const std::string& text) { return ParseError(R"({"linux": {)" + text + "}}"); };
  const auto seccomp = [&](const std::string& text) { return linux_part(R"("seccomp": {)" + text + "}"); };
  EXPECT_EQ(ParseError(R"({"linux": []})"), "config.json: linux: not a valid value (must be an object)");
  EXPECT_EQ(linux_part(R"("namespaces": [{"type": "pid"}, {"type": 1}])"),
            "config.json: linux.namespaces[1].type: not a valid value (must be a string)");
  EXPECT_EQ(linux_part(R"("namespaces": ["pid"])"),
            "config.json: linux.namespaces: not a valid value (must be an array of objects)");
  EXPECT_EQ(seccomp(R"("syscalls": {"a": {}})"),
            "config.json: linux.seccomp.syscalls: not a valid value (must be an array of objects)");
  EXPECT_EQ(seccomp(R"("architectures": "x")"),
            "config.json: linux.seccomp.architectures: not a valid value (must be an array of strings)");
  EXPECT_EQ(seccomp(R"("syscalls": [{"names": ["a"], "args": [{"index": "1"}]}])"),
            "config.json: linux.seccomp.syscalls[0].args[0].index: not a valid value (must be a number from 0 on)");
  EXPECT_EQ(seccomp(R"("syscalls": [{"errnoRet": -1}])"),
            "config.json: linux.seccomp.syscalls[0].errnoRet: not a valid value (must be a number from 0 on)");
  EXPECT_EQ(linux_part(R"("seccomp": null, "namespaces": null)"), "");
}

// Go's decoder ignores the case of keys: runc would see two of them.
TEST(ConfigReaderTest, KeysThatRuncTakesForOthersAreRefused) {
  EXPECT_EQ(ParseError(R"({"Linux": {}})"), R"(config.json: Linux: runc takes this for "linux": write it so)");
  EXPECT_NE(ParseError(R"({"linux": {"seccomp": {}, "\u017feccomp": {}}})").find(R"(for "seccomp")"), std::string::npos);
  EXPECT_NE(ParseError(R"({"linux": {"namespaces": [{"type": "network", "PATH": "/x"}]}})").find(R"(for "path")"),
            std::string::npos);
  EXPECT_EQ(ParseError(R"({"annotations": {"a": "", "A": ""}, "linux": {"sysctl": {"Type": "x"}}})"), "");
}

TEST(ConfigTest, PidNamespaceOfAPodIsNotItsOwn) {
  EXPECT_TRUE(HasOwnPids(json::parse(R"({"linux": {"namespaces": [{"type": "pid"}]}})")));
  EXPECT_TRUE(HasOwnPids(json::parse(R"({"linux": {"namespaces": [{"type": "pid", "path": ""}]}})")));
  EXPECT_FALSE(HasOwnPids(json::parse(R"({"linux": {"namespaces": [{"type": "pid", "path": "/proc/7/ns/pid"}]}})")));
  EXPECT_FALSE(HasOwnPids(json::parse(R"({"linux": {"namespaces": [{"type": "network"}]}})")));
}

TEST(ConfigTest, KnowsContainersOfPods) {
  EXPECT_TRUE(IsOfPod(json::parse(R"({"annotations": {"io.kubernetes.cri.container-type": "sandbox"}})")));
  EXPECT_TRUE(IsOfPod(json::parse(R"({"annotations": {"io.kubernetes.cri.container-type": "container"}})")));
  EXPECT_FALSE(IsOfPod(json::parse(R"({"annotations": {"a": "b"}})")));
  EXPECT_FALSE(IsOfPod(json::parse(R"({"annotations": []})")));
  EXPECT_FALSE(IsOfPod(json::parse("{}")));
}

}  // namespace
}  // namespace sluice::oci
