#include "examples/http_echo/echo.h"

#include <array>
#include <cstring>

namespace sluice::example {

bool EchoConnection::Work() {
  while (!gone() && socket_->send_space() > 0) {
    std::array<Bytes, 16> spans;
    const size_t count = socket_->Peek(spans);
    if (count == 0) return !socket_->at_end();  // the answer to their end is ours, once all is sent
    size_t bytes = 0;
    for (size_t i = 0; i < count; ++i) bytes += spans[i].size();
    BlockRef block(pool_.Allocate(bytes));
    if (!block) return false;
    uint8_t* to = block->data;
    for (size_t i = 0; i < count; ++i) {
      std::memcpy(to, spans[i].data(), spans[i].size());
      to += spans[i].size();
    }
    socket_->Consume(bytes);
    if (socket_->Send(Slice{std::move(block), 0, static_cast<uint32_t>(bytes)}, false) != Errno::kOk) return false;
  }
  return !gone();
}

UdpEcho::~UdpEcho() {
  if (socket_ == nullptr) return;
  worker_.RemoveTask(this);
  socket_->Close();
}

Errno UdpEcho::Bind(const Endpoint& local) {
  socket_ = worker_.stack().NewUdpSocket(Family::kIpv4);
  if (socket_ == nullptr) return Errno::kENOMEM;
  worker_.AddTask(this);
  socket_->set_observer(this);
  return socket_->Bind(local);
}

// False where nothing waits, or nothing can be sent now.
bool UdpEcho::EchoOne() {
  Datagram datagram;
  if (!socket_->Receive(&datagram)) return false;
  std::array<Bytes, 1 + Packet::kMaxSlices> pieces;
  size_t count = 0;
  pieces[count++] = datagram.payload.linear();
  for (size_t i = 0; i < datagram.payload.slice_count(); ++i) pieces[count++] = datagram.payload.slice(i).bytes();
  const DatagramSend to{.destination = datagram.meta.source, .source = datagram.meta.destination.address};
  if (socket_->Send(to, std::span(pieces).first(count)) != Errno::kEAGAIN) return true;
  socket_->Unreceive(std::move(datagram));  // kWritable comes
  return false;
}

bool UdpEcho::OnTurn() {
  if (!readable_) return false;
  readable_ = false;
  while (EchoOne()) {
  }
  return true;
}

}  // namespace sluice::example
