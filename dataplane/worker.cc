#include "dataplane/worker.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "dataplane/spin_choice.h"
#include "xdp/unique_fd.h"

namespace sluice {
namespace {

constexpr size_t kBurst = 32;
constexpr int kMaxEvents = 256;
// Spinning through one round trip of a peer that sleeps on another core: its wake-up, its work, and that of the program.
constexpr int kWakesPerSpin = 3;
constexpr Duration kMinSpin = Duration::Microseconds(20), kMaxSpin = Duration::Microseconds(200);
// A spinning turn that took so long was not alone on its core: then the worker sleeps until the next event.
constexpr Duration kTakenAway = Duration::Microseconds(20);
// What is known of the gaps between events: one more for a gap that a spin covers, two less for a longer one. The worker spins
// from kSpinConfidence on, so that of three spins at least two are worth their price.
constexpr int kMaxConfidence = 4, kSpinConfidence = 2;
// A link that is full and has no descriptor to wait for is tried again after this.
constexpr Duration kTransmitRetry = Duration::Microseconds(500);

Instant ReadClock() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return Instant(t.tv_sec * int64_t{1000000000} + t.tv_nsec);
}

enum class EntryKind : uint8_t { kFree, kHandler, kPort, kWake, kTimer, kCarried };

}  // namespace

namespace {

// Puts the calling thread on one of the cores it may use, until the end of the scope.
class OnCore {
 public:
  explicit OnCore(int which) {
    if (sched_getaffinity(0, sizeof before_, &before_) != 0 || CPU_COUNT(&before_) < 2) return;
    for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE && !moved_; ++cpu) {
      if (!CPU_ISSET(cpu, &before_) || seen++ != which) continue;
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(cpu, &one);
      moved_ = sched_setaffinity(0, sizeof one, &one) == 0;
    }
  }
  ~OnCore() {
    if (moved_) sched_setaffinity(0, sizeof before_, &before_);
  }

 private:
  cpu_set_t before_;
  bool moved_ = false;
};

}  // namespace

// Left alone, the scheduler may run both threads on one core, where a wake-up is next to nothing.
Duration MeasureWakeCost() {
  constexpr size_t kRounds = 15, kLeast = 5;
  constexpr Duration kLongest = Duration::Milliseconds(1);
  const Duration fallback = Duration::Microseconds(20);
  UniqueFd ping(eventfd(0, EFD_CLOEXEC)), pong(eventfd(0, EFD_CLOEXEC));
  if (!ping || !pong) return fallback;
  std::atomic<bool> over = false;
  std::thread partner;
  try {
    partner = std::thread([&] {
      const OnCore there(1);
      uint64_t value;
      while (read(ping.get(), &value, sizeof value) == sizeof value && !over) {
        value = 1;
        if (write(pong.get(), &value, sizeof value) < 0) return;
      }
    });
  } catch (const std::exception&) {
    return fallback;
  }
  const OnCore here(0);
  std::vector<int64_t> costs;
  const Instant start = ReadClock();
  while (costs.size() < kRounds && (costs.size() < kLeast || ReadClock() - start < kLongest)) {
    const Instant begin = ReadClock();
    uint64_t value = 1;
    if (write(ping.get(), &value, sizeof value) < 0 || read(pong.get(), &value, sizeof value) < 0) break;
    costs.push_back((ReadClock() - begin).ns() / 2);
  }
  over = true;
  const uint64_t value = 1;
  (void)!write(ping.get(), &value, sizeof value);
  partner.join();
  if (costs.empty()) return fallback;
  std::ranges::nth_element(costs, costs.begin() + static_cast<ptrdiff_t>(costs.size() / 2));
  return Duration(costs[costs.size() / 2]);
}

class Worker::Impl {
 public:
  Impl(const WorkerOptions& options, Worker& worker);

  void RegisterPort(Port& port);
  void UnregisterPort(Port& port);
  Errno Add(int fd, uint32_t events, FdHandler* handler, EntryKind kind);
  Errno Modify(int fd, uint32_t events);
  void Remove(int fd);
  void Forget(int fd);

  bool Turn(Duration timeout);
  void PrepareThread();
  void Loop();
  void Post(std::function<void()> work);
  void RunPosted();
  void Wake();
  void Stop();
  bool Adopt(Impl& other);
  void Carry(Impl& other);
  void Release(Impl& other);
  WorkerStats stats() const;

  std::vector<TurnTask*> tasks_;
  std::vector<std::unique_ptr<Port>> graveyard_;
  Instant turn_began_, turn_ended_;
  bool in_turn_ = false;
  bool leave_ = false;
  std::atomic<int64_t> busy_ns_{0}, thread_busy_ns_{0};

 private:
  struct Entry {
    FdHandler* handler = nullptr;
    Port* port = nullptr;
    Impl* carried = nullptr;
    uint32_t generation = 0;
    uint32_t events = 0;
    EntryKind kind = EntryKind::kFree;
    // More than a port's frames, which can be asked for.
    bool must_be_watched() const {
      return kind == EntryKind::kHandler || (kind == EntryKind::kCarried && events != 0) ||
             (kind == EntryKind::kPort && (events & EPOLLOUT) != 0);
    }
  };

  void Replace(Entry& entry, const Entry& by);
  bool MayPass(Duration timeout) const { return timeout <= Duration(0) && must_be_watched_ == 0; }
  int Wait(Duration timeout);
  int WaitWithTimerfd(Duration timeout);
  bool TurnWith(int count, bool ask_all = false);
  bool TurnCarried();
  bool CarriedTurn(Instant now);
  void AskPorts(bool all);
  void CollectEvents(int count);
  bool RunMail();
  bool ReceiveAll();
  bool ReceiveFrom(Port& port);
  bool DispatchHandlers(int count);
  bool RunTasks();
  bool FlushAll();
  void WaitForRoom(Port& port);
  void BuryDead();
  bool Quiet();
  bool AllQuiet();
  bool Sleep();
  Duration SleepTime() const;
  void Ring();
  void NoteGap();
  void Book(Duration took);
  uint64_t Bytes() const;
  uint64_t Progress() const;
  bool ShouldSpin(Instant now);
  bool Spin(Instant now);

  Worker& worker_;
  Stack& stack_;
  const WorkerOptions options_;
  UniqueFd epoll_, wake_, timer_;
  bool have_pwait2_ = true;
  std::vector<Entry> entries_;  // by descriptor
  size_t must_be_watched_ = 0;  // of these
  uint32_t generation_ = 0;
  std::array<epoll_event, kMaxEvents> events_;
  std::array<Packet, kBurst> burst_;
  std::vector<Port*> readable_;
  bool transmit_retry_ = false;

  // Others set pending_, and then look who runs this worker and whether that thread sleeps. The thread says that it will sleep,
  // or that it runs the worker now, and then looks at pending_. All in one order (seq_cst), so that one of them sees the other.
  std::atomic<bool> pending_{false};
  std::atomic<Impl*> runner_{this};  // whose thread it is: this one's, or that of who carries it
  std::atomic<bool> sleeping_{false};
  bool prepared_ = false;
  std::vector<Impl*> carried_;
  uint64_t moved_ = 0;   // bytes of workers that were carried until they left, less those of before they came (may wrap)
  Duration for_others_;  // of this turn: what it did for workers that are carried
  // Of a worker that is carried. Quiet: it has nothing to do before quiet_until_, unless its descriptors or pending_ say so.
  bool has_events_ = false, quiet_ = false;
  Instant quiet_until_;

  std::atomic<bool> stop_{false};
  std::atomic<bool> has_mail_{false};
  std::mutex mail_mutex_;
  std::vector<std::function<void()>> mail_;

  Duration spin_limit_{0};  // zero: never spin
  Instant idle_since_;      // when the last turn that had work ended
  int confidence_ = kSpinConfidence;
  SpinChoice choice_;
  bool core_wanted_ = false;  // by others, since the last event
  WorkerStats stats_;
};

Worker::Impl::Impl(const WorkerOptions& options, Worker& worker)
    : worker_(worker),
      stack_(worker.stack()),
      options_(options),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  SLUICE_CHECK(epoll_ && wake_);
  const Errno e = Add(wake_.get(), EPOLLIN, nullptr, EntryKind::kWake);
  SLUICE_CHECK(e == Errno::kOk);
  have_pwait2_ = !options_.force_timerfd;
  if (options_.poll == PollMode::kAdaptive) {
    spin_limit_ = options_.spin;
    if (spin_limit_ <= Duration(0)) {
      stats_.wake_cost = MeasureWakeCost();
      spin_limit_ = std::clamp(stats_.wake_cost * kWakesPerSpin, kMinSpin, kMaxSpin);
    }
  }
}

// ---- Descriptors

void Worker::Impl::Replace(Entry& entry, const Entry& by) {
  if (entry.must_be_watched()) --must_be_watched_;
  entry = by;
  if (entry.must_be_watched()) ++must_be_watched_;
}

Errno Worker::Impl::Add(int fd, uint32_t events, FdHandler* handler, EntryKind kind) {
  if (fd < 0) return Errno::kEBADF;
  if (entries_.size() <= static_cast<size_t>(fd)) entries_.resize(static_cast<size_t>(fd) + 1);
  Entry& entry = entries_[static_cast<size_t>(fd)];
  if (entry.kind != EntryKind::kFree) return Errno::kEEXIST;
  const uint32_t generation = ++generation_;
  epoll_event event{};
  event.events = events;
  event.data.u64 = uint64_t{generation} << 32 | static_cast<uint32_t>(fd);
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) return static_cast<Errno>(errno);
  Replace(entry, Entry{handler, nullptr, nullptr, generation, events, kind});
  return Errno::kOk;
}

Errno Worker::Impl::Modify(int fd, uint32_t events) {
  if (fd < 0 || static_cast<size_t>(fd) >= entries_.size()) return Errno::kENOENT;
  Entry& entry = entries_[static_cast<size_t>(fd)];
  if (entry.kind == EntryKind::kFree) return Errno::kENOENT;
  epoll_event event{};
  event.events = events;
  event.data.u64 = uint64_t{entry.generation} << 32 | static_cast<uint32_t>(fd);
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) != 0) return static_cast<Errno>(errno);
  Replace(entry, Entry{entry.handler, entry.port, entry.carried, entry.generation, events, entry.kind});
  return Errno::kOk;
}

void Worker::Impl::Remove(int fd) {
  if (fd < 0 || static_cast<size_t>(fd) >= entries_.size()) return;
  Entry& entry = entries_[static_cast<size_t>(fd)];
  if (entry.kind == EntryKind::kFree) return;
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  Replace(entry, Entry{});
}

void Worker::Impl::Forget(int fd) {
  if (fd >= 0 && static_cast<size_t>(fd) < entries_.size()) Replace(entries_[static_cast<size_t>(fd)], Entry{});
}

void Worker::Impl::RegisterPort(Port& port) {
  for (int fd : port.wait_fds()) {
    const Errno e = Add(fd, EPOLLIN, nullptr, EntryKind::kPort);
    SLUICE_CHECK(e == Errno::kOk);
    entries_[static_cast<size_t>(fd)].port = &port;
  }
}

void Worker::Impl::UnregisterPort(Port& port) {
  std::erase(readable_, &port);
  for (size_t fd = 0; fd < entries_.size(); ++fd) {
    if (entries_[fd].port == &port) Remove(static_cast<int>(fd));
  }
}

// ---- One turn

int Worker::Impl::WaitWithTimerfd(Duration timeout) {
  if (!timer_) {
    timer_ = UniqueFd(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
    SLUICE_CHECK(timer_);
    const Errno e = Add(timer_.get(), EPOLLIN, nullptr, EntryKind::kTimer);
    SLUICE_CHECK(e == Errno::kOk);
  }
  itimerspec spec{};
  spec.it_value = {timeout.ns() / 1000000000, timeout.ns() % 1000000000};
  timerfd_settime(timer_.get(), 0, &spec, nullptr);
  return epoll_wait(epoll_.get(), events_.data(), kMaxEvents, -1);
}

// Zero: look only. Duration::Max(): until something happens.
int Worker::Impl::Wait(Duration timeout) {
  if (timeout <= Duration(0)) return epoll_wait(epoll_.get(), events_.data(), kMaxEvents, 0);
  if (timeout == Duration::Max()) return epoll_wait(epoll_.get(), events_.data(), kMaxEvents, -1);
  if (!have_pwait2_) return WaitWithTimerfd(timeout);
  const timespec spec{timeout.ns() / 1000000000, timeout.ns() % 1000000000};
  const int n = epoll_pwait2(epoll_.get(), events_.data(), kMaxEvents, &spec, nullptr);
  if (n >= 0 || errno != ENOSYS) return n;
  have_pwait2_ = false;  // before 5.11
  return WaitWithTimerfd(timeout);
}

void Worker::Impl::AskPorts(bool all) {
  readable_.clear();
  for (const auto& port : worker_.ports_) {
    if (all || port->polled() || port->wait_fds().empty()) readable_.push_back(port.get());
  }
}

void Worker::Impl::CollectEvents(int count) {
  for (int i = 0; i < count; ++i) {
    const auto fd = static_cast<size_t>(events_[static_cast<size_t>(i)].data.u64 & 0xffffffff);
    Entry& entry = entries_[fd];
    if (entry.kind == EntryKind::kWake) {
      uint64_t value;
      [[maybe_unused]] const ssize_t n = read(wake_.get(), &value, sizeof value);
    } else if (entry.kind == EntryKind::kTimer) {
      uint64_t value;
      [[maybe_unused]] const ssize_t n = read(timer_.get(), &value, sizeof value);
    } else if (entry.kind == EntryKind::kCarried) {
      entry.carried->has_events_ = true;
    } else if (entry.kind == EntryKind::kPort) {
      if ((events_[static_cast<size_t>(i)].events & ~uint32_t{EPOLLOUT}) != 0 && !entry.port->polled())
        readable_.push_back(entry.port);
      if ((entry.events & EPOLLOUT) != 0) (void)Modify(static_cast<int>(fd), entry.events & ~uint32_t{EPOLLOUT});
    }
  }
}

bool Worker::Impl::ReceiveFrom(Port& port) {
  const size_t n = port.Receive(burst_);
  if (n == 0) return false;
  const Instant now = ReadClock();
  for (size_t i = 0; i < n; ++i) burst_[i].received = now;
  stack_.Input(std::span(burst_).first(n), port.ifindex());
  for (size_t i = 0; i < n; ++i) burst_[i] = Packet();
  return true;
}

bool Worker::Impl::ReceiveAll() {
  bool busy = false;
  // By index: what the stack calls may remove ports, which takes them out of readable_.
  for (size_t i = 0; i < readable_.size(); ++i) busy |= ReceiveFrom(*readable_[i]);
  return busy;
}

bool Worker::Impl::DispatchHandlers(int count) {
  bool busy = false;
  for (int i = 0; i < count; ++i) {
    const epoll_event& event = events_[static_cast<size_t>(i)];
    const auto fd = static_cast<size_t>(event.data.u64 & 0xffffffff);
    const Entry& entry = entries_[fd];
    // A handler before may have removed this one, or put another in its place.
    if (entry.kind != EntryKind::kHandler || entry.generation != event.data.u64 >> 32) continue;
    busy = true;
    entry.handler->OnFdEvents(event.events);
  }
  return busy;
}

bool Worker::Impl::RunTasks() {
  bool busy = false;
  for (size_t i = 0; i < tasks_.size(); ++i) busy |= tasks_[i]->OnTurn();
  return busy;
}

bool Worker::Impl::RunMail() {
  if (!has_mail_.load(std::memory_order_acquire)) return false;
  std::vector<std::function<void()>> mail;
  {
    std::lock_guard lock(mail_mutex_);
    mail.swap(mail_);
    has_mail_.store(false, std::memory_order_relaxed);
  }
  for (auto& work : mail) work();
  return !mail.empty();
}

void Worker::Impl::WaitForRoom(Port& port) {
  const int fd = port.tx_wait_fd();
  if (fd < 0 || static_cast<size_t>(fd) >= entries_.size() || entries_[static_cast<size_t>(fd)].port != &port) {
    transmit_retry_ = true;
    return;
  }
  const Entry& entry = entries_[static_cast<size_t>(fd)];
  if ((entry.events & EPOLLOUT) == 0) (void)Modify(fd, entry.events | EPOLLOUT);
}

bool Worker::Impl::FlushAll() {
  transmit_retry_ = false;
  const bool all = stack_.Flush();
  for (const auto& port : worker_.ports_) {
    if (port->tx_pending() || port->transmit_at() <= turn_began_) port->Transmit({});
    if (port->tx_pending() || (!all && port->tx_wait_fd() >= 0)) WaitForRoom(*port);
  }
  if (!all) {
    const bool waiting =
        std::any_of(worker_.ports_.begin(), worker_.ports_.end(), [](const auto& p) { return p->tx_wait_fd() >= 0; });
    if (!waiting) transmit_retry_ = true;
  }
  return all;
}

void Worker::Impl::BuryDead() {
  for (size_t i = 0; i < worker_.ports_.size();) {
    Port& port = *worker_.ports_[i];
    if (!port.dead()) {
      ++i;
      continue;
    }
    const IfIndex ifindex = port.ifindex();
    const std::string kind(port.kind());
    worker_.RemovePort(ifindex);
    if (options_.on_port_dead) options_.on_port_dead(ifindex, kind);
  }
}

bool Worker::Impl::TurnWith(int count, bool ask_all) {
  in_turn_ = true;
  turn_began_ = ReadClock();
  pending_.exchange(false);  // before the looks at what others say with it
  stack_.SetNow(turn_began_);
  AskPorts(ask_all);
  CollectEvents(count);
  bool busy = RunMail();
  busy |= ReceiveAll();
  stack_.AdvanceTimers();
  busy |= DispatchHandlers(count);
  busy |= RunTasks();
  FlushAll();
  BuryDead();
  in_turn_ = false;
  graveyard_.clear();
  ++stats_.turns;
  turn_ended_ = ReadClock();
  const Duration for_others = std::exchange(for_others_, Duration());
  if (!busy) return false;
  ++stats_.busy_turns;
  Book(turn_ended_ - turn_began_ - for_others);
  return true;
}

// One thread writes each of both.
void Worker::Impl::Book(Duration took) {
  for (std::atomic<int64_t>* sum : {&busy_ns_, &runner_.load(std::memory_order_relaxed)->thread_busy_ns_}) {
    sum->store(sum->load(std::memory_order_relaxed) + took.ns(), std::memory_order_relaxed);
  }
}

// One of the thread, so of all workers that it runs. What they said to each other is heard without another look at descriptors.
bool Worker::Impl::Turn(Duration timeout) {
  // A look at the descriptors costs as much as asking a port in vain. Mail and the end have flags of their own.
  const bool passed = MayPass(timeout);
  const int count = passed ? 0 : std::max(0, Wait(timeout));
  sleeping_.store(false, std::memory_order_relaxed);
  bool busy = TurnWith(count, passed);
  if (carried_.empty()) return busy;
  busy |= TurnCarried();
  if (pending_.load(std::memory_order_relaxed)) {
    const Instant began = turn_began_;
    busy |= TurnWith(0);
    busy |= TurnCarried();
    turn_began_ = began;  // when the wait ended
  }
  return busy;
}

// ---- Several workers in one thread

// Adding an epoll descriptor walks all that is in it, under a lock of the whole kernel, and takes memory. Changing it does not.
bool Worker::Impl::Adopt(Impl& other) {
  if (Add(other.epoll_.get(), 0, nullptr, EntryKind::kCarried) != Errno::kOk) return false;
  entries_[static_cast<size_t>(other.epoll_.get())].carried = &other;
  return true;
}

void Worker::Impl::Carry(Impl& other) {
  SLUICE_CHECK(other.carried_.empty());
  (void)Modify(other.epoll_.get(), EPOLLIN);  // there where it was adopted
  other.has_events_ = true;
  other.quiet_ = false;
  other.runner_.store(this);
  carried_.push_back(&other);
  moved_ -= other.Bytes();
}

void Worker::Impl::Release(Impl& other) {
  (void)Modify(other.epoll_.get(), 0);
  moved_ += other.Bytes();
  std::erase(carried_, &other);
  other.runner_.store(&other);
}

bool Worker::Impl::TurnCarried() {
  bool busy = false;
  for (Impl* other : carried_) {
    busy |= other->CarriedTurn(turn_ended_);
    turn_ended_ = std::max(turn_ended_, other->turn_ended_);
  }
  return busy;
}

bool Worker::Impl::CarriedTurn(Instant now) {
  if (quiet_ && !has_events_ && now < quiet_until_ && !pending_.load()) return false;
  const int count = std::exchange(has_events_, false) ? std::max(0, Wait(Duration(0))) : 0;
  const bool busy = TurnWith(count);
  quiet_ = !busy && Quiet();
  return busy;
}

// ---- Spinning and sleeping

bool Worker::Impl::ShouldSpin(Instant now) {
  if (options_.poll == PollMode::kBusy) return true;
  return choice_.spin() && confidence_ >= kSpinConfidence && !core_wanted_ && now - idle_since_ < spin_limit_;
}

// A turn had work: would spinning since the one before have caught it?
void Worker::Impl::NoteGap() {
  const bool covered = turn_began_ - idle_since_ <= spin_limit_;
  confidence_ = covered ? std::min(confidence_ + 1, kMaxConfidence) : std::max(confidence_ - 2, 0);
  core_wanted_ = false;
  if (spin_limit_ > Duration(0) && choice_.Due(turn_began_)) choice_.EndEpoch(turn_began_, Progress());
}

uint64_t Worker::Impl::Bytes() const {
  uint64_t bytes = 0;
  for (const auto& port : worker_.ports_) {
    const PortStats s = port->stats();
    bytes += s.rx_bytes + s.tx_bytes;
  }
  return bytes;
}

// Of the thread, whoever it carries: a worker that comes or goes is no progress.
uint64_t Worker::Impl::Progress() const {
  uint64_t bytes = Bytes() + moved_;
  for (const Impl* other : carried_) bytes += other->Bytes();
  return bytes;
}

bool Worker::Impl::Spin(Instant now) {
  sched_yield();  // whoever else wants this core has it first
  const bool busy = Turn(Duration(0));
  const Duration took = turn_began_ - now;
  if (!busy) stats_.spin_ns += static_cast<uint64_t>(took.ns());
  if (took > kTakenAway) {
    ++stats_.preempted_spins;
    core_wanted_ = true;
  }
  return busy;
}

// Nothing to do before quiet_until_, and whatever comes before says so: by a descriptor or by pending_.
bool Worker::Impl::Quiet() {
  bool quiet = true;
  for (const auto& port : worker_.ports_) quiet &= port->ArmWakeup();
  // Packets that the flush looped back gave a task work after its turn.
  for (const TurnTask* task : tasks_) quiet = quiet && !task->HasWork();
  if (!quiet || pending_.load()) return false;
  quiet_until_ = transmit_retry_ ? turn_ended_ + kTransmitRetry : Instant::Max();
  if (const std::optional<Instant> deadline = stack_.NextDeadline()) quiet_until_ = std::min(quiet_until_, *deadline);
  for (const auto& port : worker_.ports_) quiet_until_ = std::min(quiet_until_, port->transmit_at());
  return true;
}

bool Worker::Impl::AllQuiet() {
  if (stop_.load() || !Quiet()) return false;
  for (Impl* other : carried_) {
    if (!other->quiet_) other->quiet_ = other->Quiet();
    if (!other->quiet_ || other->pending_.load()) return false;
  }
  return true;
}

Duration Worker::Impl::SleepTime() const {
  Instant until = quiet_until_;
  for (const Impl* other : carried_) until = std::min(until, other->quiet_until_);
  return until == Instant::Max() ? Duration::Max() : std::max(Duration(0), until - ReadClock());
}

bool Worker::Impl::Sleep() {
  sleeping_.store(true);
  const bool quiet = AllQuiet();
  const Duration timeout = quiet ? SleepTime() : Duration(0);
  if (timeout <= Duration(0)) {
    sleeping_.store(false, std::memory_order_relaxed);  // a ring from here on needs no system call
    return Turn(Duration(0));
  }
  const Instant begin = ReadClock();
  ++stats_.sleeps;
  const bool busy = Turn(timeout);
  stats_.sleep_ns += static_cast<uint64_t>(std::max<int64_t>(0, (turn_began_ - begin).ns()));
  if (busy) ++stats_.wakeups;
  return busy;
}

void Worker::Impl::PrepareThread() {
  if (std::exchange(prepared_, true)) return;
  // Deadlines are kept to the microsecond; the default slack of 50 us is more than a round trip.
  prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
  if (options_.cpu < 0) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(options_.cpu), &set);
  sched_setaffinity(0, sizeof set, &set);
}

void Worker::Impl::Loop() {
  PrepareThread();
  bool busy = true;
  turn_ended_ = ReadClock();
  while (!stop_.load(std::memory_order_acquire) && !std::exchange(leave_, false)) {
    const Instant now = turn_ended_;
    if (busy) idle_since_ = now;
    if (!ShouldSpin(now)) {
      busy = Sleep();
    } else if (busy) {
      busy = Turn(Duration(0));
    } else {
      busy = Spin(now);
    }
    if (busy) NoteGap();
  }
}

void Worker::Impl::Ring() {
  if (!sleeping_.load() || !sleeping_.exchange(false)) return;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(wake_.get(), &one, sizeof one);
}

void Worker::Impl::Wake() {
  if (!pending_.exchange(true)) runner_.load()->Ring();
}

void Worker::Impl::Post(std::function<void()> work) {
  {
    std::lock_guard lock(mail_mutex_);
    mail_.push_back(std::move(work));
    has_mail_.store(true, std::memory_order_release);
  }
  Wake();
}

void Worker::Impl::RunPosted() {
  if (in_turn_) return (void)RunMail();
  // Within a turn of who carries it: the turn that comes sends what this makes.
  const Instant begin = ReadClock();
  stack_.SetNow(begin);
  pending_.store(true);
  if (!RunMail()) return;
  const Duration took = ReadClock() - begin;
  Book(took);
  runner_.load(std::memory_order_relaxed)->for_others_ += took;
}

void Worker::Impl::Stop() {
  const int saved = errno;
  stop_.store(true);
  Ring();
  errno = saved;
}

WorkerStats Worker::Impl::stats() const {
  WorkerStats s = stats_;
  s.poll = options_.poll;
  s.own_thread = runner_.load(std::memory_order_relaxed) == this;
  s.spin_limit = spin_limit_;
  s.spins = options_.poll == PollMode::kBusy || (options_.poll == PollMode::kAdaptive && choice_.spin());
  return s;
}

// ---- The public face

Worker::Worker(const WorkerOptions& options, Stack& stack) : stack_(stack), impl_(std::make_unique<Impl>(options, *this)) {}

Worker::~Worker() {
  for (const auto& port : ports_) stack_.AttachLink(port->ifindex(), nullptr);
}

void Worker::AddPort(std::unique_ptr<Port> port) {
  impl_->RegisterPort(*port);
  stack_.AttachLink(port->ifindex(), port.get());
  ports_.push_back(std::move(port));
}

void Worker::RemovePort(IfIndex ifindex) {
  auto it = std::find_if(ports_.begin(), ports_.end(), [&](const auto& p) { return p->ifindex() == ifindex; });
  if (it == ports_.end()) return;
  stack_.AttachLink(ifindex, nullptr);
  impl_->UnregisterPort(**it);
  std::unique_ptr<Port> port = std::move(*it);
  ports_.erase(it);
  if (impl_->in_turn_) impl_->graveyard_.push_back(std::move(port));  // it may be in the middle of a call
}

Errno Worker::AddFd(int fd, uint32_t epoll_events, FdHandler* handler) {
  return impl_->Add(fd, epoll_events, handler, EntryKind::kHandler);
}
Errno Worker::ModifyFd(int fd, uint32_t epoll_events) { return impl_->Modify(fd, epoll_events); }
void Worker::RemoveFd(int fd) { impl_->Remove(fd); }
void Worker::ForgetFd(int fd) { impl_->Forget(fd); }
void Worker::AddTask(TurnTask* task) { impl_->tasks_.push_back(task); }
void Worker::RemoveTask(TurnTask* task) { std::erase(impl_->tasks_, task); }
WorkerStats Worker::stats() const { return impl_->stats(); }
void Worker::Post(std::function<void()> work) { impl_->Post(std::move(work)); }
void Worker::RunPosted() { impl_->RunPosted(); }
void Worker::Wake() { impl_->Wake(); }
void Worker::Stop() { impl_->Stop(); }
void Worker::Run() { impl_->Loop(); }
void Worker::PrepareThread() { impl_->PrepareThread(); }
void Worker::Leave() { impl_->leave_ = true; }
bool Worker::Adopt(Worker& other) { return impl_->Adopt(*other.impl_); }
void Worker::Carry(Worker& other) { impl_->Carry(*other.impl_); }
void Worker::Release(Worker& other) { impl_->Release(*other.impl_); }
Instant Worker::turn_began() const { return impl_->turn_began_; }
Duration Worker::busy_time() const { return Duration(impl_->busy_ns_.load(std::memory_order_relaxed)); }
Duration Worker::thread_busy_time() const { return Duration(impl_->thread_busy_ns_.load(std::memory_order_relaxed)); }
bool Worker::RunOnce() { return impl_->Turn(Duration(0)); }

}  // namespace sluice
