// The socket interface of the stack: what the sentry (or a program linked with the library) uses. One thread: the shard's own.
//
// Linux is the reference for semantics and errno (man 7 socket, tcp, udp, ip). Calls never block: where Linux would, they return
// kEAGAIN or kEINPROGRESS and an event follows.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/errno.h"
#include "base/time.h"
#include "netstack/ip/address.h"
#include "netstack/packet.h"

namespace sluice {

// Level-triggered state of a socket. The observer hears of every bit that rises, and of kReadable and kUrgent again at each
// arrival.
enum SocketEvent : uint32_t {
  kReadable = 1u << 0,    // data, a datagram or an accepted connection waits; also set at end of stream and on error
  kWritable = 1u << 1,    // send_space() is worth a write (as Linux: a third of the buffer is free)
  kReadClosed = 1u << 2,  // FIN received (after the data that is queued)
  kHangup = 1u << 3,      // both directions are closed, or the connection is gone
  kError = 1u << 4,       // an error waits in TakeError()
  kConnected = 1u << 5,   // an active open completed
  kUrgent = 1u << 6,      // urgent data arrived
  kErrorQueue = 1u << 7,  // the error queue is not empty
};

class SocketObserver {
 public:
  virtual ~SocketObserver() = default;
  // Called while the stack works on the socket: record, do not call back into the stack, do not close sockets here.
  virtual void OnSocketEvents(uint32_t events) = 0;
};

// Integer options, set and read with Linux's units and meaning (seconds for TCP_KEEPIDLE, milliseconds for TCP_USER_TIMEOUT ...).
enum class SockOpt : uint8_t {
  // SOL_SOCKET
  kReuseAddr,
  kReusePort,
  kKeepAlive,
  kBroadcast,
  kDontRoute,
  kRcvBuf,
  kSndBuf,
  kRcvBufForce,
  kSndBufForce,
  kRcvLowat,
  kMark,
  kPriority,
  kOobInline,
  kNoCheck,
  kIncomingCpu,
  kMaxPacingRate,
  kBindToIfIndex,
  // IPPROTO_IP
  kIpTos,
  kIpTtl,
  kIpMtuDiscover,
  kIpMtu,
  kIpRecvErr,
  kIpPktInfo,
  kIpRecvTos,
  kIpRecvTtl,
  kIpRecvOpts,
  kIpRetOpts,
  kIpFreebind,
  kIpTransparent,
  kIpMulticastTtl,
  kIpMulticastLoop,
  kIpMulticastAll,
  kIpBindAddressNoPort,
  kIpRecvOrigDstAddr,
  kIpMinTtl,
  kIpHdrIncl,
  kIpLocalPortRange,
  // IPPROTO_IPV6
  kIpv6V6Only,
  kIpv6UnicastHops,
  kIpv6Tclass,
  kIpv6RecvPktInfo,
  kIpv6RecvTclass,
  kIpv6RecvHopLimit,
  kIpv6MtuDiscover,
  kIpv6Mtu,
  kIpv6RecvErr,
  kIpv6MulticastHops,
  kIpv6MulticastLoop,
  kIpv6Freebind,
  kIpv6AutoFlowLabel,
  kIpv6MinHopCount,
  // IPPROTO_TCP
  kTcpNoDelay,
  kTcpCork,
  kTcpMaxSeg,
  kTcpKeepIdle,
  kTcpKeepIntvl,
  kTcpKeepCnt,
  kTcpSynCnt,
  kTcpLinger2,
  kTcpDeferAccept,
  kTcpWindowClamp,
  kTcpQuickAck,
  kTcpUserTimeout,
  kTcpNotSentLowat,
  kTcpFastOpen,
  kTcpFastOpenConnect,
  kTcpFastOpenNoCookie,
  kTcpSaveSyn,
  kTcpThinLinearTimeouts,
  // IPPROTO_UDP
  kUdpCork,
  kUdpSegment,
  kUdpGro,
  kUdpNoCheck6Tx,
  kUdpNoCheck6Rx,
  kCount
};

// As struct tcp_bbr_info (linux/inet_diag.h).
struct TcpModelInfo {
  uint64_t bandwidth = 0;                                   // bytes per second
  uint32_t min_rtt_us = 0, pacing_gain = 0, cwnd_gain = 0;  // gains: times 256
};

// As struct tcp_info (linux/tcp.h); times in microseconds as there.
struct TcpInfo {
  uint8_t state = 0, ca_state = 0, retransmits = 0, probes = 0, backoff = 0, options = 0, snd_wscale = 0, rcv_wscale = 0;
  bool delivery_rate_app_limited = false;
  uint32_t rto = 0, ato = 0, snd_mss = 0, rcv_mss = 0;
  uint32_t unacked = 0, sacked = 0, lost = 0, retrans = 0;
  uint32_t last_data_sent = 0, last_data_recv = 0, last_ack_recv = 0;  // milliseconds
  uint32_t pmtu = 0, rcv_ssthresh = 0, rtt = 0, rttvar = 0, snd_ssthresh = 0, snd_cwnd = 0, advmss = 0, reordering = 0;
  uint32_t rcv_rtt = 0, rcv_space = 0, total_retrans = 0;
  uint64_t pacing_rate = 0, max_pacing_rate = 0, bytes_acked = 0, bytes_received = 0;
  uint32_t segs_out = 0, segs_in = 0, notsent_bytes = 0, min_rtt = 0, data_segs_in = 0, data_segs_out = 0;
  uint64_t delivery_rate = 0, busy_time = 0, rwnd_limited = 0, sndbuf_limited = 0;
  uint32_t delivered = 0, delivered_ce = 0;
  uint64_t bytes_sent = 0, bytes_retrans = 0;
  uint8_t fastopen_client_fail = 0;
  uint32_t dsack_dups = 0, reord_seen = 0, rcv_ooopack = 0, snd_wnd = 0, rcv_wnd = 0;
  std::string_view congestion_control;  // a name that lives for ever
  std::optional<TcpModelInfo> model;    // where the congestion control is one
};

class Socket {
 public:
  virtual ~Socket() = default;
  virtual Family family() const = 0;  // of the socket: kIpv6 for AF_INET6, which also speaks IPv4 unless V6ONLY
  void set_observer(SocketObserver* observer) { observer_ = observer; }
  virtual uint32_t events() const = 0;

  // Addresses are in the socket's family (v4-mapped for an AF_INET6 socket that speaks IPv4).
  virtual Errno Bind(const Endpoint& local) = 0;
  virtual Endpoint local() const = 0;
  virtual std::optional<Endpoint> remote() const = 0;  // none: ENOTCONN
  virtual Errno Shutdown(bool read, bool write) = 0;
  // SO_ERROR: the pending error, which is cleared.
  virtual Errno TakeError() = 0;

  // kENOPROTOOPT where the protocol has no such option.
  virtual Errno SetOption(SockOpt option, int64_t value) = 0;
  virtual Errno GetOption(SockOpt option, int64_t* value) const = 0;

  // Ends the owner's interest: the handle is invalid afterwards. A stream goes on in the stack until it is closed properly
  // (linger and unread data as Linux has it).
  virtual void Close() = 0;

 protected:
  void Notify(uint32_t events) {
    if (observer_ != nullptr) observer_->OnSocketEvents(events);
  }
  SocketObserver* observer_ = nullptr;
};

// See StreamSocket::Settings.
class StreamSettings {
 public:
  virtual ~StreamSettings() = default;
};

// See DatagramSocket::Settings.
class DatagramSettings {
 public:
  virtual ~DatagramSettings() = default;
};

class StreamSocket : public Socket {
 public:
  virtual Errno Listen(int backlog) = 0;  // again on a listening socket: changes the backlog
  // kEINPROGRESS when started (kConnected or kError follows), kEALREADY, kEISCONN, or the reason for refusal at once.
  // kOk with TCP_FASTOPEN_CONNECT, where a cookie of the peer's is known: the first Send begins the handshake.
  virtual Errno Connect(const Endpoint& remote) = 0;
  // MSG_FASTOPEN (RFC 7413): connects, with data in the SYN where a cookie of the peer's is known, or none is needed. As Connect,
  // and kEOPNOTSUPP where the sysctl forbids it. `taken`: how much of the data is queued: `all` of it, to be sent as soon as
  // possible, or what the SYN has.
  virtual Errno ConnectWithData(const Endpoint& remote, Slice data, bool all, size_t* taken) = 0;
  // Of a socket that is bound to a port: the stack (netstack/shard.h) that a connection to `remote` would be at home in. None
  // where there is but one, or Connect would fail.
  virtual std::optional<uint32_t> HomeOfConnect(const Endpoint& remote) const = 0;
  // connect(AF_UNSPEC): back to the fresh state.
  virtual Errno Disconnect() = 0;
  // The oldest established connection, owned by the caller; nullptr where none waits.
  virtual StreamSocket* Accept() = 0;
  // Whether the port of an accepted connection is taken for bind(). It is, unless the connection is about to be reset because its
  // listener has closed.
  virtual void HoldPort(bool hold) = 0;
  virtual bool listening() const = 0;
  virtual int state() const = 0;  // TCP_ESTABLISHED = 1 ... as linux/tcp_states.h

  // Received bytes, in order, not yet consumed.
  virtual size_t readable_bytes() const = 0;
  // Points `out` at the oldest bytes without consuming; returns how many spans were filled. Valid until Consume or the next
  // input.
  virtual size_t Peek(std::span<Bytes> out) const = 0;
  virtual void Consume(size_t n) = 0;  // opens the window
  // The peer's FIN was received and everything before it consumed.
  virtual bool at_end() const = 0;
  // Urgent data (RFC 6093): bytes until the mark, if one is ahead.
  virtual std::optional<size_t> urgent_mark() const = 0;

  // Free room in the send buffer. A Send may exceed it by one slice, so that whole reads fit.
  virtual size_t send_space() const = 0;
  // Queues; kEPIPE after shutdown, kENOTCONN before connect, or the connection's error. `more`: MSG_MORE.
  virtual Errno Send(Slice data, bool more) = 0;
  virtual Errno SendUrgent(Slice data) = 0;
  virtual size_t unsent_bytes() const = 0;  // SIOCOUTQNSD
  // While so much is unsent, kWritable is not shown: for a user that keeps its bytes elsewhere until they can leave. Bounds
  // neither send_space() nor Send.
  virtual void SetUnsentLimit(uint32_t bytes) = 0;
  virtual size_t unacked_bytes() const = 0;  // SIOCOUTQ

  virtual void SetLinger(std::optional<int> seconds) = 0;
  virtual std::optional<int> linger() const = 0;
  virtual Errno SetCongestionControl(std::string_view name) = 0;  // kENOENT where unknown
  virtual std::string congestion_control() const = 0;
  virtual TcpInfo info() const = 0;
  // TCP_FASTOPEN_KEY: a key of 16 bytes, and perhaps a backup key behind it. Empty: none of its own.
  virtual Errno SetFastOpenKeys(Bytes keys) = 0;
  virtual std::vector<uint8_t> fast_open_keys() const = 0;
  // All that options have set, for a socket in another stack of the same host (shard.h): a fresh one that is to replace this one,
  // or one that listens beside it.
  virtual std::shared_ptr<const StreamSettings> Settings() const = 0;
  virtual void TakeSettings(const StreamSettings& settings) = 0;
  // RST and forget. The handle is invalid afterwards.
  virtual void Abort() = 0;
};

// What travels with a datagram besides its bytes.
struct DatagramMeta {
  Endpoint source;        // receive: sender
  Endpoint destination;   // receive: address and port it was sent to
  IfIndex ifindex = 0;    // receive: device it came by
  IpAddress answer_from;  // receive, with IP_PKTINFO: the local address that an answer has; not where the destination is that
  uint8_t ttl = 0;
  uint8_t tos = 0;
  uint16_t gro_size = 0;  // receive: UDP_GRO segment size, 0 where single
  Instant received;
  bool truncated = false;
  // Receive: the IPv4 options it came with, where the socket wants them (IP_RECVOPTS, IP_RETOPTS) and there were some.
  std::shared_ptr<const std::vector<uint8_t>> ip_options;
};

struct Datagram {
  Packet payload;  // linear region and slices are the payload
  DatagramMeta meta;
};

struct DatagramSend {
  std::optional<Endpoint> destination;  // none: the connected peer
  IpAddress source;                     // IP_PKTINFO spec_dst, or none
  IfIndex ifindex = 0;                  // IP_PKTINFO ifindex, or 0
  std::optional<uint8_t> ttl, tos;      // control messages
  uint16_t gso_size = 0;                // UDP_SEGMENT
  bool dont_route = false, confirm = false;
};

// As struct sock_extended_err and its offender.
struct SocketError {
  Errno error = Errno::kOk;
  uint8_t origin = 0, type = 0, code = 0;
  uint32_t info = 0;
  Endpoint offender;
  Endpoint destination;  // of the packet that caused it
  Packet payload;        // of the packet that caused it
};

struct GroupRequest {
  IpAddress group;
  IpAddress interface;  // by address, or
  IfIndex ifindex = 0;  // by index
  IpAddress source;     // source-specific
};

// UDP, ping and raw sockets.
class DatagramSocket : public Socket {
 public:
  virtual Errno Connect(std::optional<Endpoint> remote) = 0;  // none: AF_UNSPEC
  // All or nothing. kEAGAIN where the send buffer is full.
  virtual Errno Send(const DatagramSend& how, std::span<const Bytes> payload) = 0;
  // False where the queue is empty.
  virtual bool Receive(Datagram* out) = 0;
  virtual void Unreceive(Datagram&& d) = 0;             // puts a datagram whose delivery was not completed back to the front
  virtual std::optional<size_t> next_size() const = 0;  // FIONREAD
  virtual bool ReceiveError(SocketError* out) = 0;      // MSG_ERRQUEUE
  virtual Errno JoinGroup(const GroupRequest& request) = 0;
  virtual Errno LeaveGroup(const GroupRequest& request) = 0;
  virtual Errno SetMulticastInterface(const IpAddress& address, IfIndex ifindex) = 0;
  struct MulticastInterface {
    IpAddress address;  // as it was set; empty where it was set by index, or not at all
    IfIndex ifindex = 0;
  };
  virtual MulticastInterface multicast_interface() const = 0;
  virtual Errno SetIcmpFilter(uint32_t mask) = 0;  // raw ICMP: ICMP_FILTER
  // As StreamSocket has them, of a socket that has neither port nor peer nor datagrams: groups and an address without a port too.
  virtual std::shared_ptr<const DatagramSettings> Settings() const = 0;
  virtual void TakeSettings(const DatagramSettings& settings) = 0;
};

}  // namespace sluice
