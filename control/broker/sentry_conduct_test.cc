#include "control/broker/sentry_conduct.h"

#include <gtest/gtest.h>

#include <string>

namespace sluice {
namespace {

using control::Type;

class ConductTest : public ::testing::Test {
 protected:
  std::string Judge(Type type, int32_t number = 0, std::string_view body = {}, bool truncated = false) {
    control::Header header;
    std::string_view text;
    record_ = control::Encode(type, number, body);
    const char* wrong = conduct_.Judge(record_, truncated, &header, &text);
    return wrong == nullptr ? "" : wrong;
  }
  SentryConduct conduct_;
  std::vector<uint8_t> record_;
};

TEST_F(ConductTest, TakesWhatASentrySays) {
  EXPECT_EQ("", Judge(Type::kOpenPort, 3));
  conduct_.OnAsked(Type::kSynchronize);
  EXPECT_EQ("", Judge(Type::kReady));
  EXPECT_EQ("", Judge(Type::kClosePort, 3));
  EXPECT_EQ("", Judge(Type::kOpenPort, 3));
  conduct_.OnAsked(Type::kDrain);
  EXPECT_EQ("", Judge(Type::kDrained));
  EXPECT_EQ("", Judge(Type::kFatal, 0, "out of memory"));
}

TEST_F(ConductTest, RefusesAnswersThatNobodyAskedFor) {
  EXPECT_EQ("", Judge(Type::kReady));
  EXPECT_NE("", Judge(Type::kReady));
  EXPECT_NE("", Judge(Type::kDrained));
}

TEST_F(ConductTest, TakesOneAnswerForEachQuestion) {
  conduct_.OnAsked(Type::kSynchronize);
  conduct_.OnAsked(Type::kSynchronize);
  EXPECT_EQ("", Judge(Type::kReady));
  EXPECT_EQ("", Judge(Type::kReady));
  EXPECT_EQ("", Judge(Type::kReady));
  EXPECT_NE("", Judge(Type::kReady));
  conduct_.OnAsked(Type::kDrain);
  EXPECT_EQ("", Judge(Type::kDrained));
  EXPECT_NE("", Judge(Type::kDrained));
}

TEST_F(ConductTest, RefusesDevicesThatCannotBe) {
  EXPECT_NE("", Judge(Type::kOpenPort, 0));
  EXPECT_NE("", Judge(Type::kOpenPort, -5));
  EXPECT_NE("", Judge(Type::kClosePort, 2));
  EXPECT_EQ("", Judge(Type::kOpenPort, 2));
  EXPECT_NE("", Judge(Type::kOpenPort, 2));
}

TEST_F(ConductTest, BoundsTheDevices) {
  int taken = 0;
  for (int i = 1; i < 10000; ++i) taken += Judge(Type::kOpenPort, i).empty() ? 1 : 0;
  EXPECT_LE(taken, 256);
}

TEST_F(ConductTest, RefusesRecordsThatAreNotWellFormed) {
  EXPECT_NE("", Judge(Type::kReady, 0, {}, true));
  EXPECT_NE("", Judge(Type::kReady, 0, "text"));
  EXPECT_NE("", Judge(Type::kSandbox));
  EXPECT_NE("", Judge(Type::kPort, 1));
  EXPECT_NE("", Judge(static_cast<Type>(99)));
  control::Header header;
  std::string_view body;
  const uint8_t bytes[3] = {3, 0, 0};
  EXPECT_NE(nullptr, conduct_.Judge(bytes, false, &header, &body));
}

TEST_F(ConductTest, TellsWhereItListensOnceUntilItIsHeard) {
  const std::string one(sizeof(control::LoopbackListener), '\0');
  EXPECT_EQ("", Judge(Type::kListening, 0, one + one));
  EXPECT_NE("", Judge(Type::kListening, 0, one));
  EXPECT_TRUE(conduct_.LetTellListening());
  EXPECT_FALSE(conduct_.LetTellListening());
  EXPECT_EQ("", Judge(Type::kListening));
  EXPECT_TRUE(conduct_.LetTellListening());
  EXPECT_NE("", Judge(Type::kListening, 0, one + "x"));
}

TEST_F(ConductTest, BoundsTheListeners) {
  EXPECT_NE("", Judge(Type::kListening, 0,
                      std::string((control::kMaxLoopbackListeners + 1) * sizeof(control::LoopbackListener), '\1')));
  EXPECT_TRUE(conduct_.LetTellListening());
  EXPECT_EQ("",
            Judge(Type::kListening, 0, std::string(control::kMaxLoopbackListeners * sizeof(control::LoopbackListener), '\1')));
}

}  // namespace
}  // namespace sluice
