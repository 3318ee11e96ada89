// Messages between the broker (receives notified calls, touches the program's memory) and the sentry (owns the sockets), over a
// SOCK_SEQPACKET pair, one message per packet, at most one descriptor by SCM_RIGHTS each.
//
// Connections that wait to be accepted go ahead of their calls, by a pair of their own that the broker reads only when a call
// asks for one: so accept() needs neither the sentry nor a wake-up of the broker's before it.
//
// The broker trusts nothing that comes from the sentry: a result names a call that is pending at the broker, and the broker alone
// decides where in that call's memory it goes. The sentry trusts the broker's framing, but none of the program's bytes within.
#pragma once

#include <cstddef>
#include <cstdint>

#include "sentry/netlink/net_change.h"
#include "xdp/option_slot.h"

namespace sluice::calls {

enum class MessageType : uint8_t {
  // broker -> sentry
  kListener,      // Envelope + the id of its container + the listener's descriptor: answers for `listener` go there
  kListenerGone,  // Envelope: the last task of that filter is gone
  kCall,          // Call + Part[count] + bytes; the stand-in's descriptor where CallNeedsDescriptor()
  kDelivered,     // Delivered: what became of a Result
  kFetched,       // Fetched; with the descriptor where it was found
  kNetChanged,    // NetChanged
  kAccepted,      // Accepted: what became of an Offer
  kWithdrawn,     // Withdrawal: none of them will be accepted any more
  // sentry -> broker
  kResult,     // Result + PartResult[count] + bytes
  kFetch,      // Fetch
  kNetChange,  // NetChangeRequest; with a pidfd of who asked for it where that call has returned (send without an address)
  kRunAhead,   // Fetch, with the sentry's end of the stream: both ends get a send buffer of kRunAheadBytes; no answer
  kOffered,    // Fetch, of a listening stand-in: there are offers for its accepts that wait
  kWithdraw,   // Withdrawal
};

// The calls that are notified, whatever variant the program used.
enum class CallKind : uint8_t {
  kSocket,
  kBind,
  kConnect,
  kListen,
  kAccept,  // accept and accept4: args[3] holds the flags of accept4, 0 for accept
  kShutdown,
  kGetSockName,
  kGetPeerName,
  kGetSockOpt,
  kSetSockOpt,
  kSend,     // sendto, sendmsg, sendmmsg: one Part per message
  kReceive,  // recvfrom, recvmsg, recvmmsg: one Part per message
  kIoctl,
};

// Capabilities of the caller in the user namespace that owns the network namespace; looked up for the calls that can need them.
enum Rights : uint16_t {
  kRightsKnown = 1u << 0,
  kRightNetAdmin = 1u << 1,
  kRightNetRaw = 1u << 2,
  kRightNetBindService = 1u << 3,
};

inline constexpr size_t kMaxContainerId = 1024;  // runc's bound
inline constexpr size_t kMaxAddress = 128;       // sizeof(sockaddr_storage)
inline constexpr size_t kMaxControl = 4096;      // control data of one message; more is ENOBUFS
inline constexpr size_t kMaxData = 65536;   // payload of one call; a longer datagram is cut here and refused by its true length
inline constexpr size_t kMaxOption = 4096;  // optval
inline constexpr size_t kMaxParts = 16;     // messages of one sendmmsg or recvmmsg: a longer vector is answered in part
inline constexpr size_t kMaxMessage = kMaxData + kMaxParts * (kMaxAddress + 64) + kMaxControl + 1024;

// Send buffer of both ends of a stream that moves much, as SO_SNDBUFFORCE takes it (the kernel doubles it).
inline constexpr int kRunAheadBytes = 2 << 20;

struct Envelope {
  MessageType type{};
  uint8_t worker = 0;  // of the sentry that is to hear the answer to this message; comes back
  uint16_t listener = 0;
  uint32_t tid = 0;  // the calling thread as the broker's pid namespace names it
  uint64_t id = 0;   // notification id, unique per listener
};

struct Call {
  Envelope envelope;
  CallKind kind{};
  uint8_t count = 0;        // Parts that follow
  uint16_t rights = 0;      // Rights
  int32_t nr = 0;           // system call number
  uint32_t file_flags = 0;  // F_GETFL of the stand-in
  uint32_t tgid = 0;        // process id as the program sees it; only for socket(AF_NETLINK)
  uint64_t cookie = 0;      // SO_COOKIE of the stand-in; 0 for socket()
  uint64_t args[6] = {};    // as the program passed them; pointers are for information only
  uint32_t timeout_ms = 0;  // recvmmsg with a timeout: its value, 0xffffffff: none
  uint32_t answered = 0;    // 1: the program has its answer already (an option that cannot fail); only the effect is due
};

// One message of a call. For sending calls the bytes of name, control and data follow all Parts, part by part; for receiving
// calls the lengths are capacities and nothing follows. bind and connect: name. setsockopt: data = optval. getsockopt:
// data_length is the optlen given, its bytes follow (some options read their buffer). ioctl: data = argument, control = second
// buffer. getsockname, getpeername, accept: name_length is the capacity (has_name false: NULL was passed).
struct Part {
  uint32_t name_length = 0;
  uint32_t control_length = 0;
  uint32_t data_length = 0;   // bytes that follow, at most kMaxData
  uint32_t total_length = 0;  // what the program asked for
  uint32_t flags = 0;         // flags argument
  uint8_t has_name = 0, has_control = 0;
  uint16_t reserved = 0;
};

// The answer of a call whose result lies in memory.
struct Result {
  Envelope envelope;
  int64_t value = 0;   // return value, or -errno
  uint32_t count = 0;  // PartResults that follow
  // 0: a Delivered, which wakes the sentry, is sent only where the program got less than all of it. Results are delivered in
  // their order, so that the Delivered of a later one shows that it got this.
  uint32_t report = 1;
};

struct PartResult {
  uint32_t name_length = 0;  // true length of the name (may exceed capacity); bytes that follow: at most the capacity
  uint32_t control_length = 0;
  uint32_t data_length = 0;   // bytes that follow and are written; getsockopt: also the optlen reported
  uint32_t return_value = 0;  // of this message (msg_len of the m-variants); getsockopt: the optlen to report
  uint32_t msg_flags = 0;
  uint32_t reserved = 0;
};

struct Delivered {
  Envelope envelope;
  // 0: the program has it. ENOENT: the call was interrupted or its thread died, undo. EFAULT: memory was bad and the program was
  // told so; undo where Linux would.
  int32_t error = 0;
  uint32_t parts = 0;  // recvmmsg: messages whose memory could be written (the rest is to be undone)
};

inline constexpr size_t kMaxOffers = 16384;  // under way or waiting at the broker
inline constexpr size_t kMaxPeerName = 32;   // sizeof(sockaddr_in6), and a bit

// A connection that waits to be accepted (over the pair of offers). For each there is one socket in the native queue of the
// stand-in, in the same order, which is there before the offer is sent. It is the program's end itself, or, where the sentry has
// that, a token, which makes the stand-in readable and is thrown away. An end in the sentry does not come with the offer but is
// fetched when it is wanted: while descriptors are under way the kernel looks for garbage at each close of an AF_UNIX socket.
struct Offer {
  uint64_t listener = 0;  // SO_COOKIE of the listening stand-in
  uint64_t life = 0;      // one listen() of it
  // Its name: SO_COOKIE of the program's end where that is in the sentry, else of the sentry's own.
  uint64_t connection = 0;
  // The program's end: its number in the sentry, where it stays until the sentry hears of it. -1: it is in the native queue.
  int32_t end = -1;
  uint32_t name_length = 0;
  uint8_t name[kMaxPeerName] = {};  // the peer's, as accept() writes it
  sluice_mark mark{};               // for an end in the native queue; slot 0: none
};

struct Accepted {
  Envelope envelope;                                // of the accept
  uint64_t listener = 0, life = 0, connection = 0;  // of the offer
  // SO_COOKIE and inode of the program's end, where that was in the native queue.
  uint64_t cookie = 0, inode = 0;
  // 0: the program has it. EFAULT, EINVAL: the address could not be written, as the program was told. EBADF: its end was not
  // there. ENOENT, EMFILE and the like: it waits for the next accept.
  int32_t error = 0;
  int32_t fd = -1;  // the number it got
  // 1: it waits; the sentry offers it once more, behind another token. An end that was in the native queue comes with this.
  uint32_t again = 0;
  uint32_t reserved = 0;
};

struct Withdrawal {
  Envelope envelope;
  uint64_t listener = 0, life = 0;
};

// Asks for a copy of a stand-in that has no call under way: descriptor `fd` of thread `tid`, or, where that is another file by
// now, the first one with inode `inode` that is found among the sandbox's processes.
struct Fetch {
  Envelope envelope;  // id: chosen by the sentry, comes back; tid: last known holder
  int32_t fd = -1;
  uint32_t reserved = 0;
  uint64_t cookie = 0;
  uint64_t inode = 0;
};

struct Fetched {
  Envelope envelope;
  int32_t error = 0;  // 0: the descriptor is attached. ENOENT: nobody holds it that could be found
  uint32_t reserved = 0;
};

struct NetChangeRequest {
  Envelope envelope;  // listener, id, tid of the live call on whose behalf; zeroes where a pidfd of the sender comes with it
  uint32_t sender_uid = 0;  // with a pidfd: the real user as it was when it sent
  uint32_t reserved = 0;
  uint64_t token = 0;  // comes back
  netlink::NetChange change;
};

struct NetChanged {
  Envelope envelope;
  uint64_t token = 0;
  netlink::NetChangeResult result;
};

}  // namespace sluice::calls
