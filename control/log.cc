#include "control/log.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

namespace sluice {
namespace {

struct LogState {
  int file_fd = -1;
  int pipe_fd = -1;
  bool json = false;
  bool debug = false;
};
LogState g_log;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables): set once, before any fork or thread

const char* LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug: return "debug";
    case LogLevel::kInfo: return "info";
    case LogLevel::kWarning: return "warning";
    case LogLevel::kError: return "error";
  }
  return "error";
}

// Printable text on one line: what a program or a device is called may hold anything.
std::string OneLine(std::string_view text) {
  std::string out;
  for (const char c : text) out += (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) ? ' ' : c;
  return out;
}

std::string JsonEscape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

std::string Timestamp() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  tm utc{};
  gmtime_r(&now.tv_sec, &utc);
  return Format("%04d-%02d-%02dT%02d:%02d:%02d.%06ldZ", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min,
                utc.tm_sec, now.tv_nsec / 1000);
}

void WriteLine(int fd, const std::string& line) {
  while (write(fd, line.data(), line.size()) < 0 && errno == EINTR) {
  }
}

}  // namespace

Status StartLog(const LogOptions& options) {
  g_log.json = options.json;
  g_log.debug = options.debug;
  if (options.file.empty()) return {};
  const int fd = open(options.file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return Status::Error(Format("--log=%s: cannot open the file%s", options.file.c_str(), ErrnoText(errno).c_str()));
  // Away from the low numbers, which a program that is started may expect to be free.
  g_log.file_fd = fcntl(fd, F_DUPFD_CLOEXEC, 100);
  if (g_log.file_fd < 0) {
    g_log.file_fd = fd;
  } else {
    close(fd);
  }
  return {};
}

void LogToPipe(int fd) {
  g_log.pipe_fd = fd;
  g_log.file_fd = -1;
}

int LogFileFd() { return g_log.file_fd; }

void LogLine(LogLevel level, std::string_view text) {
  if (level < LogLevel::kWarning && !g_log.debug && g_log.file_fd < 0 && g_log.pipe_fd < 0) return;
  if (level == LogLevel::kDebug && !g_log.debug) return;
  const std::string line = OneLine(text);
  if (g_log.pipe_fd >= 0) {
    WriteLine(g_log.pipe_fd, Format("%d %s\n", static_cast<int>(level), line.c_str()));
    return;
  }
  if (g_log.file_fd >= 0) {
    WriteLine(g_log.file_fd, g_log.json ? Format("{\"time\":\"%s\",\"level\":\"%s\",\"pid\":%d,\"msg\":\"%s\"}\n", Timestamp().c_str(),
                                                 LevelName(level), getpid(), JsonEscape(line).c_str())
                                        : Format("%s %s [%d] %s\n", Timestamp().c_str(), LevelName(level), getpid(), line.c_str()));
  }
  if (level >= LogLevel::kWarning) WriteLine(STDERR_FILENO, "sluice: " + line + "\n");
  if (level < LogLevel::kWarning && g_log.debug && g_log.file_fd < 0) {
    WriteLine(STDERR_FILENO, Format("sluice[%d]: %s\n", getpid(), line.c_str()));
  }
}

void Log(LogLevel level, const char* format, ...) {
  va_list args;
  va_start(args, format);
  char buffer[1024];
  std::vsnprintf(buffer, sizeof buffer, format, args);
  va_end(args);
  LogLine(level, buffer);
}

void RelayLogLine(std::string_view line) {
  // "<level> text" of LogToPipe; anything else is what a failing library or check printed.
  if (line.size() > 2 && line[0] >= '0' && line[0] <= '3' && line[1] == ' ') {
    LogLine(static_cast<LogLevel>(line[0] - '0'), line.substr(2));
  } else if (!line.empty()) {
    LogLine(LogLevel::kWarning, line);
  }
}

}  // namespace sluice
