// TCP of one shard: demultiplexing, listening sockets, connections, TIME_WAIT.
// Read before a change: RFC 9293, 7323, 2018, 2883, 6298, 5681, 6582, 6675, 9438, 5961, 6528, 6056, 4987.
#pragma once

#include <memory>
#include <vector>

#include "netstack/stack.h"

namespace sluice::tcp {

class TcpProtocol final : public TransportProtocol {
 public:
  explicit TcpProtocol(StackContext& context);
  ~TcpProtocol() override;

  void Input(Packet packet, const IpInfo& info) override;
  bool IcmpError(const IcmpErrorInfo& error) override;
  StreamSocket* NewSocket(Family family);
  void AppendSockets(std::vector<SocketInfo>* out, bool with_tcp_info) const;
  size_t EstablishedConnections() const;  // as tcpCurrEstab (RFC 4022) counts them
  // Called at the end of every turn, before frames are flushed: sends what was deferred within the turn (ACKs, window updates,
  // data that several small writes left).
  void EndTurn();
  // The configuration changed: addresses may be gone, routes are looked up anew.
  void OnConfig();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::tcp
