// Which local ports the sockets of a stack hold, for whoever shares the stack's addresses on a wire and must keep away from them.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "netstack/ip/ip.h"

namespace sluice {

// How many of the stacks of one host hold each port; by the number of its bit.
struct HeldPortCounts {
  std::array<uint8_t, 2 * 65536> of{};  // atomic
};

// Only UDP and TCP. Written by the stack's thread; the bits may be read by others at any time.
class HeldPorts {
 public:
  static constexpr size_t kWords = 2 * 65536 / 64;  // a bit for each port of UDP, then of TCP

  // Before the first socket. `words`: all zero, kept by the caller while the stack lives, and so `counts`, which the stacks of
  // one host share (nullptr: there is one). `peer_port`: the only port of peers that the others speak to, so that a port which a
  // connection to another one chose is free for them.
  void Publish(std::span<uint64_t, kWords> words, uint16_t peer_port, HeldPortCounts* counts = nullptr) {
    words_ = words.data();
    peer_port_ = peer_port;
    counts_ = counts;
  }
  uint16_t peer_port() const { return peer_port_; }

  void Set(uint8_t protocol, uint16_t port, bool held) {
    if (words_ == nullptr) return;
    const uint32_t bit = port | (protocol == kIpProtoTcp ? 0x10000u : 0);
    const uint64_t mask = uint64_t{1} << bit % 64;
    if (held) {
      if (counts_ != nullptr) __atomic_add_fetch(&counts_->of[bit], 1, __ATOMIC_SEQ_CST);
      __atomic_fetch_or(&words_[bit / 64], mask, __ATOMIC_SEQ_CST);
      return;
    }
    if (counts_ != nullptr && __atomic_sub_fetch(&counts_->of[bit], 1, __ATOMIC_SEQ_CST) != 0) return;
    __atomic_fetch_and(&words_[bit / 64], ~mask, __ATOMIC_SEQ_CST);
    // Another stack may have come to hold it meanwhile.
    if (counts_ != nullptr && __atomic_load_n(&counts_->of[bit], __ATOMIC_SEQ_CST) != 0)
      __atomic_fetch_or(&words_[bit / 64], mask, __ATOMIC_SEQ_CST);
  }

 private:
  uint64_t* words_ = nullptr;
  HeldPortCounts* counts_ = nullptr;
  uint16_t peer_port_ = 0;
};

}  // namespace sluice
