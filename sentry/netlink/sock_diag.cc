// NETLINK_SOCK_DIAG: what `ss` asks (man 7 sock_diag). TCP, UDP, ping and raw sockets of our stack; of UNIX, packet, netlink
// sockets the answer is an empty list, since they are the kernel's and ss would show those of another namespace.
#include <linux/inet_diag.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>

#include <algorithm>

#include "sentry/netlink/diag_filter.h"
#include "sentry/netlink/server_impl.h"

namespace sluice::netlink {
namespace {

constexpr uint16_t kOldTcp = TCPDIAG_GETSOCK;
constexpr int kUnixFamily = 1, kPacketFamily = 17;
constexpr uint32_t kNoCookie = INET_DIAG_NOCOOKIE;
constexpr uint8_t kTcpListen = 10;

bool Wants(uint8_t extensions, int attribute) { return (extensions & (1u << (attribute - 1))) != 0; }

// struct tcp_info as of linux/tcp.h, from ours. Only the leading part that all kernels since 5.x share is laid out here.
struct WireTcpInfo {
  uint8_t state, ca_state, retransmits, probes, backoff, options, wscale, delivery_limited;
  uint32_t rto, ato, snd_mss, rcv_mss, unacked, sacked, lost, retrans, fackets;
  uint32_t last_data_sent, last_ack_sent, last_data_recv, last_ack_recv;
  uint32_t pmtu, rcv_ssthresh, rtt, rttvar, snd_ssthresh, snd_cwnd, advmss, reordering, rcv_rtt, rcv_space, total_retrans;
  uint64_t pacing_rate, max_pacing_rate, bytes_acked, bytes_received;
  uint32_t segs_out, segs_in, notsent_bytes, min_rtt, data_segs_in, data_segs_out;
  uint64_t delivery_rate, busy_time, rwnd_limited, sndbuf_limited;
  uint32_t delivered, delivered_ce;
  uint64_t bytes_sent, bytes_retrans;
  uint32_t dsack_dups, reord_seen, rcv_ooopack, snd_wnd, rcv_wnd, rehash;
};
static_assert(sizeof(WireTcpInfo) == 240);

WireTcpInfo ToWire(const TcpInfo& i) {
  WireTcpInfo w{};
  w.state = i.state, w.ca_state = i.ca_state, w.retransmits = i.retransmits, w.probes = i.probes;
  w.backoff = i.backoff, w.options = i.options;
  w.wscale = static_cast<uint8_t>((i.snd_wscale & 0xf) | (i.rcv_wscale << 4));
  w.delivery_limited = static_cast<uint8_t>((i.delivery_rate_app_limited ? 1 : 0) | (i.fastopen_client_fail & 3) << 1);
  w.rto = i.rto, w.ato = i.ato, w.snd_mss = i.snd_mss, w.rcv_mss = i.rcv_mss;
  w.unacked = i.unacked, w.sacked = i.sacked, w.lost = i.lost, w.retrans = i.retrans;
  w.last_data_sent = i.last_data_sent, w.last_data_recv = i.last_data_recv, w.last_ack_recv = i.last_ack_recv;
  w.pmtu = i.pmtu, w.rcv_ssthresh = i.rcv_ssthresh, w.rtt = i.rtt, w.rttvar = i.rttvar;
  w.snd_ssthresh = i.snd_ssthresh, w.snd_cwnd = i.snd_cwnd, w.advmss = i.advmss, w.reordering = i.reordering;
  w.rcv_rtt = i.rcv_rtt, w.rcv_space = i.rcv_space, w.total_retrans = i.total_retrans;
  w.pacing_rate = i.pacing_rate, w.max_pacing_rate = i.max_pacing_rate;
  w.bytes_acked = i.bytes_acked, w.bytes_received = i.bytes_received;
  w.segs_out = i.segs_out, w.segs_in = i.segs_in, w.notsent_bytes = i.notsent_bytes, w.min_rtt = i.min_rtt;
  w.data_segs_in = i.data_segs_in, w.data_segs_out = i.data_segs_out;
  w.delivery_rate = i.delivery_rate, w.busy_time = i.busy_time;
  w.rwnd_limited = i.rwnd_limited, w.sndbuf_limited = i.sndbuf_limited;
  w.delivered = i.delivered, w.delivered_ce = i.delivered_ce, w.bytes_sent = i.bytes_sent, w.bytes_retrans = i.bytes_retrans;
  w.dsack_dups = i.dsack_dups, w.reord_seen = i.reord_seen, w.rcv_ooopack = i.rcv_ooopack;
  w.snd_wnd = i.snd_wnd, w.rcv_wnd = i.rcv_wnd;
  return w;
}

// An address as inet_diag_sockid holds it for a socket of `family`.
void PutAddress(const IpAddress& address, Family family, __be32 (&out)[4]) {
  const IpAddress as = family == Family::kIpv6 && address.is_v4() ? address.Mapped() : address;
  std::memset(out, 0, sizeof out);
  std::copy_n(as.bytes().begin(), as.bytes().size(), reinterpret_cast<uint8_t*>(out));
}

inet_diag_sockid ToId(const SocketInfo& s, uint32_t cookie) {
  inet_diag_sockid id{};
  StoreBe16(&id.idiag_sport, s.local.port);
  StoreBe16(&id.idiag_dport, s.remote.port);
  PutAddress(s.local.address, s.family, id.idiag_src);
  PutAddress(s.remote.address, s.family, id.idiag_dst);
  id.idiag_if = static_cast<uint32_t>(s.ifindex);
  id.idiag_cookie[0] = cookie;
  return id;
}

void AppendSocket(const SocketInfo& s, uint32_t cookie, uint8_t extensions, Buffer* out) {
  MessageWriter w(out, SOCK_DIAG_BY_FAMILY);
  inet_diag_msg m{};
  m.idiag_family = static_cast<uint8_t>(ToAf(s.family));
  m.idiag_state = static_cast<uint8_t>(s.state);
  m.idiag_timer = s.timer;
  m.idiag_retrans = static_cast<uint8_t>(std::min<uint32_t>(s.retransmits, 255));
  m.id = ToId(s, cookie);
  m.idiag_expires = s.timer != 0 ? s.timer_ms : 0;
  const bool listening = s.protocol == IPPROTO_TCP && s.state == kTcpListen;
  m.idiag_rqueue = s.receive_queue;
  m.idiag_wqueue = listening ? s.backlog : s.send_queue;
  w.Header(m);
  if (!s.tcp) return;
  if (Wants(extensions, INET_DIAG_INFO)) w.Struct(INET_DIAG_INFO, ToWire(*s.tcp));
  if (Wants(extensions, INET_DIAG_CONG)) w.Text(INET_DIAG_CONG, s.tcp->congestion_control);
  if (const auto& model = s.tcp->model; model && Wants(extensions, INET_DIAG_VEGASINFO)) {
    w.Struct(INET_DIAG_BBRINFO, tcp_bbr_info{.bbr_bw_lo = static_cast<uint32_t>(model->bandwidth),
                                             .bbr_bw_hi = static_cast<uint32_t>(model->bandwidth >> 32),
                                             .bbr_min_rtt = model->min_rtt_us,
                                             .bbr_pacing_gain = model->pacing_gain,
                                             .bbr_cwnd_gain = model->cwnd_gain});
  }
}

struct Query {
  inet_diag_req_v2 request{};
  uint8_t protocol = 0;
  DiagFilter filter;
  bool with_info = false;
};

bool Matches(const Query& q, const SocketInfo& s) {
  if (s.protocol != q.protocol || ToAf(s.family) != q.request.sdiag_family) return false;
  if (s.state < 0 || s.state > 31 || (q.request.idiag_states & (1u << s.state)) == 0) return false;
  const inet_diag_sockid& id = q.request.id;
  if (id.idiag_sport != 0 && LoadBe16(&id.idiag_sport) != s.local.port) return false;
  if (id.idiag_dport != 0 && LoadBe16(&id.idiag_dport) != s.remote.port) return false;
  return q.filter.Accepts(s);
}

Errno ReadQuery(Request& r, Query* q) {
  if (r.payload().size() < sizeof(inet_diag_req_v2)) return Errno::kEINVAL;
  q->request = r.Fixed<inet_diag_req_v2>();
  q->protocol = q->request.sdiag_protocol;
  AttributeTable table;
  if (const Errno e = r.Parse<inet_diag_req_v2>(&table, INET_DIAG_REQ_MAX, {}, false); e != Errno::kOk) return e;
  // A protocol beyond 255 comes as an attribute; none of ours does.
  if (table[INET_DIAG_REQ_PROTOCOL]) {
    const uint32_t protocol = table[INET_DIAG_REQ_PROTOCOL].u32();
    if (protocol > 255) return Errno::kENOENT;
    q->protocol = static_cast<uint8_t>(protocol);
  }
  q->with_info = q->protocol == IPPROTO_TCP && q->request.idiag_ext != 0;
  if (!table[INET_DIAG_REQ_BYTECODE]) return Errno::kOk;
  return q->filter.Load(table[INET_DIAG_REQ_BYTECODE].value) ? Errno::kOk : Errno::kEINVAL;
}

// A list taken at once: sockets come and go, and positions would not stay. Bounded by the stack's own bound of sockets.
Errno DumpSockets(Request& r, const Query& q) {
  std::vector<Buffer> messages;
  uint32_t cookie = 0;
  for (const SocketInfo& s : r.backend.Sockets(q.with_info)) {
    ++cookie;
    if (Matches(q, s)) AppendSocket(s, cookie, q.request.idiag_ext, &messages.emplace_back());
  }
  r.dump = std::make_unique<ListDump>(std::move(messages));
  return Errno::kOk;
}

// One socket by its addresses; a listening one answers for a wildcard.
Errno GetSocket(Request& r, const Query& q) {
  const auto& id = q.request.id;
  const SocketInfo* best = nullptr;
  uint32_t cookie = 0, best_cookie = 0;
  const auto sockets = r.backend.Sockets(q.with_info);
  for (const SocketInfo& s : sockets) {
    ++cookie;
    if (s.protocol != q.protocol || ToAf(s.family) != q.request.sdiag_family) continue;
    const inet_diag_sockid own = ToId(s, cookie);
    const bool local = own.idiag_sport == id.idiag_sport && std::memcmp(own.idiag_src, id.idiag_src, sizeof id.idiag_src) == 0;
    const bool remote = own.idiag_dport == id.idiag_dport && std::memcmp(own.idiag_dst, id.idiag_dst, sizeof id.idiag_dst) == 0;
    const bool wildcard = own.idiag_sport == id.idiag_sport && s.local.address.IsAny() && s.remote.port == 0;
    if (local && remote) {
      best = &s, best_cookie = cookie;
      break;
    }
    if (wildcard) best = &s, best_cookie = cookie;
  }
  if (best == nullptr) return Errno::kENOENT;
  const bool any_cookie = id.idiag_cookie[0] == kNoCookie && id.idiag_cookie[1] == kNoCookie;
  if (!any_cookie && id.idiag_cookie[0] != best_cookie) return Errno::kESTALE;
  AppendSocket(*best, best_cookie, q.request.idiag_ext, &r.replies.emplace_back());
  return Errno::kOk;
}

Errno InetDiag(Request& r) {
  Query q;
  if (const Errno e = ReadQuery(r, &q); e != Errno::kOk) return e;
  switch (q.protocol) {
    case IPPROTO_TCP:
    case IPPROTO_UDP:
    case IPPROTO_ICMP:
    case IPPROTO_RAW:
      break;
    default:
      return Errno::kENOENT;  // no handler for the protocol: as without the module
  }
  return r.dumping() ? DumpSockets(r, q) : GetSocket(r, q);
}

}  // namespace

Errno SockDiag(Request& r) {
  const uint16_t type = r.header.nlmsg_type;
  if (type == kOldTcp || type == SOCK_DESTROY)
    return type == SOCK_DESTROY && !r.caller.net_admin ? Errno::kEPERM : Errno::kEOPNOTSUPP;
  if (type != SOCK_DIAG_BY_FAMILY) return Errno::kEINVAL;
  if (r.payload().size() < sizeof(sock_diag_req)) return Errno::kEINVAL;
  switch (r.Fixed<sock_diag_req>().sdiag_family) {
    case AF_INET:
    case AF_INET6:
      return InetDiag(r);
    case kUnixFamily:
    case kPacketFamily:
    case AF_NETLINK:
      return r.dumping() ? DumpNothing(r) : Errno::kENOENT;
    default:
      return Errno::kENOENT;
  }
}

}  // namespace sluice::netlink
