// What the stand-ins of one worker share: answering calls, asking the broker, watching for closes, timers, the list of those with
// work to do. Everything runs on the worker's thread. The engine of the first worker is the front: it alone hears the broker.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/timer_wheel.h"
#include "base/unique_fd.h"
#include "dataplane/worker.h"
#include "sentry/broker_channel.h"
#include "sentry/call.h"
#include "sentry/call_hub.h"
#include "sentry/call_server.h"
#include "sentry/container_use.h"
#include "sentry/netlink/netlink_server.h"
#include "sentry/spare_ends.h"
#include "sentry/unread_memory.h"
#include "xdp/native_options.h"

namespace sluice {

class CallEngine;
class ListenerShare;

// One socket of the program as the sentry holds it.
class StandIn {
 public:
  explicit StandIn(CallEngine& engine) : engine_(engine) {}
  virtual ~StandIn();
  StandIn(const StandIn&) = delete;
  StandIn& operator=(const StandIn&) = delete;

  // Answers the call now or keeps it (`message` is the whole message, to be copied into a HeldCall).
  virtual void OnCall(IncomingCall& call, Bytes message) = 0;
  // Work after socket events, descriptor events or timers; called once per turn where MarkDirty was.
  virtual void OnWork() = 0;
  // The last descriptor of the program's end is gone.
  virtual void OnLastClose() = 0;
  // The program has set options that the kernel answered (NativeOptions::Take).
  virtual void OnOptionsSet() {}
  // As OnOptionsSet where no call waits for it: may be done in OnWork.
  virtual void OnOptionsPosted() { OnOptionsSet(); }
  // A listening one: an accept got what it had offered, or could not.
  // Where it could not, and the sentry had not had it, with the program's end.
  virtual void OnOfferTaken(const calls::Accepted&, UniqueFd) {}
  // A connection that was offered: it was accepted, or was lost over that; or no accept will get it any more.
  virtual void OnAccepted(const calls::Accepted&) {}
  virtual void OnWithdrawn() {}
  // Likewise, before one of them: its listener has closed.
  virtual void OnListenerClosed() {}
  // Where no watch tells of the last close: the descriptor that shows it by POLLRDHUP, and what is done where it does.
  virtual int unwatched_end() const { return -1; }
  virtual void OnEndClosed() {}
  // A Fetch is answered; `fd` is the program's end, or invalid where it could not be found.
  virtual void OnFetched(UniqueFd fd, bool try_again);

  const std::shared_ptr<ContainerUse>& container() const { return count_.use(); }
  uint64_t cookie() const { return cookie_; }
  uint32_t tid() const { return tid_; }
  int number() const { return number_; }

 protected:
  friend class CallEngine;
  virtual NativeOptions::Kind option_kind() const { return NativeOptions::Kind::kOther; }
  void MarkDirty();
  bool Watch(int p);
  bool watched() const { return watch_ >= 0; }
  // Enters the object in the tables by the program's end `p`. False where a table or limit is full.
  bool AdoptUnwatched(int p);
  // As AdoptUnwatched; watches for the last close.
  bool Adopt(int p);
  // Enters the object by the name `cookie` until the program's end is there.
  void Enter(uint64_t cookie);
  // The program's end is there.
  void Rename(uint64_t cookie, uint64_t inode);
  // A slot of native options for an end that the broker marks. False where there is none left.
  bool ReserveSlot(sluice_mark* mark);
  // Takes the object out of the tables again (its program's end is replaced).
  void Forget();
  // As Forget, of the end that AdoptMoved takes, in the engine `shard`.
  void GiveAway(uint32_t shard);
  // As Adopt, of the end `p` that another engine gave away.
  bool AdoptMoved(int p, uint64_t cookie, uint64_t inode, uint32_t option_slot);
  void NoteHolder(uint32_t tid, int number, uint16_t listener);
  void RequestFetch();

  CallEngine& engine_;
  SocketCount count_;
  uint64_t cookie_ = 0, inode_ = 0;
  uint32_t tid_ = 0;  // last known holder, its number and the filter it runs under
  int number_ = -1;
  uint16_t listener_ = 0;
  int watch_ = -1;
  uint32_t option_slot_ = 0;  // NativeOptions; 0: none
  bool dirty_ = false;
  bool dead_ = false;
  bool fetching_ = false;
};

// One message of a result.
struct ResultPart {
  Bytes name;
  uint32_t name_length = 0;  // true length
  Bytes control, data;
  uint32_t return_value = 0;
  uint32_t msg_flags = 0;
};

class CallEngine : public TurnTask {
 public:
  CallEngine(CallHub& hub, uint32_t shard, Worker& worker, BlockPool& pool);
  ~CallEngine() override;

  // -- answering
  // False: the caller is gone or was interrupted; what the answer promised is to be undone.
  bool Answer(const calls::Envelope& to, int64_t value);
  bool Answer(const calls::Envelope& to, Errno error) { return Answer(to, -int64_t{ToInt(error)}); }
  // Installs `fd` and answers with its number, in one step: the number, or -errno (-ENOENT: caller gone; others were answered
  // so).
  int Install(const calls::Envelope& to, int fd, bool close_on_exec);
  // Puts `fd` in place of the caller's descriptor `number`, without answering.
  bool Replace(const calls::Envelope& to, int fd, int number, bool close_on_exec);
  // An answer with results in memory, by way of the broker. `done`, where there is one, hears what became of it, unless `owner`
  // is destroyed first.
  using DeliveryDone = std::function<void(const calls::Delivered&)>;
  void Result(const calls::Envelope& to, int64_t value, std::span<const ResultPart> parts, StandIn* owner, DeliveryDone done);
  // As Result; `undo` hears only where the program got less than all of it.
  void ResultOrUndo(const calls::Envelope& to, int64_t value, std::span<const ResultPart> parts, StandIn* owner,
                    DeliveryDone undo);
  bool StillValid(const calls::Envelope& call) const;

  // -- tables
  void Own(std::unique_ptr<StandIn> s, SocketCount count);  // takes the object
  void Destroy(StandIn* s);                                 // at the end of the turn
  StandIn* Find(uint64_t cookie) const;
  std::shared_ptr<ContainerUse> ContainerOf(const calls::Envelope& call) const;
  // For a connection that `s` is to accept. False, and counted, where the container has as many sockets as it may: `s` is marked
  // dirty when a socket has gone.
  SocketCount RoomForConnection(const std::shared_ptr<ContainerUse>& container, StandIn* s);
  // False, and counted, where the container may keep no more of the messages of calls that wait.
  bool RoomForHeld(ContainerUse& container, size_t size) const;

  // -- services
  Worker& worker() { return worker_; }
  Stack& stack() { return worker_.stack(); }
  const Sysctls& sysctls() const;
  const CallServer::Options& options() const { return options_; }
  NativeOptions* native_options() { return options_.native_options; }
  // -- with several workers
  CallHub& hub() { return hub_; }
  uint32_t shard() const { return shard_; }
  bool front() const { return shard_ == 0; }
  bool alone() const { return hub_.size() == 1; }
  // The front: calls for the stand-in `cookie` of `family` are handed to the engine `shard`.
  void SetRoute(uint64_t cookie, uint32_t shard, int family) { routes_[cookie] = {shard, family}; }
  void ForgetRoute(uint64_t cookie) { routes_.erase(cookie); }
  // Where it is not the front: tells it that calls for `cookie` come here, and that none come any more.
  void Announce(uint64_t cookie, int family);
  // Tells the front, or notes where it is that, that `cookie` was sent to the engine `shard`.
  void AnnounceMoved(uint64_t cookie, int family, uint32_t shard);
  void NoteGone(uint64_t cookie);
  // Not the front. By the cookie of the listening stand-in; nullptr where it has ceased to listen.
  ListenerShare* FindShare(uint64_t listener) const;
  Errno AddShare(uint64_t listener, std::unique_ptr<ListenerShare> share, const Endpoint& local);
  void RemoveShare(uint64_t listener);
  void MarkDirty(ListenerShare* share) { dirty_shares_.push_back(share); }
  // As RoomForConnection above.
  SocketCount RoomForConnection(const std::shared_ptr<ContainerUse>& container, ListenerShare* share);
  void OnRoom();
  void OnCloses();
  // The closes that no watch tells of: a look at every connection, of one container if it is named. From anywhere.
  void FindCloses(const ContainerUse* of = nullptr);
  // All closes by programs of the container that happened before: in all engines, or, where it is not the front, in this one.
  // What is closed is gone after this, whoever calls it.
  void FindAllCloses(std::shared_ptr<const ContainerUse> of);
  CallServer::Stats& stats() { return stats_; }
  const CallServer::Stats& stats() const { return stats_; }
  static Instant Now();
  void Schedule(Timer& timer, Instant deadline);
  netlink::NetlinkServer& netlink() { return *netlink_; }
  netlink::Backend& backend();
  uint64_t RandomName();
  SpareEnds& spare_ends() { return spare_ends_; }
  // For a connection whose program's end is not there yet; the cookie of no socket, and no other worker's name.
  uint64_t NextConnectionName() { return (uint64_t{1} << 63) | uint64_t{shard_} << 56 | next_connection_++; }
  // A 64 KiB block for reading into, which stays with the engine until Take.
  Block* Scratch();
  BlockRef TakeScratch();
  BlockPool& pool() { return pool_; }
  std::vector<uint8_t>& buffer() { return buffer_; }
  UnreadMemory& unread() { return unread_; }
  // Bytes that one stand-in may hand from its program to the stack now. All together have a bound for each turn, so that what is
  // read is sent while it is in the core's cache. 0: that is reached, and the stand-in is to Postpone itself.
  size_t ReadShare() const { return turn_left_ == 0 ? 0 : share_; }
  void ChargeTurn(size_t bytes) { turn_left_ -= std::min(bytes, turn_left_); }
  // OnWork again, before those that had their share in this turn.
  void Postpone(StandIn* s);
  // A connection for an accept to come. False where there is no room now.
  bool SendOffer(const calls::Offer& offer);
  // `listener` has accepts that wait and has sent offers for them.
  void TellOffered(const StandIn& listener);
  // Each of `connections` hears OnAccepted or OnWithdrawn after this.
  struct OfferedConnection {
    uint64_t cookie;
    uint32_t shard;
  };
  void Withdraw(uint64_t listener, uint64_t life, std::vector<OfferedConnection> connections);
  // The front: `what` with a connection, in its worker's thread.
  void TellConnection(const OfferedConnection& c, std::function<void(StandIn&)> what);
  // The front, as a connection has another name: in which engine it is.
  uint32_t RenameRoute(uint64_t connection, uint64_t cookie);
  // Asks the broker for large send buffers on the program's end and on `s`, the other one. Nothing comes back.
  void RequestRunAhead(StandIn* owner, int s);
  // The next free number for netlink::Caller::call.
  uint64_t RememberCall(const calls::Envelope& e);

  bool connected() const { return connected_; }
  void OnConfig();
  std::vector<CallServer::Owner> Owners() const;
  std::vector<std::shared_ptr<const ContainerUse>> Containers() const;

  bool OnTurn() override;
  bool HasWork() const override;

 private:
  friend class StandIn;
  class NetlinkBackend;
  class FdCallback;

  void OnCalls();
  void OnTimer();
  void OnOptionsPosted() {}  // OnTurn takes them
  void TakePostedOptions();
  bool WorkDirty();  // false where there was nothing to do
  void OnMessage(Bytes message, UniqueFd fd);
  void OnListener(const calls::Envelope& e, std::string_view container, UniqueFd fd);
  void OnCall(IncomingCall& call, Bytes message);
  void TakeCall(StandIn* s, IncomingCall& call, Bytes message);
  // `from`: the engine that did not have it.
  void HandOver(IncomingCall& call, Bytes message, uint32_t from = 0);
  void OnHandedOver(CarriedCall& carried);
  void OnReturned(CarriedCall& carried, uint32_t from);
  SocketCount RoomForSocket(const std::shared_ptr<ContainerUse>& container);
  template <typename Waiter>
  SocketCount RoomOrWait(const std::shared_ptr<ContainerUse>& container, Waiter* waiter, std::unordered_set<Waiter*>& waiters);
  void OnSocketCall(IncomingCall& call);
  void OnForeignIoctl(IncomingCall& call);
  void SendResult(const calls::Envelope& to, int64_t value, std::span<const ResultPart> parts, bool report);
  void OnDelivered(const calls::Delivered& d);
  void OnAccepted(const calls::Accepted& a, UniqueFd end);
  void OnWithdrawn(const calls::Withdrawal& w);
  void OnFetched(const calls::Fetched& f, UniqueFd fd);
  void Send(Bytes message, int fd, UniqueFd owned);
  bool TrySend(Bytes message, int fd);
  void FlushQueue();
  calls::Fetch MakeFetch(calls::MessageType type, const StandIn& s);
  void SendFetch(StandIn* s);
  void ArmTimer();
  void FlushDead();
  void ForgetShare(ListenerShare* share);
  void SetOptionSlot(uint32_t slot, StandIn* s);
  void TakeOptionsOf(uint32_t slot);
  friend class ListenerShare;

  using ResultKey = std::pair<uint16_t, uint64_t>;  // listener and id of the call
  struct Awaiting {
    StandIn* owner;
    DeliveryDone done;
    uint64_t order;  // of its sending
  };
  struct Queued {
    std::vector<uint8_t> bytes;
    UniqueFd fd;
  };

  CallHub& hub_;
  const uint32_t shard_;
  Worker& worker_;
  BlockPool& pool_;
  const CallServer::Options& options_;
  CallServer::Stats stats_;
  UnreadMemory unread_;  // before the stand-ins, which leave it
  bool connected_ = true;
  UniqueFd inotify_, timerfd_;
  std::unique_ptr<FdHandler> calls_handler_, inotify_handler_, timer_handler_, options_handler_;
  struct Listener {
    Listener(UniqueFd f, std::shared_ptr<ContainerUse> c) : fd(std::move(f)), container(std::move(c)) {}
    UniqueFd fd;
    std::shared_ptr<ContainerUse> container;
  };
  std::unordered_map<uint16_t, std::shared_ptr<const Listener>> listeners_;
  struct Route {
    uint32_t shard;
    int family;
  };
  std::unordered_map<uint64_t, Route> routes_;  // the front's: stand-ins of other engines
  std::vector<uint64_t> gone_;                  // not the front's: whose routes are to be forgotten
  std::unordered_map<uint64_t, std::unique_ptr<ListenerShare>> shares_;
  std::vector<ListenerShare*> dirty_shares_;
  std::map<std::string, std::shared_ptr<ContainerUse>, std::less<>> containers_;
  std::unordered_map<uint64_t, StandIn*> by_cookie_;
  std::unordered_map<int, StandIn*> by_watch_;
  std::vector<StandIn*> by_option_slot_;
  std::unordered_map<StandIn*, std::unique_ptr<StandIn>> owned_;
  std::unordered_set<StandIn*> wait_for_room_;
  std::unordered_set<ListenerShare*> shares_wait_;
  std::vector<StandIn*> dirty_, working_, postponed_;
  size_t turn_left_ = 0, share_ = 0;
  std::vector<std::unique_ptr<StandIn>> graveyard_;
  std::map<ResultKey, Awaiting> awaiting_;
  // Of these, those that no report comes of unless they fail, in their order. Each holds what it would give back.
  static constexpr size_t kMostUnreported = 16;
  std::deque<std::pair<uint64_t, ResultKey>> unreported_;
  uint64_t next_result_ = 0;
  std::unordered_map<uint64_t, StandIn*> fetches_;
  std::unordered_map<uint64_t, std::vector<OfferedConnection>> withdrawn_;  // by the life of their listener
  uint64_t next_fetch_ = 1;
  uint64_t next_connection_ = 1;
  SpareEnds spare_ends_;
  std::vector<Queued> queue_;
  TimerWheel timers_;
  Instant armed_ = Instant::Max();
  std::unique_ptr<NetlinkBackend> backend_;
  std::unique_ptr<netlink::NetlinkServer> netlink_;
  BlockRef scratch_;
  std::vector<uint8_t> buffer_;                     // for datagrams and results
  std::unique_ptr<calls::MessageReader> incoming_;  // the front's
  mutable uint64_t sysctls_generation_ = ~0ull;
  mutable std::unique_ptr<Sysctls> sysctls_;
};

}  // namespace sluice
