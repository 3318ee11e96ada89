// Socket options: one table of everything that get- and setsockopt know, with Linux's length rules and errno. What is not in the
// table is ENOPROTOOPT. docs/socket-options.md is printed from it (DescribeSocketOptions).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/errno.h"

namespace sluice {

class InetStandIn;

struct OptionValue {
  std::vector<uint8_t> bytes;  // to be written, never more than the capacity
  uint32_t length = 0;         // optlen to report
};

// `capacity`: the optlen given. `p`: the program's end where the level is SOL_SOCKET, else -1.
Errno GetSocketOption(InetStandIn& s, int level, int name, uint32_t capacity, int p, OptionValue* out);
// `value` has the first bytes of optval (at most calls::kMaxOption), `length` is optlen. `rights`: calls::Rights of the caller.
Errno SetSocketOption(InetStandIn& s, int level, int name, Bytes value, uint32_t length, uint16_t rights, int p);

// Whether setting it depends on the caller's capabilities (looking those up costs more than all else of a call).
bool SocketOptionNeedsRights(int level, int name);

// The table as a page of documentation.
std::string DescribeSocketOptions();

}  // namespace sluice
