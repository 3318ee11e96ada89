// A TCP socket of the program. P is the program's end (an AF_UNIX stream socket), S the sentry's. docs/architecture.md
// (stand-ins).
//
//   fresh      P unconnected, S none                      listening   P listening, one socket in its queue per waiting connection
//   waiting    blocking connect held, P untouched         connected   P and S joined, bytes flow natively
//   hidden     P joined to S and filled: not writable      broken      S closed, P shows the error
//   queued     connected, offered to the listener's next accept
#pragma once

#include <sys/socket.h>

#include <deque>
#include <optional>
#include <vector>

#include "sentry/inet_stand_in.h"
#include "sentry/listener_share.h"
#include "sentry/most_traffic.h"

namespace sluice {

class StreamStandIn final : public InetStandIn, private FdHandler {
 public:
  // socket(): answers the call, or returns the errno to answer with.
  static Errno Create(CallEngine& engine, IncomingCall& call, SocketCount count, int flags, int protocol);
  StreamStandIn(CallEngine& engine, int family, int protocol, StreamSocket* socket);
  ~StreamStandIn() override;

  void OnCall(IncomingCall& call, Bytes message) override;
  void OnWork() override;
  void OnLastClose() override;
  int unwatched_end() const override;
  void OnEndClosed() override;
  void OnFetched(UniqueFd fd, bool try_again) override;
  void OnAccepted(const calls::Accepted& a) override;
  void OnWithdrawn() override;
  void OnListenerClosed() override;
  void OnOfferTaken(const calls::Accepted& a, UniqueFd end) override;
  Socket* socket() override { return socket_; }
  void OnBufferOptions(int p) override;
  StreamSocket* stream() override { return socket_; }
  bool listening() const override { return state_ == State::kListening; }
  Errno TakePendingError() override;

 private:
  // Unsent bytes from which on the rest stays with the program: as much as a turn sends, so that the stack never runs dry.
  static constexpr uint32_t kUnsentEnough = 256 << 10;

  enum class State : uint8_t { kFresh, kWaiting, kHidden, kConnected, kQueued, kListening, kBroken };
  // What connect() goes by: the state of `struct socket` on Linux. It stays what it was when the connection ends by itself, and
  // is kConnecting until a connect() has told of success or failure.
  enum class Attempt : uint8_t { kUnconnected, kConnecting, kConnected, kDisconnecting };
  // A connection that waits for an accept, here or in another worker.
  struct Offered {
    calls::Offer offer;
    uint32_t shard = 0;
    int s = -1;  // its S, which stays open until the worker hears what became of the offer
  };
  // What a queued connection has of its listener.
  struct QueueFacts {
    uint64_t listener = 0;
    int family = 0, protocol = 0;
    const StandInOptions& options;
  };
  // On its way to another worker.
  struct Moved;

  // stream_stand_in.cc: calls, life cycle
  void OnShutdown(IncomingCall& call);
  void OnSend(IncomingCall& call, Bytes message);
  void OnReceive(IncomingCall& call, Bytes message);
  void ReceiveWith(int p);
  void FetchEnd();
  void ReceiveFromCopy(IncomingCall& call, Bytes message, int flags);
  ssize_t TakeFromEnd(int p, MutableBytes out, int flags);
  void PutBack(int p, std::vector<uint8_t> bytes, bool urgent);
  uint32_t QueuedOut() override;
  bool TakeWritten() override;
  void OnOptionsPosted() override;
  void OnExpired(HeldCall& held) override;
  void OnInterrupted(HeldCall& held) override;
  void OnFdEvents(uint32_t events) override;

  // stream_connect.cc
  void OnConnect(IncomingCall& call, Bytes message);
  Errno ReportConnect();
  void StartConnect(IncomingCall& call, Bytes message);
  void OnDisconnect(IncomingCall& call);
  bool ReplaceEnd(IncomingCall& call);
  bool Join(int p);   // connects P to a new S
  void PrepareEnd();  // of a new S
  bool Hide(int p);   // Join, and fills P
  void Unhide();
  void OnConnectProgress();
  void OnConnectFailed(Errno error);
  void GiveUpConnect(IncomingCall& call);
  std::optional<Errno> EarlierAttempt(IncomingCall& call);
  void AnswerFresh(IncomingCall& call, Errno error);
  void GiveUpStart(IncomingCall& call);

  // stream_fast_open.cc
  struct EarlySend {  // names a call
    uint16_t listener;
    uint64_t id;
  };
  bool OnFastOpenSend(IncomingCall& call, Bytes message);
  void StartFastOpen(IncomingCall& call, Bytes message);
  bool OwnsEarlySend(const IncomingCall& call) const;
  void ContinueEarlySend(IncomingCall& call, Bytes message);
  void AnswerSent(IncomingCall& call, size_t bytes);
  bool JoinDeferred(int p);
  // P is joined, and the handshake is to come or under way.
  bool connecting() const { return state_ == State::kConnected && socket_->state() == 2 /* TCP_SYN_SENT */; }

  // stream_listen.cc
  void OnListen(IncomingCall& call, Bytes message);
  void ListenAnew(IncomingCall& call, Bytes message);
  void OnAccept(IncomingCall& call, Bytes message);
  void TakeConnections();
  static StreamStandIn* MakeQueued(CallEngine& engine, const QueueFacts& facts, StreamSocket* accepted, SocketCount room);
  bool MakeEnds(const StandInOptions& options);
  bool MakePair(const StandInOptions& options);
  Offered MakeOffer() const;
  Errno Queue(const Offered& connection);
  void OnQueued();
  Errno AddToken();
  Errno JoinQueue(int end);
  bool QueueNext();
  static void DropConnection(CallEngine& engine, const Offered& connection);
  void Offer(const Offered& connection);
  void SendOffers();
  void ReturnEnd(const calls::Accepted& a, UniqueFd end);
  void LeaveShare();
  void AnswerImpatient();
  void CloseListener();

  // stream_shards.cc: with several workers
  friend class ListenerShare;
  void MoveTo(uint32_t shard, UniqueFd p, std::shared_ptr<CarriedCall> call,
              std::vector<std::pair<calls::Envelope, Errno>> answers);
  static void Arrive(CallEngine& engine, Moved& moved);
  bool MoveToConnect(IncomingCall& call, Bytes message);
  bool MoveBack(UniqueFd& p, std::vector<std::pair<calls::Envelope, Errno>> answers);
  bool MoveBackWithHeld(Errno error);
  Errno BindSocket(const Endpoint& local) override;
  void OnSettings() override;
  Errno BindToAnyPort(const Endpoint& local);
  Errno Share(const Endpoint& local);
  bool ShareWith(uint32_t shard, const Endpoint& local);
  void Unshare();
  Errno ListenElsewhere(int backlog);
  static void OfferFrom(CallEngine& front, const Offered& connection);

  // stream_pump.cc
  bool HearEnd();
  void Pump();
  void FromProgram(size_t most = SIZE_MAX);
  size_t ReadProgram();
  size_t ReadLimit();
  void ToProgram();
  bool FlushPutBack();
  void FinishIncoming();
  bool Gone() const;  // the connection, by an error
  bool AwaitsWatch();
  void Fail(Errno without_a_reason);
  void StartReset();
  void ResetWith(int p);
  void DropS();
  void CloseByProgram(bool abort);
  bool ClosedWithReset() const;
  void DeliverBeforeReset();
  void SendToStack(size_t n);
  void OnSent(Errno error);
  void LetRunAhead();

  StreamSocket* socket_;
  UniqueFd s_;
  UnreadMemory::Queue unread_;
  State state_ = State::kFresh;
  Attempt attempt_ = Attempt::kUnconnected;
  bool s_readable_ = false, s_writable_ = true, s_ended_ = false, s_urgent_ = false;
  bool p_closed_ = false;           // the last descriptor of P is gone
  bool fin_passed_ = false;         // P was told of the peer's FIN
  bool read_shut_ = false;          // S was, as the connection is gone: P cannot write any more
  bool write_shut_ = false;         // P's shutdown(WR): what is in S, but for the mark, is all there will be
  bool write_mark_ = false;         // one byte in S that is never read: closing S then means a reset
  bool write_shut_passed_ = false;  // and the stack was told
  bool reset_pending_ = false;
  bool receiving_ = false;                 // the answer to a receive is under way
  std::vector<uint8_t> put_back_;          // taken from P for answers that came to nothing: P's again before anything else
  bool gone_ = false;                      // the connection ended with an error, which is taken from the socket
  bool runs_ahead_ = false;                // P and S have their large send buffers, or the broker was asked for them
  uint64_t bytes_in_ = 0, bytes_out_ = 0;  // to P, from P
  MostTraffic most_in_, most_out_;
  Errno error_ = Errno::kOk;  // for SO_ERROR
  size_t filler_ = 0;
  std::optional<EarlySend> early_send_;  // waits for its connection with MSG_FASTOPEN

  // listening
  sockaddr_storage listen_address_{};
  socklen_t listen_address_length_ = 0;
  uint64_t life_ = 0;              // names one listen() of it
  std::deque<Offered> offered_;    // for accepts to come
  size_t unsent_offers_ = 0;       // of these, the last ones, which the broker has not been sent
  size_t unqueued_ = 0;            // likewise, those that are not in P's native queue: an offer is sent behind that
  size_t offered_here_ = 0;        // those of this worker
  uint64_t shared_as_ = 0;         // the shares' name for a bound or listening socket; 0: it has none
  std::optional<Endpoint> bound_;  // by the program, of a socket that moved to connect
  // queued
  uint64_t listener_cookie_ = 0;
  UniqueFd queued_end_;        // P, where it is here and not in the listener's native queue
  sluice_mark mark_{};         // for it in the latter case
  bool joined_ = false;        // S has P
  bool heard_ = false;         // the worker hears S
  bool reset_queued_ = false;  // P was closed with bytes unread

  void (*retry_timer_fn_)(void*) = [](void* self) { static_cast<StreamStandIn*>(self)->MarkDirty(); };
  Timer retry_timer_{retry_timer_fn_, this};
  void (*offer_timer_fn_)(void*) = [](void* self) { static_cast<StreamStandIn*>(self)->MarkDirty(); };
  Timer offer_timer_{offer_timer_fn_, this};
};

}  // namespace sluice
