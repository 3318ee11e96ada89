#include "xdp/bpf_calls.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace sluice::bpf {
namespace {

constexpr uint32_t kBefore = 1u << 3;  // BPF_F_BEFORE

// The front of union bpf_attr for the commands below, as kernel 6.6 has it (linux/bpf.h). Older kernels accept a longer
// attribute whose rest is zero.
struct LinkCreateAttr {
  uint32_t prog_fd;
  uint32_t target_ifindex;
  uint32_t attach_type;
  uint32_t flags;
  uint32_t relative_fd;
  uint32_t pad;
  uint64_t expected_revision;
};
struct QueryAttr {
  uint32_t target_ifindex;
  uint32_t attach_type;
  uint32_t query_flags;
  uint32_t attach_flags;
  uint64_t prog_ids;
  uint32_t count;
  uint32_t pad;
  uint64_t prog_attach_flags;
  uint64_t link_ids;
  uint64_t link_attach_flags;
  uint64_t revision;
};
struct ObjectAttr {
  uint64_t pathname;
  uint32_t bpf_fd;
  uint32_t file_flags;
};
struct InfoAttr {
  uint32_t bpf_fd;
  uint32_t info_len;
  uint64_t info;
};
struct MapElementAttr {
  uint32_t map_fd;
  uint32_t pad;
  uint64_t key;
  uint64_t value;
  uint64_t flags;
};

template <typename Attr>
long Call(int command, Attr* attr) {
  return syscall(SYS_bpf, command, attr, sizeof *attr);
}
Errno Result(long r) { return r >= 0 ? Errno::kOk : static_cast<Errno>(errno); }
uint64_t Pointer(const void* p) { return reinterpret_cast<uintptr_t>(p); }

Errno CreateLink(int program, int ifindex, uint32_t attach_type, uint32_t flags, UniqueFd* link) {
  LinkCreateAttr attr{};
  attr.prog_fd = static_cast<uint32_t>(program);
  attr.target_ifindex = static_cast<uint32_t>(ifindex);
  attr.attach_type = attach_type;
  attr.flags = flags;
  const long fd = Call(BPF_LINK_CREATE, &attr);
  if (fd < 0) return static_cast<Errno>(errno);
  *link = UniqueFd(static_cast<int>(fd));
  return Errno::kOk;
}

}  // namespace

Errno CreateTcxLink(int program, int ifindex, uint32_t attach_type, UniqueFd* link) {
  return CreateLink(program, ifindex, attach_type, kBefore, link);
}

Errno CreateXdpLink(int program, int ifindex, uint32_t flags, UniqueFd* link) {
  return CreateLink(program, ifindex, kXdp, flags, link);
}

Errno QueryTcx(int ifindex, uint32_t attach_type, std::vector<Attached>* attached) {
  constexpr uint32_t kMost = 64;  // BPF_MPROG_MAX
  uint32_t progs[kMost] = {}, links[kMost] = {};
  QueryAttr attr{};
  attr.target_ifindex = static_cast<uint32_t>(ifindex);
  attr.attach_type = attach_type;
  attr.prog_ids = Pointer(progs);
  attr.link_ids = Pointer(links);
  attr.count = kMost;
  if (Call(BPF_PROG_QUERY, &attr) < 0) return static_cast<Errno>(errno);
  attached->clear();
  for (uint32_t i = 0; i < attr.count && i < kMost; ++i) attached->push_back({links[i], progs[i]});
  return Errno::kOk;
}

Errno DetachLink(int link) {
  struct {
    uint32_t link_fd;
  } attr{static_cast<uint32_t>(link)};
  return Result(Call(BPF_LINK_DETACH, &attr));
}

Errno LinkId(int link, uint32_t* id, uint32_t* program) {
  bpf_link_info info{};
  InfoAttr attr{static_cast<uint32_t>(link), sizeof info, Pointer(&info)};
  if (Call(BPF_OBJ_GET_INFO_BY_FD, &attr) < 0) return static_cast<Errno>(errno);
  *id = info.id;
  *program = info.prog_id;
  return Errno::kOk;
}

Errno UpdateLink(int link, int program) { return Result(bpf_link_update(link, program, nullptr)); }

Errno LoadPassProgram(UniqueFd* program) {
  constexpr bpf_insn kCode[] = {{BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, -1},
                                {BPF_JMP | BPF_EXIT, 0, 0, 0, 0}};  // return TCX_NEXT
  const int fd = bpf_prog_load(BPF_PROG_TYPE_SCHED_CLS, "sluice_pass", "Apache-2.0", kCode, 2, nullptr);
  if (fd < 0) return static_cast<Errno>(errno);
  *program = UniqueFd(fd);
  return Errno::kOk;
}

Errno TagOf(int program, ProgramTag* tag) {
  bpf_prog_info info{};
  InfoAttr attr{static_cast<uint32_t>(program), sizeof info, Pointer(&info)};
  if (Call(BPF_OBJ_GET_INFO_BY_FD, &attr) < 0) return static_cast<Errno>(errno);
  std::memcpy(tag->data(), info.tag, tag->size());
  return Errno::kOk;
}

Errno NameOf(int program, std::string* name) {
  bpf_prog_info info{};
  InfoAttr attr{static_cast<uint32_t>(program), sizeof info, Pointer(&info)};
  if (Call(BPF_OBJ_GET_INFO_BY_FD, &attr) < 0) return static_cast<Errno>(errno);
  name->assign(info.name, strnlen(info.name, sizeof info.name));
  return Errno::kOk;
}

Errno OpenProgram(uint32_t id, UniqueFd* program) {
  const int fd = bpf_prog_get_fd_by_id(id);
  if (fd < 0) return static_cast<Errno>(errno);
  *program = UniqueFd(fd);
  return Errno::kOk;
}

Errno Pin(int fd, const std::string& path) {
  ObjectAttr attr{Pointer(path.c_str()), static_cast<uint32_t>(fd), 0};
  return Result(Call(BPF_OBJ_PIN, &attr));
}

Errno OpenPinned(const std::string& path, UniqueFd* fd) {
  ObjectAttr attr{Pointer(path.c_str()), 0, 0};
  const long r = Call(BPF_OBJ_GET, &attr);
  if (r < 0) return static_cast<Errno>(errno);
  *fd = UniqueFd(static_cast<int>(r));
  return Errno::kOk;
}

Errno UpdateMap(int map, const void* key, const void* value) {
  MapElementAttr attr{static_cast<uint32_t>(map), 0, Pointer(key), Pointer(value), BPF_ANY};
  return Result(Call(BPF_MAP_UPDATE_ELEM, &attr));
}

void QuietLibbpf() {
  libbpf_set_print([](libbpf_print_level, const char*, va_list) { return 0; });
}

}  // namespace sluice::bpf
