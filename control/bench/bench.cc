#include "control/bench/bench.h"

#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <thread>

#include "control/bench/bench_ports.h"
#include "control/bench/bench_worker.h"
#include "control/log.h"
#include "control/namespaces.h"
#include "control/os.h"

namespace sluice {
namespace {

volatile sig_atomic_t stopped = 0;

int64_t NowNs() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * int64_t{1000000000} + t.tv_nsec;
}

int64_t CpuNs() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * int64_t{1000000000} +
         (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * int64_t{1000};
}

struct Count : BenchCount {
  int64_t at = 0, cpu = 0;
};

class Bench {
 public:
  explicit Bench(const CommandLine& line) : flags_(line.flags), options_(line.bench) {}

  Status Open() {
    if (!options_.netns.empty()) {
      UniqueFd netns;
      std::string name;
      SLUICE_RETURN_IF_ERROR(OpenNetns(options_.netns, &netns, &name));
      if (setns(netns.get(), CLONE_NEWNET) < 0)
        return Status::Error("--netns=" + options_.netns + ": cannot enter it" + ErrnoText(errno));
    }
    std::vector<BlockPool*> pools;
    for (uint32_t i = 0; i < options_.workers; ++i) {
      workers_.push_back(std::make_unique<BenchWorker>(flags_, options_));
      pools.push_back(&workers_.back()->pool());
    }
    for (const std::string& device : options_.devices) {
      BenchDevice opened;
      SLUICE_RETURN_IF_ERROR(OpenBenchDevice(flags_, options_, device, pools, &opened));
      for (uint32_t i = 0; i < options_.workers; ++i) workers_[i]->AddQueue(std::move(opened.queues[i]));
      attachments_.push_back(std::move(opened.xdp));
    }
    return {};
  }

  void Describe() const {
    if (options_.json) return;
    for (size_t i = 0; i < options_.devices.size(); ++i) {
      std::string text;
      for (const std::string& word : workers_[0]->queue(i).describe()) text += " " + word;
      printf("%s: workers=%u%s\n", options_.devices[i].c_str(), options_.workers, text.c_str());
    }
    printf("%8s %12s %9s %12s %9s %12s %7s %5s\n", "seconds", "rx frames/s", "rx Gbps", "tx frames/s", "tx Gbps", "dropped/s",
           "a burst", "cpu");
    fflush(stdout);
  }

  int Run() {
    Describe();
    const Count begin = Now();
    std::vector<std::thread> threads;
    for (const auto& worker : workers_) threads.emplace_back([&] { worker->Run(stop_); });
    Watch(begin);
    stop_ = true;
    for (std::thread& thread : threads) thread.join();
    Finish(begin, Now());
    if (dead()) LogLine(LogLevel::kError, "bench: a device is gone");
    return dead() ? 1 : 0;
  }

 private:
  bool dead() const {
    return std::any_of(workers_.begin(), workers_.end(), [](const auto& w) { return w->dead(); });
  }

  // Prints a line every second, until the end.
  void Watch(const Count& begin) const {
    Count last = begin;
    const int64_t end = options_.seconds == 0 ? INT64_MAX : begin.at + options_.seconds * int64_t{1000000000};
    while (stopped == 0 && !dead()) {
      const int64_t now = NowNs();
      if (now >= end) return;
      if (now - last.at >= 1000000000 && !options_.json) {
        const Count next = Now();
        Print(last, next, begin.at);
        last = next;
      }
      const timespec pause{0, std::min<int64_t>(end - now, 10000000)};
      nanosleep(&pause, nullptr);
    }
  }

  Count Now() const {
    Count c;
    for (const auto& worker : workers_) c += worker->count();
    c.at = NowNs();
    c.cpu = CpuNs();
    return c;
  }

  struct Rates {
    double rx, rx_gbps, tx, tx_gbps, dropped, burst, cpu, seconds;
  };
  static Rates Between(const Count& a, const Count& b) {
    const double seconds = std::max(1e-9, static_cast<double>(b.at - a.at) / 1e9);
    auto per = [&](uint64_t from, uint64_t to) { return static_cast<double>(to - from) / seconds; };
    const double bursts = per(a.bursts, b.bursts);
    const double rx = per(a.rx_frames, b.rx_frames), tx = per(a.tx_frames, b.tx_frames);
    return {.rx = rx,
            .rx_gbps = per(a.rx_bytes, b.rx_bytes) * 8e-9,
            .tx = tx,
            .tx_gbps = per(a.tx_bytes, b.tx_bytes) * 8e-9,
            .dropped = per(a.dropped, b.dropped),
            .burst = bursts > 0 ? std::max(rx, tx) / bursts : 0,
            .cpu = static_cast<double>(b.cpu - a.cpu) / 1e7 / seconds,
            .seconds = seconds};
  }

  static void PrintLine(const std::string& label, const Rates& r) {
    printf("%8s %12.0f %9.3f %12.0f %9.3f %12.0f %7.1f %4.0f%%\n", label.c_str(), r.rx, r.rx_gbps, r.tx, r.tx_gbps, r.dropped,
           r.burst, r.cpu);
    fflush(stdout);
  }
  static void Print(const Count& from, const Count& to, int64_t begin) {
    PrintLine(Format("%.0f", static_cast<double>(to.at - begin) / 1e9), Between(from, to));
  }

  void Finish(const Count& from, const Count& to) const {
    const Rates r = Between(from, to);
    if (!options_.json) return PrintLine("all", r);
    const nlohmann::json result = {{"mode", options_.mode_name},
                                   {"devices", options_.devices},
                                   {"workers", options_.workers},
                                   {"port", workers_[0]->queue(0).kind()},
                                   {"seconds", r.seconds},
                                   {"rx_frames", to.rx_frames - from.rx_frames},
                                   {"rx_bytes", to.rx_bytes - from.rx_bytes},
                                   {"tx_frames", to.tx_frames - from.tx_frames},
                                   {"tx_bytes", to.tx_bytes - from.tx_bytes},
                                   {"dropped", to.dropped - from.dropped},
                                   {"rx_per_second", r.rx},
                                   {"tx_per_second", r.tx},
                                   {"rx_gbps", r.rx_gbps},
                                   {"tx_gbps", r.tx_gbps},
                                   {"frames_per_burst", r.burst},
                                   {"cpu_percent", r.cpu}};
    printf("%s\n", result.dump().c_str());
  }

  const Flags& flags_;
  const BenchOptions& options_;
  std::vector<XdpAttachment> attachments_;  // before the ports: they go after them
  std::vector<std::unique_ptr<BenchWorker>> workers_;
  std::atomic<bool> stop_{false};
};

}  // namespace

int RunBench(const CommandLine& line) {
  struct sigaction action{};
  action.sa_handler = [](int) { stopped = 1; };
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  Bench bench(line);
  const Status status = bench.Open();
  if (!status.ok()) {
    LogLine(LogLevel::kError, status.line());
    return status.exit_code();
  }
  return bench.Run();
}

}  // namespace sluice
