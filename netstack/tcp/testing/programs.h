// Programs for simulated hosts: one that sends a known stream, one that checks it, one that answers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "netstack/socket/socket.h"
#include "netstack/testing/sim.h"

namespace sluice::testing {

// Byte `i` of the stream `stream`. Not periodic within any power of two, so that a shifted or repeated piece is noticed.
inline uint8_t StreamByte(uint64_t stream, uint64_t i) {
  uint64_t x = (i >> 3) * 0x9e3779b97f4a7c15u + stream;
  x ^= x >> 29;
  x *= 0xbf58476d1ce4e5b9u;
  return static_cast<uint8_t>(x >> (8 * (i & 7)));
}

// Counts what it hears and keeps the union.
class Watcher final : public SocketObserver {
 public:
  void OnSocketEvents(uint32_t events) override {
    ++calls;
    seen |= events;
  }
  uint32_t seen = 0;
  int calls = 0;
};

// Writes `total` bytes of a stream in pieces, then shuts down; reads and checks the peer's stream until its end.
class StreamPeer {
 public:
  StreamPeer(SimHost& host, StreamSocket* socket, uint64_t out_stream, uint64_t out_total, uint64_t in_stream)
      : host_(host), socket_(socket), out_stream_(out_stream), out_total_(out_total), in_stream_(in_stream) {}

  void Work();
  bool finished() const { return sent_ == out_total_ && shut_ && ended_; }
  bool failed() const { return failed_; }
  std::string failure() const { return failure_; }
  uint64_t received() const { return received_; }
  uint64_t sent() const { return sent_; }
  bool ended() const { return ended_; }
  StreamSocket* socket() const { return socket_; }

  size_t write_size = 65536;
  size_t read_limit = SIZE_MAX;  // bytes per turn: a slow reader
  bool half_close = true;

 private:
  void Write();
  void Read();
  void Complain(const std::string& what);

  SimHost& host_;
  StreamSocket* socket_;
  uint64_t out_stream_, out_total_, in_stream_;
  uint64_t sent_ = 0, received_ = 0;
  bool shut_ = false, ended_ = false, failed_ = false;
  std::string failure_;
};

}  // namespace sluice::testing
