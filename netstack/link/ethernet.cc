// Ethernet input and ARP (RFC 826, 5227).
#include "netstack/ip/network.h"
#include "netstack/wire/headers.h"

namespace sluice {
namespace {

constexpr uint8_t kToUs = 0, kToAll = 1, kToGroup = 2, kToOther = 3;  // PACKET_HOST, BROADCAST, MULTICAST, OTHERHOST
const MacAddress kEveryone{{255, 255, 255, 255, 255, 255}};

}  // namespace

void Network::Input(std::span<Packet> burst, IfIndex ifindex) {
  Device* device = FindDevice(ifindex);
  for (Packet& frame : burst) {
    context_.counters.Add(Counter::kLinkInFrames);
    context_.counters.Add(Counter::kLinkInBytes, frame.size());
    if (device == nullptr || !device->config().up()) {
      context_.counters.Add(Counter::kDropLinkDown);
      continue;
    }
    device->CountReceived(frame);
    context_.Tap(ifindex, FrameTap::Direction::kIn, frame);
    EthernetInput(std::move(frame), *device);
  }
}

void Network::EthernetInput(Packet frame, Device& device) {
  const auto eth = wire::EthernetView::Parse(frame.linear());
  if (!eth) {
    context_.counters.Add(Counter::kDropLinkTooShort);
    return device.CountReceiveDrop();
  }
  const MacAddress to = eth->destination();
  frame.link_type = to == device.config().mac ? kToUs : to.IsBroadcast() ? kToAll : to.IsMulticast() ? kToGroup : kToOther;
  if (frame.link_type == kToOther) {
    context_.counters.Add(Counter::kDropLinkNotForUs);
    return;
  }
  const uint16_t type = frame.has_vlan ? uint16_t{wire::kEtherVlan} : eth->type();
  frame.ifindex = device.ifindex();
  // A partial checksum was never on a wire: its sender is on this machine. What the device does not check, nobody did.
  if (frame.offload.checksum == ChecksumState::kPartial) {
    frame.offload.checksum = ChecksumState::kVerified;
  } else if (!device.features().rx_checksum) {
    frame.offload.checksum = ChecksumState::kNone;
  }
  frame.Pull(wire::kEthernetHeader);
  switch (type) {
    case wire::kEtherIpv4:
      return Ipv4Input(std::move(frame), device);
    case wire::kEtherArp:
      return ArpInput(frame, device);
    default:  // VLAN tags belong to devices of their own, IPv6 on the wire is not spoken
      context_.counters.Add(Counter::kDropLinkUnknownProtocol);
      return device.CountReceiveDrop();
  }
}

void Network::ArpInput(const Packet& packet, Device& device) {
  const auto m = wire::ArpMessage::Parse(packet.linear());
  if (!m || m->sender_mac.IsMulticast() || m->sender.IsMulticast() || m->sender.IsLoopback() || m->sender.IsLimitedBroadcast()) {
    context_.counters.Add(Counter::kDropArpMalformed);
    return device.CountReceiveDrop();
  }
  context_.counters.Add(m->operation == wire::kArpRequest ? Counter::kArpInRequests : Counter::kArpInReplies);
  if (m->sender_mac == device.config().mac || device.config().noarp()) return;  // our own, come back
  if (!packet.answered && NoteConflict(*m, device)) return;
  const bool target_is_ours = !m->target.IsLoopback() && !m->target.IsMulticast() && IsLocalAddress(m->target);
  if (m->operation == wire::kArpRequest && target_is_ours && !packet.answered) {
    wire::ArpMessage reply;
    reply.operation = wire::kArpReply;
    reply.sender_mac = device.config().mac;
    reply.sender = m->target;
    reply.target_mac = m->sender_mac;
    reply.target = m->sender;
    SendArp(device, reply, m->sender_mac);
  }
  if (m->sender.IsAny()) return;  // a probe (RFC 5227 2.1.1) tells nothing
  // Only who asks us is remembered unasked (RFC 826's rule); other claims just update what is there.
  const bool solicited = m->operation == wire::kArpReply && packet.link_type == kToUs;
  neighbors_.Learn(device, m->sender, m->sender_mac, solicited, m->operation == wire::kArpRequest && target_is_ours);
}

// RFC 5227 2.4: somebody claims an address of ours. We keep it and say so, at most once per DEFEND_INTERVAL.
bool Network::NoteConflict(const wire::ArpMessage& m, Device& device) {
  if (m.sender.IsAny() || !IsLocalAddress(m.sender)) return false;
  context_.counters.Add(Counter::kArpConflicts);
  constexpr Duration kDefendInterval = Duration::Seconds(10);
  if (!defended_ || context_.now - last_defence_ >= kDefendInterval) {
    defended_ = true;
    last_defence_ = context_.now;
    wire::ArpMessage announce;
    announce.operation = wire::kArpRequest;
    announce.sender_mac = device.config().mac;
    announce.sender = announce.target = m.sender;
    SendArp(device, announce, kEveryone);
  }
  return true;
}

void Network::SendArp(Device& device, const wire::ArpMessage& message, const MacAddress& to) {
  Packet p = Packet::Allocate(context_.pool, wire::kArpSize);
  if (!p) {
    context_.counters.Add(Counter::kDropNoMemory);
    return;
  }
  message.Write(p.Append(wire::kArpSize));
  wire::WriteEthernet(p.Push(wire::kEthernetHeader), to, device.config().mac, wire::kEtherArp);
  context_.counters.Add(message.operation == wire::kArpRequest ? Counter::kArpOutRequests : Counter::kArpOutReplies);
  device.Enqueue(std::move(p));
}

void Network::SolicitNeighbor(Device& device, const IpAddress& target, const MacAddress& to) {
  wire::ArpMessage m;
  m.operation = wire::kArpRequest;
  m.sender_mac = device.config().mac;
  const IpAddress source = routes_->SelectSource(device.ifindex(), target, kScopeLink);
  m.sender = source ? source : IpAddress::Any(Family::kIpv4);
  m.target = target;
  if (!to.IsBroadcast()) m.target_mac = to;
  SendArp(device, m, to);
}

// RFC 5227 3: gratuitous ARP for addresses that are new on a device, so that neighbours drop what they remembered.
void Network::AnnounceAddresses(const NetConfig* before) {
  if (context_.peers != nullptr && context_.peers->self() != 0) return;  // one stack of the host does
  for (const AddressConfig& a : config_->addresses) {
    Device* d = FindDevice(a.ifindex);
    if (!a.local.is_v4() || d == nullptr || !d->usable() || d->config().noarp() || d->config().loopback()) continue;
    bool known = false;
    if (before != nullptr) {
      for (const AddressConfig& b : before->addresses) known |= b.local == a.local && b.ifindex == a.ifindex;
      bool same_mac = false;
      for (const LinkConfig& l : before->links) same_mac |= l.index == a.ifindex && l.mac == d->config().mac && l.up();
      known &= same_mac;
    }
    if (known) continue;
    wire::ArpMessage announce;
    announce.operation = wire::kArpRequest;
    announce.sender_mac = d->config().mac;
    announce.sender = announce.target = a.local;
    SendArp(*d, announce, kEveryone);
  }
}

}  // namespace sluice
