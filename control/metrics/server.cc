#include "control/metrics/server.h"

#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <list>
#include <vector>

#include "control/metrics/exposition.h"
#include "control/os.h"

namespace sluice {
namespace {

using nlohmann::json;

constexpr size_t kMaxClients = 16, kMaxRequest = 8192, kMaxRecord = 8192, kMaxAnswer = 4 << 20;
// A sentry that has not answered by then counts as down, and a scraper that has not asked or read is let go.
constexpr int64_t kAnswerMs = 2000, kClientMs = 10000;

int64_t NowMs() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * int64_t{1000} + t.tv_nsec / 1000000;
}

std::string Response(const char* status, const char* type, const std::string& body) {
  return std::string("HTTP/1.1 ") + status + "\r\nContent-Type: " + type + "\r\nContent-Length: " + std::to_string(body.size()) +
         "\r\nConnection: close\r\n\r\n" + body;
}

// One sandbox while it is asked.
struct Asked {
  SandboxStats stats;
  UniqueFd fd;
  std::string text;
};

// False where it is done, well or not.
bool TakeAnswer(Asked& one) {
  char buffer[65536];
  const ssize_t n = recv(one.fd.get(), buffer, sizeof buffer, MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (n > 0) one.text.append(buffer, static_cast<size_t>(n));
  const size_t end = one.text.find('\n');
  if (end != std::string::npos) one.stats.stats = json::parse(one.text.substr(0, end), nullptr, false);
  return n > 0 && end == std::string::npos && one.text.size() <= kMaxAnswer;
}

void AskAll(std::list<Asked>& all) {
  constexpr char kRequest[] = "stats\n";
  for (Asked& one : all) {
    if (send(one.fd.get(), kRequest, sizeof kRequest - 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) one.fd.Reset();
  }
  const int64_t until = NowMs() + kAnswerMs;
  for (;;) {
    std::vector<pollfd> polled;
    for (const Asked& one : all) polled.push_back({one.fd.get(), POLLIN, 0});
    const bool waiting = std::ranges::any_of(all, [](const Asked& one) { return static_cast<bool>(one.fd); });
    const int64_t left = until - NowMs();
    if (!waiting || left <= 0) return;
    if (poll(polled.data(), polled.size(), static_cast<int>(left)) < 0) continue;
    size_t i = 0;
    for (Asked& one : all) {
      if (polled[i++].revents != 0 && !TakeAnswer(one)) one.fd.Reset();
    }
  }
}

class Server {
 public:
  Server(UniqueFd listener, UniqueFd channel) : listener_(std::move(listener)), channel_(std::move(channel)) {
    const timeval patience{kAnswerMs / 1000, 0};
    setsockopt(channel_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  }

  void Turn() {
    std::vector<pollfd> polled{{clients_.size() < kMaxClients ? listener_.get() : -1, POLLIN, 0}, {channel_.get(), 0, 0}};
    int64_t until = INT64_MAX;
    for (const Client& c : clients_) {
      polled.push_back({c.fd.get(), static_cast<short>(c.answer.empty() ? POLLIN : POLLOUT), 0});
      until = std::min(until, c.until);
    }
    const int64_t left = until == INT64_MAX ? -1 : std::max<int64_t>(0, until - NowMs());
    if (poll(polled.data(), polled.size(), static_cast<int>(left)) < 0) return;
    if (polled[1].revents != 0) _exit(0);  // the guard is gone
    size_t i = 2;
    for (Client& c : clients_) {
      if (polled[i++].revents != 0) OnClient(c);
      c.done |= NowMs() >= c.until;
    }
    clients_.remove_if([](const Client& c) { return c.done; });
    if (polled[0].revents != 0) Accept();
  }

 private:
  struct Client {
    UniqueFd fd;
    int64_t until = 0;
    std::string request, answer;
    size_t sent = 0;
    bool done = false;
  };

  void Accept() {
    UniqueFd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (fd) clients_.push_back({.fd = std::move(fd), .until = NowMs() + kClientMs});
  }

  void OnClient(Client& c) {
    if (c.answer.empty()) return OnRequest(c);
    const ssize_t n = send(c.fd.get(), c.answer.data() + c.sent, c.answer.size() - c.sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) c.sent += static_cast<size_t>(n);
    c.done = c.sent == c.answer.size() || (n < 0 && errno != EAGAIN && errno != EINTR);
  }

  void OnRequest(Client& c) {
    char buffer[kMaxRequest];
    const ssize_t n = recv(c.fd.get(), buffer, sizeof buffer, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    c.done = n <= 0;
    if (n > 0) c.request.append(buffer, static_cast<size_t>(n));
    const bool whole = c.request.find("\r\n\r\n") != std::string::npos;
    if (c.request.size() > kMaxRequest && !whole) {
      c.answer = Response("431 Request Header Fields Too Large", "text/plain", "the request is too long\n");
    } else if (whole) {
      c.answer = MetricsResponse(c.request, [this] { return Scrape(); });
      c.until = NowMs() + kClientMs;
    }
  }

  std::string Scrape() {
    std::list<Asked> all;
    bool asked = SendMetricsRecord(channel_.get(), {{"scrape", true}});
    while (asked) {
      json record;
      UniqueFd fd;
      if (!ReceiveMetricsRecord(channel_.get(), &record, &fd) || !fd) break;
      all.push_back({{record.value("sandbox", ""), record.value("container", ""), {}}, std::move(fd), {}});
    }
    AskAll(all);
    std::vector<SandboxStats> stats;
    for (Asked& one : all) stats.push_back(std::move(one.stats));
    return Exposition(stats);
  }

  UniqueFd listener_, channel_;
  std::list<Client> clients_;
};

}  // namespace

bool SendMetricsRecord(int channel, const json& record, int fd) {
  const std::string text = record.dump(-1, ' ', false, json::error_handler_t::replace);
  const Bytes bytes(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  return SendRecord(channel, bytes, fd < 0 ? std::vector<int>{} : std::vector<int>{fd}, MSG_DONTWAIT);
}

bool ReceiveMetricsRecord(int channel, json* record, UniqueFd* fd) {
  Record received;
  if (ReceiveRecord(channel, &received, kMaxRecord, 1) != 1 || received.truncated) return false;
  *record = json::parse(received.data.begin(), received.data.end(), nullptr, false);
  if (fd != nullptr && received.fds.size() == 1) *fd = std::move(received.fds[0]);
  return record->is_object();
}

std::string MetricsResponse(const std::string& request, const std::function<std::string()>& scrape) {
  const std::string line = request.substr(0, request.find("\r\n"));
  const size_t first = line.find(' '), second = line.find(' ', first + 1);
  if (first == std::string::npos || second == std::string::npos || line.compare(second + 1, 7, "HTTP/1.") != 0)
    return Response("400 Bad Request", "text/plain", "not an HTTP request\n");
  if (line.compare(0, first, "GET") != 0) return Response("405 Method Not Allowed", "text/plain", "only GET is known\n");
  std::string path = line.substr(first + 1, second - first - 1);
  path.resize(std::min(path.size(), path.find('?')));
  if (path == "/metrics") return Response("200 OK", "text/plain; version=0.0.4; charset=utf-8", scrape());
  if (path == "/") return Response("200 OK", "text/plain", "sluice: counters are at /metrics\n");
  return Response("404 Not Found", "text/plain", "counters are at /metrics\n");
}

void ServeMetrics(UniqueFd listener, UniqueFd channel) {
  Server server(std::move(listener), std::move(channel));
  for (;;) server.Turn();
}

}  // namespace sluice
