// Frames of every protocol into a full stack that has sockets of every kind: nothing may crash, leak or grow, and every frame
// that is dropped counts. The input is a list of (kind, length, bytes): raw frames, or payloads behind headers that are made
// right, so that the fuzzer gets past the checksums.
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "netstack/testing/frames.h"
#include "netstack/wire/checksum.h"

namespace sluice::testing {
namespace {

class Input {
 public:
  Input(const uint8_t* data, size_t size) : p_(data), n_(size) {}
  bool empty() const { return n_ == 0; }
  uint8_t Byte() {
    if (n_ == 0) return 0;
    --n_;
    return *p_++;
  }
  Bytes Take(size_t n) {
    n = std::min(n, n_);
    const Bytes b{p_, n};
    p_ += n;
    n_ -= n;
    return b;
  }

 private:
  const uint8_t* p_;
  size_t n_;
};

void FixTransport(std::vector<uint8_t>* payload, uint8_t protocol, const IpAddress& source, const IpAddress& destination) {
  const size_t field = protocol == kIpProtoUdp ? 6 : protocol == kIpProtoTcp ? 16 : 2;
  if (payload->size() < field + 2) return;
  wire::StoreSum(payload->data() + field, 0);
  const bool pseudo = protocol == kIpProtoUdp || protocol == kIpProtoTcp;
  const uint16_t start =
      pseudo ? wire::PseudoHeaderSum(source, destination, protocol, static_cast<uint32_t>(payload->size())) : uint16_t{0};
  wire::StoreSum(payload->data() + field, static_cast<uint16_t>(~wire::OnesSum(Bytes(*payload), start)));
}

void One(FrameHost& h, Input& in) {
  const uint8_t kind = in.Byte();
  const size_t length = size_t{in.Byte()} * (kind & 0x80 ? 16 : 1);
  switch (kind & 7) {
    case 0: {  // anything
      const Bytes b = in.Take(length);
      h.In(b);
      return;
    }
    case 1: {  // Ethernet to us
      const uint16_t type = (in.Byte() & 1) != 0 ? uint16_t{wire::kEtherArp} : uint16_t{wire::kEtherIpv4};
      const Bytes b = in.Take(length);
      Frame f(wire::kEthernetHeader);
      wire::WriteEthernet(f.data(), h.mac(), kPeerMac, type);
      f.insert(f.end(), b.begin(), b.end());
      h.In(f);
      return;
    }
    case 6:
      h.Advance(Duration::Milliseconds(int64_t{in.Byte()} * 100));
      return;
    case 7: {
      h.config().links[1].flags ^= in.Byte() & 1;
      h.ApplyConfig();
      h.Turn();
      return;
    }
    default: {  // a right IPv4 header, as a fragment too
      static constexpr uint8_t kProtocols[] = {kIpProtoIcmp, kIpProtoUdp, kIpProtoTcp, kIpProtoIgmp};
      wire::Ipv4Fields f;
      const uint8_t choice = in.Byte();
      f.protocol = (choice & 4) != 0 ? in.Byte() : kProtocols[choice & 3];
      f.source = IpAddress::V4(10, 0, 0, static_cast<uint8_t>(2 + (choice >> 6)));
      f.destination = (choice & 8) != 0 ? IpAddress::V4(10, 0, 0, 255) : IpAddress::V4(10, 0, 0, 1);
      f.ttl = 1;
      uint8_t options[40];
      if ((choice & 16) != 0) {
        const size_t n = (in.Byte() % 11u) * 4u;
        const Bytes o = in.Take(n);
        if (!o.empty()) std::memcpy(options, o.data(), o.size());
        f.options = {options, o.size() & ~size_t{3}};
      }
      if ((kind & 7) == 5) {
        f.id = in.Byte() & 3;
        f.fragment = static_cast<uint16_t>(in.Byte() | (in.Byte() & 0x3f) << 8);
      }
      const Bytes b = in.Take(length);
      std::vector<uint8_t> payload(b.begin(), b.end());
      if ((kind & 7) != 4) FixTransport(&payload, f.protocol, f.source, f.destination);
      h.In(Ipv4Frame((choice & 32) != 0 ? kBroadcastMac : h.mac(), f, payload));
      return;
    }
  }
}

}  // namespace
}  // namespace sluice::testing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sluice;
  using namespace sluice::testing;
  FrameHost h;
  Stack& s = h.stack();
  DatagramSocket* sockets[] = {s.NewUdpSocket(Family::kIpv6), s.NewUdpSocket(Family::kIpv4), s.NewPingSocket(Family::kIpv4),
                               s.NewRawSocket(Family::kIpv4, kIpProtoIcmp)};
  (void)sockets[0]->Bind(Endpoint{IpAddress::Any(Family::kIpv6), 0x0101, 0});
  (void)sockets[1]->SetOption(SockOpt::kIpRecvErr, 1);
  (void)sockets[1]->Bind(Endpoint{IpAddress::V4(10, 0, 0, 1), 0x0202, 0});
  (void)sockets[1]->Connect(Endpoint{IpAddress::V4(10, 0, 0, 2), 0x0303, 0});
  (void)sockets[2]->Bind(Endpoint{IpAddress::Any(Family::kIpv4), 0x0101, 0});
  (void)sockets[3]->SetOption(SockOpt::kIpRecvErr, 1);
  StreamSocket* listener = s.NewTcpSocket(Family::kIpv4);
  if (listener != nullptr) {
    (void)listener->Bind(Endpoint{IpAddress::Any(Family::kIpv4), 0x0101, 0});
    (void)listener->Listen(4);
  }
  Input in(data, size);
  for (int i = 0; i < 64 && !in.empty(); ++i) {
    One(h, in);
    h.AllOut();
    for (DatagramSocket* socket : sockets) {
      Datagram d;
      while (socket->Receive(&d)) (void)d.payload.size();
      SocketError e;
      while (socket->ReceiveError(&e)) (void)e.payload.size();
    }
    if (h.pool().bytes_in_use() > (16u << 20)) std::abort();
  }
  for (DatagramSocket* socket : sockets) socket->Close();
  if (listener != nullptr) listener->Close();
  return 0;
}
