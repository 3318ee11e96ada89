#include "control/status.h"

#include <cstdio>
#include <cstring>

namespace sluice {

std::string Format(const char* format, ...) {
  va_list args;
  va_start(args, format);
  va_list copy;
  va_copy(copy, args);
  const int length = std::vsnprintf(nullptr, 0, format, copy);
  va_end(copy);
  std::string out(length > 0 ? static_cast<size_t>(length) : 0, '\0');
  if (length > 0) std::vsnprintf(out.data(), out.size() + 1, format, args);
  va_end(args);
  return out;
}

std::string ErrnoText(int error) {
  char buffer[128];
  return std::string(": ") + strerror_r(error, buffer, sizeof buffer);
}

}  // namespace sluice
