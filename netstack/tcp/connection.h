// A TCP socket: closed, listening or connected.
//
// Input only changes state and marks what is due; frames leave at the end of the turn (Flush), so that a burst of segments is
// answered once and a request's ACK rides on the response. The observer is told at the end of each piece of work.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/timer_wheel.h"
#include "netstack/ip/ip.h"
#include "netstack/socket/socket.h"
#include "netstack/tcp/bind_table.h"
#include "netstack/tcp/byte_queue.h"
#include "netstack/tcp/congestion.h"
#include "netstack/tcp/engine.h"
#include "netstack/tcp/fast_open.h"
#include "netstack/tcp/passive.h"
#include "netstack/tcp/reassembly.h"
#include "netstack/tcp/rtt.h"
#include "netstack/tcp/segment.h"
#include "netstack/tcp/sent_ranges.h"
#include "netstack/tcp/types.h"

namespace sluice::tcp {

// RFC 9293 3.3.1.
struct SendSequence {
  SeqNum iss, una, nxt, up;
  SeqNum wl1, wl2;
  uint32_t wnd = 0;
  uint32_t max_wnd = 0;
  uint8_t wscale = 0;
};
struct ReceiveSequence {
  SeqNum irs, nxt, up;
  SeqNum wup;        // nxt when the window was last advertised
  uint32_t wnd = 0;  // as advertised then
  uint8_t wscale = 0;
};

struct ListenState {
  int backlog = 0;
  Request* requests = nullptr;
  size_t request_count = 0;
  Connection* accept_head = nullptr;
  Connection* accept_tail = nullptr;
  size_t accept_count = 0;
  std::shared_ptr<FastOpenQueue> fast_open;  // made with the first SYN for it
};

// What options set. Accepted connections have it of their listener.
class StreamOptions {
 protected:
  std::optional<int> linger_;
  uint32_t rcvbuf_ = 0, sndbuf_ = 0;
  bool rcvbuf_locked_ = false, sndbuf_locked_ = false;
  int32_t rcv_lowat_ = 1;
  int32_t keep_idle_ = 0, keep_interval_ = 0, keep_count_ = 0;  // seconds; 0: the sysctl
  int32_t user_timeout_ms_ = 0, linger2_ = 0, defer_accept_ = 0, syn_count_ = 0;
  int64_t notsent_lowat_ = -1;
  uint32_t user_mss_ = 0, user_window_clamp_ = 0, mark_ = 0, port_range_ = 0;
  int16_t ttl_ = -1, tclass_ = -1;
  int32_t priority_ = 0;
  uint8_t tos_ = 0, pmtu_discover_ = 1, min_ttl_ = 0, min_hops_ = 0;
  bool nodelay_ = false, cork_ = false, keep_alive_ = false, oob_inline_ = false, freebind_ = false, transparent_ = false;
  bool bind_no_port_ = false, dont_route_ = false, broadcast_ = false, recv_err_ = false;
  bool thin_linear_ = false;
  bool fast_open_connect_ = false, fast_open_no_cookie_ = false;
  uint32_t fast_open_backlog_ = 0;  // of a listener; 0: it does not take part
  std::shared_ptr<const FastOpenKeys> own_fast_open_keys_;
};

class Connection final : public StreamSocket, public FlowEntry, public PortHolder, private StreamOptions {
 public:
  Connection(Engine& engine, Family family);
  ~Connection() override;

  // --- Socket and StreamSocket (connection_socket.cc, connection_options.cc, connection_info.cc)
  Family family() const override { return family_; }
  uint32_t events() const override;
  Errno Bind(const Endpoint& local) override;
  Endpoint local() const override;
  std::optional<Endpoint> remote() const override;
  Errno Shutdown(bool read, bool write) override;
  Errno TakeError() override;
  Errno SetOption(SockOpt option, int64_t value) override;
  Errno GetOption(SockOpt option, int64_t* value) const override;
  void Close() override;
  Errno Listen(int backlog) override;
  Errno Connect(const Endpoint& remote) override;
  Errno ConnectWithData(const Endpoint& remote, Slice data, bool all, size_t* taken) override;
  std::optional<uint32_t> HomeOfConnect(const Endpoint& remote) const override;
  Errno Disconnect() override;
  StreamSocket* Accept() override;
  bool listening() const override { return state_ == State::kListen; }
  int state() const override { return static_cast<int>(state_); }
  size_t readable_bytes() const override { return rcvq_.size(); }
  size_t Peek(std::span<Bytes> out) const override { return rcvq_.Peek(out); }
  void Consume(size_t n) override;
  bool at_end() const override;
  std::optional<size_t> urgent_mark() const override;
  size_t send_space() const override;
  Errno Send(Slice data, bool more) override;
  Errno SendUrgent(Slice data) override;
  size_t unsent_bytes() const override;
  void HoldPort(bool hold) override;
  void SetUnsentLimit(uint32_t bytes) override { unsent_limit_ = bytes; }
  size_t unacked_bytes() const override;
  void SetLinger(std::optional<int> seconds) override { linger_ = seconds; }
  std::optional<int> linger() const override { return linger_; }
  Errno SetCongestionControl(std::string_view name) override;
  std::string congestion_control() const override;
  void StartControl();
  TcpInfo info() const override;
  Errno SetFastOpenKeys(Bytes keys) override;
  std::vector<uint8_t> fast_open_keys() const override;
  std::shared_ptr<const StreamSettings> Settings() const override;
  void TakeSettings(const StreamSettings& settings) override;
  void Abort() override;

  // --- for the engine
  void Input(const Segment& seg, Packet packet, const IpInfo& info);
  void IcmpError(const IcmpErrorInfo& error);
  // Sends what is due. Called by the engine at the end of the turn.
  void Flush();
  void OnConfig();
  SocketInfo Describe(bool with_tcp_info) const;
  State tcp_state() const { return state_; }
  // A connection of `listener` whose handshake is complete. Not yet on the accept queue.
  void InitPassive(Connection& listener, const FlowKey& key, const Handshake& shake, IfIndex ifindex, Instant syn_ack_sent);
  // The same where the handshake is not: a SYN that Fast Open takes. It answers with the SYN,ACK, `answer` in it.
  void BeginFastOpen(const std::shared_ptr<FastOpenQueue>& queue, const Segment& syn, Packet packet, const Handshake& shake,
                     const FastOpenCookie& answer);
  uint32_t fast_open_backlog() const { return fast_open_backlog_; }
  const std::shared_ptr<FastOpenQueue>& fast_open_queue();
  bool fast_open_without_cookie() const;
  const FastOpenKeys* own_fast_open_keys() const { return own_fast_open_keys_.get(); }
  bool AcceptQueueFull() const;
  void PushAccepted(Connection* child);
  int syn_retries() const { return syn_count_ > 0 ? syn_count_ : sysctls().tcp_synack_retries; }
  int defer_accept() const { return defer_accept_; }
  ListenState& listen_state() { return *listen_; }
  uint16_t AdvertisedMss(const Route& route, Family wire_family) const;
  uint8_t ChooseWindowScale() const;
  uint32_t InitialReceiveWindow(uint32_t mss) const;
  void NotifyState(uint32_t again = 0);
  bool Matches(IfIndex ifindex) const { return bound_ifindex == 0 || ifindex == 0 || bound_ifindex == ifindex; }

 private:
  friend class Engine;
  struct AllSettings;
  enum Slot { kRetransmit, kLossProbe, kDelayedAck, kKeepAlive, kPacing, kSlotCount };
  enum class RetransmitUse : uint8_t { kNone, kTimeout, kPersist };

  // --- 3.10.7, one function per step (connection_input.cc)
  void InputSynSent(const Segment& seg, Packet packet);
  void InputSynchronized(const Segment& seg, Packet packet);
  bool FastPath(const Segment& seg, Packet& packet);
  bool CheckSequence(const Segment& seg);  // first, with PAWS
  bool CheckReset(const Segment& seg);     // second
  bool CheckSyn(const Segment& seg);       // fourth
  bool CheckAck(const Segment& seg);       // fifth
  void StateAfterAck(const Segment& seg);
  void CheckUrgent(const Segment& seg);                 // sixth
  bool ProcessText(const Segment& seg, Packet packet);  // seventh
  void ProcessFin(SeqNum fin);                          // eighth
  void RememberTimestamp(const Segment& seg);
  void SendChallengeAck(bool rate_limited);
  void Established(const Segment& seg);
  void ApplyHandshake(const Handshake& shake);

  // --- Fast Open (connection_fast_open.cc)
  // TCP_FASTOPEN_CONNECT: the SYN waits for the first data.
  bool deferred() const { return state_ == State::kSynSent && fast_open_ != nullptr && fast_open_->deferred; }
  // In SYN-RECEIVED, and accepted all the same: data may come and go.
  bool early() const { return state_ == State::kSynReceived && fast_open_ != nullptr && fast_open_->queue != nullptr; }
  // Its data was taken before it is connected: what the program then does to it is done when it is.
  bool wrote_early() const { return fast_open_ != nullptr && state_ == State::kSynSent && !sndq_.empty(); }
  uint32_t ChooseFastOpenCookie();
  bool DeferConnect();
  void StartHandshake();
  void TakeFastOpenSynAck(const Segment& seg);
  void DetectBlackhole(bool expired);
  void PauseFastOpen();
  void EndFastOpen();
  bool CheckEarly(const Segment& seg);
  void RepeatSynAck();
  void OnFastOpenTimeout();
  void CompleteFastOpen(const Segment& seg);
  void LeaveFastOpenQueue(bool reset);
  Errno SetFastOpenOption(SockOpt option, int64_t value);
  void TuneFastOpen(int backlog);

  // --- acknowledgments and recovery (connection_ack.cc)
  struct AckResult {
    uint32_t acked = 0;  // cumulatively, with FIN and SYN
    uint32_t newly_lost = 0;
    bool dsack = false;
    bool duplicate = false;  // RFC 5681 2
    bool marked = false;     // the peer echoes a mark (RFC 3168)
    bool window_changed = false;
    Duration rtt{-1};
    uint32_t prior_in_flight = 0;
    Delivery delivery;
    uint64_t rate_delivered = 0;  // since the newest piece that was delivered had been sent, within
    Duration rate_interval{-1};   // negative: no sample
  };
  void ProcessAck(const Segment& seg);
  void ProcessSackBlocks(const Segment& seg, AckResult* r);
  void UpdateSendWindow(const Segment& seg, AckResult* r);
  void SampleRtt(const Segment& seg, AckResult* r);
  void SampleRate(AckResult* r);
  void RunModel(const AckResult& r);
  void AdvanceRecovery(const Segment& seg, AckResult* r);
  void DetectLoss(AckResult* r);
  void BeginReduction();
  void EnterRecovery(bool marked);
  void EnterLoss();
  void LeaveRecovery();
  bool MayUndo(const Segment& seg) const;
  void Undo();
  void CheckSpuriousTimeout(const Segment& seg, const AckResult& r);
  void ReduceWindow(const AckResult& r);                       // PRR
  void CompleteProbe(const Segment& seg, const AckResult& r);  // TLP
  uint32_t InFlight() const;
  Duration ReorderWindow() const;
  void SaveForUndo();
  void ForgetPriorWindow();

  // --- congestion notification (connection_ecn.cc)
  uint8_t EcnSynFlags();
  bool EcnAgreed(const Segment& seg) const;
  bool StampEcn(HeaderSpec* h, bool new_data) const;
  void CheckMark(const Segment& seg);
  void CheckCwr(const Segment& seg);
  void EnterCwr();

  // --- path MTU without ICMP (connection_mtu.cc)
  enum class Probing : uint8_t { kNone, kSent, kWait };
  uint32_t MtuToMss(uint32_t mtu) const;
  uint32_t MssToMtu(uint32_t mss) const;
  uint32_t HighestMtu() const;
  void StartMtuSearch();
  void SearchMtuAgain();
  void SuspectBlackHole();
  Probing SendMtuProbe();
  void OnMtuProbeArrived();
  bool OnMtuProbeLost();

  // --- output (connection_output.cc)
  void Output();
  bool SendLost();
  void SendNew(bool probe);
  bool SendRange(SeqNum start, uint32_t length, bool retransmission) {
    return SendRange(start, length, retransmission, CurrentMss());
  }
  bool SendRange(SeqNum start, uint32_t length, bool retransmission, uint32_t mss);
  bool SendPayload(SeqNum seq, uint32_t length, bool fin, bool push, uint32_t mss);
  SeqNum AcceptableSeq() const;
  void SendAckNow();
  void SendSyn();
  void ResetPeer();
  bool NeedsReset() const;
  void Vanish(bool reset);
  void AnswerReset(const Segment& seg);
  bool NewData(const Segment& seg) const;
  void AbortOnData(const Segment& seg);
  bool CheckPaws(const Segment& seg);
  void ReportOld(const Segment& seg);
  bool ChallengeSyn();
  uint64_t Acknowledged() const;
  void SendResetNow();
  bool Emit(HeaderSpec& h, uint32_t payload_offset, uint32_t payload_length, uint32_t mss, bool new_data = false);
  HeaderSpec MakeHeader(SeqNum seq, uint8_t flags);
  bool EnsureRoute();
  void UseRoute(const Route& route);
  void UpdateMss();
  uint32_t CurrentMss() const;
  uint32_t MaxBurst() const;
  uint32_t PacedSegments(uint32_t most, uint32_t mss) const;
  uint32_t OptionBytes() const;
  uint32_t Unsent() const { return static_cast<uint32_t>(sndq_.size()) - SentData(); }
  uint32_t SentData() const;  // bytes of sndq_ that were sent
  SeqNum WriteEnd() const;    // number after the last queued byte
  void PushUnsent();
  // A FIN of shutdown() waits for the handshake (RFC 9293 3.10.4), one of close() does not.
  bool FinMayLeave() const { return fin_queued_ && (!early() || orphan_); }
  bool FinUnsent() const { return FinMayLeave() && snd_.nxt == WriteEnd(); }
  bool NagleAllows(uint32_t length) const;
  void RestartAfterIdle();
  void NoteAppLimited();
  SendStamp StampNow();
  // Pacing: the rate in bytes per second (kUnpaced: none), whether it is obeyed, and whether nothing may be sent yet (then the
  // timer is armed).
  uint64_t PacingRate() const;
  void UpdatePaced();
  bool PacingHolds();
  void AdvanceDeparture(uint32_t length);
  Instant Departure() const { return pacing_ahead_ > Duration() ? std::max(now(), next_departure_) : now(); }
  void OnDataSent(uint32_t length);
  void GrowSendBuffer();

  // --- receiving (connection_receive.cc)
  void QueueInOrder(SeqNum seq, uint32_t length, Packet packet, uint32_t header_len);
  void QueueOutOfOrder(const Segment& seg, Packet packet);
  uint32_t Admit(uint32_t length);
  bool PruneOutOfOrder(size_t limit);
  uint32_t SelectWindow();
  uint32_t WindowNow() const;
  uint32_t ReceiveMemory() const { return static_cast<uint32_t>(rcvq_.memory() + (ooo_ ? ooo_->memory() : 0)); }
  uint32_t FreeWindow() const;
  void ScheduleAck(const Segment& seg);
  void AckSoon() {
    ack_now_ = true;
    MarkWork();
  }
  void EnterQuickAck(uint32_t segments);
  void MeasureReceiveMss(const Segment& seg);
  void MeasureReceiveRtt(const Segment& seg);
  void AdjustReceiveBuffer();
  void SendDsack(SeqNum start, SeqNum end);

  // --- timers (connection_timers.cc)
  static void OnTimer(void* self);
  void RunTimers();
  void Arm(Slot slot, Instant deadline);
  void Disarm(Slot slot) { deadlines_[slot] = Instant::Max(); }
  bool Armed(Slot slot) const { return deadlines_[slot] != Instant::Max(); }
  void ArmRetransmit();
  void ArmProbe();
  void OnRetransmitTimeout();
  void OnSynTimeout();
  void OnPersistTimeout();
  void OnLossProbeTimeout();
  void OnDelayedAckTimeout();
  void OnKeepAliveTimeout();
  bool RetriesExhausted();
  int OrphanRetries(bool alive) const;
  Duration BackedOffRto() const;
  Duration MinRto() const;
  Duration KeepIdle() const;
  Duration KeepInterval() const;
  int KeepProbes() const;

  // --- state changes (connection_close.cc)
  void SetState(State s) { state_ = s; }
  void Fail(Errno error);  // the connection is gone: error to the owner
  void Die();              // CLOSED: leaves all tables, timers off
  void ReleaseIfOrphan();
  void QueueFin();
  void EnterTimeWait(State substate, Duration length);
  void CloseListener();
  void BecomeOrphan();
  void ResetToFresh();
  void MarkWork() {
    if (!in_turn_) engine_.Schedule(this);
  }
  void SetError(Errno e) {
    if (error_ == Errno::kOk) error_ = e;
  }

  IpAddress ToWire(const IpAddress& a) const { return a.Unmapped(); }
  Endpoint FromWire(const IpAddress& a, uint16_t port) const;
  const Sysctls& sysctls() const { return engine_.sysctls(); }
  Instant now() const { return engine_.now(); }
  BlockPool& pool() const { return engine_.ctx.pool; }
  QueueMemory& memory() const { return engine_.ctx.stream_memory; }
  uint32_t TimestampNow() const { return ts_offset_ + TimestampClock(now()); }
  bool Synchronized() const;
  bool CanSendData() const;
  bool BelowLowWater() const;
  Errno PortChoiceRange(uint16_t* low, uint16_t* high) const;
  Errno Open(const Endpoint& to);
  Errno FindPath(const Endpoint& to, IpAddress* remote, Route* route) const;
  Errno AllowedToBind(const IpAddress& address) const;

  Engine& engine_;
  Connection* next_all_ = nullptr;
  Connection** prev_all_ = nullptr;
  Connection* next_accept_ = nullptr;
  Connection* listener_ = nullptr;  // while it waits on that accept queue
  std::unique_ptr<ListenState> listen_;
  std::unique_ptr<FastOpen> fast_open_;  // mostly none

  // --- transfer state, hot
  State state_ = State::kClosed;
  Family family_;
  CaState ca_state_ = CaState::kOpen;
  bool in_turn_ = false;
  bool ack_now_ = false;        // an ACK must leave at the end of this turn
  bool ack_scheduled_ = false;  // an ACK is owed (delayed)
  bool short_owed_ = false;     // for a segment below the MSS: its sender may hold the next one back (Nagle)
  bool output_due_ = false;
  bool timestamps_ = false, sack_ = false, scaling_ = false;
  bool fin_queued_ = false;  // our FIN follows the queued data
  bool fin_sent_ = false;
  bool fin_received_ = false;
  bool read_shutdown_ = false;  // shutdown(SHUT_RD)
  bool orphan_ = false;
  bool dead_ = false;  // buried
  bool cwnd_limited_ = false;
  bool active_open_ = false;
  bool was_connected_ = false;
  bool closed_by_time_wait_ = false;  // the handle outlives the connection, which waits elsewhere
  bool push_pending_ = false;
  struct {
    bool ok = false;          // asked for; once connected: agreed
    bool queue_cwr = false;   // our window is reduced, and the peer has not been told
    bool demand_cwr = false;  // a mark arrived, and the peer has not answered our echo
    bool seen = false;        // the peer sends what can be marked
  } ecn_;
  bool more_ = false;  // MSG_MORE of the last write
  struct {
    bool enabled = false;
    uint32_t low = 0, high = 0;  // what is known to arrive, and the most that may
    uint32_t size = 0;           // of the probe that is out; 0: none is
    SeqNum start, end;           // its text
    Instant since;               // when this search began
  } mtu_;
  SendSequence snd_;
  ReceiveSequence rcv_;
  uint32_t mss_ = 536;     // payload of a segment without options
  uint32_t peer_mss_ = 0;  // what the peer announced
  uint32_t ts_recent_ = 0, ts_offset_ = 0;
  Instant ts_recent_at_;
  SeqNum last_ack_sent_;
  CongestionWindow cw_;
  CongestionControl* cc_ = nullptr;
  bool model_ = false;  // cc_->is_model()
  bool paced_ = false;
  Duration pacing_ahead_{};  // how far before its departure a frame is handed to a device that paces; zero: it does not
  uint64_t max_pacing_rate_ = kUnpaced;
  Instant next_departure_;
  ByteQueue sndq_;  // from snd_.una (without SYN) on
  ByteQueue rcvq_;
  SentRanges sent_;
  RttEstimator rtt_;
  Duration rto_ = kInitialRto;
  Route route_;
  uint32_t last_events_ = 0;
  Errno error_ = Errno::kOk;
  Errno soft_error_ = Errno::kOk;

  // --- recovery
  RackMark rack_;
  SeqNum recovery_point_;
  SeqNum undo_marker_;
  bool undo_possible_ = false;
  bool reorder_seen_ = false;
  bool frto_ = false;  // a timeout may have been spurious (RFC 5682)
  bool tlp_retransmitted_ = false, tlp_outstanding_ = false;
  SeqNum tlp_end_;
  SeqNum frto_end_;
  int64_t undo_retransmitted_ = 0;  // bytes sent again and not reported as duplicates
  uint32_t prior_cwnd_ = 0, prior_ssthresh_ = 0;
  uint32_t retransmit_stamp_ = 0;  // our timestamp of the first retransmission, 0 = none
  uint32_t prr_delivered_ = 0, prr_out_ = 0, recover_fs_ = 0;
  uint32_t dup_acks_ = 0;  // without SACK
  uint8_t reorder_mult_ = 1;
  uint8_t backoff_ = 0;
  uint8_t retransmits_ = 0;  // timeouts in a row
  uint8_t probes_ = 0;       // zero window and keepalive probes without an answer
  RetransmitUse retransmit_use_ = RetransmitUse::kNone;
  Instant first_retransmit_at_;  // of this run of timeouts
  Instant probe_since_;

  // --- receiving
  std::unique_ptr<Reassembly> ooo_;
  SackList sacks_;
  SackBlock dsack_;
  bool has_dsack_ = false;
  bool memory_dropped_ = false;          // text, for want of memory: the peer hears when there is some again
  mutable bool memory_refused_ = false;  // send_space() said 0 for want of memory
  bool urgent_valid_ = false;
  std::optional<SeqNum> early_fin_;  // the peer's FIN, where text before it is missing
  uint8_t quick_acks_ = 0;
  uint8_t pingpong_ = 0;
  SeqNum copied_;    // first byte not consumed
  SeqNum minshall_;  // end of the last small segment
  SeqNum push_end_;  // where push_due_: what comes before leaves, whatever cork is set now
  bool push_due_ = false;
  uint32_t rcv_mss_ = 536;
  uint32_t rcv_ssthresh_ = 0;
  uint32_t window_clamp_ = 0;
  Duration ato_{};
  Instant last_data_received_, last_ack_received_, last_data_sent_, last_oow_ack_;
  uint32_t drs_space_ = 0;
  uint32_t reader_mark_ = 0;  // Engine::CountReader
  SeqNum drs_start_;
  Instant drs_time_;
  Duration rcv_rtt_{};
  SeqNum rcv_rtt_seq_;
  Instant rcv_rtt_time_;
  uint32_t rcv_rtt_ecr_ = 0;

  // --- timers
  Timer timer_;
  std::array<Instant, kSlotCount> deadlines_;

  // --- accounting
  uint32_t unsent_limit_ = UINT32_MAX;
  bool address_bound_ = false, port_bound_ = false;
  IfIndex ingress_ = 0;
  IfIndex scope_ = 0;
  struct Totals {
    uint64_t bytes_sent = 0, bytes_retransmitted = 0, bytes_acked = 0, bytes_received = 0, delivered = 0, delivered_marked = 0;
    uint32_t segs_out = 0, segs_in = 0, data_segs_out = 0, data_segs_in = 0, retransmitted = 0;
    uint32_t dsack_dups = 0, reorderings = 0, ooo_packets = 0;
  } totals_;
  Instant delivered_at_;
  Instant first_sent_at_;           // when the newest piece that was delivered had been sent
  uint64_t app_limited_until_ = 0;  // of totals_.delivered: what is in flight till then; 0: not limited
  uint64_t rate_delivered_ = 0;     // the delivery rate is this
  Duration rate_interval_{};        // over this
  bool rate_app_limited_ = false;
  Instant busy_since_, rwnd_since_, sndbuf_since_;
  Duration busy_{}, rwnd_limited_{}, sndbuf_limited_{};
  bool busy_now_ = false, rwnd_limited_now_ = false, sndbuf_limited_now_ = false;
  alignas(8) unsigned char cc_storage_[kCongestionStorage];
};

}  // namespace sluice::tcp
