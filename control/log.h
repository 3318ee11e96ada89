// Lines for the user and the log file, by spdlog. One write(2) per line, so lines of several processes never mix (the file is
// opened for append). Any thread; no state but what StartLog set before the processes were forked.
#pragma once

#include <string>
#include <string_view>

#include "control/status.h"

namespace sluice {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

struct LogOptions {
  std::string file;  // empty: none
  bool json = false;
  bool debug = false;  // debug and information lines too: to the file, or to stderr where there is none
};

// Opens the file. Warnings and errors go to stderr as well ("sluice: ...").
Status StartLog(const LogOptions& options);
// In a process that holds neither stderr nor the file: lines go as "LEVEL text\n" to `fd`, never blocking; a line that does not
// fit is lost. The guard hands them to RelayLogLine, which writes "who: text" at that level.
void LogToPipe(int fd);
void RelayLogLine(std::string_view who, std::string_view line);
int LogFileFd();  // -1: none

void Log(LogLevel level, const char* format, ...) __attribute__((format(printf, 2, 3)));
void LogLine(LogLevel level, std::string_view text);

}  // namespace sluice
