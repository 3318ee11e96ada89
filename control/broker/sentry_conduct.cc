#include "control/broker/sentry_conduct.h"

namespace sluice {

using control::Type;

void SentryConduct::OnAsked(Type type) {
  if (type == Type::kSynchronize) ++ready_due_;
  if (type == Type::kDrain) ++drained_due_;
}

const char* SentryConduct::Judge(Bytes record, bool truncated, control::Header* header, std::string_view* body) {
  if (truncated) return "a record that is too long, or has descriptors";
  if (!control::Decode(record, header, body)) return "a record shorter than its header";
  if (header->type != Type::kFatal && header->type != Type::kListening && !body->empty())
    return "a record with a text that none belongs to";
  switch (header->type) {
    case Type::kFatal:
      return nullptr;
    case Type::kReady:
      return ready_due_-- > 0 ? nullptr : "that it is ready, unasked";
    case Type::kDrained:
      return drained_due_-- > 0 ? nullptr : "that it has drained, unasked";
    case Type::kListening:
      if (!std::exchange(may_tell_listening_, false)) return "where it listens, before the last was heard";
      if (body->size() % sizeof(control::LoopbackListener) != 0) return "half a listener";
      return body->size() <= control::kMaxLoopbackListeners * sizeof(control::LoopbackListener) ? nullptr
                                                                                                : "more listeners than it may";
    case Type::kOpenPort:
      if (header->number <= 0) return "a device that cannot be";
      if (ports_.size() >= kMaxPorts) return "more devices than a namespace may have";
      return ports_.insert(header->number).second ? nullptr : "a device that it has asked for before";
    case Type::kClosePort:
      return ports_.erase(header->number) != 0 ? nullptr : "the end of a device that it never asked for";
    default:
      return "a record of a type that it does not send";
  }
}

}  // namespace sluice
