#include "control/run/admin.h"

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <utility>

#include "control/run/admin_json.h"
#include "control/run/admin_protocol.h"
#include "control/run/capture_queue.h"

namespace sluice {

struct AdminServer::Client {
  UniqueFd fd;
  std::string request;
  bool asked = false;
  bool input_ended = false;  // it has closed its half, or all
  std::string answer;        // written by the worker before `has_answer` is set; then the control thread's
  std::atomic<bool> has_answer{false};
  size_t sent = 0;  // of the answer
  bool done = false;
  std::shared_ptr<CaptureQueue> capture;  // while the worker knows of it
  std::shared_ptr<CaptureQueue> queue;    // from the answer to the last record

  bool sending() const { return has_answer && sent < answer.size(); }
};

namespace {
constexpr size_t kMaxClients = 8, kMaxCaptures = 4;

bool ParseOptions(const std::string& text, CaptureQueue::Options* out) try {
  const auto options = nlohmann::json::parse(text);
  out->snaplen = std::clamp(options.value("snaplen", kMaxCaptured), uint32_t{1}, kMaxCaptured);
  out->devices = options.value("devices", std::vector<std::string>{});
  return true;
} catch (const nlohmann::json::exception&) {
  return false;
}
}  // namespace

AdminServer::AdminServer(int listener, const AdminContext& context)
    : listener_(listener), context_(context), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
AdminServer::~AdminServer() = default;

void AdminServer::Wake() const {
  const uint64_t one = 1;
  (void)!write(wake_.get(), &one, sizeof one);
}

void AdminServer::AddPolled(std::vector<pollfd>* polled) {
  first_polled_ = polled->size();
  polled->push_back({clients_.size() < kMaxClients ? listener_ : -1, POLLIN, 0});
  polled->push_back({wake_.get(), POLLIN, 0});
  for (const auto& client : clients_) {
    const bool input = !client->input_ended && (!client->asked || client->queue);
    polled->push_back({client->fd.get(), static_cast<short>((input ? POLLIN : 0) | (client->sending() ? POLLOUT : 0)), 0});
  }
}

void AdminServer::OnPolled(const std::vector<pollfd>& polled) {
  if (polled[first_polled_ + 1].revents != 0) {
    uint64_t count;
    (void)!read(wake_.get(), &count, sizeof count);
  }
  const size_t known = polled.size() - first_polled_ - 2;
  for (size_t i = 0; i < known && i < clients_.size(); ++i) {
    const short events = polled[first_polled_ + 2 + i].revents;
    if ((events & POLLIN) != 0) Receive(clients_[i]);
    if ((events & (POLLHUP | POLLERR)) != 0) clients_[i]->done = true;
    if (!clients_[i]->done && clients_[i]->has_answer) Send(*clients_[i]);
    if (clients_[i]->done) StopCapture(*clients_[i]);
  }
  std::erase_if(clients_, [](const auto& client) { return client->done; });
  if (polled[first_polled_].revents != 0) Accept();
}

void AdminServer::Accept() {
  UniqueFd fd(accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd) return;
  auto client = std::make_shared<Client>();
  client->fd = std::move(fd);
  clients_.push_back(std::move(client));
}

void AdminServer::Receive(const ClientPtr& client) {
  char buffer[512];
  const ssize_t n = recv(client->fd.get(), buffer, sizeof buffer, MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0) {
    client->input_ended = true;
    if (!client->asked) client->done = true;
    return StopCapture(*client);
  }
  if (client->asked) return;
  client->request.append(buffer, static_cast<size_t>(n));
  if (client->request.size() > kMaxAdminRequest) client->done = true;
  if (!client->done && client->request.find('\n') != std::string::npos) Ask(client);
}

void AdminServer::Ask(const ClientPtr& client) {
  client->asked = true;
  client->request.resize(client->request.find('\n'));
  constexpr std::string_view kCapture = "capture ";
  if (client->request.starts_with(kCapture)) return StartCapture(client, client->request.substr(kCapture.size()));
  auto parts = std::make_shared<std::vector<nlohmann::json>>(context_.group.size());
  context_.group.PostToAll([this, client, parts](uint32_t i) { (*parts)[i] = AdminPart(client->request, context_, i); },
                           [this, client, parts] {
                             client->answer = AdminAnswer(client->request, std::move(*parts));
                             client->has_answer = true;
                             Wake();
                           });
}

void AdminServer::StartCapture(const ClientPtr& client, const std::string& text) {
  CaptureQueue::Options options;
  const auto others = std::ranges::count_if(clients_, [](const auto& c) { return c->queue != nullptr; });
  std::string error;
  if (!ParseOptions(text, &options)) error = "malformed request";
  if (static_cast<size_t>(others) >= kMaxCaptures) error = Format("%zu captures run already", kMaxCaptures);
  if (error.empty()) {
    client->queue = client->capture = std::make_shared<CaptureQueue>(options, context_.group.size(), [this] { Wake(); });
  }
  // The first worker knows of the devices; the greeting comes before the first frame in any case.
  context_.group.worker(0).Post(
      [this, client, queue = client->queue, devices = options.devices, error = std::move(error)]() mutable {
        if (error.empty()) error = UnknownDevice(devices, context_);
        if (error.empty()) {
          context_.group.PostToAll([this, queue](uint32_t i) { queue->Tap(i, context_.group.stack(i)); });
        } else if (queue != nullptr) {
          queue->Close();
        }
        client->answer = error.empty() ? AdminGreeting() : AdminError(error);
        client->has_answer = true;
        Wake();
      });
}

// The frames that the workers have seen by then are still sent.
void AdminServer::StopCapture(Client& client) {
  if (client.capture == nullptr) return;
  context_.group.PostToAll([this, queue = client.capture](uint32_t i) { queue->Untap(i, context_.group.stack(i)); },
                           [queue = client.capture] { queue->Close(); });
  client.capture.reset();
}

void AdminServer::Send(Client& client) {
  // What comes behind the last Take wakes this thread again.
  for (bool taken = false; !client.done;) {
    if (client.sent == client.answer.size()) {
      if (std::exchange(taken, true)) return;
      client.sent = 0;
      client.done = client.queue == nullptr || !client.queue->Take(&client.answer);
      if (client.done || client.answer.empty()) return;
    }
    const ssize_t n = send(client.fd.get(), client.answer.data() + client.sent, client.answer.size() - client.sent,
                           MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    client.done = n < 0;
    if (n > 0) client.sent += static_cast<size_t>(n);
  }
}

}  // namespace sluice
