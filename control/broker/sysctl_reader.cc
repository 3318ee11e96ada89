#include "control/broker/sysctl_reader.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "netstack/sysctls.h"

namespace sluice {
namespace {

std::string ReadValue(int fd) {
  char buffer[512];
  const ssize_t n = pread(fd, buffer, sizeof buffer, 0);
  std::string value(buffer, n > 0 ? static_cast<size_t>(n) : 0);
  while (!value.empty() && (value.back() == '\n' || value.back() == ' ')) value.pop_back();
  return value;
}

}  // namespace

SysctlReader::SysctlReader(const SysctlMap& given) {
  for (const std::string& name : SupportedSysctls()) {
    std::string path = name;
    std::replace(path.begin(), path.end(), '.', '/');
    Key key{name, UniqueFd(open(("/proc/sys/" + path).c_str(), O_RDONLY | O_CLOEXEC)), "", ""};
    if (key.file) key.value = ReadValue(key.file.get());
    if (const auto it = given.find(name); it != given.end()) key.given = it->second;
    if (key.file || !key.given.empty()) keys_.push_back(std::move(key));
  }
}

bool SysctlReader::Changed() {
  bool changed = false;
  for (Key& key : keys_) {
    if (!key.file) continue;
    std::string value = ReadValue(key.file.get());
    if (value == key.value) continue;
    key.value = std::move(value);
    key.given.clear();
    changed = true;
  }
  return changed;
}

std::string SysctlReader::Read() {
  std::string out;
  for (const Key& key : keys_) out += key.name + "=" + (key.given.empty() ? key.value : key.given) + "\n";
  return out;
}

SysctlMap ParseSysctlLines(std::string_view text) {
  SysctlMap out;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    const size_t equals = line.find('=');
    if (equals != std::string_view::npos) out[std::string(line.substr(0, equals))] = line.substr(equals + 1);
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + 1);
  }
  return out;
}

}  // namespace sluice
