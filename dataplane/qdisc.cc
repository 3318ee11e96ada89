#include "dataplane/qdisc.h"

#include <algorithm>

#include "dataplane/fq.h"
#include "dataplane/tbf.h"

namespace sluice {

QdiscOptions QdiscOptions::Share(uint32_t workers) const {
  if (kind != QdiscKind::kTbf) return *this;
  return {kind, std::max<uint64_t>(rate / workers, 1), std::max<uint32_t>(burst / workers, 1)};
}

uint64_t WireFrames(const Packet& frame) {
  const Offload& o = frame.offload;
  if (o.gso == GsoType::kNone || o.gso_size == 0 || frame.size() <= o.hdr_len) return 1;
  return (frame.size() - o.hdr_len + o.gso_size - 1) / o.gso_size;
}

uint64_t WireBytes(const Packet& frame) { return frame.size() + (WireFrames(frame) - 1) * frame.offload.hdr_len; }

void Qdisc::NoteQueued(const Packet& frame) {
  ++stats_.backlog_frames;
  stats_.backlog_bytes += WireBytes(frame);
}

void Qdisc::NoteSent(const Packet& frame) {
  const uint64_t bytes = WireBytes(frame);
  --stats_.backlog_frames;
  stats_.backlog_bytes -= bytes;
  stats_.sent_frames += WireFrames(frame);
  stats_.sent_bytes += bytes;
}

std::unique_ptr<Qdisc> MakeQdisc(const QdiscOptions& options, BlockPool& pool) {
  switch (options.kind) {
    case QdiscKind::kFq:
      return std::make_unique<Fq>();
    case QdiscKind::kTbf:
      return std::make_unique<Tbf>(options.rate, options.burst, pool);
    case QdiscKind::kNone:
    case QdiscKind::kFifo:
      break;
  }
  return nullptr;
}

}  // namespace sluice
