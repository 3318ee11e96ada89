#include "dataplane/dpdk/eal.h"

#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <sched.h>
#include <unistd.h>

#include <filesystem>
#include <set>
#include <sstream>
#include <vector>

namespace sluice::dpdk {
namespace {

struct State {
  bool ready = false;
  std::string arguments;     // EAL's own, where it was set up by them
  std::set<uint16_t> taken;  // ports given out
};

State& state() {
  static State s;
  return s;
}

class KeptAffinity {
 public:
  KeptAffinity() { valid_ = sched_getaffinity(0, sizeof set_, &set_) == 0; }
  ~KeptAffinity() {
    if (valid_) sched_setaffinity(0, sizeof set_, &set_);
  }
  int first() const {
    for (int cpu = 0; valid_ && cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(static_cast<size_t>(cpu), &set_)) return cpu;
    }
    return 0;
  }

 private:
  cpu_set_t set_;
  bool valid_ = false;
};

std::vector<std::string> Words(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

Errno SetUp(std::vector<std::string> arguments, std::string* error) {
  KeptAffinity affinity;
  arguments.insert(arguments.begin(), "sluice");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  const int used = rte_eal_init(static_cast<int>(argv.size()), argv.data());
  if (used < 0) {
    *error = std::string("EAL cannot be set up: ") + rte_strerror(rte_errno) + " (it needs root; what it said is on stderr)";
    return rte_errno > 0 ? static_cast<Errno>(rte_errno) : Errno::kEINVAL;
  }
  state().ready = true;
  return Errno::kOk;
}

// For one device: no huge pages, nothing shared with other processes, no files left behind.
Errno SetUpPlain(const std::string& device, std::string* error) {
  KeptAffinity affinity;
  const bool pci = device.substr(0, device.find(',')).find(':') != std::string::npos;
  const std::string prefix = "sluice-" + std::to_string(getpid());
  const Errno e =
      SetUp({"--no-huge", "-m", "256", "--no-shconf", "--no-telemetry", "--iova-mode=va", "--log-level=*:error",
             "--file-prefix=" + prefix, "-l", std::to_string(affinity.first()), pci ? "--allow=" + device : "--no-pci"},
            error);
  if (e == Errno::kOk) {
    std::error_code ignored;
    std::filesystem::remove_all(rte_eal_get_runtime_dir(), ignored);
  }
  return e;
}

Errno NextOf(const std::string& arguments, uint16_t* port, std::string* error) {
  State& s = state();
  if (!s.ready) {
    if (const Errno e = SetUp(Words(arguments), error); e != Errno::kOk) return e;
    s.arguments = arguments;
  } else if (s.arguments != arguments) {
    *error = "EAL is set up already, with other arguments; it is set up once per process";
    return Errno::kEBUSY;
  }
  uint16_t candidate;
  RTE_ETH_FOREACH_DEV(candidate) {
    if (!s.taken.insert(candidate).second) continue;
    *port = candidate;
    return Errno::kOk;
  }
  *error = "EAL's arguments '" + arguments + "' give no" + std::string(s.taken.empty() ? "" : " further") + " Ethernet device";
  return Errno::kENODEV;
}

}  // namespace

Errno FindDevice(const std::string& device, uint16_t* port, std::string* error) {
  if (device.empty()) {
    *error = "no DPDK device is named";
    return Errno::kEINVAL;
  }
  if (device[0] == '-') return NextOf(device, port, error);
  if (!state().ready) {
    if (const Errno e = SetUpPlain(device, error); e != Errno::kOk) return e;
  }
  const int probed = rte_dev_probe(device.c_str());
  const std::string name = device.substr(0, device.find(','));
  if (probed < 0 || rte_eth_dev_get_port_by_name(name.c_str(), port) != 0) {
    *error =
        "the DPDK device " + device + " cannot be opened: " + (probed < 0 ? rte_strerror(-probed) : "it is no Ethernet device");
    return probed < 0 ? static_cast<Errno>(-probed) : Errno::kENODEV;
  }
  state().taken.insert(*port);
  return Errno::kOk;
}

}  // namespace sluice::dpdk
