#include "netstack/socket/datagram_base.h"

#include <algorithm>

#include "netstack/wire/headers.h"

namespace sluice {
namespace {

constexpr uint8_t kOriginLocal = 1, kOriginIcmp = 2, kOriginIcmp6 = 3;  // SO_EE_ORIGIN_*
constexpr int64_t kPmtuDont = 0, kPmtuWant = 1, kPmtuDo = 2, kPmtuProbe = 3, kPmtuInterface = 4, kPmtuOmit = 5;
constexpr int kStateConnected = 1, kStateClosed = 7;

}  // namespace

DatagramBase::DatagramBase(Network& network, Family family, uint8_t protocol, PortTable* ports)
    : network_(network),
      context_(network.context()),
      family_(family),
      protocol_(protocol),
      ports_(ports),
      local_(IpAddress::Any(family)) {
  context_.datagram_memory.AddSocket();
  auto set = [this](SockOpt o, int64_t v) { options_[static_cast<size_t>(o)] = v; };
  const Sysctls& s = *context_.sysctls;
  set(SockOpt::kRcvBuf, s.rmem_default);
  set(SockOpt::kSndBuf, s.wmem_default);
  set(SockOpt::kRcvLowat, 1);
  set(SockOpt::kIpTtl, -1);
  set(SockOpt::kIpMulticastTtl, 1);
  set(SockOpt::kIpMulticastLoop, 1);
  set(SockOpt::kIpMulticastAll, 1);
  set(SockOpt::kIpMtuDiscover, s.ip_no_pmtu_disc ? kPmtuDont : kPmtuWant);
  set(SockOpt::kIpv6MtuDiscover, kPmtuWant);
  set(SockOpt::kIpv6UnicastHops, -1);
  set(SockOpt::kIpv6MulticastHops, 1);
  set(SockOpt::kIpv6MulticastLoop, 1);
  set(SockOpt::kMaxPacingRate, -1);
  set(SockOpt::kIncomingCpu, -1);
}

DatagramBase::~DatagramBase() {
  context_.datagram_memory.Remove(queued_ + queued_errors_);
  context_.datagram_memory.RemoveSocket();
  if (ports_ != nullptr) ports_->Release(*this);
  for (const Group& g : groups_) network_.LeaveGroup(g.ifindex, g.group);
}

uint32_t DatagramBase::events() const {
  uint32_t e = write_shut_ ? 0u : static_cast<uint32_t>(kWritable);
  if (write_shut_) e |= kWritable;  // as Linux: poll says writable, send says EPIPE
  if (!queue_.empty() || read_shut_) e |= kReadable;
  if (read_shut_) e |= kReadClosed;
  if (read_shut_ && write_shut_) e |= kHangup;
  if (error_ != Errno::kOk) e |= kError | kReadable;
  if (!errors_.empty()) e |= kErrorQueue;
  return e;
}

// Addresses come in the socket's family; inside, IPv4 is IPv4 however it was written.
Errno DatagramBase::Normalize(const Endpoint& in, IpAddress* address) const {
  if (!in.address) return Errno::kEINVAL;
  if (in.address.is_v6() && family_ == Family::kIpv4) return Errno::kEAFNOSUPPORT;
  *address = in.address.Unmapped();
  if (address->is_v4() && v6only()) return in.address.is_v4() ? Errno::kEINVAL : Errno::kENETUNREACH;
  return Errno::kOk;
}

// What the unspecified address means as a destination: `::` of a socket that is bound to an IPv4 address the IPv4 loopback.
IpAddress DatagramBase::ThisHost(Family family) const {
  return IpAddress::Loopback(local_.is_v4() && !local_.IsAny() ? Family::kIpv4 : family);
}

Errno DatagramBase::CheckBindable(const IpAddress& address) const {
  if (address.IsAny() || address.IsMulticast() || network_.IsLocalAddress(address) || network_.IsBroadcastAddress(address, 0)) {
    return Errno::kOk;
  }
  const bool anyway = context_.sysctls->ip_nonlocal_bind || option(SockOpt::kIpFreebind) != 0 ||
                      option(SockOpt::kIpTransparent) != 0 || option(SockOpt::kIpv6Freebind) != 0;
  return anyway ? Errno::kOk : Errno::kEADDRNOTAVAIL;
}

Errno DatagramBase::Bind(const Endpoint& local) {
  IpAddress address;
  if (const Errno e = Normalize(local, &address); e != Errno::kOk) return e == Errno::kENETUNREACH ? Errno::kEINVAL : e;
  const Errno bindable = CheckBindable(address);
  if (bindable != Errno::kOk && family_ == Family::kIpv4) return bindable;
  if (local_port_ != 0 || remote_ || (ports_ == nullptr && address_bound_ && !local_.IsAny())) return Errno::kEINVAL;
  if (bindable != Errno::kOk) return bindable;
  if (ports_ != nullptr) {
    const bool later = local.port == 0 && option(SockOpt::kIpBindAddressNoPort) != 0;
    if (!later) {
      const IpAddress before = std::exchange(local_, address);
      if (const Errno e = ports_->Claim(*this, address, local.port); e != Errno::kOk) {
        local_ = before;
        return e;
      }
    }
    port_bound_ = local.port != 0;
  }
  local_ = address;
  address_bound_ = !address.IsAny();
  if (address_bound_ && address.is_v6()) options_[static_cast<size_t>(SockOpt::kIpv6V6Only)] = 1;  // as Linux
  return Errno::kOk;
}

Errno DatagramBase::Autobind(const IpAddress& local, const Endpoint* remote) {
  if (ports_ == nullptr || local_port_ != 0) return Errno::kOk;
  const Errno e = ports_->Claim(*this, local, 0, remote);
  return e == Errno::kEADDRINUSE ? Errno::kEAGAIN : e;
}

Endpoint DatagramBase::local() const { return Endpoint{Present(local_), local_port_, 0}; }

std::optional<Endpoint> DatagramBase::remote() const {
  if (!remote_) return std::nullopt;
  return Endpoint{Present(remote_), remote_port_, 0};
}

Errno DatagramBase::Connect(std::optional<Endpoint> remote) {
  if (!remote) {
    remote_ = IpAddress();
    remote_port_ = 0;
    route_ = Route{};
    if (!address_bound_) local_ = IpAddress::Any(family_);
    if (ports_ != nullptr && !port_bound_) ports_->Release(*this);
    return Errno::kOk;
  }
  IpAddress address;
  if (const Errno e = Normalize(*remote, &address); e != Errno::kOk) return e;
  if (address.IsAny()) address = ThisHost(address.family());
  const bool keep_source = address_bound_ && local_.family() == address.family();
  if (address_bound_ && !keep_source) return local_.is_v4() ? Errno::kEAFNOSUPPORT : Errno::kENETUNREACH;
  RouteQuery query{.destination = address,
                   .source = keep_source ? local_ : IpAddress(),
                   .ifindex = static_cast<IfIndex>(option(SockOpt::kBindToIfIndex)),
                   .tos = static_cast<uint8_t>(option(SockOpt::kIpTos)),
                   .mark = static_cast<uint32_t>(option(SockOpt::kMark)),
                   .any_source = keep_source};
  if (address.IsMulticast() && query.ifindex == 0) query.ifindex = multicast_ifindex_;
  const Route route = network_.Lookup(query);
  if (!route.ok()) return route.error;
  if (route.type == kRtnBroadcast && option(SockOpt::kBroadcast) == 0) return Errno::kEACCES;
  const Endpoint peer{address, remote->port, 0};
  if (const Errno e = Autobind(keep_source ? local_ : route.source, &peer); e != Errno::kOk) return e;
  if (!keep_source) local_ = route.source;
  route_ = route;
  remote_ = address;
  remote_port_ = ports_ != nullptr && protocol_ == kIpProtoUdp ? remote->port : 0;
  return Errno::kOk;
}

Errno DatagramBase::Shutdown(bool read, bool write) {
  const bool connected = static_cast<bool>(remote_);
  read_shut_ |= read;
  write_shut_ |= write;
  Changed(events() & (kReadable | kWritable | kReadClosed | kHangup));
  return connected ? Errno::kOk : Errno::kENOTCONN;  // and yet it is done, as Linux does
}

Errno DatagramBase::TakeError() { return std::exchange(error_, Errno::kOk); }

void DatagramBase::Enqueue(Packet payload, const IpInfo& info, uint16_t source_port, uint16_t gro_size, Counter full) {
  // A small datagram does not keep a big receive buffer.
  if (payload.slice_count() == 0 && payload.head_block()->capacity > 4 * (payload.size() + 256)) {
    Packet small = Packet::Allocate(context_.pool, payload.size(), 0);
    if (small) {
      const size_t n = payload.size();
      payload.CopyOut(0, {small.Append(n), n});
      small.received = payload.received;
      payload = std::move(small);
    }
  }
  Datagram d;
  d.meta.received = payload.received;
  d.payload = std::move(payload);
  if (read_shut_ || queued_ + Charge(d) > ReceiveLimit()) return context_.counters.Add(full);
  if (Charge(d) > context_.datagram_memory.Room(queued_)) return context_.counters.Add(Counter::kDropUdpMemory);
  d.meta.source = Endpoint{Present(info.source), source_port, 0};
  d.meta.destination = Endpoint{Present(info.destination), local_port_, 0};
  d.meta.ifindex = info.ifindex;
  d.meta.ttl = info.ttl;
  d.meta.tos = info.tos;
  d.meta.gro_size = gro_size;
  if ((info.multicast || info.broadcast) && option(SockOpt::kIpPktInfo) != 0) {
    d.meta.answer_from = network_.Lookup(RouteQuery{.destination = info.source, .ifindex = info.ifindex}).source;
  }
  const bool wants_options = option(SockOpt::kIpRecvOpts) != 0 || option(SockOpt::kIpRetOpts) != 0;
  if (wants_options && info.source.is_v4() && info.header.size() > wire::kIpv4Header) {
    const Bytes options = info.header.subspan(wire::kIpv4Header);
    d.meta.ip_options = std::make_shared<const std::vector<uint8_t>>(options.begin(), options.end());
  }
  Hold(Charge(d));
  queue_.push_back(std::move(d));
  if (protocol_ == kIpProtoUdp) context_.counters.Add(Counter::kUdpInDatagrams);
  Changed(kReadable);
}

void DatagramBase::Hold(size_t charge) {
  queued_ += charge;
  context_.datagram_memory.Add(charge);
}

bool DatagramBase::Receive(Datagram* out) {
  if (queue_.empty()) return false;
  *out = queue_.pop_front();
  queued_ -= Charge(*out);
  context_.datagram_memory.Remove(Charge(*out));
  return true;
}

void DatagramBase::Unreceive(Datagram&& d) {
  Hold(Charge(d));
  queue_.push_front(std::move(d));
  Changed(kReadable);
}

std::optional<size_t> DatagramBase::next_size() const {
  if (queue_.empty()) return std::nullopt;
  return queue_.front().payload.size();
}

bool DatagramBase::ReceiveError(SocketError* out) {
  if (errors_.empty()) return false;
  *out = errors_.pop_front();
  queued_errors_ -= Charge(*out);
  context_.datagram_memory.Remove(Charge(*out));
  // Linux: the next queued error becomes SO_ERROR again.
  error_ = errors_.empty() || errors_.front().origin == kOriginLocal ? Errno::kOk : errors_.front().error;
  return true;
}

void DatagramBase::QueueError(SocketError error) {
  if (errors_.size() >= kMaxErrors || Charge(error) > context_.datagram_memory.Room(queued_ + queued_errors_)) return;
  queued_errors_ += Charge(error);
  context_.datagram_memory.Add(Charge(error));
  errors_.push_back(std::move(error));
  Changed(kErrorQueue);
}

void DatagramBase::OnIcmpError(const IcmpErrorInfo& e, uint16_t remote_port, Bytes payload) {
  bool hard = e.hard;
  if (e.too_big) {
    Route route = network_.Lookup(RouteQuery{.destination = e.destination, .source = e.source, .any_source = true});
    network_.UpdatePathMtu(route, e.destination, e.mtu);
    hard = option(SockOpt::kIpMtuDiscover) != kPmtuDont;
    if (!hard) return;
  }
  const bool wants_queue = option(e.ipv6 ? SockOpt::kIpv6RecvErr : SockOpt::kIpRecvErr) != 0;
  if (wants_queue) {
    SocketError s;
    s.error = e.error;
    s.origin = e.ipv6 ? kOriginIcmp6 : kOriginIcmp;
    s.type = e.type;
    s.code = e.code;
    s.info = e.too_big ? e.mtu : 0;
    s.offender = Endpoint{Present(e.offender), 0, 0};
    s.destination = Endpoint{Present(e.destination), remote_port, 0};
    s.payload = Packet::Allocate(context_.pool, payload.size(), 0);
    if (s.payload && !payload.empty()) std::memcpy(s.payload.Append(payload.size()), payload.data(), payload.size());
    QueueError(std::move(s));
  } else if (!hard || !remote_) {
    return;
  }
  error_ = e.error;
  Changed(kError | kReadable);
}

// linux ip_sk_use_pmtu, ip_dont_fragment.
void DatagramBase::ApplyDiscovery(Target* t) const {
  const int64_t mode = option(t->address.is_v6() ? SockOpt::kIpv6MtuDiscover : SockOpt::kIpMtuDiscover);
  t->how.dont_fragment = mode == kPmtuWant || mode == kPmtuDo || mode == kPmtuProbe;
  t->how.ignore_df = mode == kPmtuWant;
  if (mode == kPmtuProbe || mode == kPmtuInterface || mode == kPmtuOmit) {
    if (const Device* d = network_.FindDevice(t->route.ifindex); d != nullptr && !t->route.local) t->route.mtu = d->config().mtu;
  }
}

Errno DatagramBase::Prepare(const DatagramSend& send, bool needs_port, Target* t) {
  if (const Errno e = Autobind(local_); e != Errno::kOk) return e;
  if (error_ != Errno::kOk) return TakeError();
  if (send.destination) {
    if (const Errno e = Normalize(*send.destination, &t->address); e != Errno::kOk) return e;
    if (needs_port && send.destination->port == 0) return Errno::kEINVAL;
    if (t->address.IsAny()) t->address = ThisHost(t->address.family());
    t->port = send.destination->port;
  } else {
    if (!remote_) return Errno::kEDESTADDRREQ;
    if (needs_port && remote_port_ == 0) return Errno::kEINVAL;
    t->address = remote_;
    t->port = remote_port_;
  }
  if (write_shut_) return Errno::kEPIPE;
  const bool multicast = t->address.IsMulticast();
  IpAddress source = send.source ? send.source.Unmapped() : IpAddress();
  if (!source || source.IsAny()) source = local_.IsAny() || local_.IsMulticast() ? IpAddress() : local_;
  if (multicast && !source) source = multicast_source_;
  if (source && source.family() != t->address.family()) return source.is_v4() ? Errno::kEAFNOSUPPORT : Errno::kENETUNREACH;
  IfIndex ifindex = send.ifindex != 0 ? send.ifindex : static_cast<IfIndex>(option(SockOpt::kBindToIfIndex));
  if (ifindex == 0 && multicast) ifindex = multicast_ifindex_;
  const uint8_t tos =
      send.tos.value_or(static_cast<uint8_t>(option(t->address.is_v6() ? SockOpt::kIpv6Tclass : SockOpt::kIpTos)));
  const bool plain =
      !send.destination && !send.source && send.ifindex == 0 && !send.dont_route && option(SockOpt::kDontRoute) == 0;
  if (plain && route_.ok() && route_.generation == network_.generation()) {
    t->route = route_;
  } else {
    t->route =
        network_.Lookup(RouteQuery{.destination = t->address,
                                   .source = source,
                                   .ifindex = ifindex,
                                   .tos = tos,
                                   .mark = static_cast<uint32_t>(option(SockOpt::kMark)),
                                   .flow_hash = (uint32_t{local_port_} << 16 | t->port) * 0x9e3779b9u,
                                   .dont_route = send.dont_route || option(SockOpt::kDontRoute) != 0,
                                   .any_source = option(SockOpt::kIpTransparent) != 0 || option(SockOpt::kIpFreebind) != 0});
    if (plain) route_ = t->route;
  }
  if (!t->route.ok()) return t->route.error;
  if (t->route.type == kRtnBroadcast && option(SockOpt::kBroadcast) == 0) return Errno::kEACCES;
  t->how.source = source ? source : t->route.source;
  t->how.destination = t->address;
  t->how.protocol = protocol_;
  t->how.tos = tos;
  t->how.multicast_loop = option(SockOpt::kIpMulticastLoop) != 0;
  const bool v6 = t->address.is_v6();
  const int64_t ttl = multicast ? option(v6 ? SockOpt::kIpv6MulticastHops : SockOpt::kIpMulticastTtl)
                                : option(v6 ? SockOpt::kIpv6UnicastHops : SockOpt::kIpTtl);
  const int64_t route_ttl = t->route.hoplimit != 0 ? t->route.hoplimit : context_.sysctls->ip_default_ttl;
  t->how.ttl = send.ttl.value_or(static_cast<uint8_t>(ttl >= 0 ? ttl : route_ttl));
  ApplyDiscovery(t);
  if (send.confirm) network_.ConfirmNeighbor(t->route);
  return Errno::kOk;
}

Errno DatagramBase::Finish(Errno error, const Target& t) {
  if (error != Errno::kEMSGSIZE || option(t.address.is_v6() ? SockOpt::kIpv6RecvErr : SockOpt::kIpRecvErr) == 0) return error;
  SocketError s;
  s.error = error;
  s.origin = kOriginLocal;
  s.info = t.route.mtu;
  s.destination = Endpoint{Present(t.address), t.port, 0};
  QueueError(std::move(s));
  return error;
}

SocketInfo DatagramBase::info() const {
  SocketInfo i{};
  i.family = family_;
  i.protocol = protocol_;
  i.state = remote_ ? kStateConnected : kStateClosed;
  i.local = local();
  i.remote = remote().value_or(Endpoint{IpAddress::Any(family_), 0, 0});
  i.ifindex = static_cast<IfIndex>(option(SockOpt::kBindToIfIndex));
  i.receive_queue = static_cast<uint32_t>(queued_);
  return i;
}

}  // namespace sluice
