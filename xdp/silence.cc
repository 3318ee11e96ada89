#include "xdp/silence.h"

#include <bpf/libbpf.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "silence.skel.h"
#include "xdp/bpf_calls.h"

namespace sluice {
namespace {

constexpr uint32_t kPreference = 1;
// The filter's handle remembers whether the qdisc was there before us.
constexpr uint32_t kHandleOnOthersQdisc = 0x51, kHandleOnOurQdisc = 0x52;

Errno Fail(std::string* error, const std::string& what, Errno e) {
  if (error != nullptr) *error = what + ": " + std::strerror(ToInt(e));
  return e;
}
Errno FailErrno(std::string* error, const std::string& what) { return Fail(error, what, static_cast<Errno>(errno)); }

std::string PinPath(const SilenceOptions& options, int ifindex, const char* direction) {
  return options.directory + "/" + options.name + ":" + std::to_string(ifindex) + ":" + direction;
}

std::vector<std::string> PinPaths(const SilenceOptions& options, int ifindex) {
  return {PinPath(options, ifindex, "out"), PinPath(options, ifindex, "in")};
}

bool IsBpffs(const std::string& directory) {
  struct statfs fs{};
  return statfs(directory.c_str(), &fs) == 0 && static_cast<uint64_t>(fs.f_type) == BPF_FS_MAGIC;
}

Errno MakeDirectories(const std::string& path) {
  for (size_t at = 1; at != std::string::npos;) {
    at = path.find('/', at + 1);
    if (mkdir(path.substr(0, at).c_str(), 0700) != 0 && errno != EEXIST) return static_cast<Errno>(errno);
  }
  return Errno::kOk;
}

// Held while the bpffs is mounted or unmounted and while pins are made: else one sandbox's exit unmounts what another's start
// uses.
UniqueFd LockDirectory(const std::string& directory) {
  UniqueFd lock(open((directory + ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (lock && flock(lock.get(), LOCK_EX) != 0) lock.Reset();
  return lock;
}

Errno MountBpffs(const std::string& directory, std::string* error) {
  if (IsBpffs(directory)) return Errno::kOk;
  if (mount("bpf", directory.c_str(), "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700") != 0) {
    return FailErrno(error, "mounting a bpffs on " + directory);
  }
  return Errno::kOk;
}

std::vector<std::string> PinnedNames(const std::string& directory) {
  std::vector<std::string> names;
  std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir(directory.c_str()), closedir);
  if (!dir) return names;
  while (const dirent* entry = readdir(dir.get())) {
    // No pin may have a dot in its name; "maps.debug" and "progs.debug" are the file system's own.
    if (std::strchr(entry->d_name, '.') == nullptr) names.emplace_back(entry->d_name);
  }
  return names;
}

void UnmountWhenEmpty(const std::string& directory) {
  if (!IsBpffs(directory) || !PinnedNames(directory).empty()) return;
  // The directory stays: removing it would take away what is mounted on it in other mount namespaces.
  umount2(directory.c_str(), UMOUNT_NOFOLLOW);
}

using Programs = std::unique_ptr<sluice_silence_bpf, void (*)(sluice_silence_bpf*)>;

Errno LoadPrograms(uint32_t mark, Programs* out, std::string* error) {
  bpf::QuietLibbpf();
  Programs programs(sluice_silence_bpf__open(), sluice_silence_bpf__destroy);
  if (!programs) return FailErrno(error, "opening the silencing program");
  programs->rodata->sluice_mark = mark;
  for (bpf_program* unused : {programs->progs.sluice_flow_in, programs->progs.sluice_flow_out, programs->progs.sluice_flow_tap}) {
    bpf_program__set_autoload(unused, false);
  }
  if (const Errno e = UseEngineFlowMaps(programs->obj, nullptr); e != Errno::kOk)
    return Fail(error, "preparing the silencing program", e);
  if (sluice_silence_bpf__load(programs.get()) != 0) {
    return FailErrno(error, "loading the silencing program into the kernel (needs CAP_BPF and CAP_NET_ADMIN)");
  }
  *out = std::move(programs);
  return Errno::kOk;
}

// Attaches in front of what is there, then moves the pin: what a dead sandbox left acts until the new program does.
Errno AttachTcx(int program, int ifindex, uint32_t hook, const std::string& pin, UniqueFd* link, uint32_t* id,
                uint32_t* program_id) {
  if (Errno e = bpf::CreateTcxLink(program, ifindex, hook, link); e != Errno::kOk) return e;
  if (Errno e = bpf::LinkId(link->get(), id, program_id); e != Errno::kOk) return e;
  UniqueFd stale;
  if (bpf::OpenPinned(pin, &stale) == Errno::kOk) {
    unlink(pin.c_str());
    (void)bpf::DetachLink(stale.get());
  }
  return bpf::Pin(link->get(), pin);
}

// A program that lets everything pass takes the place of ours. kENOENT: there is no such pin.
Errno LetPass(const std::string& pin, UniqueFd* link) {
  UniqueFd pass;
  if (Errno e = bpf::OpenPinned(pin, link); e != Errno::kOk) return e;
  Errno done = bpf::LoadPassProgram(&pass);
  if (done == Errno::kOk) done = bpf::UpdateLink(link->get(), pass.get());
  if (done != Errno::kOk) done = bpf::DetachLink(link->get());
  // A link whose device is gone is detached already.
  return done == Errno::kENODEV || done == Errno::kENOENT ? Errno::kOk : done;
}

// First all are let pass, then the pins go: the pin is to be the last that holds a link, so that its end takes place in the
// background, and that end holds the kernel's lock of all devices for a grace period.
Errno RemovePinnedLinks(const std::vector<std::string>& pins) {
  Errno result = Errno::kOk;
  std::vector<const std::string*> found;
  for (const std::string& pin : pins) {
    UniqueFd link;
    const Errno e = LetPass(pin, &link);
    if (e == Errno::kENOENT && !link) continue;
    if (link) found.push_back(&pin);
    if (e != Errno::kOk) result = e;
  }
  for (const std::string* pin : found) {
    if (unlink(pin->c_str()) != 0) result = static_cast<Errno>(errno);
  }
  return result;
}

bpf_tc_hook Hook(int ifindex, bpf_tc_attach_point point) {
  bpf_tc_hook hook{};
  hook.sz = sizeof hook;
  hook.ifindex = ifindex;
  hook.attach_point = point;
  return hook;
}

bpf_tc_opts Filter(uint32_t handle) {
  bpf_tc_opts filter{};
  filter.sz = sizeof filter;
  filter.handle = handle;
  filter.priority = kPreference;
  return filter;
}

// Says nothing about what was asked for: this process or the kernel had no room for the question.
bool IsTransient(Errno e) {
  switch (e) {
    case Errno::kEMFILE:
    case Errno::kENFILE:
    case Errno::kENOMEM:
    case Errno::kENOBUFS:
    case Errno::kEINTR:
    case Errno::kEAGAIN:
      return true;
    default:
      return false;
  }
}

// kENOENT: it is another's. By the name, as the handle is nobody's: the kernel keeps 15 bytes of it.
Errno IsOurProgram(uint32_t id) {
  UniqueFd program;
  std::string name;
  if (Errno e = bpf::OpenProgram(id, &program); e != Errno::kOk) return e;
  if (Errno e = bpf::NameOf(program.get(), &name); e != Errno::kOk) return e;
  return name.starts_with("sluice_") ? Errno::kOk : Errno::kENOENT;
}

struct OurFilter {
  uint32_t handle = 0, program = 0;
};

// Our filter on a hook. kEAGAIN: it could not be looked for; every other error: there is none.
Errno FindClsact(int ifindex, bpf_tc_attach_point point, OurFilter* out) {
  const bpf_tc_hook hook = Hook(ifindex, point);
  for (uint32_t candidate : {kHandleOnOurQdisc, kHandleOnOthersQdisc}) {
    bpf_tc_opts filter = Filter(candidate);
    Errno e = static_cast<Errno>(-bpf_tc_query(&hook, &filter));
    if (e == Errno::kOk) e = IsOurProgram(filter.prog_id);
    if (IsTransient(e)) return Errno::kEAGAIN;
    if (e != Errno::kOk) continue;
    *out = {.handle = candidate, .program = filter.prog_id};
    return Errno::kOk;
  }
  return Errno::kENOENT;
}

struct TcFilter {
  uint32_t handle = 0;  // 0: there is none
  uint32_t preference = 0;
};

// Asks for a dump of the hook's filters: of one chain, or of all (-1).
Errno AskForFilters(int socket_fd, int ifindex, bpf_tc_attach_point point, int chain) {
  struct {
    nlmsghdr header;
    tcmsg body;
    rtattr attribute;
    uint32_t chain;
  } request{};
  request.header.nlmsg_len = chain < 0 ? NLMSG_LENGTH(sizeof(tcmsg)) : sizeof request;
  request.header.nlmsg_type = RTM_GETTFILTER;
  request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  request.body.tcm_ifindex = ifindex;
  request.body.tcm_parent = TC_H_MAKE(TC_H_CLSACT, point == BPF_TC_INGRESS ? TC_H_MIN_INGRESS : TC_H_MIN_EGRESS);
  request.attribute = {.rta_len = RTA_LENGTH(sizeof request.chain), .rta_type = TCA_CHAIN};
  request.chain = static_cast<uint32_t>(chain);
  return send(socket_fd, &request, request.header.nlmsg_len, 0) < 0 ? static_cast<Errno>(errno) : Errno::kOk;
}

// The first filter of a hook of clsact in one chain, or in any (-1). A packet begins in chain 0.
Errno FirstFilter(int ifindex, bpf_tc_attach_point point, int chain, TcFilter* out) {
  *out = {};
  const UniqueFd socket_fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!socket_fd) return static_cast<Errno>(errno);
  if (Errno e = AskForFilters(socket_fd.get(), ifindex, point, chain); e != Errno::kOk) return e;
  alignas(nlmsghdr) char answer[32768];
  for (;;) {
    const ssize_t size = recv(socket_fd.get(), answer, sizeof answer, 0);
    if (size <= 0) return size == 0 ? Errno::kEAGAIN : static_cast<Errno>(errno);
    auto left = static_cast<uint32_t>(size);
    for (const auto* m = reinterpret_cast<const nlmsghdr*>(answer); NLMSG_OK(m, left); m = NLMSG_NEXT(m, left)) {
      // Both begin with the errno, negative.
      if (m->nlmsg_type == NLMSG_ERROR || m->nlmsg_type == NLMSG_DONE)
        return m->nlmsg_len < NLMSG_LENGTH(sizeof(int)) ? Errno::kOk
                                                        : static_cast<Errno>(-*static_cast<const int*>(NLMSG_DATA(m)));
      if (m->nlmsg_type != RTM_NEWTFILTER) continue;
      const auto* filter = static_cast<const tcmsg*>(NLMSG_DATA(m));
      if (filter->tcm_handle == 0) continue;  // what holds the filters of one preference
      *out = {.handle = filter->tcm_handle, .preference = TC_H_MAJ(filter->tcm_info) >> 16};
      return Errno::kOk;
    }
  }
}

bool HasNoFilter(int ifindex, bpf_tc_attach_point point) {
  TcFilter first;
  return FirstFilter(ifindex, point, -1, &first) == Errno::kOk && first.handle == 0;
}

// The qdisc goes with our filters where we made it, but not with what others have put into it since.
Errno LiftClsact(int ifindex) {
  bool our_qdisc = false;
  for (bpf_tc_attach_point point : {BPF_TC_INGRESS, BPF_TC_EGRESS}) {
    OurFilter ours;
    const Errno e = FindClsact(ifindex, point, &ours);
    if (e == Errno::kEAGAIN) return e;
    if (e != Errno::kOk) continue;
    our_qdisc |= ours.handle == kHandleOnOurQdisc;
    const bpf_tc_hook hook = Hook(ifindex, point);
    const bpf_tc_opts filter = Filter(ours.handle);
    if (const int r = bpf_tc_detach(&hook, &filter); r != 0 && r != -ENOENT && r != -ENODEV) return static_cast<Errno>(-r);
  }
  if (our_qdisc && HasNoFilter(ifindex, BPF_TC_INGRESS) && HasNoFilter(ifindex, BPF_TC_EGRESS)) {
    bpf_tc_hook both = Hook(ifindex, static_cast<bpf_tc_attach_point>(BPF_TC_INGRESS | BPF_TC_EGRESS));
    bpf_tc_hook_destroy(&both);
  }
  return Errno::kOk;
}

Errno AttachClsact(int ifindex, int in_program, int out_program, uint32_t* in_id, uint32_t* out_id) {
  OurFilter ours;
  if (FindClsact(ifindex, BPF_TC_INGRESS, &ours) == Errno::kEAGAIN) return Errno::kEAGAIN;
  bpf_tc_hook both = Hook(ifindex, static_cast<bpf_tc_attach_point>(BPF_TC_INGRESS | BPF_TC_EGRESS));
  const int created = bpf_tc_hook_create(&both);
  if (created != 0 && created != -EEXIST) return static_cast<Errno>(-created);
  if (ours.handle == 0) ours.handle = created == 0 ? kHandleOnOurQdisc : kHandleOnOthersQdisc;
  for (bpf_tc_attach_point point : {BPF_TC_INGRESS, BPF_TC_EGRESS}) {
    const bpf_tc_hook hook = Hook(ifindex, point);
    bpf_tc_opts filter = Filter(ours.handle);
    filter.prog_fd = point == BPF_TC_INGRESS ? in_program : out_program;
    filter.flags = BPF_TC_F_REPLACE;
    if (const int r = bpf_tc_attach(&hook, &filter); r != 0) {
      (void)LiftClsact(ifindex);
      return static_cast<Errno>(-r);
    }
    *(point == BPF_TC_INGRESS ? in_id : out_id) = filter.prog_id;
  }
  // An ingress qdisc of somebody else's stands in clsact's place and has one list of filters, which it takes those of egress
  // into.
  if (FindClsact(ifindex, BPF_TC_INGRESS, &ours) == Errno::kOk && ours.program == *in_id) return Errno::kOk;
  (void)LiftClsact(ifindex);
  return Errno::kEBUSY;
}

Errno NotAsked(Errno e, const char* direction, std::string* reason) {
  (void)Fail(reason, std::string("the silencing program on ") + direction + " could not be looked for", e);
  return Errno::kEAGAIN;
}

Errno CheckTcx(int ifindex, uint32_t hook, uint32_t id, uint32_t program, const char* direction, std::string* reason) {
  std::vector<bpf::Attached> links;
  if (Errno e = bpf::QueryTcx(ifindex, hook, &links); e != Errno::kOk) {
    if (IsTransient(e)) return NotAsked(e, direction, reason);
    // The hook of a device without any program does not exist.
    return Fail(reason, std::string("the silencing program on ") + direction + " was taken off",
                e == Errno::kENODEV ? e : Errno::kENOENT);
  }
  const auto is_ours = [=](const bpf::Attached& a) { return a.link == id && a.program == program; };
  if (!links.empty() && is_ours(links[0])) return Errno::kOk;
  for (const bpf::Attached& other : links) {
    if (is_ours(other))
      return Fail(reason, std::string("another program was put before the silencing program on ") + direction, Errno::kEEXIST);
  }
  return Fail(reason, std::string("the silencing program on ") + direction + " was taken off", Errno::kENOENT);
}

bool HasTcx(int ifindex) { return CountTcx(ifindex, bpf::kTcxIngress) > 0 || CountTcx(ifindex, bpf::kTcxEgress) > 0; }

Errno CheckClsact(int ifindex, bpf_tc_attach_point point, uint32_t program, const char* direction, std::string* reason) {
  OurFilter ours;
  if (const Errno e = FindClsact(ifindex, point, &ours); e == Errno::kEAGAIN) return NotAsked(e, direction, reason);
  if (program == 0 || ours.program != program)
    return Fail(reason, std::string("the silencing filter on ") + direction + " was taken off or replaced", Errno::kENOENT);
  TcFilter first;
  if (const Errno e = FirstFilter(ifindex, point, 0, &first); e != Errno::kOk) return NotAsked(e, direction, reason);
  if (first.handle == ours.handle && first.preference == kPreference &&
      CountTcx(ifindex, point == BPF_TC_INGRESS ? bpf::kTcxIngress : bpf::kTcxEgress) == 0)
    return Errno::kOk;
  return Fail(reason, std::string("another program was put before the silencing filter on ") + direction, Errno::kEEXIST);
}

}  // namespace

Errno Silence::AttachPinned(int in_program, int out_program, const SilenceOptions& options, std::string* error) {
  if (Errno e = MakeDirectories(options.directory); e != Errno::kOk) return Fail(error, "making " + options.directory, e);
  const UniqueFd lock = LockDirectory(options.directory);
  if (!lock) return FailErrno(error, "locking " + options.directory + ".lock");
  if (Errno e = MountBpffs(options.directory, error); e != Errno::kOk) return e;
  Errno e = AttachTcx(in_program, ifindex_, bpf::kTcxIngress, PinPath(options, ifindex_, "in"), &in_, &in_id_, &in_program_);
  if (e == Errno::kOk)
    e = AttachTcx(out_program, ifindex_, bpf::kTcxEgress, PinPath(options, ifindex_, "out"), &out_, &out_id_, &out_program_);
  if (e == Errno::kOk) {
    kind_ = SilenceKind::kTcx;
    return e;
  }
  (void)RemovePinnedLinks(PinPaths(options, ifindex_));
  UnmountWhenEmpty(options.directory);
  return Fail(error, "attaching the silencing program to device " + std::to_string(ifindex_), e);
}

Errno Silence::AttachFilters(int in_program, int out_program, std::string* error) {
  const Errno e = AttachClsact(ifindex_, in_program, out_program, &in_id_, &out_id_);
  if (e != Errno::kOk) return Fail(error, "attaching the silencing filter to clsact of device " + std::to_string(ifindex_), e);
  kind_ = SilenceKind::kClsact;
  return e;
}

Errno SilenceDevice(int ifindex, const SilenceOptions& options, Silence* out, std::string* error) {
  if (options.mark == 0 || options.name.empty() || options.name.find_first_of("/.:") != std::string::npos) {
    return Fail(error, "silencing needs a mark, and a name without / . :", Errno::kEINVAL);
  }
  char device[IF_NAMESIZE];
  if (if_indextoname(static_cast<unsigned>(ifindex), device) == nullptr) {
    return Fail(error, "device " + std::to_string(ifindex), Errno::kENODEV);
  }
  Programs programs(nullptr, sluice_silence_bpf__destroy);
  if (options.flows == nullptr) {
    if (Errno e = LoadPrograms(options.mark, &programs, error); e != Errno::kOk) return e;
  }
  const int in_program = programs ? bpf_program__fd(programs->progs.sluice_quiet_in) : options.flows->in.get();
  const int out_program = programs ? bpf_program__fd(programs->progs.sluice_quiet_out) : options.flows->out.get();
  Silence result;
  result.ifindex_ = ifindex;
  // Behind one another: what an older kernel, or a qdisc of somebody else's on the device, has no room for.
  const bool tcx_first = options.tcx || HasTcx(ifindex);
  Errno e = tcx_first ? result.AttachPinned(in_program, out_program, options, error) : Errno::kEINVAL;
  if (e == Errno::kEINVAL) e = result.AttachFilters(in_program, out_program, error);
  if (e != Errno::kOk && e != Errno::kENODEV && !tcx_first) {
    std::string tcx_error;
    const Errno by_tcx = result.AttachPinned(in_program, out_program, options, &tcx_error);
    if (by_tcx != Errno::kOk && error != nullptr) *error += "; " + tcx_error;
    e = by_tcx == Errno::kOk ? by_tcx : e;
  }
  if (e == Errno::kOk) *out = std::move(result);
  return e;
}

Errno LiftSilence(int ifindex, const SilenceOptions& options, std::string* error) {
  bpf::QuietLibbpf();
  Errno result = LiftClsact(ifindex);
  if (!IsBpffs(options.directory)) return result == Errno::kOk ? result : Fail(error, "removing the silencing filter", result);
  const UniqueFd lock = LockDirectory(options.directory);
  if (Errno e = RemovePinnedLinks(PinPaths(options, ifindex)); e != Errno::kOk) result = e;
  UnmountWhenEmpty(options.directory);
  return result == Errno::kOk ? result : Fail(error, "lifting the silence of device " + std::to_string(ifindex), result);
}

int CountTcx(int ifindex, uint32_t hook) {
  std::vector<bpf::Attached> attached;
  if (bpf::QueryTcx(ifindex, hook, &attached) != Errno::kOk || attached.empty()) return 0;
  UniqueFd pass;
  bpf::ProgramTag passing{};
  const bool known = bpf::LoadPassProgram(&pass) == Errno::kOk && bpf::TagOf(pass.get(), &passing) == Errno::kOk;
  int count = 0;
  for (const bpf::Attached& a : attached) {
    UniqueFd program;
    bpf::ProgramTag tag{};
    if (bpf::OpenProgram(a.program, &program) == Errno::kENOENT) continue;  // taken off meanwhile
    if (!known || bpf::TagOf(program.get(), &tag) != Errno::kOk || tag != passing) ++count;
  }
  return count;
}

Errno LiftAllPinned(const SilenceOptions& options, std::string* error) {
  if (!IsBpffs(options.directory)) return Errno::kOk;
  const UniqueFd lock = LockDirectory(options.directory);
  std::vector<std::string> pins;
  for (const std::string& name : PinnedNames(options.directory)) {
    if (name.starts_with(options.name + ":")) pins.push_back(options.directory + "/" + name);
  }
  const Errno result = RemovePinnedLinks(pins);
  UnmountWhenEmpty(options.directory);
  return result == Errno::kOk ? result : Fail(error, "lifting what is pinned in " + options.directory, result);
}

Errno LiftAllClsact(std::string* error) {
  bpf::QuietLibbpf();
  const std::unique_ptr<struct if_nameindex, void (*)(struct if_nameindex*)> devices(if_nameindex(), if_freenameindex);
  if (!devices) return FailErrno(error, "listing the namespace's devices");
  Errno result = Errno::kOk;
  for (const struct if_nameindex* device = devices.get(); device->if_index != 0; ++device) {
    const Errno e = LiftClsact(static_cast<int>(device->if_index));
    if (e != Errno::kOk) result = Fail(error, std::string("removing the silencing filter of ") + device->if_name, e);
  }
  return result;
}

Errno Silence::Check(std::string* reason) const {
  char device[IF_NAMESIZE];
  if (if_indextoname(static_cast<unsigned>(ifindex_), device) == nullptr) {
    // It asks by a socket.
    return Fail(reason, "device " + std::to_string(ifindex_),
                errno == ENXIO || errno == ENODEV ? Errno::kENODEV : Errno::kEAGAIN);
  }
  if (kind_ == SilenceKind::kTcx) {
    if (Errno e = CheckTcx(ifindex_, bpf::kTcxIngress, in_id_, in_program_, "ingress", reason); e != Errno::kOk) return e;
    return CheckTcx(ifindex_, bpf::kTcxEgress, out_id_, out_program_, "egress", reason);
  }
  if (Errno e = CheckClsact(ifindex_, BPF_TC_INGRESS, in_id_, "ingress", reason); e != Errno::kOk) return e;
  return CheckClsact(ifindex_, BPF_TC_EGRESS, out_id_, "egress", reason);
}

}  // namespace sluice
