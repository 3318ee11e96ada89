// The worker with a stack and ports against the kernel on the other end of a veth, and by itself.
#include "dataplane/worker.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

#include "dataplane/gro_port.h"
#include "dataplane/packet_port.h"
#include "dataplane/testing/test_netns.h"
#include "dataplane/xdp_port.h"
#include "netstack/testing/sim.h"

namespace sluice {
namespace {

Instant Now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return Instant(t.tv_sec * int64_t{1000000000} + t.tv_nsec);
}

// Runs a worker on a thread of its own and stops it at the end.
class WorkerThread {
 public:
  explicit WorkerThread(Worker& worker) : worker_(worker), thread_([this] { worker_.Run(); }) {}
  ~WorkerThread() { Join(); }
  void Join() {
    worker_.Stop();
    if (thread_.joinable()) thread_.join();
  }
  // Runs on the worker's thread and waits for the result.
  template <typename F>
  auto Call(F f) {
    using R = decltype(f());
    std::mutex m;
    std::condition_variable done;
    std::optional<R> result;
    worker_.Post([&] {
      R r = f();
      std::lock_guard lock(m);
      result.emplace(std::move(r));
      done.notify_one();
    });
    std::unique_lock lock(m);
    EXPECT_TRUE(done.wait_for(lock, std::chrono::seconds(30), [&] { return result.has_value(); }));
    return *result;
  }
  std::thread& thread() { return thread_; }

 private:
  Worker& worker_;
  std::thread thread_;
};

class WorkerTest : public ::testing::Test {
 protected:
  WorkerTest() : secure_(7), stack_(Now(), secure_, pool_) {
    stack_.ApplyConfig(std::make_shared<NetConfig>(LoopbackOnlyConfig()));
  }

  HeapBlockPool pool_{64 << 20};
  testing::TestSecureRng secure_;
  Stack stack_;
};

TEST_F(WorkerTest, RunsPostedWorkInOrderAndStops) {
  Worker worker({}, stack_);
  WorkerThread thread(worker);
  std::vector<int> order;
  for (int i = 0; i < 100; ++i) worker.Post([&order, i] { order.push_back(i); });
  EXPECT_EQ(thread.Call([&] { return order.size(); }), 100u);
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
  EXPECT_EQ(thread.Call([&] { return std::this_thread::get_id(); }), thread.thread().get_id());
}

Worker* stop_target = nullptr;

TEST_F(WorkerTest, StopsFromASignalHandler) {
  Worker worker({}, stack_);
  stop_target = &worker;
  signal(SIGUSR1, [](int) { stop_target->Stop(); });
  std::thread thread([&] { worker.Run(); });
  pthread_kill(thread.native_handle(), SIGUSR1);
  thread.join();
  signal(SIGUSR1, SIG_DFL);
}

class Counting : public FdHandler {
 public:
  explicit Counting(int fd) : fd_(fd) {}
  void OnFdEvents(uint32_t) override {
    uint64_t v;
    if (read(fd_, &v, sizeof v) > 0) ++count;
    if (action) action();
  }
  int count = 0;
  std::function<void()> action;

 private:
  int fd_;
};

TEST_F(WorkerTest, HandlersMayRemoveEachOtherAndThemselves) {
  for (bool force_timerfd : {false, true}) {
    Worker worker({.force_timerfd = force_timerfd}, stack_);
    UniqueFd a(eventfd(1, EFD_NONBLOCK)), b(eventfd(1, EFD_NONBLOCK));
    Counting on_a(a.get()), on_b(b.get());
    // Both are ready in the same turn; whoever comes first takes the other off.
    on_a.action = [&] { worker.RemoveFd(b.get()); };
    on_b.action = [&] { worker.RemoveFd(a.get()); };
    ASSERT_EQ(worker.AddFd(a.get(), EPOLLIN, &on_a), Errno::kOk);
    ASSERT_EQ(worker.AddFd(b.get(), EPOLLIN, &on_b), Errno::kOk);
    EXPECT_EQ(worker.AddFd(b.get(), EPOLLIN, &on_b), Errno::kEEXIST);
    EXPECT_TRUE(worker.RunOnce());
    EXPECT_EQ(on_a.count + on_b.count, 1);
    EXPECT_FALSE(worker.RunOnce());
    EXPECT_EQ(on_a.count + on_b.count, 1);
    worker.RemoveFd(a.get());
    worker.RemoveFd(b.get());
    EXPECT_EQ(worker.ModifyFd(a.get(), EPOLLIN), Errno::kENOENT);
  }
}

// Nothing ever comes to it; it can be full.
class AskedPort final : public Port {
 public:
  explicit AskedPort(int* asked) : asked_(asked) {}
  LinkFeatures features() const override { return {}; }
  size_t Transmit(std::span<Packet>) override { return 0; }
  IfIndex ifindex() const override { return 2; }
  std::string_view kind() const override { return "asked"; }
  size_t Receive(std::span<Packet>) override {
    ++*asked_;
    return 0;
  }
  std::vector<int> wait_fds() const override { return {event_.get()}; }
  int tx_wait_fd() const override { return event_.get(); }
  bool tx_pending() const override { return full_; }
  PortStats stats() const override { return {}; }
  void Fill(bool full) { full_ = full; }

 private:
  int* const asked_;
  bool full_ = false;
  UniqueFd event_{eventfd(0, EFD_NONBLOCK)};
};

TEST_F(WorkerTest, AsksPortsThemselvesWhereNothingElseIsWatched) {
  Worker worker({}, stack_);
  int asked = 0;
  auto made = std::make_unique<AskedPort>(&asked);
  AskedPort& port = *made;
  worker.AddPort(std::move(made));
  EXPECT_FALSE(worker.RunOnce());
  EXPECT_EQ(asked, 1);
  // A handler must be heard, so descriptors are looked at: the port's says that there is nothing.
  UniqueFd event(eventfd(1, EFD_NONBLOCK));
  Counting on_event(event.get());
  ASSERT_EQ(worker.AddFd(event.get(), EPOLLIN, &on_event), Errno::kOk);
  EXPECT_TRUE(worker.RunOnce());
  EXPECT_EQ(on_event.count, 1);
  EXPECT_EQ(asked, 1);
  worker.RemoveFd(event.get());
  EXPECT_FALSE(worker.RunOnce());
  EXPECT_EQ(asked, 2);
  // So it is while a port waits for room: the turn that hears of it is the last one that looks.
  port.Fill(true);
  EXPECT_FALSE(worker.RunOnce());
  EXPECT_EQ(asked, 3);
  port.Fill(false);
  EXPECT_FALSE(worker.RunOnce());
  EXPECT_EQ(asked, 3);
  EXPECT_FALSE(worker.RunOnce());
  EXPECT_EQ(asked, 4);
}

class CallingTask final : public TurnTask {
 public:
  CallingTask(Worker& worker, std::function<bool()> work) : worker_(worker), work_(std::move(work)) { worker_.AddTask(this); }
  ~CallingTask() override { worker_.RemoveTask(this); }
  bool OnTurn() override { return work_(); }

 private:
  Worker& worker_;
  const std::function<bool()> work_;
};

class CarriedWorkerTest : public WorkerTest {
 protected:
  CarriedWorkerTest() : other_stack_(Now(), secure_, pool_) {
    EXPECT_TRUE(front_.Adopt(other_));
    front_.Carry(other_);
  }
  ~CarriedWorkerTest() override { front_.Release(other_); }

  Stack other_stack_;
  Worker front_{{}, stack_}, other_{{}, other_stack_};
};

// What ended the wait is told from when the turn began; what workers of one thread say to each other did not.
TEST_F(CarriedWorkerTest, ATurnBeganWhereItsFirstPartDid) {
  std::vector<Instant> parts;
  CallingTask front_task(front_, [&] {
    parts.push_back(front_.turn_began());
    return false;
  });
  CallingTask other_task(other_, [&] {
    if (parts.size() == 1) {
      while (Now() == parts[0]) continue;
      front_.Wake();
    }
    return false;
  });
  front_.RunOnce();
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_GT(parts[1], parts[0]);
  EXPECT_EQ(front_.turn_began(), parts[0]);
}

TEST_F(CarriedWorkerTest, TimeIsBookedToWhomItWasFor) {
  Duration took;
  const auto work = [&took] {
    const Instant begin = Now();
    while (Now() - begin < Duration::Microseconds(10)) continue;
    took = took + (Now() - begin);
  };
  bool due = false, more = false;
  CallingTask task(front_, [&] {
    if (!std::exchange(due, false)) return false;
    other_.Post(work);
    other_.RunPosted();
    return more;
  });
  for (const bool front_has_work : {false, true}) {
    due = true;
    more = front_has_work;
    EXPECT_EQ(front_.RunOnce(), front_has_work);
    EXPECT_GE(other_.busy_time(), took);
    EXPECT_EQ(front_.busy_time() + other_.busy_time(), front_.thread_busy_time());
  }
  other_.Post(work);  // in its own turn
  EXPECT_TRUE(front_.RunOnce());
  EXPECT_GE(other_.busy_time(), took);
  EXPECT_EQ(front_.busy_time() + other_.busy_time(), front_.thread_busy_time());
  // Who goes takes along nothing that the thread did, and who has a thread of its own is not of this one.
  const Duration before = front_.thread_busy_time();
  front_.Release(other_);
  EXPECT_EQ(front_.thread_busy_time(), before);
  other_.Post(work);
  EXPECT_TRUE(other_.RunOnce());
  EXPECT_EQ(front_.thread_busy_time(), before);
  EXPECT_GT(other_.thread_busy_time(), Duration());
  front_.Carry(other_);
  EXPECT_EQ(front_.thread_busy_time(), before);
}

TEST_F(CarriedWorkerTest, DescriptorsWakeWhoRunsTheWorker) {
  const UniqueFd event(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  Counting counting(event.get());
  ASSERT_EQ(other_.AddFd(event.get(), EPOLLIN, &counting), Errno::kOk);
  const auto ring = [&] {
    const uint64_t one = 1;
    ASSERT_EQ(write(event.get(), &one, sizeof one), ssize_t{sizeof one});
  };
  for (int round = 1; round <= 3; ++round) {
    front_.RunOnce();  // it is quiet behind this
    ring();
    EXPECT_TRUE(front_.RunOnce());
    EXPECT_EQ(counting.count, 2 * round - 1);
    front_.Release(other_);
    ring();
    EXPECT_FALSE(front_.RunOnce());
    EXPECT_TRUE(other_.RunOnce());
    EXPECT_EQ(counting.count, 2 * round);
    front_.Carry(other_);
  }
  other_.RemoveFd(event.get());
}

TEST_F(CarriedWorkerTest, TwoDoNotAdoptEachOther) { EXPECT_FALSE(other_.Adopt(front_)); }

TEST_F(WorkerTest, UsesNoProcessorTimeWhenIdle) {
  for (bool force_timerfd : {false, true}) {
    Worker worker({.force_timerfd = force_timerfd}, stack_);
    WorkerThread thread(worker);
    clockid_t clock;
    ASSERT_EQ(pthread_getcpuclockid(thread.thread().native_handle(), &clock), 0);
    thread.Call([] { return 0; });
    auto turns = [&] { return thread.Call([&] { return worker.stats().turns; }); };
    // It spins for at most 200 us after each of our calls, then sleeps until the next.
    const uint64_t before = turns();
    timespec t0, t1;
    clock_gettime(clock, &t0);
    const timespec pause{0, 500'000'000};
    nanosleep(&pause, nullptr);
    clock_gettime(clock, &t1);
    const int64_t used = (t1.tv_sec - t0.tv_sec) * 1000000000 + t1.tv_nsec - t0.tv_nsec;
    EXPECT_LT(used, 5'000'000) << "1 % of half a second";
    EXPECT_LT(turns() - before, 2000u);
  }
}

// Of the first two cores that this process may use; false where there is one.
bool TwoCores(int* first, int* second) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0 || CPU_COUNT(&set) < 2) return false;
  *first = *second = -1;
  for (int i = 0; i < CPU_SETSIZE && *second < 0; ++i) {
    if (CPU_ISSET(static_cast<size_t>(i), &set)) (*first < 0 ? *first : *second) = i;
  }
  return true;
}

void MoveTo(std::thread& thread, int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(core), &set);
  EXPECT_EQ(pthread_setaffinity_np(thread.native_handle(), sizeof set, &set), 0);
}

TEST_F(WorkerTest, GoesOnWhenItsCoreIsTakenAway) {
  int first, second;
  if (!TwoCores(&first, &second)) GTEST_SKIP() << "needs two cores";
  for (const PollMode poll : {PollMode::kAdaptive, PollMode::kBusy, PollMode::kInterrupt}) {
    Worker worker({.poll = poll, .cpu = first}, stack_);
    WorkerThread thread(worker);
    EXPECT_EQ(thread.Call([] { return sched_getcpu(); }), first);
    MoveTo(thread.thread(), second);
    EXPECT_EQ(thread.Call([] { return sched_getcpu(); }), second);
    MoveTo(thread.thread(), first);
    EXPECT_EQ(thread.Call([] { return sched_getcpu(); }), first);
  }
}

// As where the workers of several sandboxes share a core: each turn of a spinning worker lets the others run, and it sees that.
TEST_F(WorkerTest, YieldsTheCoreToOthersAndCountsIt) {
  int first, second;
  if (!TwoCores(&first, &second)) GTEST_SKIP() << "needs two cores";
  Worker worker({.poll = PollMode::kBusy, .cpu = first}, stack_);
  WorkerThread thread(worker);
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> worked{0};
  std::thread other([&] {
    while (!stop) ++worked;
  });
  MoveTo(other, first);
  const Instant begin = Now();
  const auto preempted = [&] { return thread.Call([&] { return worker.stats().preempted_spins; }); };
  while (preempted() < 3 && Now() - begin < Duration::Seconds(30)) {
  }
  EXPECT_GE(preempted(), 3u);
  EXPECT_GT(worked.load(), 0u);
  stop = true;
  other.join();
  thread.Call([] { return 0; });
}

TEST_F(WorkerTest, InterruptModeNeverSpins) {
  Worker worker({.poll = PollMode::kInterrupt}, stack_);
  WorkerThread thread(worker);
  for (int i = 0; i < 100; ++i) thread.Call([] { return 0; });
  EXPECT_EQ(thread.Call([&] { return worker.stats().spin_ns; }), 0u);
  EXPECT_GT(thread.Call([&] { return worker.stats().sleeps; }), 0u);
}

TEST_F(WorkerTest, BusyModeNeverSleeps) {
  Worker worker({.poll = PollMode::kBusy}, stack_);
  WorkerThread thread(worker);
  for (int i = 0; i < 100; ++i) thread.Call([] { return 0; });
  EXPECT_EQ(thread.Call([&] { return worker.stats().sleeps; }), 0u);
}

TEST_F(WorkerTest, MeasuresWhatAWakeUpCosts) {
  const Duration cost = MeasureWakeCost();
  EXPECT_GT(cost, Duration(0));
  EXPECT_LT(cost, Duration::Seconds(1));
}

// ---- With a device

struct DeviceCase {
  const char* name;
  bool xdp, vnet;
  bool native = false;  // XDP mode; with receive coalescing, as the peer cuts its segments then
};

class WorkerOnVeth : public ::testing::TestWithParam<DeviceCase> {
 protected:
  void SetUp() override {
    if (const std::string why = testing::WhyNoNetns(); !why.empty()) GTEST_SKIP() << why;
    veth_ = std::make_unique<testing::VethPair>();
    // The kernel of our side keeps the device but no address: it does not answer for the stack.
    ASSERT_EQ(veth_->Run(veth_->ours(), "ip addr flush dev sl0; echo 0 > /proc/sys/net/ipv4/ip_forward"), 0);
    stack_ = std::make_unique<Stack>(Now(), secure_, pool_);
    auto config = std::make_shared<NetConfig>(testing::HostConfig("10.77.0.1/24"));
    ReplaceIndex(config.get());
    stack_->ApplyConfig(config);
    worker_ =
        std::make_unique<Worker>(WorkerOptions{.on_port_dead = [this](IfIndex i, std::string_view) { dead_ = i; }}, *stack_);
    worker_->AddPort(OpenPort());
  }
  void TearDown() override {
    worker_.reset();
    stack_.reset();
  }
  void ReplaceIndex(NetConfig* config) {
    const IfIndex index = veth_->our_index();
    for (auto& link : config->links) {
      if (link.index == testing::kSimIfIndex) link.index = index, link.mac = OurMac();
    }
    for (auto& a : config->addresses) a.ifindex = a.ifindex == testing::kSimIfIndex ? index : a.ifindex;
    for (auto& r : config->routes) {
      for (auto& hop : r.next_hops) hop.ifindex = hop.ifindex == testing::kSimIfIndex ? index : hop.ifindex;
    }
  }
  MacAddress OurMac() {
    testing::InNetns in(veth_->ours());
    UniqueFd fd(socket(AF_INET, SOCK_DGRAM, 0));
    ifreq request{};
    std::strcpy(request.ifr_name, "sl0");
    EXPECT_EQ(ioctl(fd.get(), SIOCGIFHWADDR, &request), 0);
    MacAddress mac;
    std::memcpy(mac.bytes.data(), request.ifr_hwaddr.sa_data, 6);
    return mac;
  }
  std::unique_ptr<Port> OpenPort() {
    testing::InNetns in(veth_->ours());
    std::string error;
    if (GetParam().xdp) {
      std::vector<Xsk> sockets;
      EXPECT_EQ(OpenXdpDevice(veth_->our_index(), 1, {.veth = true},
                              {.mode = GetParam().native ? XdpMode::kNative : XdpMode::kGeneric}, &attachment_, &sockets, &error),
                Errno::kOk)
          << error;
      auto port = XdpPort::Create(std::move(sockets[0].fd), std::move(sockets[0].umem), sockets[0].facts, {}, pool_, &error);
      if (GetParam().native) return std::make_unique<GroPort>(std::move(port));
      return port;
    }
    PacketSocket socket;
    EXPECT_EQ(OpenPacketSocket(veth_->our_index(), {.vnet_header = GetParam().vnet}, &socket, &error), Errno::kOk) << error;
    return std::make_unique<PacketPort>(std::move(socket.fd), socket.facts, PacketPortOptions{}, pool_);
  }

  HeapBlockPool pool_{128 << 20};
  testing::TestSecureRng secure_{11};
  std::unique_ptr<testing::VethPair> veth_;
  XdpAttachment attachment_;
  std::unique_ptr<Stack> stack_;
  std::unique_ptr<Worker> worker_;
  std::atomic<IfIndex> dead_{0};
  std::string output_;
};

TEST_P(WorkerOnVeth, AnswersPingOfEverySize) {
  WorkerThread thread(*worker_);
  for (const char* size : {"0", "56", "1472", "4000", "20000"}) {
    EXPECT_EQ(veth_->Run(veth_->peer(), std::string("ping -c3 -i0.05 -W5 -q -s ") + size + " 10.77.0.1", &output_), 0) << output_;
  }
}

TEST_P(WorkerOnVeth, KeepsTimersWhileItSleeps) {
  // Resolution of an address nobody has fails by the neighbour timers alone (three requests, a second apart).
  WorkerThread thread(*worker_);
  std::atomic<uint32_t> seen{0};
  struct Observer : SocketObserver {
    std::atomic<uint32_t>* seen;
    void OnSocketEvents(uint32_t events) override { *seen |= events; }
  } observer;
  observer.seen = &seen;
  DatagramSocket* socket = thread.Call([&] {
    DatagramSocket* s = stack_->NewUdpSocket(Family::kIpv4);
    s->set_observer(&observer);
    (void)s->SetOption(SockOpt::kIpRecvErr, 1);
    const uint8_t byte = 1;
    const Bytes payload(&byte, 1);
    EXPECT_EQ(s->Connect(Endpoint{IpAddress::V4(10, 77, 0, 9), 9}), Errno::kOk);
    EXPECT_EQ(s->Send({}, std::span(&payload, 1)), Errno::kOk);
    return s;
  });
  const Instant begin = Now();
  while ((seen & kError) == 0 && Now() - begin < Duration::Seconds(30)) {
    const timespec pause{0, 20'000'000};
    nanosleep(&pause, nullptr);
  }
  EXPECT_NE(seen & kError, 0u) << "no EHOSTUNREACH after 30 s";
  thread.Call([&] {
    socket->Close();
    return 0;
  });
}

TEST_P(WorkerOnVeth, ReportsAndRemovesADeadPort) {
  WorkerThread thread(*worker_);
  thread.Call([] { return 0; });
  ASSERT_EQ(veth_->Run(veth_->ours(), "ip link del sl0"), 0);
  // Found at the next turn, which our question makes: the kernel says "down" before it is gone, and to AF_XDP nothing.
  const Instant begin = Now();
  while (dead_ == 0 && Now() - begin < Duration::Seconds(30)) {
    thread.Call([] { return 0; });
    const timespec pause{0, 5'000'000};
    nanosleep(&pause, nullptr);
  }
  EXPECT_EQ(dead_, veth_->our_index());
  EXPECT_EQ(thread.Call([&] { return worker_->ports().size(); }), 0u);
}

#ifdef SLUICE_HAVE_TCP
// A program's side on the worker: accepts one connection, answers the first 8 bytes (a count, big endian) with so many pattern
// bytes while it counts and checks what comes.
class BulkServer : public TurnTask, public SocketObserver {
 public:
  BulkServer(Stack& stack, BlockPool& pool) : pool_(pool), listener_(stack.NewTcpSocket(Family::kIpv4)) {
    listener_->set_observer(this);
    EXPECT_EQ(listener_->Bind(Endpoint{IpAddress::Any(Family::kIpv4), 5001}), Errno::kOk);
    EXPECT_EQ(listener_->Listen(16), Errno::kOk);
  }
  void OnSocketEvents(uint32_t) override { dirty_ = true; }
  bool OnTurn() override {
    if (!std::exchange(dirty_, false)) return false;
    if (connection_ == nullptr && (connection_ = listener_->Accept()) != nullptr) connection_->set_observer(this);
    if (connection_ != nullptr) Serve();
    return true;
  }
  static uint8_t Byte(uint64_t at) { return static_cast<uint8_t>(at * 31 ^ at >> 8); }
  std::atomic<uint64_t> received{0}, wrong{0};

 private:
  void Serve() {
    Bytes pieces[64];
    for (size_t n; (n = connection_->Peek(pieces)) != 0;) {
      size_t bytes = 0;
      for (size_t i = 0; i < n; ++i) {
        for (uint8_t b : pieces[i]) Take(b, received + bytes++);
      }
      connection_->Consume(bytes);
      received += bytes;
    }
    while (received >= 8 && sent_ < to_send_ && connection_->send_space() > 0) {
      const auto size = static_cast<uint32_t>(std::min<uint64_t>(65536, to_send_ - sent_));
      BlockRef block(pool_.Allocate(size));
      if (!block) break;
      for (uint32_t i = 0; i < size; ++i) block->data[i] = Byte(sent_ + i);
      if (connection_->Send(Slice{std::move(block), 0, size}, false) != Errno::kOk) break;
      sent_ += size;
    }
    if (received >= 8 && sent_ == to_send_ && connection_->at_end()) {
      connection_->Close();
      connection_ = nullptr;
    }
  }
  void Take(uint8_t b, uint64_t at) {
    if (at < 8) {
      to_send_ = to_send_ << 8 | b;
    } else if (b != Byte(at)) {
      ++wrong;
    }
  }

  BlockPool& pool_;
  StreamSocket* listener_;
  StreamSocket* connection_ = nullptr;
  uint64_t to_send_ = 0, sent_ = 0;
  bool dirty_ = true;
};

TEST_P(WorkerOnVeth, CarriesATcpStreamBothWaysByteExact) {
  BulkServer server(*stack_, pool_);
  worker_->AddTask(&server);
  WorkerThread thread(*worker_);
  constexpr uint64_t kBytes = 16 << 20;
  UniqueFd client;
  {
    testing::InNetns in(veth_->peer());
    client = UniqueFd(socket(AF_INET, SOCK_STREAM, 0));
  }
  timeval patience{20, 0};
  setsockopt(client.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  setsockopt(client.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(5001);
  to.sin_addr.s_addr = htonl(0x0a4d0001);
  ASSERT_EQ(connect(client.get(), reinterpret_cast<sockaddr*>(&to), sizeof to), 0) << strerror(errno);
  std::vector<uint8_t> data(kBytes);
  StoreBe64(data.data(), kBytes);
  for (uint64_t i = 8; i < kBytes; ++i) data[i] = BulkServer::Byte(i);
  uint64_t got = 0, wrong = 0;
  std::thread reader([&] {
    std::vector<uint8_t> buffer(256 << 10);
    for (ssize_t n; got < kBytes && (n = recv(client.get(), buffer.data(), buffer.size(), 0)) > 0;) {
      for (ssize_t i = 0; i < n; ++i) wrong += buffer[static_cast<size_t>(i)] != BulkServer::Byte(got + static_cast<uint64_t>(i));
      got += static_cast<uint64_t>(n);
    }
  });
  for (size_t at = 0; at < kBytes;) {
    const ssize_t n = send(client.get(), data.data() + at, kBytes - at, MSG_NOSIGNAL);
    ASSERT_GT(n, 0) << "after " << at << ": " << strerror(errno);
    at += static_cast<size_t>(n);
  }
  reader.join();
  EXPECT_EQ(got, kBytes);
  EXPECT_EQ(wrong, 0u);
  const Instant begin = Now();
  while (server.received != kBytes && Now() - begin < Duration::Seconds(20)) thread.Call([] { return 0; });
  EXPECT_EQ(server.received, kBytes);
  EXPECT_EQ(server.wrong, 0u);
}
#endif

INSTANTIATE_TEST_SUITE_P(Ports, WorkerOnVeth,
                         ::testing::Values(DeviceCase{"Packet", false, true}, DeviceCase{"PacketWithoutHeader", false, false},
                                           DeviceCase{"XdpGeneric", true, false}, DeviceCase{"XdpNativeGro", true, false, true}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace sluice
