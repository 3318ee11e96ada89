#include "sentry/message_control.h"

#include <gtest/gtest.h>
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

namespace sluice {
namespace {

// Control data as a program writes it.
class Control {
 public:
  template <typename T>
  Control& Add(int level, int type, const T& value) {
    return AddBytes(level, type, &value, sizeof value);
  }
  Control& AddBytes(int level, int type, const void* data, size_t size) {
    cmsghdr h{};
    h.cmsg_len = CMSG_LEN(size);
    h.cmsg_level = level;
    h.cmsg_type = type;
    const size_t at = bytes_.size();
    bytes_.resize(at + CMSG_SPACE(size));
    std::memcpy(bytes_.data() + at, &h, sizeof h);
    if (size > 0) std::memcpy(bytes_.data() + at + sizeof h, data, size);
    return *this;
  }
  std::vector<uint8_t>& bytes() { return bytes_; }

 private:
  std::vector<uint8_t> bytes_;
};

struct Message {
  int level, type;
  std::vector<uint8_t> data;
};

std::vector<Message> Split(const std::vector<uint8_t>& bytes) {
  std::vector<Message> out;
  msghdr h{};
  h.msg_control = const_cast<uint8_t*>(bytes.data());
  h.msg_controllen = bytes.size();
  for (cmsghdr* c = CMSG_FIRSTHDR(&h); c != nullptr; c = CMSG_NXTHDR(&h, c)) {
    out.push_back({c->cmsg_level, c->cmsg_type, {CMSG_DATA(c), CMSG_DATA(c) + (c->cmsg_len - CMSG_LEN(0))}});
  }
  return out;
}

TEST(SendControl, TakesWhatLinuxTakes) {
  Control c;
  c.Add(IPPROTO_IP, IP_TTL, 9).Add(IPPROTO_IP, IP_TOS, 0x20);
  c.Add(IPPROTO_IP, IP_PKTINFO, in_pktinfo{.ipi_ifindex = 3, .ipi_spec_dst = {htonl(0x0a000001)}, .ipi_addr = {}});
  c.Add(IPPROTO_IPV6, IPV6_HOPLIMIT, 70);  // of another level: skipped
  DatagramSend how;
  ASSERT_EQ(Errno::kOk, ParseSendControl(AF_INET, c.bytes(), &how));
  EXPECT_EQ(9, how.ttl);
  EXPECT_EQ(0x20, how.tos);
  EXPECT_EQ(3, how.ifindex);
  EXPECT_EQ(IpAddress::V4(10, 0, 0, 1), how.source);
}

TEST(SendControl, RefusesValuesOutOfRange) {
  for (int ttl : {0, -1, 256}) {
    DatagramSend how;
    EXPECT_EQ(Errno::kEINVAL, ParseSendControl(AF_INET, Control().Add(IPPROTO_IP, IP_TTL, ttl).bytes(), &how)) << ttl;
  }
  DatagramSend how;
  EXPECT_EQ(Errno::kEINVAL, ParseSendControl(AF_INET, Control().Add(IPPROTO_IP, IP_TTL, uint16_t{5}).bytes(), &how));
  EXPECT_EQ(Errno::kEINVAL, ParseSendControl(AF_INET, Control().Add(IPPROTO_IP, 99, 5).bytes(), &how));
  EXPECT_EQ(Errno::kEINVAL, ParseSendControl(AF_INET, Control().Add(SOL_SOCKET, 99, 5).bytes(), &how));
}

TEST(SendControl, RefusesEveryCutOfAMessage) {
  Control c;
  c.Add(IPPROTO_IP, IP_PKTINFO, in_pktinfo{});
  for (size_t length = sizeof(cmsghdr); length < CMSG_LEN(sizeof(in_pktinfo)); ++length) {
    const std::vector<uint8_t> cut(c.bytes().begin(), c.bytes().begin() + static_cast<ptrdiff_t>(length));
    DatagramSend how;
    EXPECT_EQ(Errno::kEINVAL, ParseSendControl(AF_INET, cut, &how)) << length;
  }
  for (size_t claimed : {size_t{0}, size_t{1}, sizeof(cmsghdr) - 1, SIZE_MAX, SIZE_MAX - 7}) {
    std::memcpy(c.bytes().data(), &claimed, sizeof claimed);
    DatagramSend how;
    EXPECT_EQ(Errno::kEINVAL, ParseSendControl(AF_INET, c.bytes(), &how)) << claimed;
  }
}

TEST(ControlBuilder, CutsAsPutCmsgDoes) {
  ControlBuilder none(sizeof(cmsghdr) - 1);
  none.Add(SOL_IP, IP_TTL, 5);
  EXPECT_TRUE(none.truncated());
  EXPECT_TRUE(none.bytes().empty());
  ControlBuilder part(sizeof(cmsghdr) + 2);
  part.Add(SOL_IP, IP_TTL, 0x01020304);
  EXPECT_TRUE(part.truncated());
  ASSERT_EQ(sizeof(cmsghdr) + 2, part.bytes().size());
  size_t length = 0;
  std::memcpy(&length, part.bytes().data(), sizeof length);
  EXPECT_EQ(sizeof(cmsghdr) + 2, length);
  ControlBuilder whole(CMSG_SPACE(sizeof(int)) + CMSG_LEN(1));
  whole.Add(SOL_IP, IP_TTL, 5);
  whole.Add(SOL_IP, IP_TOS, uint8_t{7});
  EXPECT_FALSE(whole.truncated());
  const auto messages = Split(whole.bytes());
  ASSERT_EQ(2u, messages.size());
  EXPECT_EQ(std::vector<uint8_t>{7}, messages[1].data);
}

TEST(ErrorControl, HasTheErrorAndTheOffender) {
  SocketError e;
  e.error = Errno::kECONNREFUSED;
  e.origin = SO_EE_ORIGIN_ICMP;
  e.type = 3;
  e.code = 3;
  e.offender = Endpoint{IpAddress::V4(10, 0, 0, 2), 0, 0};
  ControlBuilder out(1000);
  AddErrorControl(AF_INET, e, &out);
  const auto messages = Split(out.bytes());
  ASSERT_EQ(1u, messages.size());
  EXPECT_EQ(IP_RECVERR, messages[0].type);
  ASSERT_EQ(sizeof(sock_extended_err) + sizeof(sockaddr_in), messages[0].data.size());
  sock_extended_err got;
  std::memcpy(&got, messages[0].data.data(), sizeof got);
  EXPECT_EQ(static_cast<uint32_t>(ECONNREFUSED), got.ee_errno);
  EXPECT_EQ(SO_EE_ORIGIN_ICMP, got.ee_origin);
  sockaddr_in offender;
  std::memcpy(&offender, messages[0].data.data() + sizeof got, sizeof offender);
  EXPECT_EQ(htonl(0x0a000002), offender.sin_addr.s_addr);
}

// A socket of which only the options are asked.
class OptionsOnly final : public DatagramSocket {
 public:
  explicit OptionsOnly(std::vector<SockOpt> on) : on_(std::move(on)) {}
  Errno GetOption(SockOpt o, int64_t* value) const override {
    *value = std::find(on_.begin(), on_.end(), o) != on_.end() ? 1 : 0;
    return Errno::kOk;
  }
  // The rest is not called.
  Family family() const override { return Family::kIpv4; }
  uint32_t events() const override { return 0; }
  Errno Bind(const Endpoint&) override { return Errno::kEINVAL; }
  Endpoint local() const override { return {}; }
  std::optional<Endpoint> remote() const override { return std::nullopt; }
  Errno Shutdown(bool, bool) override { return Errno::kEINVAL; }
  Errno TakeError() override { return Errno::kOk; }
  Errno SetOption(SockOpt, int64_t) override { return Errno::kEINVAL; }
  void Close() override {}
  Errno Connect(std::optional<Endpoint>) override { return Errno::kEINVAL; }
  Errno Send(const DatagramSend&, std::span<const Bytes>) override { return Errno::kEINVAL; }
  bool Receive(Datagram*) override { return false; }
  void Unreceive(Datagram&&) override {}
  std::optional<size_t> next_size() const override { return std::nullopt; }
  bool ReceiveError(SocketError*) override { return false; }
  Errno JoinGroup(const GroupRequest&) override { return Errno::kEINVAL; }
  Errno LeaveGroup(const GroupRequest&) override { return Errno::kEINVAL; }
  Errno SetMulticastInterface(const IpAddress&, IfIndex) override { return Errno::kEINVAL; }
  MulticastInterface multicast_interface() const override { return {}; }
  Errno SetIcmpFilter(uint32_t) override { return Errno::kEINVAL; }
  std::shared_ptr<const DatagramSettings> Settings() const override { return nullptr; }
  void TakeSettings(const DatagramSettings&) override {}

 private:
  std::vector<SockOpt> on_;
};

TEST(ReceiveControl, TellsOnlyWhatTheSocketAskedFor) {
  DatagramMeta meta;
  meta.destination = Endpoint{IpAddress::V4(10, 0, 0, 1), 53, 0};
  meta.ifindex = 2;
  meta.ttl = 61;
  ControlBuilder nothing(1000);
  AddReceiveControl(OptionsOnly({}), AF_INET, meta, &nothing);
  EXPECT_TRUE(nothing.bytes().empty());
  ControlBuilder both(1000);
  AddReceiveControl(OptionsOnly({SockOpt::kIpPktInfo, SockOpt::kIpRecvTtl}), AF_INET, meta, &both);
  const auto messages = Split(both.bytes());
  ASSERT_EQ(2u, messages.size());
  in_pktinfo info;
  ASSERT_EQ(sizeof info, messages[0].data.size());
  std::memcpy(&info, messages[0].data.data(), sizeof info);
  EXPECT_EQ(2, info.ipi_ifindex);
  EXPECT_EQ(htonl(0x0a000001), info.ipi_spec_dst.s_addr);
  EXPECT_EQ(61, messages[1].data[0]);
}

TEST(ReceiveControl, NamesTheAddressToAnswerFromForAGroup) {
  DatagramMeta meta;
  meta.destination = Endpoint{IpAddress::V4(239, 1, 1, 1), 53, 0};
  meta.answer_from = IpAddress::V4(10, 0, 0, 1);
  ControlBuilder out(1000);
  AddReceiveControl(OptionsOnly({SockOpt::kIpPktInfo}), AF_INET, meta, &out);
  in_pktinfo info;
  std::memcpy(&info, Split(out.bytes()).at(0).data.data(), sizeof info);
  EXPECT_EQ(htonl(0x0a000001), info.ipi_spec_dst.s_addr);
  EXPECT_EQ(htonl(0xef010101), info.ipi_addr.s_addr);
}

TEST(ReceiveControl, GivesOptionsAsReceivedAndForTheWayBack) {
  DatagramMeta meta;
  meta.destination = Endpoint{IpAddress::V4(10, 0, 0, 1), 53, 0};
  // A no-operation, a record route of one slot, an unknown option, the end.
  const std::vector<uint8_t> options{1, 7, 7, 4, 0, 0, 0, 0, 200, 3, 9, 0};
  meta.ip_options = std::make_shared<const std::vector<uint8_t>>(options);
  ControlBuilder out(1000);
  AddReceiveControl(OptionsOnly({SockOpt::kIpRecvOpts, SockOpt::kIpRetOpts}), AF_INET, meta, &out);
  const auto messages = Split(out.bytes());
  ASSERT_EQ(2u, messages.size());
  EXPECT_EQ(IP_RECVOPTS, messages[0].type);
  EXPECT_EQ(options, messages[0].data);
  EXPECT_EQ(IP_RETOPTS, messages[1].type);
  EXPECT_EQ((std::vector<uint8_t>{7, 7, 4, 0, 0, 0, 0, 0}), messages[1].data);
  // Lengths that lie are cut at the end.
  meta.ip_options = std::make_shared<const std::vector<uint8_t>>(std::vector<uint8_t>{7, 250, 4, 1});
  ControlBuilder lies(1000);
  AddReceiveControl(OptionsOnly({SockOpt::kIpRetOpts}), AF_INET, meta, &lies);
  EXPECT_EQ((std::vector<uint8_t>{7, 250, 4, 1}), Split(lies.bytes()).at(0).data);
}

}  // namespace
}  // namespace sluice
