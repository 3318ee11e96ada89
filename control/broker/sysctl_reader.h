// The `net.*` keys of the namespace that the stack uses. There are no events for them: read once a second. Files stay open, so a
// look costs a read each. Must be made and used in the namespace.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/unique_fd.h"
#include "netstack/config.h"

namespace sluice {

class SysctlReader {
 public:
  // `given` (--sysctl) wins over a file until that is written after the start.
  explicit SysctlReader(const SysctlMap& given);
  bool Changed();      // looks; true where a value is another than at the last look
  std::string Read();  // "key=value\n" lines

 private:
  struct Key {
    std::string name;
    UniqueFd file;      // none: the namespace does not have the key
    std::string value;  // as the file has it
    std::string given;
  };
  std::vector<Key> keys_;
};

SysctlMap ParseSysctlLines(std::string_view text);

}  // namespace sluice
