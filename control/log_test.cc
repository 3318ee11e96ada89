#include "control/log.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

namespace sluice {
namespace {

std::vector<std::string> Lines(std::istream& in) {
  std::vector<std::string> out;
  for (std::string line; std::getline(in, line);) out.push_back(line);
  return out;
}

// The lines that `body` writes to stderr, in a process of its own: the log is set once per process.
std::vector<std::string> Stderr(const std::function<void()>& body) {
  int fds[2];
  if (pipe(fds) != 0) return {"no pipe"};
  const pid_t pid = fork();
  if (pid == 0) {
    dup2(fds[1], STDERR_FILENO);
    body();
    _exit(0);
  }
  close(fds[1]);
  std::stringstream text;
  char buffer[4096];
  for (ssize_t n; (n = read(fds[0], buffer, sizeof buffer)) > 0;) text.write(buffer, n);
  close(fds[0]);
  waitpid(pid, nullptr, 0);
  return Lines(text);
}

class LogFile : public testing::Test {
 protected:
  LogFile() { close(mkstemp(path_)); }
  ~LogFile() override { unlink(path_); }
  std::vector<std::string> Read() const {
    std::ifstream file(path_);
    return Lines(file);
  }
  char path_[32] = "/tmp/sluice-log-XXXXXX";
};

void EveryLevel() {
  LogLine(LogLevel::kDebug, "d");
  LogLine(LogLevel::kInfo, "i");
  Log(LogLevel::kWarning, "w %d", 5);
  LogLine(LogLevel::kError, "e");
}

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

TEST(Log, StderrHasWarningsAndErrors) {
  EXPECT_EQ(Stderr(EveryLevel), (std::vector<std::string>{"sluice: w 5", "sluice: e"}));
  const auto lines = Stderr([] {
    if (StartLog({.debug = true}).ok()) EveryLevel();
  });
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[0].rfind("sluice[", 0), 0u);
  EXPECT_TRUE(EndsWith(lines[0], "]: d"));
  EXPECT_TRUE(EndsWith(lines[1], "]: i"));
  EXPECT_EQ(lines[2], "sluice: w 5");
}

TEST_F(LogFile, TextIsAppended) {
  std::ofstream(path_) << "before\n";
  const auto errors = Stderr([this] {
    if (StartLog({.file = path_}).ok()) EveryLevel();
  });
  EXPECT_EQ(errors, (std::vector<std::string>{"sluice: w 5", "sluice: e"}));
  const auto lines = Read();
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[0], "before");
  EXPECT_NE(lines[1].find("Z info ["), std::string::npos) << lines[1];
  EXPECT_TRUE(EndsWith(lines[3], "] e"));
}

TEST_F(LogFile, JsonLinesAreThoseOfRunc) {
  Stderr([this] {
    if (!StartLog({.file = path_, .json = true, .debug = true}).ok()) return;
    EveryLevel();
    LogLine(LogLevel::kError, "a \"quoted\" \\ name\nof two lines, \xff");
  });
  const auto lines = Read();
  ASSERT_EQ(lines.size(), 5u);
  const char* const levels[] = {"debug", "info", "warning", "error", "error"};
  for (size_t i = 0; i < lines.size(); ++i) {
    const auto line = nlohmann::json::parse(lines[i], nullptr, false);
    ASSERT_TRUE(line.is_object()) << lines[i];
    EXPECT_EQ(line["level"], levels[i]);
    EXPECT_EQ(line["time"].get<std::string>().size(), std::string("2026-01-01T00:00:00.000000Z").size());
  }
  EXPECT_EQ(nlohmann::json::parse(lines[4])["msg"], "a \"quoted\" \\ name of two lines, \xef\xbf\xbd");
}

TEST_F(LogFile, LinesOfSeveralProcessesStayWhole) {
  constexpr int kProcesses = 4, kLines = 100;
  Stderr([this] {
    if (!StartLog({.file = path_}).ok()) return;
    for (int i = 0; i < kProcesses; ++i) {
      if (fork() != 0) continue;
      for (int n = 0; n < kLines; ++n) LogLine(LogLevel::kInfo, std::string(9000, static_cast<char>('a' + i)));
      _exit(0);
    }
    while (wait(nullptr) > 0) {
    }
  });
  const auto lines = Read();
  ASSERT_EQ(lines.size(), size_t{kProcesses * kLines});
  for (const std::string& line : lines) {
    ASSERT_GT(line.size(), 9000u);
    const std::string text = line.substr(line.size() - 9000);
    ASSERT_EQ(std::count(text.begin(), text.end(), text[0]), 9000) << text;
  }
}

TEST(Log, RelayKeepsTheLevel) {
  std::vector<std::string> sent = Stderr([] {
    if (!StartLog({.debug = true}).ok()) return;
    LogToPipe(STDERR_FILENO);
    EveryLevel();
  });
  EXPECT_EQ(sent, (std::vector<std::string>{"debug d", "info i", "warning w 5", "error e"}));
  sent.push_back("terminate called");
  sent.push_back("");
  const auto relayed = Stderr([&] {
    for (const std::string& line : sent) RelayLogLine("sentry", line);
  });
  EXPECT_EQ(relayed, (std::vector<std::string>{"sluice: sentry: w 5", "sluice: sentry: e", "sluice: sentry: terminate called"}));
}

TEST(Log, AFileThatCannotBeOpenedIsNamed) {
  EXPECT_EQ(StartLog({.file = "/nonexistent/x"}).line(), "--log=/nonexistent/x: cannot open the file: No such file or directory");
}

}  // namespace
}  // namespace sluice
