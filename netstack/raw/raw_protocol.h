// Ping sockets (SOCK_DGRAM, IPPROTO_ICMP: the identifier is the port) and raw sockets.
#pragma once

#include <vector>

#include "netstack/socket/datagram_base.h"

namespace sluice {

class PingSocket final : public DatagramBase {
 public:
  PingSocket(Network& network, Family family, PortTable* ports)
      : DatagramBase(network, family, family == Family::kIpv6 ? kIpProtoIcmpV6 : kIpProtoIcmp, ports) {}
  Errno Send(const DatagramSend& how, std::span<const Bytes> payload) override;
};

class PingProtocol final : public PingReceiver {
 public:
  explicit PingProtocol(Network& network) : network_(network), v4_(network), v6_(network) {}
  void EchoReply(Packet packet, const IpInfo& info) override;
  bool PingError(const IcmpErrorInfo& error) override;
  DatagramSocket* NewSocket(Family family);
  void AppendSockets(std::vector<SocketInfo>* out) const;

 private:
  Network& network_;
  PortTable v4_, v6_;
};

class RawProtocol;

class RawSocket final : public DatagramBase {
 public:
  RawSocket(RawProtocol& owner, Network& network, Family family, uint8_t protocol);
  ~RawSocket() override;
  Errno Send(const DatagramSend& how, std::span<const Bytes> payload) override;
  Errno SetIcmpFilter(uint32_t mask) override;
  bool Wants(const Packet& packet, const IpInfo& info) const;
  bool header_included() const { return protocol() == kIpProtoRaw || option(SockOpt::kIpHdrIncl) != 0; }

 protected:
  bool Supports(SockOpt o) const override;

 private:
  RawProtocol& owner_;
  uint32_t icmp_filter_ = 0;  // bit set: the type is kept away (ICMP_FILTER)
};

class RawProtocol final : public RawReceiver {
 public:
  explicit RawProtocol(Network& network) : network_(network) {}
  bool RawInput(const Packet& packet, const IpInfo& info) override;
  void RawError(const IcmpErrorInfo& error) override;
  DatagramSocket* NewSocket(Family family, uint8_t protocol);
  void AppendSockets(std::vector<SocketInfo>* out) const;

 private:
  friend class RawSocket;
  Network& network_;
  std::vector<RawSocket*> sockets_;
};

}  // namespace sluice
