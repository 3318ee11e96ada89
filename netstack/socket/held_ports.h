// Which local ports the sockets of a stack hold, for whoever shares the stack's addresses on a wire and must keep away from them.
#pragma once

#include <cstdint>
#include <span>

#include "netstack/ip/ip.h"

namespace sluice {

// Only UDP and TCP. Written by the stack's thread; the bits may be read by others at any time.
class HeldPorts {
 public:
  static constexpr size_t kWords = 2 * 65536 / 64;  // a bit for each port of UDP, then of TCP

  // Before the first socket. `words`: all zero, kept by the caller while the stack lives. `peer_port`: the only port of peers
  // that the others speak to, so that a port which a connection to another one chose is free for them.
  void Publish(std::span<uint64_t, kWords> words, uint16_t peer_port) {
    words_ = words.data();
    peer_port_ = peer_port;
  }
  uint16_t peer_port() const { return peer_port_; }

  void Set(uint8_t protocol, uint16_t port, bool held) {
    if (words_ == nullptr) return;
    const uint32_t bit = port | (protocol == kIpProtoTcp ? 0x10000u : 0);
    const uint64_t mask = uint64_t{1} << bit % 64;
    if (held) {
      __atomic_fetch_or(&words_[bit / 64], mask, __ATOMIC_SEQ_CST);
    } else {
      __atomic_fetch_and(&words_[bit / 64], ~mask, __ATOMIC_SEQ_CST);
    }
  }

 private:
  uint64_t* words_ = nullptr;
  uint16_t peer_port_ = 0;
};

}  // namespace sluice
