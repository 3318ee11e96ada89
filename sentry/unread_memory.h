// What the programs have not read from their ends of the stand-ins: the kernel keeps it, in memory that counts for the sentry,
// and here it is bounded for all of them together.
//
// What was written is counted; the kernel is asked what is left of it (SIOCOUTQ) only where the sum reaches the bound. Beyond it
// a queue gets no more than its share, and the rest waits in the stack, whose windows close. A queue that is refused is not
// empty, so that its socket becomes writable when the program reads.
#pragma once

#include <cstddef>
#include <vector>

namespace sluice {

class UnreadMemory {
 public:
  static constexpr size_t kMinimum = 4096;   // bytes that a queue may hold whatever the others do
  static constexpr size_t kOverhead = 1024;  // what one message takes beside its bytes

  class Queue {
   public:
    explicit Queue(UnreadMemory& all) : all_(all) {}
    ~Queue();
    Queue(const Queue&) = delete;
    Queue& operator=(const Queue&) = delete;

    // How many bytes may be written to `s` now, the sentry's end, which must stay open until Detach. Less than `wanted`, for what
    // goes whole or not at all, only after the kernel was asked: a queue that is empty would not tell when there is room.
    size_t Room(int s, size_t wanted = 1);
    void Wrote(int s, size_t bytes);
    // `s` is about to be closed. What is unread stays with the program's end, and counts until the object goes.
    void Detach();
    // As Detach, where the program's end is gone.
    void Forget();
    // Bytes in the kernel, as far as is known: not less than there are.
    size_t held() const { return held_; }

   private:
    friend class UnreadMemory;
    void Measure();
    void Set(size_t held);
    UnreadMemory& all_;
    int s_ = -1;
    size_t held_ = 0;
    size_t place_ = 0;  // in all_.holders_, where held_ is not 0
  };

  explicit UnreadMemory(size_t limit) : limit_(limit) {}
  UnreadMemory(const UnreadMemory&) = delete;
  UnreadMemory& operator=(const UnreadMemory&) = delete;

  size_t held() const { return held_; }
  // Whether a message of `bytes` may go to a queue that is empty although the bound is reached: not where twice as much would be.
  bool Spares(size_t bytes) const { return held_ + bytes <= 2 * limit_; }

 private:
  void Sweep();
  size_t left() const { return held_ < limit_ ? limit_ - held_ : 0; }

  const size_t limit_;
  size_t held_ = 0;
  size_t since_sweep_ = 0;  // bytes written, and a little for each refusal
  std::vector<Queue*> holders_;
};

}  // namespace sluice
