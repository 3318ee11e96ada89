// What all stand-ins share: answering calls, asking the broker, watching for closes, timers, the list of those with work to do.
// Everything runs on the worker's thread.
#pragma once

#include <algorithm>
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
#include "sentry/call.h"
#include "sentry/call_server.h"
#include "sentry/container_use.h"
#include "sentry/netlink/netlink_server.h"
#include "sentry/unread_memory.h"
#include "xdp/native_options.h"

namespace sluice {

class CallEngine;

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
  // Enters the object in the tables by the program's end `p`; watches for its last close. False where a table or limit is full.
  bool Adopt(int p);
  // Takes the object out of the tables again (its program's end is replaced).
  void Forget();
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
  CallEngine(Worker& worker, const CallServer::Options& options);
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
  // is destroyed first; of success at once or, with kLater, a moment later, which saves a wake-up.
  using DeliveryDone = std::function<void(const calls::Delivered&)>;
  void Result(const calls::Envelope& to, int64_t value, std::span<const ResultPart> parts, int fd, bool close_on_exec,
              StandIn* owner, DeliveryDone done);
  bool StillValid(const calls::Envelope& call) const;

  // -- tables
  void Own(std::unique_ptr<StandIn> s, const std::shared_ptr<ContainerUse>& container);  // takes the object
  void Destroy(StandIn* s);                                                              // at the end of the turn
  StandIn* Find(uint64_t cookie) const;
  std::shared_ptr<ContainerUse> ContainerOf(const calls::Envelope& call) const;
  // False, and counted, where the container has as many sockets as it may.
  bool RoomForSocket(ContainerUse& container) const;
  // Marks `s` dirty when a socket has gone.
  void WaitForRoom(StandIn* s) { wait_for_room_.insert(s); }
  // As RoomForSocket, for the message of a call that is to wait.
  bool RoomForHeld(ContainerUse& container, size_t size) const;

  // -- services
  Worker& worker() { return worker_; }
  Stack& stack() { return worker_.stack(); }
  const Sysctls& sysctls() const;
  const CallServer::Options& options() const { return options_; }
  NativeOptions* native_options() { return options_.native_options; }
  CallServer::Stats& stats() { return stats_; }
  const CallServer::Stats& stats() const { return stats_; }
  static Instant Now();
  void Schedule(Timer& timer, Instant deadline);
  netlink::NetlinkServer& netlink() { return *netlink_; }
  netlink::Backend& backend();
  uint64_t RandomName();
  // A 64 KiB block for reading into, which stays with the engine until Take.
  Block* Scratch();
  BlockRef TakeScratch();
  BlockPool& pool() { return *options_.pool; }
  std::vector<uint8_t>& buffer() { return buffer_; }
  UnreadMemory& unread() { return unread_; }
  // Bytes that one stand-in may hand from its program to the stack now. All together have a bound for each turn, so that what is
  // read is sent while it is in the core's cache. 0: that is reached, and the stand-in is to Postpone itself.
  size_t ReadShare() const { return turn_left_ == 0 ? 0 : share_; }
  void ChargeTurn(size_t bytes) { turn_left_ -= std::min(bytes, turn_left_); }
  // OnWork again, before those that had their share in this turn.
  void Postpone(StandIn* s);
  // Asks the broker for large send buffers on the program's end and on `s`, the other one. Nothing comes back.
  void RequestRunAhead(StandIn* owner, int s);
  // The next free number for netlink::Caller::call.
  uint64_t RememberCall(const calls::Envelope& e);

  bool connected() const { return connected_; }
  void OnConfig();
  std::vector<CallServer::Owner> Owners() const;
  std::vector<ContainerUse> Containers() const;

  bool OnTurn() override;
  bool HasWork() const override;

 private:
  friend class StandIn;
  class NetlinkBackend;
  class FdCallback;

  void OnCalls();
  void OnCloses();
  void OnTimer();
  void OnOptionsPosted() {}  // OnTurn takes them
  void TakePostedOptions();
  bool WorkDirty();  // false where there was nothing to do
  void OnMessage(Bytes message, UniqueFd fd);
  void OnListener(const calls::Envelope& e, std::string_view container, UniqueFd fd);
  void OnCall(IncomingCall& call, Bytes message);
  void OnSocketCall(IncomingCall& call);
  void OnForeignIoctl(IncomingCall& call);
  void OnDelivered(const calls::Delivered& d);
  void OnFetched(const calls::Fetched& f, UniqueFd fd);
  void Send(Bytes message, int fd, UniqueFd owned);
  bool TrySend(Bytes message, int fd);
  void FlushQueue();
  calls::Fetch MakeFetch(calls::MessageType type, const StandIn& s);
  void SendFetch(StandIn* s);
  void ArmTimer();
  void FlushDead();

  struct Awaiting {
    StandIn* owner;
    DeliveryDone done;
  };
  struct Queued {
    std::vector<uint8_t> bytes;
    UniqueFd fd;
  };

  Worker& worker_;
  CallServer::Options options_;
  CallServer::Stats stats_;
  UnreadMemory unread_;  // before the stand-ins, which leave it
  bool connected_ = true;
  UniqueFd inotify_, timerfd_;
  std::unique_ptr<FdCallback> calls_handler_, inotify_handler_, timer_handler_, options_handler_;
  struct Listener {
    UniqueFd fd;
    std::shared_ptr<ContainerUse> container;
  };
  std::unordered_map<uint16_t, Listener> listeners_;
  std::map<std::string, std::shared_ptr<ContainerUse>, std::less<>> containers_;
  std::unordered_map<uint64_t, StandIn*> by_cookie_;
  std::unordered_map<int, StandIn*> by_watch_;
  std::vector<StandIn*> by_option_slot_;
  std::unordered_map<StandIn*, std::unique_ptr<StandIn>> owned_;
  std::unordered_set<StandIn*> wait_for_room_;
  std::vector<StandIn*> dirty_, working_, postponed_;
  size_t turn_left_ = 0, share_ = 0;
  std::vector<std::unique_ptr<StandIn>> graveyard_;
  std::map<std::pair<uint16_t, uint64_t>, Awaiting> awaiting_;
  std::unordered_map<uint64_t, StandIn*> fetches_;
  uint64_t next_fetch_ = 1;
  std::vector<Queued> queue_;
  TimerWheel timers_;
  Instant armed_ = Instant::Max();
  std::unique_ptr<NetlinkBackend> backend_;
  std::unique_ptr<netlink::NetlinkServer> netlink_;
  BlockRef scratch_;
  std::vector<uint8_t> buffer_;  // for datagrams and results
  std::vector<uint8_t> incoming_;
  mutable uint64_t sysctls_generation_ = ~0ull;
  mutable std::unique_ptr<Sysctls> sysctls_;
};

}  // namespace sluice
