#include "control/run/capture_queue.h"

#include <gtest/gtest.h>

#include "netstack/testing/frames.h"

namespace sluice {
namespace {

using testing::FrameHost;

void SendOverLoopback(FrameHost& host) {
  DatagramSocket* udp = host.stack().NewUdpSocket(Family::kIpv4);
  DatagramSend how;
  how.destination = Endpoint{IpAddress::Loopback(Family::kIpv4), 9, 0};
  const uint8_t byte = 1;
  const Bytes part{&byte, 1};
  ASSERT_EQ(udp->Send(how, {&part, 1}), Errno::kOk);
  host.Turn();
  udp->Close();
}

TEST(CaptureQueue, HoldsWhatComesBetweenTapAndUntap) {
  FrameHost host;
  CaptureQueue queue({}, 1, [] {});
  queue.Tap(0, host.stack());
  SendOverLoopback(host);
  std::string out;
  EXPECT_TRUE(queue.Take(&out));
  EXPECT_FALSE(out.empty());
  queue.Untap(0, host.stack());
  SendOverLoopback(host);
  EXPECT_TRUE(queue.Take(&out));
  EXPECT_TRUE(out.empty());
  queue.Close();
  EXPECT_FALSE(queue.Take(&out));
}

// A client that closes at once: the worker is told of the end before the beginning, and the queue goes with that.
TEST(CaptureQueue, LeavesNothingBehindWhereItEndsBeforeItBegins) {
  FrameHost host;
  auto queue = std::make_unique<CaptureQueue>(CaptureQueue::Options{}, 1, [] {});
  queue->Untap(0, host.stack());
  queue->Tap(0, host.stack());
  SendOverLoopback(host);
  std::string out;
  EXPECT_TRUE(queue->Take(&out));
  EXPECT_TRUE(out.empty());
  queue.reset();
  SendOverLoopback(host);
}

}  // namespace
}  // namespace sluice
