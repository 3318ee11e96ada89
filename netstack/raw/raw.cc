// Raw sockets: linux net/ipv4/raw.c.
#include <algorithm>
#include <new>

#include "netstack/raw/raw_protocol.h"
#include "netstack/wire/checksum.h"
#include "netstack/wire/headers.h"

namespace sluice {

RawSocket::RawSocket(RawProtocol& owner, Network& network, Family family, uint8_t protocol)
    : DatagramBase(network, family, protocol, nullptr), owner_(owner) {
  owner_.sockets_.push_back(this);
  if (context_.peers != nullptr) context_.peers->Hold(PortSpace::kRaw, protocol);
  if (family == Family::kIpv4 && protocol == kIpProtoRaw) (void)ToInt(SetOption(SockOpt::kIpHdrIncl, 1));
}

RawSocket::~RawSocket() {
  std::erase(owner_.sockets_, this);
  const auto same = [this](const RawSocket* s) { return s->protocol() == protocol(); };
  if (context_.peers != nullptr && std::ranges::none_of(owner_.sockets_, same))
    context_.peers->Release(PortSpace::kRaw, protocol());
}

bool RawSocket::Supports(SockOpt o) const {
  if (o == SockOpt::kIpHdrIncl) return family_ == Family::kIpv4;
  return DatagramBase::Supports(o);
}

Errno RawSocket::SetIcmpFilter(uint32_t mask) {
  if (protocol() != kIpProtoIcmp) return Errno::kEOPNOTSUPP;
  icmp_filter_ = mask;
  return Errno::kOk;
}

bool RawSocket::Wants(const Packet& packet, const IpInfo& info) const {
  if (protocol() != info.protocol || info.source.family() != family_ || !Accepts(info.destination)) return false;
  if (remote_address() && remote_address() != info.source) return false;
  if (const int64_t device = option(SockOpt::kBindToIfIndex); device != 0 && device != info.ifindex) return false;
  if (protocol() == kIpProtoIcmp && packet.linear_size() > info.header.size()) {
    const uint8_t type = packet.data()[info.header.size()];
    if (type < 32 && (icmp_filter_ >> type & 1) != 0) return false;
  }
  return true;
}

Errno RawSocket::Send(const DatagramSend& how, std::span<const Bytes> payload) {
  size_t size = 0;
  for (const Bytes& part : payload) size += part.size();
  if (size > 65535) return Errno::kEMSGSIZE;
  if (header_included() && size < wire::kIpv4Header) return Errno::kEINVAL;
  Target t;
  if (const Errno e = Prepare(how, false, &t); e != Errno::kOk) return e;
  Packet p = Packet::Allocate(context_.pool, size);
  if (!p) return Errno::kENOBUFS;
  for (uint8_t* to = p.Append(size); const Bytes& part : payload) {
    if (!part.empty()) std::memcpy(to, part.data(), part.size());
    to += part.size();
  }
  if (header_included()) return Finish(network_.SendWithHeader(std::move(p), t.route), t);
  return Finish(network_.Send(std::move(p), t.route, t.how), t);
}

bool RawProtocol::RawInput(const Packet& packet, const IpInfo& info) {
  bool taken = false;
  for (RawSocket* s : sockets_) {
    if (!s->Wants(packet, info)) continue;
    taken = true;
    Packet copy = packet.Clone(network_.context().pool);
    if (!copy) {
      network_.context().counters.Add(Counter::kDropNoMemory);
      continue;
    }
    if (info.source.is_v6()) copy.Pull(info.header.size());  // IPv6 raw sockets never see the header
    s->Enqueue(std::move(copy), info, 0, 0, Counter::kDropUdpReceiveBuffer);
  }
  return taken;
}

void RawProtocol::RawError(const IcmpErrorInfo& e) {
  for (RawSocket* s : sockets_) {
    if (s->protocol() != e.protocol || !s->Accepts(e.source)) continue;
    if (s->remote_address() && s->remote_address() != e.destination) continue;
    s->OnIcmpError(e, 0, e.transport);
  }
}

DatagramSocket* RawProtocol::NewSocket(Family family, uint8_t protocol) {
  return new (std::nothrow) RawSocket(*this, network_, family, protocol);
}

void RawProtocol::AppendSockets(std::vector<SocketInfo>* out) const {
  for (const RawSocket* s : sockets_) out->push_back(s->info());
}

}  // namespace sluice
