// Messages of the broker and addresses of the program, taken apart.
#include "sentry/call.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>

#include "sentry/options.h"
#include "sentry/sockaddr.h"

namespace sluice {
namespace {

std::vector<uint8_t> Message(calls::CallKind kind, std::initializer_list<calls::Part> parts, size_t bytes) {
  calls::Call call;
  call.kind = kind;
  call.count = static_cast<uint8_t>(parts.size());
  std::vector<uint8_t> out(sizeof call);
  std::memcpy(out.data(), &call, sizeof call);
  for (const calls::Part& p : parts) {
    const auto* raw = reinterpret_cast<const uint8_t*>(&p);
    out.insert(out.end(), raw, raw + sizeof p);
  }
  for (size_t i = 0; i < bytes; ++i) out.push_back(static_cast<uint8_t>(i));
  return out;
}

TEST(IncomingCall, CutsTheBytesPartByPart) {
  const auto message =
      Message(calls::CallKind::kSend, {{.name_length = 2, .control_length = 1, .data_length = 3}, {.data_length = 4}}, 10);
  IncomingCall call;
  ASSERT_TRUE(call.Parse(message));
  ASSERT_EQ(2u, call.count());
  EXPECT_EQ(2u, call.parts[0].name.size());
  EXPECT_EQ(2, call.parts[0].control[0]);
  EXPECT_EQ(3, call.parts[0].data[0]);
  EXPECT_EQ(6, call.parts[1].data[0]);
}

TEST(IncomingCall, ReceivingCallsHaveCapacitiesAndNoBytes) {
  const auto message = Message(calls::CallKind::kReceive, {{.name_length = 16, .data_length = 65536}}, 0);
  IncomingCall call;
  ASSERT_TRUE(call.Parse(message));
  EXPECT_TRUE(call.parts[0].data.empty());
}

TEST(IncomingCall, RefusesEveryCutOfAMessage) {
  const auto message =
      Message(calls::CallKind::kSend, {{.name_length = 2, .control_length = 1, .data_length = 3}, {.data_length = 4}}, 10);
  for (size_t n = 0; n < message.size(); ++n) {
    IncomingCall call;
    EXPECT_FALSE(call.Parse(Bytes(message).first(n))) << n;
  }
  IncomingCall call;
  EXPECT_FALSE(call.Parse(
      Message(calls::CallKind::kSend, {{.name_length = 0xffffffff, .control_length = 0xffffffff, .data_length = 2}}, 100)));
}

TEST(HeldCall, KeepsBytesOfItsOwn) {
  auto message = Message(calls::CallKind::kSend, {{.data_length = 3}}, 3);
  const auto use = std::make_shared<ContainerUse>();
  {
    HeldCall held(message, use);
    std::fill(message.begin(), message.end(), 0xff);
    EXPECT_EQ(2, held.call.parts[0].data[2]);
    EXPECT_EQ(use->held_bytes, message.size());
  }
  EXPECT_EQ(use->held_bytes, 0u);
}

sockaddr_in In(uint16_t family, uint32_t address, uint16_t port) {
  sockaddr_in in{};
  in.sin_family = family;
  in.sin_addr.s_addr = htonl(address);
  in.sin_port = htons(port);
  return in;
}

template <typename T>
Bytes BytesOf(const T& value) {
  return {reinterpret_cast<const uint8_t*>(&value), sizeof value};
}

TEST(Sockaddr, TakesLengthsAndFamiliesAsLinuxDoes) {
  Endpoint out;
  const sockaddr_in in = In(AF_INET, 0x7f000001, 80);
  EXPECT_EQ(Errno::kOk, ParseSockaddr(BytesOf(in), AF_INET, false, &out));
  EXPECT_EQ(IpAddress::V4(127, 0, 0, 1), out.address);
  EXPECT_EQ(80, out.port);
  for (size_t n = 0; n < sizeof in; ++n)
    EXPECT_EQ(Errno::kEINVAL, ParseSockaddr(BytesOf(in).first(n), AF_INET, false, &out)) << n;
  EXPECT_EQ(Errno::kEAFNOSUPPORT, ParseSockaddr(BytesOf(In(AF_INET6, 1, 1)), AF_INET, false, &out));
  EXPECT_EQ(Errno::kOk, ParseSockaddr(BytesOf(In(AF_UNSPEC, 0, 1)), AF_INET, true, &out));
  EXPECT_EQ(Errno::kEAFNOSUPPORT, ParseSockaddr(BytesOf(In(AF_UNSPEC, 1, 1)), AF_INET, true, &out));
  EXPECT_EQ(-1, SockaddrFamily(BytesOf(in).first(1)));
}

TEST(Sockaddr, Inet6TakesAnInetAddressToConnectTo) {
  Endpoint out;
  ASSERT_EQ(Errno::kOk, ParseSockaddr(BytesOf(In(AF_INET, 0x0a000001, 7)), AF_INET6, false, &out));
  EXPECT_EQ(IpAddress::V4(10, 0, 0, 1).Mapped(), out.address);
  EXPECT_EQ(Errno::kEINVAL, ParseSockaddr(BytesOf(In(AF_INET, 0x0a000001, 7)), AF_INET6, true, &out));
  sockaddr_in6 in6{};
  in6.sin6_family = AF_INET6;
  in6.sin6_port = htons(7);
  EXPECT_EQ(Errno::kOk, ParseSockaddr(BytesOf(in6).first(24), AF_INET6, true, &out));
  EXPECT_EQ(Errno::kEINVAL, ParseSockaddr(BytesOf(in6).first(23), AF_INET6, true, &out));
}

TEST(Sockaddr, ComesBackAsItWas) {
  const Sockaddr out = FormatSockaddr(Endpoint{IpAddress::V4(10, 1, 2, 3).Mapped(), 99, 0}, AF_INET);
  ASSERT_EQ(sizeof(sockaddr_in), out.length);
  EXPECT_EQ(0, std::memcmp(out.bytes.data(), BytesOf(In(AF_INET, 0x0a010203, 99)).data(), sizeof(sockaddr_in)));
}

TEST(SocketOptions, NeedRightsOnlyWhereLinuxAsksForThem) {
  EXPECT_TRUE(SocketOptionNeedsRights(SOL_SOCKET, SO_MARK));
  EXPECT_TRUE(SocketOptionNeedsRights(SOL_SOCKET, SO_PRIORITY));
  EXPECT_TRUE(SocketOptionNeedsRights(SOL_SOCKET, SO_BINDTODEVICE));
  EXPECT_FALSE(SocketOptionNeedsRights(SOL_SOCKET, SO_REUSEADDR));
  EXPECT_FALSE(SocketOptionNeedsRights(IPPROTO_TCP, SO_MARK));
}

}  // namespace
}  // namespace sluice
