// The device ioctls that any socket takes (man 7 netdevice), answered from the mirrored configuration; those that change
// something become a NetChange. The request numbers tell how memory is to be copied, so the broker can do it without knowing
// more.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/bytes.h"
#include "base/errno.h"
#include "sentry/netlink/net_change.h"
#include "sentry/netlink/netlink_server.h"

namespace sluice::netlink {

// Memory of one request: the argument itself, and for some a second buffer that the argument points to.
struct IoctlShape {
  uint16_t argument = 0;        // bytes to read at the ioctl's pointer
  int16_t pointer_offset = -1;  // where in the argument the second buffer's address lies (8 bytes), -1: there is none
  uint16_t extra_read_min = 0;  // bytes of the second buffer to read: fewer than min is EFAULT,
  uint16_t extra_read_max = 0;  // a fault between min and max only shortens what is passed on. A null pointer reads nothing.
};

// Nothing where the request is not a device ioctl that is handled here (the caller then answers ENOTTY or its own).
std::optional<IoctlShape> ShapeOfIoctl(uint32_t request);

struct IoctlResult {
  Errno error = Errno::kOk;
  std::vector<uint8_t> argument;  // to be written back at the pointer (from its start); may be empty
  std::vector<uint8_t> extra;     // to be written at the second buffer's address; may be empty
  // To be sent through Backend::RequestChange one after the other; the first that fails ends it, and its errno is the result of
  // the call. Only where `error` is kOk. At most two: the old calls change an address by taking it away and adding it again.
  std::vector<NetChange> changes;
};

inline constexpr size_t kMaxIoctlExtra = 16384;  // the second buffer's bytes that are ever written

// Whether the answer depends on the caller's capabilities.
bool IoctlNeedsRights(uint32_t request);

// How many bytes of the second buffer an answer may fill, from the request alone (`extra`: what could be read of the buffer). The
// broker writes no more, whatever the answer says.
size_t IoctlExtraRoom(uint32_t request, Bytes argument, Bytes extra);

// `argument` has exactly ShapeOfIoctl(request)->argument bytes, `extra` what could be read of the second buffer. `family` is the
// socket's (AF_INET, AF_INET6, AF_NETLINK, AF_PACKET): SIOCGIFADDR and its kin are AF_INET's own.
IoctlResult DeviceIoctl(const Backend& backend, int family, uint32_t request, Bytes argument, Bytes extra, const Caller& caller);

}  // namespace sluice::netlink
