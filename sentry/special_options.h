// The options that are more than an integer of the stack's socket.
#pragma once

#include <cstdint>

#include "base/bytes.h"
#include "base/errno.h"

namespace sluice {

class InetStandIn;
struct OptionValue;

enum class Special : uint8_t {
  kNone,
  kPriority,
  kOobInline,
  kPacingRate,
  kReceiveLowWater,
  kOne,
  kType,
  kDomain,
  kProtocol,
  kAcceptConn,
  kError,
  kPeerName,
  kPeerCred,
  kCookie,
  kLinger,
  kReceiveTimeout,
  kSendTimeout,
  kTimestamp,
  kTimestampNs,
  kBindToDevice,
  kIpOptions,
  kMulticastIf,
  kMulticastIf6,
  kIpJoin,
  kIpLeave,
  kIpJoinSource,
  kIpLeaveSource,
  kIpv6Join,
  kIpv6Leave,
  kJoin,
  kLeave,
  kJoinSource,
  kLeaveSource,
  kTcpInfo,
  kTcpCongestion,
  kTcpModelInfo,
  kTcpFastOpenKey,
  kIcmpFilter,
};

// True where setting takes an int.
bool SpecialIsInt(Special special);
Errno GetSpecialOption(InetStandIn& s, Special special, uint32_t capacity, int p, OptionValue* out);
Errno SetSpecialOption(InetStandIn& s, Special special, Bytes value, uint32_t length, int number, uint16_t rights, int p);

}  // namespace sluice
