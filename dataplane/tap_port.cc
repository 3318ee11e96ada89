#include "dataplane/tap_port.h"

#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "dataplane/frame.h"
#include "dataplane/gso.h"

namespace sluice {
namespace {

// More in a row than this and Receive gives the worker back its turn.
constexpr int kMaxDropsPerBurst = 32;

uint8_t LinkType(const Packet& frame) {
  const uint8_t* to = frame.data();
  if ((to[0] & 1) == 0) return 0;
  return std::all_of(to, to + 6, [](uint8_t b) { return b == 0xff; }) ? 1 : 2;
}

}  // namespace

TapPort::TapPort(UniqueFd fd, const TapFacts& facts, const TapPortOptions& options, BlockPool& pool)
    : fd_(std::move(fd)), facts_(facts), options_(options), pool_(pool), vnet_len_(facts.vnet_header ? sizeof(VnetHeader) : 0) {}

LinkFeatures TapPort::features() const {
  LinkFeatures f;
  f.tx_checksum = true;
  f.gso = facts_.vnet_header || options_.software_gso;
  f.udp_gso = f.gso;
  f.rx_checksum = true;
  return f;
}

// ---- Receive

bool TapPort::MakePacket(size_t size, Packet* out) {
  constexpr uint32_t kFront = Packet::kHeadroom;
  if (size <= kSmallFrame) {
    *out = Packet::Adopt(std::move(small_), kFront, static_cast<uint32_t>(size));
    return true;
  }
  if (size <= kMiddleFrame) {
    if (BlockRef middle{pool_.Allocate(kFront + size)}) {
      std::memcpy(middle->data + kFront, small_->data + kFront, kSmallFrame);
      std::memcpy(middle->data + kFront + kSmallFrame, big_->data + kFront + kSmallFrame, size - kSmallFrame);
      *out = Packet::Adopt(std::move(middle), kFront, static_cast<uint32_t>(size));
      return true;
    }
  }
  std::memcpy(big_->data + kFront, small_->data + kFront, kSmallFrame);
  *out = Packet::Adopt(std::move(big_), kFront, static_cast<uint32_t>(size));
  return true;
}

// Sets what is known of a frame. False where the metadata does not fit it.
bool TapPort::Describe(const VnetHeader& header, Packet* frame) const {
  if (vnet_len_ != 0 && !ParseVnetHeader(header, frame)) return false;
  frame->ifindex = facts_.ifindex;
  frame->link_type = LinkType(*frame);
  return true;
}

TapPort::Read TapPort::ReadFrame(Packet* out) {
  // Without memory the frame is read all the same and dropped: what waits behind it must not grow stale, nor the descriptor stay
  // readable.
  if (!small_) small_ = BlockRef(pool_.Allocate(kSmallBlock));
  if (!big_) big_ = BlockRef(pool_.Allocate(Packet::kHeadroom + kMaxFrame));
  VnetHeader header;
  uint8_t scratch[64];
  std::array<iovec, 3> pieces;
  size_t count = 0, room = vnet_len_;
  if (vnet_len_ != 0) pieces[count++] = {&header, vnet_len_};
  if (small_) {
    pieces[count++] = {small_->data + Packet::kHeadroom, kSmallFrame};
    room += kSmallFrame;
    if (big_) pieces[count++] = {big_->data + Packet::kHeadroom + kSmallFrame, kMaxFrame - kSmallFrame};
    if (big_) room += kMaxFrame - kSmallFrame;
  } else {
    pieces[count++] = {scratch, sizeof scratch};
  }
  ++stats_.rx_syscalls;
  const ssize_t n = readv(fd_.get(), pieces.data(), static_cast<int>(count));
  if (n < 0) {
    if (errno == EBADFD) dead_ = true;  // the device was deleted
    return errno == EINTR ? Read::kDropped : Read::kNone;
  }
  // A frame that fills the room exactly may have been longer: only one cut short can.
  const auto length = static_cast<size_t>(n);
  if (!small_ || length < vnet_len_ + kEthernetHeader || length == room || !MakePacket(length - vnet_len_, out)) {
    ++stats_.rx_dropped;
    return Read::kDropped;
  }
  if (!Describe(header, out)) {
    *out = Packet();
    ++stats_.rx_dropped;
    return Read::kDropped;
  }
  ++stats_.rx_frames;
  stats_.rx_bytes += out->size();
  return Read::kFrame;
}

size_t TapPort::Receive(std::span<Packet> out) {
  size_t taken = 0;
  for (int dropped = 0; taken < out.size() && !dead_ && dropped < kMaxDropsPerBurst;) {
    const Read read = ReadFrame(&out[taken]);
    if (read == Read::kNone) break;
    if (read == Read::kFrame)
      ++taken;
    else
      ++dropped;
  }
  return taken;
}

// ---- Transmit

ssize_t TapPort::Write(const Packet& frame) {
  std::array<iovec, kTxPieces> pieces;
  VnetHeader header = MakeVnetHeader(frame.offload);
  size_t count = 0;
  if (vnet_len_ != 0) pieces[count++] = {&header, vnet_len_};
  pieces[count++] = {const_cast<uint8_t*>(frame.data()), frame.linear_size()};
  for (size_t s = 0; s < frame.slice_count(); ++s) {
    const Slice& slice = frame.slice(s);
    pieces[count++] = {slice.block->data + slice.offset, slice.length};
  }
  ++stats_.tx_syscalls;
  return writev(fd_.get(), pieces.data(), static_cast<int>(count));
}

bool TapPort::TakesWhole(const Packet& frame) const {
  if (frame.offload.gso == GsoType::kNone && frame.offload.checksum != ChecksumState::kPartial) return true;
  return facts_.vnet_header && (frame.offload.gso != GsoType::kUdp || udp_gso_);
}

// kDone: sent, or dropped and counted, or cut into `cut_`.
TapPort::Sent TapPort::SendFrame(Packet& frame) {
  bool whole = TakesWhole(frame);
  if (whole) {
    ssize_t n;
    do {
      n = Write(frame);
    } while (n < 0 && errno == EINTR);
    if (n >= 0) {
      ++stats_.tx_frames;
      stats_.tx_bytes += frame.size();
      return Sent::kDone;
    }
    if (errno == EAGAIN) {
      blocked_ = true;
      return Sent::kLater;
    }
    if (errno == EBADFD) dead_ = true;
    // A type of super-segment that this kernel does not know. EIO: the device is down.
    whole = errno != EINVAL || frame.offload.gso == GsoType::kNone;
    if (!whole && frame.offload.gso == GsoType::kUdp) udp_gso_ = false;
  }
  if (whole || !CutFrame(frame, pool_, &cut_, &stats_.software_gso_frames)) ++stats_.tx_dropped;
  return Sent::kDone;
}

// Sends what is left of a frame already taken. True when nothing is left.
bool TapPort::FlushCut() {
  while (cut_next_ < cut_.size()) {
    Packet& segment = cut_[cut_next_];
    if (SendFrame(segment) == Sent::kLater) return false;
    segment = Packet();
    ++cut_next_;
  }
  cut_.clear();
  cut_next_ = 0;
  return true;
}

void TapPort::DropAll(std::span<Packet> burst) {
  for (Packet& frame : burst) {
    ++stats_.tx_dropped;
    frame = Packet();
  }
}

size_t TapPort::Transmit(std::span<Packet> burst) {
  blocked_ = false;
  size_t done = 0;
  while (!dead_ && FlushCut() && done < burst.size()) {
    Packet& frame = burst[done];
    if (!InsertVlanTag(frame)) {
      ++stats_.tx_dropped;
    } else if (SendFrame(frame) == Sent::kLater) {
      break;
    }
    frame = Packet();
    ++done;
  }
  if (dead_) {
    DropAll(burst.subspan(done));
    cut_.clear();
    cut_next_ = 0;
    done = burst.size();
  }
  return done;
}

std::vector<std::string> TapPort::describe() const {
  return {"link=tap",
          std::string("device=") + facts_.name,
          std::string("vnet_header=") + (facts_.vnet_header ? "true" : "false"),
          std::string("gso=") + (facts_.vnet_header      ? "device"
                                 : options_.software_gso ? "software"
                                                         : "off"),
          std::string("udp_gso=") + (!facts_.vnet_header ? "software"
                                     : udp_gso_          ? "device"
                                                         : "software"),
          "mtu=" + std::to_string(facts_.mtu)};
}

}  // namespace sluice
