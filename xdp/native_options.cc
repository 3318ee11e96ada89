#include "xdp/native_options.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>

#include "options.skel.h"
#include "xdp/bpf_calls.h"

namespace sluice {
namespace {

static_assert(SLUICE_OPTIONS == 8 && sizeof(sluice_slot) == 64, "the BPF program masks the index by 7; one slot per cache line");

// Slots taken from the ring at a time: a program that sets options without end must not keep the worker from its other work.
constexpr size_t kBatch = 256;
// A record: its header, and the slot's number rounded up.
constexpr uint32_t kRecord = 16;

Errno FailErrno(std::string* error, const char* what) {
  const int e = errno;
  *error = std::string(what) + ": " + std::strerror(e);
  return static_cast<Errno>(e);
}

UniqueFd Duplicate(int fd) { return UniqueFd(fcntl(fd, F_DUPFD_CLOEXEC, 3)); }

std::atomic_ref<uint32_t> Atomic(uint32_t& word) { return std::atomic_ref<uint32_t>(word); }

}  // namespace

Errno LoadNativeOptions(uint32_t sockets, UniqueFd* program, NativeOptionMaps* maps, std::string* error) {
  bpf::QuietLibbpf();
  std::unique_ptr<sluice_options_bpf, void (*)(sluice_options_bpf*)> bpf(sluice_options_bpf__open(), sluice_options_bpf__destroy);
  if (!bpf) return FailErrno(error, "opening the options program");
  // Twice the records that can wait: every slot's, and one doorbell per sleep.
  bpf_map__set_max_entries(bpf->maps.slots, sockets + 1);
  bpf_map__set_max_entries(bpf->maps.posted, std::max(4096u, std::bit_ceil((sockets + 1) * kRecord * 2)));
  if (sluice_options_bpf__load(bpf.get()) != 0) return FailErrno(error, "loading the options program into the kernel");
  *program = Duplicate(bpf_program__fd(bpf->progs.sluice_set_option));
  maps->slots = Duplicate(bpf_map__fd(bpf->maps.slots));
  maps->marks = Duplicate(bpf_map__fd(bpf->maps.marks));
  maps->posted = Duplicate(bpf_map__fd(bpf->maps.posted));
  if (!*program || !maps->slots || !maps->marks || !maps->posted) return FailErrno(error, "keeping the options program");
  return Errno::kOk;
}

Errno MarkSocket(int marks, int socket, const sluice_mark& mark) {
  return bpf_map_update_elem(marks, &socket, &mark, BPF_ANY) == 0 ? Errno::kOk : static_cast<Errno>(errno);
}

Errno AttachNativeOptions(int program, int control_group, std::string* error) {
  // Programs of groups above go on working.
  if (bpf_prog_attach(program, control_group, BPF_CGROUP_SETSOCKOPT, BPF_F_ALLOW_MULTI) == 0) return Errno::kOk;
  return FailErrno(error, "attaching the options program to a control group");
}

std::unique_ptr<NativeOptions> NativeOptions::Open(NativeOptionMaps maps, std::string* error) {
  bpf::QuietLibbpf();
  bpf_map_info info{};
  uint32_t length = sizeof info;
  std::unique_ptr<NativeOptions> options(new NativeOptions);
  if (bpf_obj_get_info_by_fd(maps.slots.get(), &info, &length) != 0) {
    (void)FailErrno(error, "asking for the option slots");
    return nullptr;
  }
  options->maps_ = std::move(maps);
  options->count_ = info.max_entries;
  options->slots_size_ = size_t{info.max_entries} * sizeof(sluice_slot);
  void* mapped = mmap(nullptr, options->slots_size_, PROT_READ | PROT_WRITE, MAP_SHARED, options->maps_.slots.get(), 0);
  if (mapped == MAP_FAILED) {
    (void)FailErrno(error, "mapping the option slots");
    return nullptr;
  }
  options->slots_ = static_cast<sluice_slot*>(mapped);
  options->ring_ = ring_buffer__new(options->maps_.posted.get(), OnRecord, options.get(), nullptr);
  if (options->ring_ == nullptr) {
    (void)FailErrno(error, "mapping the ring of set options");
    return nullptr;
  }
  return options;
}

NativeOptions::~NativeOptions() {
  if (ring_ != nullptr) ring_buffer__free(ring_);
  if (slots_ != nullptr) munmap(slots_, slots_size_);
}

sluice_mark NativeOptions::Reserve(Kind kind) {
  uint32_t slot = 0;
  if (!free_.empty()) {
    slot = free_.back();
    free_.pop_back();
  } else if (fresh_ < count_) {
    slot = fresh_++;
  }
  return {slot, at(slot).generation, static_cast<uint32_t>(kind), 0};
}

uint32_t NativeOptions::Add(int socket, Kind kind) {
  const sluice_mark mark = Reserve(kind);
  if (mark.slot == 0 || MarkSocket(maps_.marks.get(), socket, mark) == Errno::kOk) return mark.slot;
  free_.push_back(mark.slot);
  return 0;
}

void NativeOptions::Remove(uint32_t slot) {
  sluice_slot& s = at(slot);
  Atomic(s.generation).fetch_add(1);
  Atomic(s.flag).store(0);
  // The ring may still hold the number: the bit that says so stays.
  Atomic(s.state).fetch_and(SLUICE_POSTED);
  free_.push_back(slot);
}

uint32_t NativeOptions::Take(uint32_t slot) {
  std::atomic_ref<uint32_t> state = Atomic(at(slot).state);
  if ((state.load() & ~uint32_t{SLUICE_POSTED}) == 0) return 0;
  return state.fetch_and(SLUICE_POSTED) & ~uint32_t{SLUICE_POSTED};
}

int NativeOptions::value(uint32_t slot, size_t option) const { return std::atomic_ref<int>(at(slot).value[option]).load(); }

void NativeOptions::SetInterest(uint32_t slot, Interest interest) {
  std::atomic_ref<uint32_t> flag = Atomic(at(slot).flag);
  if (flag.load(std::memory_order_relaxed) != static_cast<uint32_t>(interest)) flag.store(static_cast<uint32_t>(interest));
}

int NativeOptions::OnRecord(void* self, void* data, size_t size) {
  auto* options = static_cast<NativeOptions*>(self);
  uint32_t slot = 0;
  if (size != sizeof slot) return 0;
  std::memcpy(&slot, data, sizeof slot);
  if (slot != 0 && slot < options->count_) {
    // Whatever is set from here on is posted anew.
    Atomic(options->at(slot).state).fetch_and(~uint32_t{SLUICE_POSTED});
    options->collected_.push_back(slot);
  }
  return options->collected_.size() < kBatch ? 0 : -E2BIG;
}

void NativeOptions::Collect() { ring_buffer__consume(ring_); }

const std::vector<uint32_t>& NativeOptions::Posted() {
  Atomic(at(0).flag).store(0, std::memory_order_relaxed);
  if (collected_.size() < kBatch) Collect();
  given_.swap(collected_);
  collected_.clear();
  return given_;
}

bool NativeOptions::PrepareSleep() {
  Atomic(at(0).flag).store(1);
  if (collected_.empty()) Collect();
  return !collected_.empty();
}

}  // namespace sluice
