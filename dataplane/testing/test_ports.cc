#include "dataplane/testing/test_ports.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "dataplane/packet_port.h"

namespace sluice::testing {

std::unique_ptr<Port> OpenPacket(IfIndex ifindex, BlockPool& pool, bool vnet) {
  PacketSocket socket;
  std::string error;
  EXPECT_EQ(OpenPacketSocket(ifindex, {.vnet_header = vnet}, &socket, &error), Errno::kOk) << error;
  EXPECT_EQ(socket.facts.vnet_header, vnet);
  return std::make_unique<PacketPort>(std::move(socket.fd), socket.facts, PacketPortOptions{}, pool);
}

}  // namespace sluice::testing
