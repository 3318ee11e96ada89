#pragma once

#include "netstack/socket/datagram_base.h"

namespace sluice {

class UdpSocket final : public DatagramBase {
 public:
  UdpSocket(Network& network, Family family, PortTable* ports) : DatagramBase(network, family, kIpProtoUdp, ports) {}
  Errno Send(const DatagramSend& how, std::span<const Bytes> payload) override;

 protected:
  bool Supports(SockOpt o) const override;

 private:
  Errno SendOne(const Target& target, std::span<const Bytes> payload, size_t from, size_t size, uint16_t gso_size);
};

}  // namespace sluice
