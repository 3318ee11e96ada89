// A UDP, ping or raw socket of the program. Datagrams wait in P's own queue, so poll, read and recv are native; their metadata
// waits in a list here, and calls that want it (recvfrom with an address, recvmsg) are made by the sentry on a copy of P.
#pragma once

#include <deque>
#include <memory>

#include "sentry/datagram_pair.h"
#include "sentry/inet_stand_in.h"

namespace sluice {

class DatagramStandIn final : public InetStandIn, private FdHandler {
 public:
  static Errno Create(CallEngine& engine, IncomingCall& call, SocketCount count, int type, int flags, int protocol);
  DatagramStandIn(CallEngine& engine, int family, int type, int protocol, DatagramSocket* socket);
  ~DatagramStandIn() override;

  void OnCall(IncomingCall& call, Bytes message) override;
  void OnWork() override;
  void OnLastClose() override { engine_.Destroy(this); }
  void OnFetched(UniqueFd fd, bool try_again) override;
  Socket* socket() override { return socket_; }
  DatagramSocket* datagram() override { return socket_; }
  Errno TakePendingError() override;

 private:
  // On its way to another worker.
  struct Moved;
  struct Sent {        // a datagram in P's queue, or read from it since
    int64_t after_ns;  // CLOCK_REALTIME when the send had returned
    DatagramMeta meta;
  };
  struct Received {  // read on behalf of a call
    std::vector<uint8_t> bytes;
    size_t length = 0;  // true length
    DatagramMeta meta;
  };

  static DatagramSocket* MakeSocket(CallEngine& engine, int family, int type, int protocol, uint16_t rights, Errno* error);

  // datagram_shards.cc: with several workers
  void MoveTo(uint32_t shard, UniqueFd p, std::shared_ptr<CarriedCall> call);
  static void Arrive(CallEngine& engine, Moved& moved);
  bool MoveToBind(IncomingCall& call, Bytes message);

  void OnConnect(IncomingCall& call);
  void OnShutdown(IncomingCall& call);
  void OnSend(IncomingCall& call, Bytes message);
  Errno SendPart(const CallPart& part, bool* would_block);
  void OnReceive(IncomingCall& call, Bytes message);
  bool ReceiveError(IncomingCall& call);
  bool ReadCopy(int p, size_t capacity, int flags, Received* out);
  bool ReadStack(size_t capacity, Received* out);
  void AddTimestamp(const DatagramMeta& meta, class ControlBuilder* out);
  void AnswerEnd(IncomingCall& call);
  void AnswerReceived(IncomingCall& call, std::vector<Received> received, bool take);
  void PutBack(std::vector<Received> received, size_t from);
  uint32_t QueuedOut() override { return 0; }
  void OnFdEvents(uint32_t events) override;
  void FromProgram();
  void ToProgram();
  bool RoomInP();
  void NoteSent(const DatagramMeta& meta);
  bool NothingInP() const;
  void ShowError();
  void ShowErrorWith(int p);

  DatagramSocket* socket_;
  DatagramPair ends_;
  bool end_connected_ = false;  // P natively to S
  bool s_readable_ = false, s_writable_ = true;
  bool error_shown_ = false;  // or asked for P, to show it
  bool error_at_p_ = false;   // P shows it
  bool clear_shown_ = false;  // a send waits for P to take it away again
  Errno error_ = Errno::kOk;
  std::deque<Sent> sent_;
  static constexpr size_t kLookAgain = 64;
  size_t look_again_ = kLookAgain;  // at so many in sent_: whether they are of use
  UnreadMemory::Queue unread_;
  std::vector<uint8_t> unsent_;  // a datagram of the program that the stack had no room for
  bool has_unsent_ = false;
};

}  // namespace sluice
