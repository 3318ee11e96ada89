// Reassembly of IPv4 fragments: RFC 791 3.2 by the bookkeeping of RFC 815, with the rules of RFC 5722 for overlaps (the whole
// datagram goes) and RFC 3168 5.3 for marks, and bounds on memory and time (RFC 8900 3.2).
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "netstack/stack.h"
#include "netstack/wire/headers.h"

namespace sluice {

class ReassemblyEvents {
 public:
  virtual ~ReassemblyEvents() = default;
  // Time is over; `first` is the fragment with offset 0 (at its IP header), empty where it never came (RFC 792: then no message).
  virtual void ReassemblyTimedOut(Packet first) = 0;
};

class Reassembler {
 public:
  Reassembler(StackContext& context, ReassemblyEvents& events) : context_(context), events_(events) {}

  // `fragment` is at its IP header and as long as that says. The whole datagram (at its IP header, which says so: no fragment
  // bits, full length, right checksum) where this was the last missing piece, otherwise an empty packet.
  Packet Add(Packet fragment);
  size_t datagrams() const { return table_.size(); }
  size_t bytes() const { return bytes_; }

 private:
  struct Key {
    uint32_t source, destination;
    uint16_t id;
    uint8_t protocol;
    bool operator==(const Key&) const = default;
    template <typename H>
    friend H AbslHashValue(H h, const Key& k) {
      return H::combine(std::move(h), k.source, k.destination, k.id, k.protocol);
    }
  };
  struct Piece {
    uint32_t begin, end;  // of the payload
    Packet packet;        // at its IP header
  };
  struct Datagram {
    Datagram(Reassembler& o, const Key& k) : owner(o), key(k), timer(&Reassembler::OnTimer, this) {}
    Reassembler& owner;
    Key key;
    Timer timer;
    std::vector<Piece> pieces;  // by begin, without overlap
    uint32_t received = 0;      // bytes
    uint32_t total = 0;         // 0: the last piece was not seen
    uint8_t ecn_seen = 0;       // a bit for each value of the ECN field
    size_t memory = 0;
  };
  enum class Verdict : uint8_t { kKept, kDuplicate, kBad };

  static void OnTimer(void* datagram);
  void Timeout(Datagram& d);
  static Verdict Insert(Datagram& d, Piece piece, bool last);
  static std::optional<uint8_t> EcnOfWhole(const Datagram& d);
  Packet Join(Datagram& d, uint8_t ecn);
  void Remove(Datagram& d);

  StackContext& context_;
  ReassemblyEvents& events_;
  absl::flat_hash_map<Key, std::unique_ptr<Datagram>> table_;
  size_t bytes_ = 0;
};

}  // namespace sluice
