// What several workers bring on ports in memory. Two hosts of N workers each joined by pipe queues, TCP between them; a thread
// runs one worker of either host, so that N workers use N cores:
//
//   own    both hosts steer by one key: both ends of a flow are in one thread, so what is measured is what workers share. On a
//          device the peer is not in our threads either
//   mixed  each has a key of its own, so that flows go between all: N - 1 of N frames change their thread, which is measured, too
//
// One host, TCP over its loopback between sockets of the same worker:
//
//   auto   its threads are as the group decides. Nothing else wants a core, so each worker is to get one within the 0.3 seconds
//          before the measurement
//
//   cores [--seconds=2] [--rounds=5] [--workers=2]
//
// Prints one line for each work and round, and the medians with their ratio to one worker. Rounds of one worker and of several
// take turns, so that both see the same machine.
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "dataplane/pipe_queues.h"
#include "dataplane/worker_group.h"
#include "netstack/config_builder.h"

namespace {

using namespace sluice;

constexpr IfIndex kDevice = 2;
constexpr uint16_t kPort = 7;
constexpr uint32_t kBlock = 32768, kMessage = 64, kConnections = 32;  // of each worker
const IpAddress kServer = IpAddress::V4(10, 0, 0, 1), kClient = IpAddress::V4(10, 0, 0, 2);
const IpAddress kLoopback = IpAddress::Loopback(Family::kIpv4);

// The sockets of one worker. Bulk: clients send all they can, servers drop it. Round trips: one message of 64 bytes each there
// and back.
class Program final : public TurnTask, private SocketObserver {
 public:
  Program(Worker& worker, BlockPool& pool, bool bulk, bool server, const IpAddress& to = kServer)
      : worker_(worker), bulk_(bulk), server_(server), block_(pool.Allocate(kBlock)) {
    std::memset(block_->data, 'x', kBlock);
    worker_.AddTask(this);
    if (server) {
      listener_ = NewSocket();
      (void)listener_->Bind({IpAddress::Any(Family::kIpv4), kPort, 0});
      (void)listener_->Listen(1024);
      return;
    }
    for (uint32_t i = 0; i < kConnections; ++i) {
      sockets_.push_back(NewSocket());
      (void)sockets_.back()->Connect({to, kPort, 0});
    }
  }
  ~Program() override {
    worker_.RemoveTask(this);
    for (StreamSocket* s : sockets_) s->Abort();
    if (listener_ != nullptr) listener_->Close();
  }
  bool OnTurn() override {
    if (!std::exchange(due_, false)) return false;
    while (StreamSocket* s = listener_ != nullptr ? listener_->Accept() : nullptr) {
      s->set_observer(this);
      (void)s->SetOption(SockOpt::kTcpNoDelay, 1);
      sockets_.push_back(s);
    }
    for (size_t i = 0; i < sockets_.size(); ++i) Step(i);
    return true;
  }
  bool HasWork() const override { return due_; }
  // Bytes received by a server; round trips of a client.
  uint64_t done() const { return done_.load(std::memory_order_relaxed); }

 private:
  StreamSocket* NewSocket() {
    StreamSocket* s = worker_.stack().NewTcpSocket(Family::kIpv4);
    s->set_observer(this);
    (void)s->SetOption(SockOpt::kTcpNoDelay, 1);
    return s;
  }
  void OnSocketEvents(uint32_t) override { due_ = true; }
  void Step(size_t i) {
    StreamSocket* s = sockets_[i];
    if (s->state() != 1) return;
    const size_t n = s->readable_bytes();
    if (bulk_ && !server_) {
      while (s->send_space() > 0 && s->Send(Slice{block_, 0, kBlock}, false) == Errno::kOk) {
      }
    } else if (bulk_) {
      s->Consume(n);
      Count(n);
    } else if (n >= kMessage || (!server_ && asked_.size() <= i)) {
      s->Consume(n);
      if (!server_ && asked_.size() <= i) asked_.resize(i + 1, true);
      (void)s->Send(Slice{block_, 0, kMessage}, false);
      if (!server_ && n > 0) Count(1);
    }
  }
  void Count(uint64_t n) { done_.store(done_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed); }

  Worker& worker_;
  const bool bulk_, server_;
  BlockRef block_;
  StreamSocket* listener_ = nullptr;
  std::vector<StreamSocket*> sockets_;
  std::vector<bool> asked_;
  bool due_ = true;
  std::atomic<uint64_t> done_{0};
};

struct Host {
  explicit Host(const WorkerGroupOptions& options) : group(options) {}
  Host(uint32_t workers, std::optional<wire::SteeringKey> key)
      : group({.workers = workers, .worker = {.poll = PollMode::kBusy}, .key = key}) {}
  PipeSide side() {
    PipeSide s{.ifindex = kDevice, .key = group.key()};
    for (uint32_t i = 0; i < group.size(); ++i) s.pools.push_back(&group.pool(i));
    return s;
  }
  void Start(const IpAddress& address, uint8_t mac, std::vector<std::unique_ptr<Port>> queues, bool bulk, bool server) {
    auto config = std::make_shared<NetConfig>(LoopbackOnlyConfig());
    AddDevice(config.get(), kDevice, "eth0", MacAddress{{2, 0, 0, 0, 0, mac}}, 1500);
    AddAddress(config.get(), kDevice, {address, 24});
    group.ApplyConfig(config);
    group.AddQueues(std::move(queues));
    for (uint32_t i = 0; i < group.size(); ++i)
      programs.push_back(std::make_unique<Program>(group.worker(i), group.pool(i), bulk, server));
  }
  uint64_t done() const {
    uint64_t sum = 0;
    for (const auto& p : programs) sum += p->done();
    return sum;
  }
  WorkerGroup group;
  std::vector<std::unique_ptr<Program>> programs;
};

struct Rate {
  double per_second, per_cpu_second;  // the latter also says something where others use the cores
};

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

// What the host's programs have done, once the windows are open.
Rate Watch(const Host& host, double seconds) {
  const auto wait = [](double s) { std::this_thread::sleep_for(std::chrono::duration<double>(s)); };
  wait(0.3);
  const uint64_t before = host.done();
  const double cpu = CpuSeconds();
  const auto begin = std::chrono::steady_clock::now();
  wait(seconds);
  const auto done = static_cast<double>(host.done() - before);
  const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return {done / took, done / (CpuSeconds() - cpu)};
}

Rate Measure(uint32_t workers, bool bulk, bool own, double seconds) {
  Host server(workers, std::nullopt);
  Host client(workers, own ? std::optional(server.group.key()) : std::nullopt);
  PipeQueues pipe = MakePipeQueues(server.side(), client.side());
  server.Start(kServer, 1, std::move(pipe.first), bulk, true);
  client.Start(kClient, 2, std::move(pipe.second), bulk, false);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < workers; ++i) {
    threads.emplace_back([&, i] {
      while (!stop) {
        bool busy = server.group.worker(i).RunOnce();
        busy |= client.group.worker(i).RunOnce();
        if (!busy) std::this_thread::yield();  // where there are fewer cores than threads
      }
    });
  }
  const Rate rate = Watch(bulk ? server : client, seconds);
  stop = true;
  for (std::thread& t : threads) t.join();
  return rate;
}

Rate MeasureAuto(uint32_t workers, bool bulk, double seconds) {
  Host host({.workers = workers});
  host.group.ApplyConfig(std::make_shared<NetConfig>(LoopbackOnlyConfig()));
  std::vector<std::unique_ptr<Program>> servers;
  const auto add = [&](std::vector<std::unique_ptr<Program>>& to, bool server) {
    for (uint32_t i = 0; i < workers; ++i)
      to.push_back(std::make_unique<Program>(host.group.worker(i), host.group.pool(i), bulk, server, kLoopback));
  };
  add(bulk ? host.programs : servers, true);
  add(bulk ? servers : host.programs, false);
  std::thread run([&] { host.group.Run(); });
  const Rate rate = Watch(host, seconds);
  host.group.Stop();
  run.join();
  return rate;
}

double Median(const std::vector<Rate>& rates, double Rate::* which) {
  std::vector<double> values;
  for (const Rate& r : rates) values.push_back(r.*which);
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 2;
  uint32_t rounds = 5, workers = 2;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    char* end = nullptr;
    const size_t equals = argument.find('=');
    const double value = equals == std::string::npos ? 0 : std::strtod(argument.c_str() + equals + 1, &end);
    const std::string name = argument.substr(0, equals);
    const bool number = end != nullptr && *end == 0 && value > 0 && value <= 1000;
    if (number && name == "--seconds") {
      seconds = value;
    } else if (number && name == "--rounds") {
      rounds = static_cast<uint32_t>(std::max(1.0, value));
    } else if (number && name == "--workers" && value >= 2 && value <= ShardPeers::kMax) {
      workers = static_cast<uint32_t>(value);
    } else {
      std::fprintf(stderr, "cores: %s: not valid (allowed: --seconds=N, --rounds=N, --workers=N from 2 to %u)\n", argv[i],
                   ShardPeers::kMax);
      return 2;
    }
  }
  for (const bool bulk : {true, false}) {
    const double unit = bulk ? 8e-9 : 1e-3;
    const char* name = bulk ? "bulk, Gbps" : "round trips, k/s";
    std::vector<Rate> one, own, mixed, one_auto, several_auto;
    const auto print = [&](const std::string& what, const Rate& r) {
      std::printf("%-17s %-17s %8.2f (%8.2f a CPU second)\n", name, what.c_str(), r.per_second * unit, r.per_cpu_second * unit);
      std::fflush(stdout);
    };
    const std::string several = "workers=" + std::to_string(workers);
    for (uint32_t round = 0; round < rounds; ++round) {
      print("workers=1", one.emplace_back(Measure(1, bulk, true, seconds)));
      print(several + ", own", own.emplace_back(Measure(workers, bulk, true, seconds)));
      print(several + ", mixed", mixed.emplace_back(Measure(workers, bulk, false, seconds)));
      print("workers=1, auto", one_auto.emplace_back(MeasureAuto(1, bulk, seconds)));
      print(several + ", auto", several_auto.emplace_back(MeasureAuto(workers, bulk, seconds)));
    }
    const auto compare = [&](const char* what, const std::vector<Rate>& alone, const std::vector<Rate>& rates) {
      const auto ratio = [&](double Rate::* which) { return Median(rates, which) / Median(alone, which); };
      std::printf("%-17s medians, %s: %.2f, %.2f: %.2fx a second, %.2fx a CPU second\n", name, what,
                  Median(alone, &Rate::per_second) * unit, Median(rates, &Rate::per_second) * unit, ratio(&Rate::per_second),
                  ratio(&Rate::per_cpu_second));
    };
    compare("own", one, own);
    compare("mixed", one, mixed);
    compare("auto", one_auto, several_auto);
  }
  return 0;
}
