#include "control/log.h"

#include <fcntl.h>
#include <spdlog/logger.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/base_sink.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <limits>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>

namespace sluice {
namespace {

spdlog::level::level_enum SpdLevel(LogLevel level) {
  constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::debug, spdlog::level::info, spdlog::level::warn,
                                                   spdlog::level::err};
  return kLevels[static_cast<int>(level)];
}

// %j: the text as a JSON string.
class JsonText final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&, spdlog::memory_buf_t& out) override {
    const std::string text = nlohmann::json(std::string(message.payload.data(), message.payload.size()))
                                 .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    out.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<JsonText>(); }
};

// One write(2) per line, which spdlog's own file sinks do not promise; lines of levels from..to.
class LineSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  // UTC: local time would be read from a file, which the sentry may not open.
  LineSink(int fd, const char* pattern, LogLevel from, LogLevel to = LogLevel::kError) : fd_(fd), to_(SpdLevel(to)) {
    auto formatter = std::make_unique<spdlog::pattern_formatter>(spdlog::pattern_time_type::utc);
    formatter->add_flag<JsonText>('j').set_pattern(pattern);
    set_formatter(std::move(formatter));
    set_level(SpdLevel(from));
  }

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    if (message.level > to_) return;
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    while (write(fd_, line.data(), line.size()) < 0 && errno == EINTR) {
    }
  }
  void flush_() override {}

  int fd_;
  spdlog::level::level_enum to_;
};

constexpr char kTextPattern[] = "%Y-%m-%dT%H:%M:%S.%fZ %l [%P] %v";
// The keys of runc's log, which container engines read, and the process.
constexpr char kJsonPattern[] = R"({"level":"%l","msg":%j,"pid":%P,"time":"%Y-%m-%dT%H:%M:%S.%fZ"})";

struct LogState {
  // Not in spdlog's registry, which would make a logger for stdout.
  spdlog::logger logger{"", std::make_shared<LineSink>(STDERR_FILENO, "sluice: %v", LogLevel::kWarning)};
  int file_fd = -1;
  bool debug = false;
};

// Changed only where a process begins, before it starts a thread.
LogState& State() {
  static LogState state;
  return state;
}

// Printable text on one line: what a program or a device is called may hold anything.
std::string OneLine(std::string_view text) {
  std::string out;
  for (const char c : text) out += (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) ? ' ' : c;
  return out;
}

LogLevel Lowest() { return State().debug ? LogLevel::kDebug : LogLevel::kInfo; }

}  // namespace

Status StartLog(const LogOptions& options) {
  LogState& state = State();
  state.debug = options.debug;
  state.logger.set_level(SpdLevel(Lowest()));
  if (options.file.empty()) {
    if (options.debug)
      state.logger.sinks().push_back(
          std::make_shared<LineSink>(STDERR_FILENO, "sluice[%P]: %v", LogLevel::kDebug, LogLevel::kInfo));
    return {};
  }
  const int fd = open(options.file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return Status::Error(Format("--log=%s: cannot open the file%s", options.file.c_str(), ErrnoText(errno).c_str()));
  // Away from the low numbers, which a program that is started may expect to be free.
  state.file_fd = fcntl(fd, F_DUPFD_CLOEXEC, 100);
  if (state.file_fd < 0) {
    state.file_fd = fd;
  } else {
    close(fd);
  }
  state.logger.sinks().push_back(std::make_shared<LineSink>(state.file_fd, options.json ? kJsonPattern : kTextPattern, Lowest()));
  return {};
}

void LogToPipe(int fd) {
  State().logger.sinks() = {std::make_shared<LineSink>(fd, "%l %v", Lowest())};
  State().file_fd = -1;
}

int LogFileFd() { return State().file_fd; }

void LogLine(LogLevel level, std::string_view text) {
  spdlog::logger& logger = State().logger;
  if (logger.should_log(SpdLevel(level))) logger.log(SpdLevel(level), OneLine(text));
}

void Log(LogLevel level, const char* format, ...) {
  va_list args;
  va_start(args, format);
  char buffer[1024];
  std::vsnprintf(buffer, sizeof buffer, format, args);
  va_end(args);
  LogLine(level, buffer);
}

void RelayLogLine(std::string_view who, std::string_view line) {
  if (line.empty()) return;
  for (const LogLevel level : {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarning, LogLevel::kError}) {
    const auto name = spdlog::level::to_string_view(SpdLevel(level));
    const std::string prefix = std::string(name.data(), name.size()) + " ";
    if (line.substr(0, prefix.size()) == prefix)
      return LogLine(level, std::string(who) + ": " + std::string(line.substr(prefix.size())));
  }
  // What a failing library or check printed.
  LogLine(LogLevel::kWarning, std::string(who) + ": " + std::string(line));
}

}  // namespace sluice
