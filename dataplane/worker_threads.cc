#include "dataplane/worker_threads.h"

#include <fcntl.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <thread>
#include <utility>

#include "base/check.h"

namespace sluice {
namespace {

constexpr Duration kRestlessEpoch = Duration::Microseconds(500);

}  // namespace

// Looks once per epoch, in the turns of its worker. In the first one it also takes back what other threads gave.
class WorkerThreads::Watch final : public TurnTask {
 public:
  Watch(WorkerThreads& threads, uint32_t number) : threads_(threads), number_(number) {}
  bool OnTurn() override;

 private:
  WorkerThreads& threads_;
  const uint32_t number_;
};

// Of one worker, and of the thread with its number.
struct WorkerThreads::Seat {
  Seat(WorkerThreads& threads, uint32_t i, Worker& w) : worker(&w), watch(threads, i) {}

  Worker* const worker;
  std::atomic<uint32_t> state{kCarried};
  std::atomic<uint64_t> handovers{0};
  Watch watch;
  // Of the thread. Set when it begins.
  clockid_t cpu_clock{};
  UniqueFd schedstat;
  // Of the first worker's thread.
  bool adopted = false;  // set when it begins; one that is not has its own thread until all stop
  bool carried = false;
  Duration busy;
  // Of who runs the worker. Its last look at all threads.
  Instant looked;
  std::array<ThreadTimes, ShardPeers::kMax> seen;
  Instant apart_since;
  ReturnChoice choice;
  uint32_t changes = 0;
  // Written by the worker's own thread before it gives it back.
  ReturnChoice::Answer answer = ReturnChoice::Answer::kStay;
};

bool WorkerThreads::Watch::OnTurn() {
  const Instant now = threads_.seats_[number_]->worker->turn_began();
  if (number_ == 0) {
    threads_.LookAtFirst(now);
  } else {
    threads_.LookAtOwn(number_, now);
  }
  return false;
}

WorkerThreads::WorkerThreads(std::vector<Worker*> workers, Threads threads)
    : threads_(threads), begun_(static_cast<ptrdiff_t>(workers.size())) {
  SLUICE_CHECK(!workers.empty());
  for (uint32_t i = 0; i < workers.size(); ++i) seats_.push_back(std::make_unique<Seat>(*this, i, *workers[i]));
  if (size() == 1) return;
  for (const auto& seat : seats_) seat->worker->AddTask(&seat->watch);
}

WorkerThreads::~WorkerThreads() {
  if (size() == 1) return;
  for (const auto& seat : seats_) seat->worker->RemoveTask(&seat->watch);
}

// ---- Threads

void WorkerThreads::Begin(Seat& seat) {
  seat.worker->PrepareThread();
  pthread_getcpuclockid(pthread_self(), &seat.cpu_clock);
  seat.schedstat = UniqueFd(open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC));
  begun_.count_down();
}

void WorkerThreads::Live(uint32_t i) {
  Seat& seat = *seats_[i];
  Begin(seat);
  for (;;) {
    seat.state.wait(kCarried);
    if (seat.state.load() == kOver) return;
    seat.worker->Run();
    uint32_t apart = kApart;
    if (!seat.state.compare_exchange_strong(apart, kCarried)) return;
    // The first one's thread may have it from here on. Where all stop, too: it may wait in Ask for what was posted.
    back_.fetch_or(ShardSet{1} << i);
    signal_.fetch_add(1);
    signal_.notify_one();
    seats_[0]->worker->Wake();
  }
}

void WorkerThreads::Run() {
  std::vector<std::thread> threads;
  for (uint32_t i = 1; i < size(); ++i) threads.emplace_back([this, i] { Live(i); });
  Begin(*seats_[0]);
  begun_.wait();
  Worker& first = *seats_[0]->worker;
  for (uint32_t i = 1; i < size(); ++i) {
    Seat& seat = *seats_[i];
    seat.adopted = threads_ != Threads::kApart && first.Adopt(*seat.worker);
    if (seat.adopted) {
      first.Carry(*seat.worker);
      seat.carried = true;
    } else {
      seat.state.store(kApart);
      seat.state.notify_one();
    }
  }
  running_ = true;
  first.Run();
  running_ = false;
  for (const auto& seat : seats_) {
    seat->worker->Stop();
    seat->state.store(kOver);
    seat->state.notify_one();
  }
  for (std::thread& thread : threads) thread.join();
  for (uint32_t i = 1; i < size(); ++i) {
    if (seats_[i]->carried) first.Release(*seats_[i]->worker);
  }
}

// ---- Handing over

void WorkerThreads::GiveAway(uint32_t i, Instant now) {
  Seat& seat = *seats_[i];
  seats_[0]->worker->Release(*seat.worker);
  seat.carried = false;
  seat.handovers.fetch_add(1, std::memory_order_relaxed);
  seat.apart_since = now;
  seat.looked = {};
  changes_.fetch_add(1);
  seat.state.store(kApart);
  seat.state.notify_one();
}

void WorkerThreads::TakeBack(Instant now) {
  for (ShardSet back = back_.exchange(0); back != 0; back &= back - 1) {
    Seat& seat = *seats_[static_cast<size_t>(std::countr_zero(back))];
    seats_[0]->worker->Carry(*seat.worker);
    seat.carried = true;
    seat.handovers.fetch_add(1, std::memory_order_relaxed);
    changes_.fetch_add(1);
    leaving_.store(false);
    split_.OnReturn(now, now - seat.apart_since, seat.answer == ReturnChoice::Answer::kInVain);
  }
}

void WorkerThreads::Ask(ShardSet whom, const std::function<void(uint32_t)>& work) {
  std::atomic<int> left = std::popcount(whom);
  for (ShardSet to = whom; to != 0; to &= to - 1) {
    const auto i = static_cast<uint32_t>(std::countr_zero(to));
    seats_[i]->worker->Post([this, &work, &left, i] {
      work(i);
      left.fetch_sub(1);  // the last that is known to be there is this object
      signal_.fetch_add(1);
      signal_.notify_one();
    });
  }
  for (;;) {
    const uint32_t seen = signal_.load();
    TakeBack(seats_[0]->worker->turn_began());
    for (ShardSet to = whom; to != 0; to &= to - 1) RunPosted(static_cast<uint32_t>(std::countr_zero(to)));
    if (left.load() == 0) return;
    signal_.wait(seen);
  }
}

void WorkerThreads::RunPosted(uint32_t i) {
  if (seats_[i]->carried) seats_[i]->worker->RunPosted();
}

uint64_t WorkerThreads::handovers(uint32_t i) const { return seats_[i]->handovers.load(std::memory_order_relaxed); }

// ---- Looking

ThreadTimes WorkerThreads::Read(uint32_t i, Instant now) const {
  const Seat& seat = *seats_[i];
  ThreadTimes t{.at = now, .busy = seat.worker->thread_busy_time()};
  timespec cpu{};
  clock_gettime(seat.cpu_clock, &cpu);
  t.cpu = Duration(cpu.tv_sec * int64_t{1000000000} + cpu.tv_nsec);
  char text[96];
  const ssize_t n = pread(seat.schedstat.get(), text, sizeof text - 1, 0);
  text[std::max<ssize_t>(n, 0)] = 0;
  // Where the kernel does not tell, what a turn took longer than its time on a core is some of it.
  t.waited = WaitedForCore(text).value_or(t.busy - t.cpu);
  return t;
}

// What each thread did since the last look in the turns of worker `i`. False at the first one.
bool WorkerThreads::Look(uint32_t i, Instant now, std::span<ThreadShare> shares) {
  Seat& seat = *seats_[i];
  const bool again = std::exchange(seat.looked, now) != Instant();
  for (uint32_t k = 0; k < size(); ++k) {
    const ThreadTimes next = Read(k, now), last = std::exchange(seat.seen[k], next);
    if (again) shares[k] = ShareOf(last, next);
  }
  return again;
}

void WorkerThreads::LookAtFirst(Instant now) {
  if (back_.load(std::memory_order_relaxed) != 0) TakeBack(now);
  Seat& first = *seats_[0];
  if (threads_ == Threads::kRestless && now - first.looked >= kRestlessEpoch) {
    first.looked = now;
    for (uint32_t i = 1; i < size(); ++i) {
      if (seats_[i]->carried) GiveAway(i, now);
    }
  }
  if (threads_ != Threads::kAuto || !running_ || now - first.looked < SplitChoice::kEpoch) return;
  const Instant last = first.looked;
  std::array<ThreadShare, ShardPeers::kMax> shares{};
  const bool again = Look(0, now, shares);
  std::array<double, ShardPeers::kMax> parts{};
  for (uint32_t i = 0; i < size(); ++i) {
    Seat& seat = *seats_[i];
    const Duration busy = seat.worker->busy_time(), before = std::exchange(seat.busy, busy);
    if (i == 0 || seat.carried) parts[i] = static_cast<double>((busy - before).ns()) / static_cast<double>((now - last).ns());
    shares[0].waited = std::max(shares[0].waited, shares[i].waited);
  }
  const auto who = again ? split_.EndEpoch(now, shares[0], std::span(parts).first(size())) : std::nullopt;
  if (who) GiveAway(static_cast<uint32_t>(*who), now);
}

void WorkerThreads::LookAtOwn(uint32_t i, Instant now) {
  Seat& seat = *seats_[i];
  if (!seat.adopted || seat.state.load(std::memory_order_relaxed) != kApart) return;
  if (threads_ == Threads::kRestless && now - seat.apart_since >= kRestlessEpoch) seat.worker->Leave();
  if (threads_ != Threads::kAuto || now - seat.looked < ReturnChoice::kEpoch) return;
  std::array<ThreadShare, ShardPeers::kMax> shares{};
  const bool again = Look(i, now, shares);
  const uint32_t changes = changes_.load();
  if (std::exchange(seat.changes, changes) != changes || !again) return seat.choice.Begin(now);
  double others_waited = 0;
  for (uint32_t k = 1; k < size(); ++k) others_waited += k == i ? 0 : shares[k].waited;
  seat.answer = seat.choice.EndEpoch(now, shares[i], shares[0], others_waited);
  if (seat.answer == ReturnChoice::Answer::kStay) return;
  if (leaving_.exchange(true)) return seat.choice.Begin(now);  // what is left is judged anew
  seat.worker->Leave();
}

}  // namespace sluice
