#include "control/metrics/exposition.h"

#include <prometheus/text_serializer.h>

#include <algorithm>
#include <cctype>
#include <sstream>
#include <string_view>

#include "control/run/device_faults.h"
#include "dataplane/port.h"
#include "dataplane/qdisc.h"
#include "netstack/counters.h"

namespace sluice {
namespace {

using nlohmann::json;
using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

// A number of one part of the answer.
struct Spec {
  const char* part;
  const char* field;
  const char* metric;
  const char* help;
  MetricType type = MetricType::Counter;
  double unit = 1;
};

constexpr Spec kParts[] = {
    {"tcp", "established", "sluice_tcp_established", "TCP connections that are established", MetricType::Gauge},
    {"process", "cpu_ns", "sluice_sentry_cpu_seconds_total", "CPU time of the sentry, user and system", MetricType::Counter,
     1e-9},
    {"worker", "turns", "sluice_worker_turns_total", "turns of the worker"},
    {"worker", "busy_turns", "sluice_worker_busy_turns_total", "turns that had work"},
    {"worker", "sleeps", "sluice_worker_sleeps_total", "times the worker slept"},
    {"worker", "wakeups", "sluice_worker_wakeups_total", "sleeps that ended with work"},
    {"worker", "spin_ns", "sluice_worker_spin_seconds_total", "time in turns that found nothing to do", MetricType::Counter,
     1e-9},
    {"worker", "core_taken", "sluice_worker_core_taken_total",
     "times others ran on the worker's core although it did not sleep: it was preempted, or a spin gave way"},
    {"worker", "threads", "sluice_worker_threads", "threads that run the workers now", MetricType::Gauge},
    {"worker", "handovers", "sluice_worker_handovers_total",
     "times a worker went from the first one's thread to its own or back"},
    {"worker", "preempted_spins", "sluice_worker_preempted_spins_total", "spins that ended because others wanted the core"},
    {"worker", "sleep_ns", "sluice_worker_sleep_seconds_total", "time asleep", MetricType::Counter, 1e-9},
    {"calls", "calls", "sluice_calls_total", "socket calls of the program that came to the sentry"},
    {"calls", "answered", "sluice_calls_answered_total", "calls that were answered"},
    {"calls", "undone", "sluice_calls_undone_total", "calls that a signal cancelled before their answer"},
    {"calls", "held", "sluice_calls_held", "calls that wait now", MetricType::Gauge},
    {"calls", "streams", "sluice_stream_sockets", "open stream sockets", MetricType::Gauge},
    {"calls", "datagrams", "sluice_datagram_sockets", "open datagram sockets", MetricType::Gauge},
    {"calls", "netlinks", "sluice_netlink_sockets", "open netlink sockets", MetricType::Gauge},
    {"calls", "stream_bytes_in", "sluice_stream_receive_bytes_total", "bytes of streams handed to the program"},
    {"calls", "stream_bytes_out", "sluice_stream_transmit_bytes_total", "bytes of streams taken from the program"},
    {"calls", "datagrams_in", "sluice_datagrams_receive_total", "datagrams handed to the program"},
    {"calls", "datagrams_out", "sluice_datagrams_transmit_total", "datagrams taken from the program"},
    {"calls", "datagrams_dropped", "sluice_datagrams_dropped_total", "datagrams dropped because the program did not read"},
    {"calls", "options_native", "sluice_options_native_total", "socket options that the kernel answered"},
    {"memory", "packet_bytes_in_use", "sluice_packet_memory_bytes", "memory of packets in use", MetricType::Gauge},
    {"memory", "packet_bytes_held", "sluice_packet_memory_held_bytes", "memory of packets in use and cached", MetricType::Gauge},
};

// A number of each port; labels "device" and "kind".
constexpr Spec kPorts[] = {
    {"", "rx_frames", "sluice_port_receive_frames_total", "frames received by the port; a super-segment is one"},
    {"", "rx_bytes", "sluice_port_receive_bytes_total", "bytes received by the port"},
    {"", "rx_dropped", "sluice_port_receive_dropped_total",
     "frames that the kernel dropped before the port, or that were malformed"},
    {"", "rx_syscalls", "sluice_port_receive_syscalls_total", "system calls that received"},
    {"", "tx_frames", "sluice_port_transmit_frames_total", "frames sent by the port"},
    {"", "tx_bytes", "sluice_port_transmit_bytes_total", "bytes sent by the port"},
    {"", "tx_dropped", "sluice_port_transmit_dropped_total", "frames that the device refused for good"},
    {"", "tx_syscalls", "sluice_port_transmit_syscalls_total", "system calls that sent"},
    {"qdisc", "dropped", "sluice_qdisc_dropped_total", "frames that the device's queueing discipline dropped"},
    {"qdisc", "overlimits", "sluice_qdisc_overlimits_total", "times that the next frame had to wait for its time"},
    {"qdisc", "backlog_bytes", "sluice_qdisc_backlog_bytes", "bytes that wait in the queueing discipline", MetricType::Gauge},
    {"", "software_gso_frames", "sluice_port_software_gso_frames_total", "super-segments cut by the port"},
};

constexpr std::string_view kDrop = "Drop";

bool Upper(char c) { return std::isupper(static_cast<unsigned char>(c)) != 0; }
bool Lower(char c) { return std::islower(static_cast<unsigned char>(c)) != 0; }

// "TcpDSACKRecv" -> "tcp_dsack_recv"; a plural's s begins no word ("IpReasmOKs").
std::string Snake(std::string_view name) {
  std::string out;
  for (size_t i = 0; i < name.size(); ++i) {
    const bool plural = i + 2 == name.size() && name[i + 1] == 's';
    const bool begins =
        i > 0 && Upper(name[i]) && (!Upper(name[i - 1]) || (i + 1 < name.size() && Lower(name[i + 1]) && !plural));
    if (begins) out += '_';
    out += static_cast<char>(std::tolower(static_cast<unsigned char>(name[i])));
  }
  return out;
}

void Add(MetricFamily* family, Labels labels, double value) {
  ClientMetric metric;
  metric.label = std::move(labels);
  (family->type == MetricType::Gauge ? metric.gauge.value : metric.counter.value) = value;
  family->metric.push_back(std::move(metric));
}

void AddField(MetricFamily* family, const Spec& spec, const json& part, Labels labels) {
  if (!part.is_object()) return;
  const auto field = part.find(spec.field);
  if (field != part.end() && field->is_number()) Add(family, std::move(labels), field->get<double>() * spec.unit);
}

Labels LabelsOf(const SandboxStats& one) {
  Labels labels{{"sandbox", one.sandbox}};
  if (!one.container.empty()) labels.push_back({"container", one.container});
  return labels;
}

json Part(const SandboxStats& one, const char* name) {
  const auto part = one.stats.is_object() ? one.stats.find(name) : one.stats.end();
  return one.stats.is_object() && part != one.stats.end() ? *part : json();
}

// A sandbox has as many devices as the namespace, not as a sentry says.
constexpr size_t kMaxPorts = 256, kMaxName = 15;

std::string Name(const json& port, const char* field) {
  const auto it = port.is_object() ? port.find(field) : port.end();
  return port.is_object() && it != port.end() && it->is_string() ? it->get<std::string>().substr(0, kMaxName) : "";
}

// A number of each port; `out` gets it under the label "fault", where that is not empty.
void AddPortField(const std::vector<SandboxStats>& sandboxes, const Spec& spec, std::string_view fault, MetricFamily* family) {
  for (const SandboxStats& one : sandboxes) {
    const json ports = Part(one, "ports");
    std::vector<std::string> devices;  // each once: two equal series are no exposition
    for (size_t i = 0; ports.is_array() && i < std::min(ports.size(), kMaxPorts); ++i) {
      Labels labels = LabelsOf(one);
      const std::string device = Name(ports[i], "device");
      if (device.empty() || std::ranges::find(devices, device) != devices.end()) continue;
      devices.push_back(device);
      labels.push_back({"device", device});
      labels.push_back({"kind", Name(ports[i], "kind")});
      if (!fault.empty()) labels.push_back({"fault", std::string(fault)});
      AddField(family, spec, *spec.part == 0 ? ports[i] : ports[i].value(spec.part, json()), std::move(labels));
    }
  }
}

void AddPorts(const std::vector<SandboxStats>& sandboxes, std::vector<MetricFamily>* out) {
  for (const Spec& spec : kPorts) {
    MetricFamily family{spec.metric, spec.help, spec.type, {}};
    AddPortField(sandboxes, spec, {}, &family);
    out->push_back(std::move(family));
  }
  MetricFamily faults{
      "sluice_port_faults_total", "what happened to a device or its port, and was got over, by fault", MetricType::Counter, {}};
  const auto add = [&](std::string_view name) {
    const std::string field(name);
    AddPortField(sandboxes, {"faults", field.c_str(), "", ""}, name, &faults);
  };
  for (const PortFault& fault : kPortFaults) add(fault.name);
  for (const DeviceFault& fault : kDeviceFaults) add(fault.name);
  out->push_back(std::move(faults));
}

void AddCounter(const std::vector<SandboxStats>& sandboxes, std::string_view counter, MetricFamily* family) {
  const std::string name(counter);
  const Spec spec{"counters", name.c_str(), "", ""};
  for (const SandboxStats& one : sandboxes) {
    Labels labels = LabelsOf(one);
    if (name.starts_with(kDrop)) labels.push_back({"reason", Snake(counter.substr(kDrop.size()))});
    AddField(family, spec, Part(one, "counters"), std::move(labels));
  }
}

void AddCounters(const std::vector<SandboxStats>& sandboxes, std::vector<MetricFamily>* out) {
  MetricFamily drops{
      "sluice_drops_total", "frames, segments and datagrams dropped, by reason (sluice drops)", MetricType::Counter, {}};
  for (const CounterInfo& info : kCounterInfo) {
    if (info.name.starts_with(kDrop)) {
      AddCounter(sandboxes, info.name, &drops);
      continue;
    }
    MetricFamily family{"sluice_" + Snake(info.name) + "_total", std::string(info.help), MetricType::Counter, {}};
    AddCounter(sandboxes, info.name, &family);
    out->push_back(std::move(family));
  }
  for (const QdiscDrop& drop : kQdiscDrops) AddCounter(sandboxes, drop.name, &drops);
  out->push_back(std::move(drops));
}

}  // namespace

std::vector<MetricFamily> MetricFamilies(const std::vector<SandboxStats>& sandboxes) {
  std::vector<MetricFamily> out;
  MetricFamily up{"sluice_up", "1 where the sandbox answered", MetricType::Gauge, {}};
  for (const SandboxStats& one : sandboxes) Add(&up, LabelsOf(one), one.stats.is_object() ? 1 : 0);
  out.push_back(std::move(up));
  AddCounters(sandboxes, &out);
  AddPorts(sandboxes, &out);
  for (const Spec& spec : kParts) {
    MetricFamily family{spec.metric, spec.help, spec.type, {}};
    for (const SandboxStats& one : sandboxes) AddField(&family, spec, Part(one, spec.part), LabelsOf(one));
    out.push_back(std::move(family));
  }
  return out;
}

std::string Exposition(const std::vector<SandboxStats>& sandboxes) {
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, MetricFamilies(sandboxes));
  return out.str();
}

}  // namespace sluice
