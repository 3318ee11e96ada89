#include "control/top.h"

#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "control/admin_client.h"
#include "control/log.h"
#include "control/sandboxes.h"

namespace sluice {
namespace {

using nlohmann::json;

uint64_t Now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1000000000 + static_cast<uint64_t>(t.tv_nsec);
}

// The terminal while the table is drawn on it: another screen, no cursor, keys at once. Nothing where it is none.
class Screen {
 public:
  ~Screen() { Leave(); }

  void Enter() {
    if (isatty(STDOUT_FILENO) == 0) return;
    shown_ = true;
    Put("\x1b[?1049h\x1b[?25l");
    keys_ = isatty(STDIN_FILENO) != 0 && tcgetattr(STDIN_FILENO, &before_) == 0;
    if (!keys_) return;
    termios now = before_;
    now.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    tcsetattr(STDIN_FILENO, TCSANOW, &now);
  }

  void Leave() {
    if (keys_) tcsetattr(STDIN_FILENO, TCSANOW, &before_);
    if (shown_) Put("\x1b[?25h\x1b[?1049l");
    shown_ = keys_ = false;
  }

  bool keys() const { return keys_; }

  void Draw(const std::string& table) const {
    if (!shown_) return Put(table + "\n");
    winsize size{};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0 || size.ws_col == 0) size = {24, 80, 0, 0};
    std::string out = "\x1b[H";
    size_t at = 0;
    for (unsigned row = 0; row + 1 < size.ws_row && at < table.size(); ++row) {
      const size_t end = std::min(table.find('\n', at), table.size());
      out += table.substr(at, std::min<size_t>(end - at, size.ws_col)) + "\x1b[K\r\n";
      at = end + 1;
    }
    Put(out + "\x1b[J");
  }

 private:
  static void Put(const std::string& text) {
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
  }

  bool shown_ = false, keys_ = false;
  termios before_{};
};

class Top {
 public:
  explicit Top(const CommandLine& line) : line_(line), options_(line.top) {}

  Status Run() {
    CatchSignals();
    SLUICE_RETURN_IF_ERROR(Look());
    if (!options_.once && !options_.json) screen_.Enter();
    do {
      if (!WaitForNext()) break;
      SLUICE_RETURN_IF_ERROR(Look());
      Show();
    } while (!options_.once && std::ferror(stdout) == 0);
    return {};
  }

 private:
  struct Watched {
    std::string name;
    std::optional<TopSample> before, now;
    bool seen = false;
  };

  void CatchSignals() {
    sigset_t blocked;
    sigemptyset(&blocked);
    for (const int s : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGWINCH}) sigaddset(&blocked, s);
    sigprocmask(SIG_BLOCK, &blocked, nullptr);
    signals_.Reset(signalfd(-1, &blocked, SFD_CLOEXEC));
    signal(SIGPIPE, SIG_IGN);
  }

  // Names must be there at the start; later those that are gone are shown so.
  Status Look() {
    for (auto& [inode, one] : watched_) one.seen = false;
    if (options_.targets.empty()) {
      for (const RunningSandbox& s : ListSandboxes(line_.flags)) {
        if (s.registration.network != "host") LookAt(s.registration.id, s.name());
      }
      std::erase_if(watched_, [](const auto& entry) { return !entry.second.seen; });
      return {};
    }
    for (const std::string& target : options_.targets) {
      CommandLine one = line_;
      one.query.target = target;
      NamespaceId id;
      const Status status = FindSandbox(one, &id);
      if (status.ok()) LookAt(id, target);
      if (started_) continue;
      SLUICE_RETURN_IF_ERROR(status);
      if (!watched_[id.inode].now)
        return Status::Error("top " + target + ": no sandbox of sluice with a stack of its own runs there");
    }
    started_ = true;
    return {};
  }

  void LookAt(const NamespaceId& id, const std::string& name) {
    Watched& one = watched_[id.inode];
    one.name = name;
    one.seen = true;
    one.before = one.now;
    one.now.reset();
    AdminClient client;
    json stats;
    if (client.Connect(line_.flags, id, "top").ok() && client.Ask("stats", &stats).ok()) one.now = SampleOf(stats, Now());
  }

  // False where the user has enough.
  bool WaitForNext() {
    const uint64_t until = Now() + options_.interval * uint64_t{1000000000};
    for (;;) {
      const uint64_t now = Now();
      if (now >= until) return true;
      pollfd polled[] = {{signals_.get(), POLLIN, 0}, {screen_.keys() ? STDIN_FILENO : -1, POLLIN, 0}};
      if (poll(polled, 2, static_cast<int>((until - now) / 1000000 + 1)) < 0 && errno != EINTR) return false;
      if (polled[0].revents != 0 && !OnSignal()) return false;
      char key = 0;
      if (polled[1].revents != 0 && (read(STDIN_FILENO, &key, 1) <= 0 || key == 'q' || key == 'Q')) return false;
    }
  }

  bool OnSignal() {
    signalfd_siginfo info;
    if (read(signals_.get(), &info, sizeof info) != sizeof info) return false;
    if (info.ssi_signo == SIGTSTP) {  // the shell has its terminal as it was
      screen_.Leave();
      raise(SIGSTOP);
      if (!options_.once && !options_.json) screen_.Enter();
    } else if (info.ssi_signo != SIGWINCH) {
      return false;
    }
    if (shown_) Show();
    return true;
  }

  void Show() {
    shown_ = true;
    std::vector<TopRow> rows;
    for (const auto& [inode, one] : watched_) {
      TopRow row{one.name, std::nullopt};
      if (one.now) row.rates = RatesOf(one.before.value_or(*one.now), *one.now);
      rows.push_back(std::move(row));
    }
    std::ranges::sort(rows, {}, &TopRow::name);
    if (options_.json) return ShowJson(rows);
    screen_.Draw(TopTable(rows));
  }

  static void ShowJson(const std::vector<TopRow>& rows) {
    json out = json::array();
    for (const TopRow& row : rows) {
      json one{{"sandbox", row.name}, {"answers", row.rates.has_value()}};
      if (const auto& r = row.rates) {
        one.update({{"rx_packets_per_second", r->rx_frames},
                    {"rx_bytes_per_second", r->rx_bytes},
                    {"tx_packets_per_second", r->tx_frames},
                    {"tx_bytes_per_second", r->tx_bytes},
                    {"connections", r->connections},
                    {"retransmits_per_second", r->retransmits},
                    {"drops_per_second", r->drops},
                    {"cpu_percent", r->cpu_percent}});
      }
      out.push_back(std::move(one));
    }
    std::printf("%s\n", out.dump(-1, ' ', false, json::error_handler_t::replace).c_str());
    std::fflush(stdout);
  }

  const CommandLine& line_;
  const TopOptions& options_;
  Screen screen_;
  UniqueFd signals_;
  std::map<uint64_t, Watched> watched_;  // by the namespace's inode
  bool started_ = false, shown_ = false;
};

// Four digits are enough to see what goes on.
std::string Short(double value) {
  constexpr const char* kUnits[] = {"", "k", "M", "G", "T"};
  size_t unit = 0;
  for (; value >= 9999.5 && unit + 1 < std::size(kUnits); ++unit) value /= 1000;
  return Format("%.*f%s", unit > 0 && value < 99.95 ? 1 : 0, value, kUnits[unit]);
}

}  // namespace

std::optional<TopSample> SampleOf(const json& stats, uint64_t time_ns) try {
  const json& counters = stats.at("counters");
  const auto count = [&](const char* name) { return counters.value(name, uint64_t{0}); };
  TopSample s{.time_ns = time_ns,
              .rx_frames = count("LinkInFrames"),
              .rx_bytes = count("LinkInBytes"),
              .tx_frames = count("LinkOutFrames"),
              .tx_bytes = count("LinkOutBytes"),
              .retransmits = count("TcpRetransSegs")};
  s.connections = stats.value("tcp", json::object()).value("established", uint64_t{0});
  s.cpu_ns = stats.value("process", json::object()).value("cpu_ns", uint64_t{0});
  for (const auto& [name, value] : counters.items()) {
    if (name.starts_with("Drop")) s.drops += value.get<uint64_t>();
  }
  for (const json& port : stats.at("ports"))
    s.drops += port.value("rx_dropped", uint64_t{0}) + port.value("tx_dropped", uint64_t{0});
  return s;
} catch (const json::exception&) {
  return std::nullopt;
}

TopRates RatesOf(const TopSample& before, const TopSample& now) {
  const double seconds = static_cast<double>(now.time_ns - before.time_ns) / 1e9;
  // A port that goes takes its counts along.
  const auto rate = [&](uint64_t a, uint64_t b) { return seconds > 0 && b > a ? static_cast<double>(b - a) / seconds : 0; };
  return {.rx_frames = rate(before.rx_frames, now.rx_frames),
          .rx_bytes = rate(before.rx_bytes, now.rx_bytes),
          .tx_frames = rate(before.tx_frames, now.tx_frames),
          .tx_bytes = rate(before.tx_bytes, now.tx_bytes),
          .retransmits = rate(before.retransmits, now.retransmits),
          .drops = rate(before.drops, now.drops),
          .cpu_percent = rate(before.cpu_ns, now.cpu_ns) / 1e7,
          .connections = now.connections};
}

std::string TopTable(const std::vector<TopRow>& rows) {
  size_t width = 7;
  for (const TopRow& row : rows) width = std::max(width, row.name.size());
  const auto w = static_cast<int>(std::min<size_t>(width, 32));
  std::string out = Format("%-*s %8s %8s %8s %8s %7s %7s %7s %6s\n", w, "SANDBOX", "IN pkt/s", "IN B/s", "OUT p/s", "OUT B/s",
                           "CONNS", "RETR/s", "DROP/s", "CPU %");
  for (const TopRow& row : rows) {
    const std::string name = Clean(row.name).substr(0, 32);
    if (!row.rates) {
      out += Format("%-*s does not answer\n", w, name.c_str());
      continue;
    }
    const TopRates& r = *row.rates;
    out +=
        Format("%-*s %8s %8s %8s %8s %7s %7s %7s %6.1f\n", w, name.c_str(), Short(r.rx_frames).c_str(), Short(r.rx_bytes).c_str(),
               Short(r.tx_frames).c_str(), Short(r.tx_bytes).c_str(), Short(static_cast<double>(r.connections)).c_str(),
               Short(r.retransmits).c_str(), Short(r.drops).c_str(), r.cpu_percent);
  }
  if (rows.empty()) out += "(no sandbox runs)\n";
  return out;
}

int RunTop(const CommandLine& line) {
  const Status status = Top(line).Run();
  if (!status.ok()) LogLine(LogLevel::kError, status.line());
  return status.exit_code();
}

}  // namespace sluice
