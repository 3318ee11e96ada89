#include "control/run/admin.h"

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

#include "control/run/admin_json.h"

namespace sluice {

struct AdminServer::Client {
  UniqueFd fd;
  std::string request;
  std::string answer;  // written by the worker before `has_answer` is set
  std::atomic<bool> has_answer{false};
  bool asked = false;
  size_t sent = 0;
  bool done = false;
};

namespace {
constexpr size_t kMaxClients = 8, kMaxRequest = 64;
}

AdminServer::AdminServer(int listener, const AdminContext& context)
    : listener_(listener), context_(context), answered_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
AdminServer::~AdminServer() = default;

void AdminServer::AddPolled(std::vector<pollfd>* polled) {
  first_polled_ = polled->size();
  polled->push_back({clients_.size() < kMaxClients ? listener_ : -1, POLLIN, 0});
  polled->push_back({answered_.get(), POLLIN, 0});
  for (const auto& client : clients_) {
    const short events = client->has_answer ? POLLOUT : client->asked ? short{0} : short{POLLIN};
    polled->push_back({client->fd.get(), events, 0});
  }
}

void AdminServer::OnPolled(const std::vector<pollfd>& polled) {
  if (polled[first_polled_ + 1].revents != 0) {
    uint64_t count;
    (void)!read(answered_.get(), &count, sizeof count);
  }
  const size_t known = polled.size() - first_polled_ - 2;
  for (size_t i = 0; i < known && i < clients_.size(); ++i) {
    if (polled[first_polled_ + 2 + i].revents != 0) OnClient(*clients_[i], polled[first_polled_ + 2 + i].revents);
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

void AdminServer::OnClient(Client& client, short events) {
  if (client.has_answer) {
    const ssize_t n = send(client.fd.get(), client.answer.data() + client.sent, client.answer.size() - client.sent,
                           MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) client.sent += static_cast<size_t>(n);
    client.done = client.sent == client.answer.size() || (n < 0 && errno != EAGAIN && errno != EINTR);
    return;
  }
  if (client.asked) {
    client.done = (events & (POLLHUP | POLLERR)) != 0;
    return;
  }
  char buffer[kMaxRequest];
  const ssize_t n = recv(client.fd.get(), buffer, sizeof buffer, MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  client.done = n <= 0;
  if (n > 0) client.request.append(buffer, static_cast<size_t>(n));
  if (client.request.size() > kMaxRequest) client.done = true;
  if (!client.done && client.request.find('\n') != std::string::npos) Ask(client);
}

void AdminServer::Ask(Client& client) {
  client.asked = true;
  client.request.resize(client.request.find('\n'));
  const auto it = std::find_if(clients_.begin(), clients_.end(), [&](const auto& c) { return c.get() == &client; });
  context_.worker.Post([this, shared = *it] {
    shared->answer = AdminAnswer(shared->request, context_);
    shared->has_answer = true;
    const uint64_t one = 1;
    (void)!write(answered_.get(), &one, sizeof one);
  });
}

}  // namespace sluice
