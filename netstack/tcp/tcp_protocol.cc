#include "netstack/tcp/tcp_protocol.h"

#include "netstack/tcp/connection.h"
#include "netstack/tcp/engine.h"

namespace sluice::tcp {

class TcpProtocol::Impl : public Engine {
 public:
  using Engine::Engine;
};

TcpProtocol::TcpProtocol(StackContext& context) : impl_(std::make_unique<Impl>(context)) {}
TcpProtocol::~TcpProtocol() = default;
void TcpProtocol::Input(Packet packet, const IpInfo& info) { impl_->Input(std::move(packet), info); }
bool TcpProtocol::IcmpError(const IcmpErrorInfo& error) { return impl_->IcmpError(error); }
StreamSocket* TcpProtocol::NewSocket(Family family) { return impl_->NewConnection(family); }
size_t TcpProtocol::EstablishedConnections() const { return impl_->EstablishedConnections(); }
void TcpProtocol::AppendSockets(std::vector<SocketInfo>* out, bool with_tcp_info) const {
  impl_->AppendSockets(out, with_tcp_info);
}
void TcpProtocol::EndTurn() { impl_->EndTurn(); }
void TcpProtocol::OnConfig() { impl_->OnConfig(); }

}  // namespace sluice::tcp
