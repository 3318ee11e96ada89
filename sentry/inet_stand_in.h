// What stream and datagram stand-ins of AF_INET and AF_INET6 have in common: names, options, device ioctls, calls that wait.
#pragma once

#include <sys/socket.h>
#include <sys/time.h>

#include <list>
#include <memory>

#include "sentry/call_engine.h"

namespace sluice {

// Options that live in the stand-in, not in the stack's socket.
struct StandInOptions {
  Duration receive_timeout{0}, send_timeout{0};  // zero: none
  timeval receive_timeout_raw{}, send_timeout_raw{};
  bool timestamp = false, timestamp_ns = false;  // SO_TIMESTAMP, SO_TIMESTAMPNS
  ::linger linger{};                             // SO_LINGER, where it acts on nothing
  int send_buffer = 0, receive_buffer = 0;       // SO_SNDBUF, SO_RCVBUF as set, 0: not. They bound P's queues too
};

class InetStandIn : public StandIn, public SocketObserver {
 public:
  InetStandIn(CallEngine& engine, int family, int type, int protocol)
      : StandIn(engine), family_(family), type_(type), protocol_(protocol), hold_timer_(&InetStandIn::OnHoldTimer, this) {}

  int family() const { return family_; }
  int type() const { return type_; }
  int protocol() const { return protocol_; }
  virtual Socket* socket() = 0;
  virtual bool listening() const { return false; }
  virtual StreamSocket* stream() { return nullptr; }
  // SO_SNDBUF or SO_RCVBUF was set. p: the program's end, or -1.
  virtual void OnBufferOptions(int) {}
  virtual DatagramSocket* datagram() { return nullptr; }
  StandInOptions& stand_in_options() { return options_; }
  CallEngine& engine() { return engine_; }
  // SO_ERROR: cleared.
  virtual Errno TakePendingError();

  // Called from within the stack: only remembers.
  void OnSocketEvents(uint32_t) override { MarkDirty(); }
  void OnOptionsSet() override;

 protected:
  // bind, getsockname, getpeername, getsockopt, setsockopt, ioctl.
  void OnCommonCall(IncomingCall& call);
  void OnBind(IncomingCall& call);
  void AnswerName(IncomingCall& call, const Endpoint& endpoint);
  void OnGetOption(IncomingCall& call);
  void OnSetOption(IncomingCall& call);
  void OnIoctl(IncomingCall& call);
  virtual uint32_t QueuedOut() = 0;  // SIOCOUTQ
  virtual Errno BindSocket(const Endpoint& local) { return socket()->Bind(local); }
  // An option of the socket was set.
  virtual void OnSettings() {}
  // Hands the stack what the program wrote before this call, where order matters. False where the socket ended over it.
  virtual bool TakeWritten() { return true; }

  NativeOptions::Kind option_kind() const override;
  // Options that the kernel answered (NativeOptions). Take: notes what was set, true where something is due. Apply: makes it so.
  bool TakeOptions();
  bool push_due() const { return (due_options_ & SLUICE_PUSH) != 0; }
  bool options_due() const { return due_options_ != 0; }
  void ApplyOptions();
  void SetOptionInterest(NativeOptions::Interest interest);

  // Keeps the call until RetryHeld; a call of the same thread that was kept before was interrupted and is forgotten. `deadline`:
  // when Expired is to answer it. `watch_closely`: learn soon that the caller was interrupted.
  void Hold(IncomingCall& call, Bytes message, Duration timeout, bool watch_closely);
  void ForgetHeldOf(uint32_t tid);
  // Goes on holding what was held where the socket was before.
  void TakeHeld(std::list<std::unique_ptr<HeldCall>> held);
  // Offers every held call of `kind` to OnCall again (which may hold it anew, its deadline kept).
  void RetryHeld(calls::CallKind kind);
  bool HasHeld(calls::CallKind kind) const;
  // The deadline passed: answer (default EAGAIN).
  virtual void OnExpired(HeldCall& held);
  // The caller was interrupted or died.
  virtual void OnInterrupted(HeldCall& held) { (void)held; }

  int family_, type_, protocol_;
  StandInOptions options_;
  std::list<std::unique_ptr<HeldCall>> held_;

 private:
  static void OnHoldTimer(void* self) { static_cast<InetStandIn*>(self)->CheckHeld(); }
  void CheckHeld();
  void ArmHoldTimer();

  uint32_t due_options_ = 0;
  HeldCall* retrying_ = nullptr;
  bool retry_kept_ = false;
  Timer hold_timer_;
};

// SO_ERROR of a program's end: where it shows an error, that is ours in disguise.
void ClearNativeError(int p);

// A device ioctl, answered from the mirrored configuration; also for sockets that are not ours (`family` AF_UNIX).
void AnswerDeviceIoctl(CallEngine& engine, IncomingCall& call, int family);

}  // namespace sluice
