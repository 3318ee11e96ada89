#include "dataplane/gso.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "netstack/wire/checksum.h"

namespace sluice {
namespace {

constexpr uint8_t kFin = 0x01, kPsh = 0x08, kCwr = 0x80;

}  // namespace

GsoCutter::GsoCutter(const Packet& frame) : frame_(frame) { valid_ = Prepare(); }

bool GsoCutter::Prepare() {
  const Offload& offload = frame_.offload;
  const size_t size = frame_.size();
  if (size < kEthernetHeader) return false;
  if (offload.gso == GsoType::kNone) {
    const size_t field = size_t{offload.csum_start} + offload.csum_offset;
    if (offload.checksum == ChecksumState::kPartial && (offload.csum_start < kEthernetHeader || field + 2 > size)) return false;
    segments_ = 1;
    return true;
  }
  header_len_ = offload.hdr_len;
  if (header_len_ > kMaxHeaders || header_len_ >= size || offload.gso_size == 0) return false;
  frame_.CopyOut(0, MutableBytes{header_bytes_, header_len_});
  if (!LocateHeaders(Bytes{header_bytes_, header_len_}, size, &headers_) || headers_.fragment) return false;
  const bool udp = offload.gso == GsoType::kUdp;
  if (headers_.protocol != (udp ? kProtocolUdp : kProtocolTcp)) return false;
  if (!udp && headers_.v6 != (offload.gso == GsoType::kTcpV6)) return false;
  const size_t transport = udp ? 8 : (header_bytes_[headers_.transport + 12] >> 4) * size_t{4};
  if (transport < (udp ? 8u : 20u) || headers_.transport + transport != header_len_) return false;
  payload_ = size - header_len_;
  mss_ = offload.gso_size;
  segments_ = (payload_ + mss_ - 1) / mss_;
  return true;
}

size_t GsoCutter::next_size() const {
  if (!valid_ || done()) return 0;
  if (header_len_ == 0) return frame_.size();
  return header_len_ + std::min(mss_, payload_ - next_ * mss_);
}

size_t GsoCutter::max_size() const {
  if (!valid_) return 0;
  return header_len_ == 0 ? frame_.size() : header_len_ + std::min(mss_, payload_);
}

size_t GsoCutter::NextWhole(MutableBytes out) {
  const size_t size = frame_.size();
  frame_.CopyOut(0, out.first(size));
  ++next_;
  const Offload& offload = frame_.offload;
  if (offload.checksum != ChecksumState::kPartial) return size;
  uint16_t sum = static_cast<uint16_t>(~wire::OnesSum(out.subspan(offload.csum_start, size - offload.csum_start)));
  if (sum == 0 && offload.csum_offset == 6) sum = 0xffff;  // RFC 768
  wire::StoreSum(out.data() + offload.csum_start + offload.csum_offset, sum);
  return size;
}

size_t GsoCutter::Next(MutableBytes out) {
  const size_t size = next_size();
  SLUICE_CHECK(size != 0 && out.size() >= size);
  if (header_len_ == 0) return NextWhole(out);
  std::memcpy(out.data(), header_bytes_, header_len_);
  frame_.CopyOut(header_len_ + next_ * mss_, out.subspan(header_len_, size - header_len_));
  PatchNetwork(out.data(), next_, size);
  PatchTransport(out.data(), next_, static_cast<uint32_t>(size - headers_.transport));
  ++next_;
  return size;
}

void GsoCutter::PatchNetwork(uint8_t* segment, size_t index, size_t segment_bytes) const {
  uint8_t* ip = segment + headers_.network;
  const size_t ip_bytes = segment_bytes - headers_.network;
  if (headers_.v6) {
    StoreBe16(ip + 4, static_cast<uint16_t>(ip_bytes - 40));
    return;
  }
  StoreBe16(ip + 2, static_cast<uint16_t>(ip_bytes));
  StoreBe16(ip + 4, static_cast<uint16_t>(LoadBe16(ip + 4) + index));
  StoreBe16(ip + 10, 0);
  wire::StoreSum(ip + 10, static_cast<uint16_t>(~wire::OnesSum(Bytes{ip, size_t{headers_.transport} - headers_.network})));
}

void GsoCutter::PatchTransport(uint8_t* segment, size_t index, uint32_t transport_bytes) const {
  uint8_t* transport = segment + headers_.transport;
  const bool udp = headers_.protocol == kProtocolUdp;
  if (udp) {
    StoreBe16(transport + 4, static_cast<uint16_t>(transport_bytes));
  } else {
    StoreBe32(transport + 4, static_cast<uint32_t>(LoadBe32(transport + 4) + index * mss_));
    if (index + 1 != segments_) transport[13] &= static_cast<uint8_t>(~(kFin | kPsh));
    if (index != 0) transport[13] &= static_cast<uint8_t>(~kCwr);  // RFC 3168 6.1.2: once per window
  }
  // The field takes the pseudo header's sum first: the sum over the transport bytes then covers both.
  uint8_t* field = transport + (udp ? 6 : 16);
  wire::StoreSum(field, PseudoHeaderSum(Bytes{segment, headers_.transport + size_t{8}}, headers_, transport_bytes));
  uint16_t sum = static_cast<uint16_t>(~wire::OnesSum(Bytes{transport, transport_bytes}));
  if (udp && sum == 0) sum = 0xffff;
  wire::StoreSum(field, sum);
}

bool CutFrame(const Packet& frame, BlockPool& pool, std::vector<Packet>* out, uint64_t* cut_frames) {
  GsoCutter cutter(frame);
  if (!cutter.valid()) return false;
  if (cutter.segments() > 1) ++*cut_frames;
  const size_t before = out->size();
  while (!cutter.done()) {
    const size_t size = cutter.next_size();
    Packet segment = Packet::Allocate(pool, size);
    if (!segment) {
      out->resize(before);
      return false;
    }
    segment.Append(size);
    cutter.Next(segment.linear());
    out->push_back(std::move(segment));
  }
  return true;
}

}  // namespace sluice
