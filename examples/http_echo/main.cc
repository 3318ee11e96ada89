// The stack as a library: an HTTP and echo server in the workers' own threads, no sentry, no kernel socket. docs/library.md
// explains it.
//
//   http_echo --device=NAME --address=A.B.C.D/N [--gateway=A.B.C.D] [--link=packet|xdp|tap|dpdk] [--poll=adaptive|busy|interrupt]
//             [--workers=1] [--http-port=80] [--echo-port=7] [--discard-port=9] [--chargen-port=19]
//
// The address must not be one that the kernel has on the device: it would answer too.
#include <signal.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "dataplane/worker_group.h"
#include "examples/http_echo/bulk.h"
#include "examples/http_echo/echo.h"
#include "examples/http_echo/http_connection.h"
#include "examples/http_echo/open_link.h"
#include "netstack/config_builder.h"

namespace {

using namespace sluice;           // NOLINT(google-build-using-namespace): a program
using namespace sluice::example;  // NOLINT(google-build-using-namespace)

WorkerGroup* running = nullptr;

[[noreturn]] void Fail(const std::string& line) {
  std::fprintf(stderr, "http_echo: %s\n", line.c_str());
  std::exit(1);
}

std::map<std::string, std::string> ParseArguments(int argc, char** argv) {
  std::map<std::string, std::string> values = {
      {"link", "packet"},    {"poll", "adaptive"},   {"workers", "1"}, {"http-port", "80"}, {"echo-port", "7"},
      {"discard-port", "9"}, {"chargen-port", "19"}, {"device", ""},   {"address", ""},     {"gateway", ""}};
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(0, 2) == "--" && equals != std::string::npos ? argument.substr(2, equals - 2) : "";
    if (values.count(name) == 0)
      Fail(argument +
           ": unknown argument (allowed: --device, --address, --gateway, --link, --poll, --workers, --http-port, "
           "--echo-port, --discard-port, --chargen-port, each with =VALUE)");
    values[name] = argument.substr(equals + 1);
  }
  return values;
}

uint32_t Number(std::map<std::string, std::string>& values, const std::string& name, uint32_t most) {
  const std::string& text = values[name];
  uint32_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number == 0 || number > most)
    Fail("--" + name + "=" + text + ": no number from 1 to " + std::to_string(most));
  return number;
}
uint16_t PortNumber(std::map<std::string, std::string>& values, const std::string& name) {
  return static_cast<uint16_t>(Number(values, name, 65535));
}

PollMode ParsePoll(const std::string& text) {
  if (text == "busy") return PollMode::kBusy;
  if (text == "interrupt") return PollMode::kInterrupt;
  if (text != "adaptive") Fail("--poll=" + text + ": not a valid value (allowed: adaptive, busy, interrupt)");
  return PollMode::kAdaptive;
}

void Check(Errno e, const char* what) {
  if (e != Errno::kOk) Fail(std::string(what) + ": errno " + std::to_string(ToInt(e)));
}

// What serves in one worker's thread: every worker has the same, and each flow belongs to one of them.
class Services {
 public:
  Services(Worker& worker, BlockPool& pool)
      : content_(pool),
        http_(worker,
              [this, &pool](StreamServer& server, StreamSocket* socket) {
                return std::make_unique<HttpConnection>(server, socket, content_, pool);
              }),
        echo_(worker, [&pool](StreamServer& server,
                              StreamSocket* socket) { return std::make_unique<EchoConnection>(server, socket, pool); }),
        discard_(worker,
                 [](StreamServer& server, StreamSocket* socket) { return std::make_unique<DiscardConnection>(server, socket); }),
        chargen_(worker,
                 [this](StreamServer& server, StreamSocket* socket) {
                   return std::make_unique<ChargenConnection>(server, socket, content_.Body(HttpContent::kBlock));
                 }),
        udp_(worker) {}

  void Listen(std::map<std::string, std::string>& values) {
    const std::pair<StreamServer*, const char*> servers[] = {
        {&http_, "http-port"}, {&echo_, "echo-port"}, {&discard_, "discard-port"}, {&chargen_, "chargen-port"}};
    for (const auto& [server, name] : servers) Check(server->Listen({kAny, PortNumber(values, name)}), name);
    Check(udp_.Bind({kAny, PortNumber(values, "echo-port")}), "echo-port");
  }

 private:
  const IpAddress kAny = IpAddress::Any(Family::kIpv4);
  HttpContent content_;
  StreamServer http_, echo_, discard_, chargen_;
  UdpEcho udp_;
};

}  // namespace

int main(int argc, char** argv) {
  auto values = ParseArguments(argc, argv);
  const auto address = ParsePrefix(values["address"]);
  if (!address || !address->address.is_v4())
    Fail("--address=" + values["address"] + ": no IPv4 address with its length, such as 10.0.0.2/24");

  // The threads, each with a stack; one is this one.
  WorkerGroupOptions options{.workers = Number(values, "workers", ShardPeers::kMax)};
  options.worker.poll = ParsePoll(values["poll"]);
  options.worker.on_port_dead = [](IfIndex, std::string_view) { Fail("the device is gone"); };
  WorkerGroup group(options);

  // The configuration: a loopback, one device with an address, and a default route.
  Opened link;
  if (const std::string error = OpenLink(values["link"], values["device"], group, &link); !error.empty()) Fail(error);
  auto config = std::make_shared<NetConfig>(LoopbackOnlyConfig());
  const IfIndex device = link.queues[0]->ifindex();
  AddDevice(config.get(), device, "eth0", link.mac, link.mtu);
  AddAddress(config.get(), device, *address);
  if (!values["gateway"].empty()) {
    const auto gateway = ParsePrefix(values["gateway"]);
    if (!gateway || gateway->length != 32) Fail("--gateway=" + values["gateway"] + ": no IPv4 address");
    AddRoute(config.get(), Prefix{IpAddress::Any(Family::kIpv4), 0}, gateway->address, device);
  }
  group.ApplyConfig(config);
  group.AddQueues(std::move(link.queues));

  std::vector<std::unique_ptr<Services>> services;
  for (uint32_t i = 0; i < group.size(); ++i) {
    services.push_back(std::make_unique<Services>(group.worker(i), group.pool(i)));
    services.back()->Listen(values);
  }

  running = &group;
  for (const int number : {SIGINT, SIGTERM}) signal(number, [](int) { running->Stop(); });
  std::printf("serving on %s\n", values["address"].c_str());
  std::fflush(stdout);
  group.Run();
  return 0;
}
