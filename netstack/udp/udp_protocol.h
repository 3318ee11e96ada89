// UDP of one shard (RFC 768, 1122 4.1, 8085): demultiplexing and sockets.
#pragma once

#include <vector>

#include "netstack/socket/datagram_base.h"

namespace sluice {

class UdpProtocol final : public TransportProtocol {
 public:
  explicit UdpProtocol(Network& network) : network_(network), context_(network.context()), ports_(network) {}

  void Input(Packet packet, const IpInfo& info) override;
  bool IcmpError(const IcmpErrorInfo& error) override;
  DatagramSocket* NewSocket(Family family);
  void AppendSockets(std::vector<SocketInfo>* out) const {
    ports_.ForEach([out](const DatagramBase& s) { out->push_back(s.info()); });
  }

 private:
  bool ChecksumOk(const Packet& packet, const IpInfo& info, const wire::UdpView& udp) const;
  void Deliver(DatagramBase& socket, Packet payload, const IpInfo& info, uint16_t source_port);

  Network& network_;
  StackContext& context_;
  PortTable ports_;
  std::vector<DatagramBase*> receivers_;  // of one group packet; kept for its room
};

}  // namespace sluice
