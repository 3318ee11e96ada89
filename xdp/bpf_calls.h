// bpf(2) calls that Debian 12's libbpf and headers do not have (TCX came with kernel 6.6), and the few others that need no
// library. Every call returns kOk or the kernel's errno.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/errno.h"
#include "xdp/unique_fd.h"

namespace sluice::bpf {

inline constexpr uint32_t kXdp = 37, kTcxIngress = 46, kTcxEgress = 47;  // enum bpf_attach_type

// A link that attaches `program` to a device's TCX hook, before every program that is there.
Errno CreateTcxLink(int program, int ifindex, uint32_t attach_type, UniqueFd* link);
// A link that attaches an XDP program; `flags`: XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE.
Errno CreateXdpLink(int program, int ifindex, uint32_t flags, UniqueFd* link);
struct Attached {
  uint32_t link;  // identifiers; link is 0 where a program is attached without one
  uint32_t program;
};
// What is attached, in order of execution.
Errno QueryTcx(int ifindex, uint32_t attach_type, std::vector<Attached>* attached);
// Takes the program off the hook now, whoever else holds the link.
Errno DetachLink(int link);
Errno LinkId(int link, uint32_t* id, uint32_t* program);
// Another program in the link's place in the chain; no grace period.
Errno UpdateLink(int link, int program);
// A program that leaves every packet to those behind it (TCX_NEXT).
Errno LoadPassProgram(UniqueFd* program);
using ProgramTag = std::array<uint8_t, 8>;  // of its instructions
Errno TagOf(int program, ProgramTag* tag);
Errno NameOf(int program, std::string* name);  // the first 15 bytes
Errno OpenProgram(uint32_t id, UniqueFd* program);
Errno Pin(int fd, const std::string& path);
Errno OpenPinned(const std::string& path, UniqueFd* fd);
Errno UpdateMap(int map, const void* key, const void* value);

// The message libbpf and the verifier would have printed is dropped: errors are told by errno and by our own text.
void QuietLibbpf();

}  // namespace sluice::bpf
