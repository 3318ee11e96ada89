// Sends 64-byte frames out of a device from within the kernel: frame_source DEVICE SECONDS. An XDP program that redirects to the
// device is run on live frames (BPF_F_TEST_XDP_LIVE_FRAMES, Linux 5.18), which costs a fraction of a system call a frame, so that
// what is measured behind the device is the bound and not the generator. On a veth the other end needs an XDP program in native
// mode, or GRO (ethtool -K), to take such frames; its receiving side runs here, too. Prints JSON. Needs root.
#include <bpf/bpf.h>
#include <linux/bpf.h>
#include <net/if.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr unsigned kRepeat = 1 << 16;  // frames of one call
constexpr unsigned kBatch = 64;        // of them flushed together: a veth's ring has 256

int LoadRedirect(unsigned ifindex) {
  const bpf_insn program[] = {
      {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_1, .src_reg = 0, .off = 0, .imm = static_cast<__s32>(ifindex)},
      {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_2, .src_reg = 0, .off = 0, .imm = 0},
      {.code = BPF_JMP | BPF_CALL, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = BPF_FUNC_redirect},
      {.code = BPF_JMP | BPF_EXIT, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = 0},
  };
  return bpf_prog_load(BPF_PROG_TYPE_XDP, "frame_source", "Apache-2.0", program, sizeof program / sizeof program[0], nullptr);
}

// A UDP datagram between addresses kept for benchmarks (RFC 2544), as sluice bench sends it.
void FillFrame(uint8_t* f) {
  const uint8_t head[] = {2, 0,  0,  0,    0,    2,   2,  0, 0, 0,   0,  1, 8, 0, 0x45, 0, 0, 50, 0,  0, 0x40,
                          0, 64, 17, 0xae, 0x93, 198, 18, 0, 1, 198, 18, 0, 2, 4, 0,    0, 9, 0,  30, 0, 0};
  std::memcpy(f, head, sizeof head);
}

}  // namespace

int main(int argc, char** argv) {
  const unsigned ifindex = argc == 3 ? if_nametoindex(argv[1]) : 0;
  if (ifindex == 0) {
    std::fprintf(stderr, "usage: frame_source DEVICE SECONDS\n");
    return 2;
  }
  const int program = LoadRedirect(ifindex);
  if (program < 0) {
    std::fprintf(stderr, "frame_source: cannot load the program: %s\n", std::strerror(errno));
    return 1;
  }
  uint8_t frame[64] = {};
  FillFrame(frame);
  const auto begin = std::chrono::steady_clock::now();
  const auto end = begin + std::chrono::duration<double>(std::atof(argv[2]));
  uint64_t sent = 0;
  while (std::chrono::steady_clock::now() < end) {
    LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = frame, .data_size_in = sizeof frame, .repeat = kRepeat,
                .flags = BPF_F_TEST_XDP_LIVE_FRAMES, .batch_size = kBatch);
    if (bpf_prog_test_run_opts(program, &options) != 0) {
      std::fprintf(stderr, "frame_source: cannot run the program on live frames: %s\n", std::strerror(errno));
      return 1;
    }
    sent += kRepeat;
  }
  const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::printf("{\"tx_frames\": %llu, \"seconds\": %.6f}\n", static_cast<unsigned long long>(sent), took);
}
