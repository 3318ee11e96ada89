#include "xdp/engine_flows.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>

#include "silence.skel.h"
#include "xdp/bpf_calls.h"

namespace sluice {
namespace {

// A resolver that has forgotten the next hop asks three times, for each of its servers.
constexpr int64_t kArpRequests = 16;

Errno FailErrno(std::string* error, const char* what) {
  const int e = errno;
  if (error != nullptr) *error = std::string(what) + ": " + std::strerror(e);
  return static_cast<Errno>(e);
}

struct NamedMap {
  const char* name;
  UniqueFd EngineFlowMaps::* map;
};
constexpr NamedMap kMaps[] = {{"flow_gate", &EngineFlowMaps::gate},
                              {"flow_held", &EngineFlowMaps::held},
                              {"flow_table", &EngineFlowMaps::table},
                              {"flow_fragments", &EngineFlowMaps::fragments},
                              {"flow_resolutions", &EngineFlowMaps::resolutions}};

using Programs = std::unique_ptr<sluice_silence_bpf, void (*)(sluice_silence_bpf*)>;

Programs OpenPrograms() {
  bpf::QuietLibbpf();
  return {sluice_silence_bpf__open(), sluice_silence_bpf__destroy};
}

// As the object describes it.
UniqueFd CreateMap(const bpf_map* map) {
  bpf_map_create_opts options{};
  options.sz = sizeof options;
  options.map_flags = bpf_map__map_flags(map);
  return UniqueFd(bpf_map_create(bpf_map__type(map), bpf_map__name(map), bpf_map__key_size(map), bpf_map__value_size(map),
                                 bpf_map__max_entries(map), &options));
}

void* MapMemory(int map, size_t size) {
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, map, 0);
  return memory == MAP_FAILED ? nullptr : memory;
}

}  // namespace

Errno CreateEngineFlowMaps(EngineFlowMaps* out, std::string* error) {
  const Programs programs = OpenPrograms();
  if (!programs) return FailErrno(error, "opening the programs of engine flows");
  EngineFlowMaps maps;
  for (const NamedMap& m : kMaps) {
    maps.*m.map = CreateMap(bpf_object__find_map_by_name(programs->obj, m.name));
    if (!(maps.*m.map)) return FailErrno(error, "making the maps of engine flows (needs CAP_BPF)");
  }
  *out = std::move(maps);
  return Errno::kOk;
}

Errno UseEngineFlowMaps(bpf_object* object, const EngineFlowMaps* maps) {
  for (const NamedMap& m : kMaps) {
    bpf_map* map = bpf_object__find_map_by_name(object, m.name);
    const int r = maps != nullptr ? bpf_map__reuse_fd(map, (maps->*m.map).get()) : bpf_map__set_autocreate(map, false);
    if (r != 0) return static_cast<Errno>(-r);
  }
  return Errno::kOk;
}

Errno LoadEngineFlowPrograms(const EngineFlowMaps& maps, uint32_t mark, EngineFlowPrograms* out, std::string* error) {
  const Programs programs = OpenPrograms();
  if (!programs) return FailErrno(error, "opening the programs of engine flows");
  programs->rodata->sluice_mark = mark;
  bpf_program__set_autoload(programs->progs.sluice_quiet_in, false);
  bpf_program__set_autoload(programs->progs.sluice_quiet_out, false);
  if (UseEngineFlowMaps(programs->obj, &maps) != Errno::kOk || sluice_silence_bpf__load(programs.get()) != 0)
    return FailErrno(error, "loading the programs of engine flows into the kernel");
  const auto keep = [](const bpf_program* program) { return UniqueFd(fcntl(bpf_program__fd(program), F_DUPFD_CLOEXEC, 3)); };
  EngineFlowPrograms kept{keep(programs->progs.sluice_flow_in), keep(programs->progs.sluice_flow_out),
                          keep(programs->progs.sluice_flow_tap)};
  if (!kept.in || !kept.out || !kept.tap) return FailErrno(error, "keeping the programs of engine flows");
  *out = std::move(kept);
  return Errno::kOk;
}

FlowGate::~FlowGate() {
  if (gate_ != nullptr) munmap(gate_, sizeof *gate_);
}

Errno FlowGate::Open(int map) {
  gate_ = static_cast<sluice_gate*>(MapMemory(map, sizeof *gate_));
  return gate_ != nullptr ? Errno::kOk : static_cast<Errno>(errno);
}

void FlowGate::Ask() {
  if (gate_ == nullptr) return;
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  __s64& requests = gate_->arp_requests;
  std::atomic_ref(requests).store(kArpRequests);
  __u64& asked = gate_->asked;
  std::atomic_ref(asked).store(static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec));
}

std::span<uint64_t> MapHeldPorts(int map) {
  auto* words = static_cast<uint64_t*>(MapMemory(map, SLUICE_HELD_WORDS * sizeof(uint64_t)));
  if (words == nullptr) return {};
  return {words, SLUICE_HELD_WORDS};
}

}  // namespace sluice
