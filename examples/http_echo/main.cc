// The stack as a library: an HTTP and echo server in the worker's own thread, no sentry, no kernel socket. docs/library.md
// explains it.
//
//   http_echo --device=NAME --address=A.B.C.D/N [--gateway=A.B.C.D] [--link=packet|xdp|tap|dpdk] [--poll=adaptive|busy|interrupt]
//             [--http-port=80] [--echo-port=7]
//
// The address must not be one that the kernel has on the device: it would answer too.
#include <signal.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "dataplane/gro_port.h"
#include "dataplane/system.h"
#include "dataplane/worker.h"
#include "examples/http_echo/echo.h"
#include "examples/http_echo/http_connection.h"
#include "examples/http_echo/open_link.h"
#include "netstack/config_builder.h"
#include "netstack/stack.h"

namespace {

using namespace sluice;           // NOLINT(google-build-using-namespace): a program
using namespace sluice::example;  // NOLINT(google-build-using-namespace)

Worker* running = nullptr;

[[noreturn]] void Fail(const std::string& line) {
  std::fprintf(stderr, "http_echo: %s\n", line.c_str());
  std::exit(1);
}

std::map<std::string, std::string> ParseArguments(int argc, char** argv) {
  std::map<std::string, std::string> values = {{"link", "packet"}, {"poll", "adaptive"}, {"http-port", "80"}, {"echo-port", "7"},
                                               {"device", ""},     {"address", ""},      {"gateway", ""}};
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(0, 2) == "--" && equals != std::string::npos ? argument.substr(2, equals - 2) : "";
    if (values.count(name) == 0)
      Fail(argument +
           ": unknown argument (allowed: --device, --address, --gateway, --link, --poll, --http-port, --echo-port, each with "
           "=VALUE)");
    values[name] = argument.substr(equals + 1);
  }
  return values;
}

uint16_t PortNumber(const std::string& name, const std::string& text) {
  uint16_t port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc() || end != text.data() + text.size() || port == 0) Fail("--" + name + "=" + text + ": no port number");
  return port;
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

}  // namespace

int main(int argc, char** argv) {
  auto values = ParseArguments(argc, argv);
  const auto address = ParsePrefix(values["address"]);
  if (!address || !address->address.is_v4())
    Fail("--address=" + values["address"] + ": no IPv4 address with its length, such as 10.0.0.2/24");

  // The configuration: a loopback, one device with an address, and a default route.
  HeapBlockPool pool(size_t{256} << 20);
  Opened link;
  if (const std::string error = OpenLink(values["link"], values["device"], pool, &link); !error.empty()) Fail(error);
  auto config = std::make_shared<NetConfig>(LoopbackOnlyConfig());
  const IfIndex device = link.port->ifindex();
  AddDevice(config.get(), device, "eth0", link.mac, link.mtu);
  AddAddress(config.get(), device, *address);
  if (!values["gateway"].empty()) {
    const auto gateway = ParsePrefix(values["gateway"]);
    if (!gateway || gateway->length != 32) Fail("--gateway=" + values["gateway"] + ": no IPv4 address");
    AddRoute(config.get(), Prefix{IpAddress::Any(Family::kIpv4), 0}, gateway->address, device);
  }

  // The stack, and the thread that runs it: this one.
  SystemRng rng;
  Stack stack(MonotonicNow(), rng, pool);
  stack.ApplyConfig(config);
  WorkerOptions options;
  options.poll = ParsePoll(values["poll"]);
  options.on_port_dead = [](IfIndex, std::string_view) { Fail("the device is gone"); };
  Worker worker(options, stack);
  worker.AddPort(std::make_unique<GroPort>(std::move(link.port)));

  HttpContent content(pool);
  StreamServer http(worker, [&](StreamServer& server, StreamSocket* socket) {
    return std::make_unique<HttpConnection>(server, socket, content, pool);
  });
  StreamServer echo(
      worker, [&](StreamServer& server, StreamSocket* socket) { return std::make_unique<EchoConnection>(server, socket, pool); });
  UdpEcho udp(worker);
  const IpAddress any = IpAddress::Any(Family::kIpv4);
  Check(http.Listen({any, PortNumber("http-port", values["http-port"])}), "--http-port");
  const uint16_t echo_port = PortNumber("echo-port", values["echo-port"]);
  Check(echo.Listen({any, echo_port}), "--echo-port");
  Check(udp.Bind({any, echo_port}), "--echo-port");

  running = &worker;
  for (const int number : {SIGINT, SIGTERM}) signal(number, [](int) { running->Stop(); });
  std::printf("serving on %s\n", values["address"].c_str());
  std::fflush(stdout);
  worker.Run();
  return 0;
}
