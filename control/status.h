// The outcome of a control-plane operation: success, or one line for the user with the exit status that goes with it.
#pragma once

#include <cstdarg>
#include <string>
#include <utility>

namespace sluice {

std::string Format(const char* format, ...) __attribute__((format(printf, 1, 2)));
// ": No such file or directory" and the like, for the end of a line.
std::string ErrnoText(int error);

class [[nodiscard]] Status {
 public:
  Status() = default;
  static Status Error(std::string line, int exit_code = 1) { return Status(std::move(line), exit_code); }
  bool ok() const { return exit_code_ == 0; }
  const std::string& line() const { return line_; }
  int exit_code() const { return exit_code_; }

 private:
  Status(std::string line, int exit_code) : line_(std::move(line)), exit_code_(exit_code) {}
  std::string line_;
  int exit_code_ = 0;
};

inline constexpr int kExitUsage = 2;
// The sandbox was ended by sluice itself, not by CMD.
inline constexpr int kExitKilled = 125;
inline constexpr int kExitNotExecutable = 126;
inline constexpr int kExitNotFound = 127;

}  // namespace sluice

#define SLUICE_RETURN_IF_ERROR(expr)               \
  do {                                             \
    ::sluice::Status sluice_status = (expr);       \
    if (!sluice_status.ok()) return sluice_status; \
  } while (false)
