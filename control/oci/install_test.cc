#include "control/oci/install.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace sluice::oci {
namespace {

using nlohmann::json;

std::string Edited(const std::string& text, const std::string& path, const std::vector<std::string>& flags = {}) {
  std::string out;
  const Status status = EditDockerConfig(text, "sluice", path, flags, &out);
  EXPECT_TRUE(status.ok()) << status.line();
  return out;
}

TEST(InstallTest, MakesAConfigurationWhereThereIsNone) {
  EXPECT_EQ(json::parse(Edited("", "/usr/bin/sluice", {"--gso=false"})),
            json::parse(R"({"runtimes":{"sluice":{"path":"/usr/bin/sluice","runtimeArgs":["--gso=false"]}}})"));
}

TEST(InstallTest, KeepsWhatElseIsThereInItsOrder) {
  const std::string before = R"({"zeta": 1, "alpha": {"x": [1, 2]}, "runtimes": {"other": {"path": "/o"}}, "last": true})";
  const std::string after = Edited(before, "/s");
  EXPECT_LT(after.find("zeta"), after.find("alpha"));
  EXPECT_LT(after.find("alpha"), after.find("last"));
  json expected = json::parse(before);
  expected["runtimes"]["sluice"] = {{"path", "/s"}};
  EXPECT_EQ(json::parse(after), expected);
}

TEST(InstallTest, TwiceIsOnceAndUninstallUndoesIt) {
  const std::string before = "{\n  \"debug\": true\n}\n";
  const std::string once = Edited(before, "/s", {"--network=none"});
  EXPECT_EQ(Edited(once, "/s", {"--network=none"}), once);
  EXPECT_EQ(Edited(once, ""), before);
  EXPECT_EQ(Edited(before, ""), before);
  EXPECT_EQ(json::parse(Edited(once, "/s"))["runtimes"]["sluice"].count("runtimeArgs"), 0u);
}

TEST(InstallTest, ABrokenConfigurationIsLeftAlone) {
  std::string out;
  for (const char* text : {"{", "[]", "text", R"({"runtimes": []})"})
    EXPECT_FALSE(EditDockerConfig(text, "sluice", "/s", {}, &out).ok()) << text;
}

}  // namespace
}  // namespace sluice::oci
