#include "netstack/ip/reassembly.h"

#include <algorithm>

#include "netstack/ip/ip.h"
#include "netstack/sysctls.h"
#include "netstack/wire/checksum.h"

namespace sluice {
namespace {

// What a held fragment costs: its whole block, not its few bytes, or tiny fragments would pass the bound.
size_t MemoryOf(const Packet& p) { return p.head_block()->capacity + sizeof(Packet); }

}  // namespace

Packet Reassembler::Add(Packet fragment) {
  const auto ip = wire::Ipv4View::Parse(fragment.linear(), fragment.size());
  SLUICE_DCHECK(ip && ip->is_fragment());
  context_.counters.Add(Counter::kIpReasmReqds);
  const uint32_t begin = ip->fragment_offset();
  const uint32_t length = static_cast<uint32_t>(ip->total_length() - ip->header_length());
  const bool last = !ip->more_fragments();
  const uint8_t ecn = ip->tos() & kEcnMask;
  const size_t memory = MemoryOf(fragment);
  const bool malformed = length == 0 || (!last && length % 8 != 0) || begin + length > 65535 - ip->header_length();
  if (malformed || bytes_ + memory > static_cast<size_t>(context_.sysctls->ipfrag_high_thresh)) {
    context_.counters.Add(Counter::kDropIpFragment);
    return Packet();
  }
  const Key key{ip->source().v4(), ip->destination().v4(), ip->id(), ip->protocol()};
  auto it = table_.find(key);
  if (it == table_.end()) {
    it = table_.emplace(key, std::make_unique<Datagram>(*this, key)).first;
    context_.timers.Schedule(it->second->timer, context_.now + Duration::Seconds(context_.sysctls->ipfrag_time_s));
  }
  Datagram& d = *it->second;
  switch (Insert(d, Piece{begin, begin + length, std::move(fragment)}, last)) {
    case Verdict::kDuplicate:
      context_.counters.Add(Counter::kDropIpFragment);
      return Packet();
    case Verdict::kBad:
      context_.counters.Add(Counter::kDropIpFragment, d.pieces.size() + 1);
      Remove(d);
      return Packet();
    case Verdict::kKept:
      break;
  }
  d.memory += memory;
  bytes_ += memory;
  d.ecn_seen |= static_cast<uint8_t>(1u << ecn);
  if (d.total == 0 || d.received != d.total) return Packet();
  const std::optional<uint8_t> mark = EcnOfWhole(d);
  if (!mark) {
    context_.counters.Add(Counter::kDropIpFragment, d.pieces.size());
    Remove(d);
    return Packet();
  }
  Packet whole = Join(d, *mark);
  if (whole) {
    context_.counters.Add(Counter::kIpReasmOKs);
  } else {
    context_.counters.Add(Counter::kDropNoMemory);
  }
  Remove(d);
  return whole;
}

Reassembler::Verdict Reassembler::Insert(Datagram& d, Piece piece, bool last) {
  // The last piece says the length once; nothing may lie behind it, and another end is a lie.
  if (last && ((d.total != 0 && d.total != piece.end) || (!d.pieces.empty() && d.pieces.back().end > piece.end)))
    return Verdict::kBad;
  if (d.total != 0 && piece.end > d.total) return Verdict::kBad;
  const auto at = std::lower_bound(d.pieces.begin(), d.pieces.end(), piece.begin,
                                   [](const Piece& p, uint32_t begin) { return p.begin < begin; });
  if (at != d.pieces.end() && at->begin == piece.begin && at->end == piece.end) return Verdict::kDuplicate;
  if (at != d.pieces.end() && at->begin < piece.end) return Verdict::kBad;
  if (at != d.pieces.begin() && std::prev(at)->end > piece.begin) return Verdict::kBad;
  if (last) d.total = piece.end;
  d.received += piece.end - piece.begin;
  d.pieces.insert(at, std::move(piece));
  return Verdict::kKept;
}

// RFC 3168 5.3: one mark marks the whole, unless some pieces could not be marked, which no right sender does.
std::optional<uint8_t> Reassembler::EcnOfWhole(const Datagram& d) {
  constexpr uint8_t kNotEctSeen = 1u << kEcnNotEct, kCeSeen = 1u << kEcnCe;
  if ((d.ecn_seen & kNotEctSeen) != 0 && d.ecn_seen != kNotEctSeen) return std::nullopt;
  return (d.ecn_seen & kCeSeen) != 0 ? kEcnCe : kEcnNotEct;
}

Packet Reassembler::Join(Datagram& d, uint8_t ecn) {
  const Packet& first = d.pieces.front().packet;
  const auto ip = wire::Ipv4View::Parse(first.linear(), first.size());
  const size_t header = ip->header_length();
  Packet whole = Packet::Allocate(context_.pool, header + d.total);
  if (!whole) return whole;
  whole.ifindex = first.ifindex;
  whole.received = first.received;
  whole.link_type = first.link_type;
  uint8_t* out = whole.Append(header + d.total);
  std::memcpy(out, first.data(), header);
  for (const Piece& p : d.pieces) {
    const size_t size = p.end - p.begin;
    p.packet.CopyOut(p.packet.size() - size, {out + header + p.begin, size});
  }
  out[1] |= ecn;
  StoreBe16(out + 2, static_cast<uint16_t>(header + d.total));
  StoreBe16(out + 6, 0);
  StoreBe16(out + 10, 0);
  wire::StoreSum(out + 10, static_cast<uint16_t>(~wire::OnesSumScalar({out, header})));
  return whole;
}

void Reassembler::Remove(Datagram& d) {
  bytes_ -= d.memory;
  table_.erase(Key(d.key));
}

void Reassembler::OnTimer(void* datagram) {
  auto* d = static_cast<Datagram*>(datagram);
  d->owner.Timeout(*d);
}

void Reassembler::Timeout(Datagram& d) {
  context_.counters.Add(Counter::kIpReasmTimeout);
  context_.counters.Add(Counter::kDropIpFragment, d.pieces.size());
  Packet first;
  if (!d.pieces.empty() && d.pieces.front().begin == 0) first = std::move(d.pieces.front().packet);
  Remove(d);
  if (first) events_.ReassemblyTimedOut(std::move(first));
}

}  // namespace sluice
