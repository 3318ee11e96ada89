// One sandbox: the broker, the sentry and its keeper that serve one network namespace for the programs in it. Whoever owns it is
// the guard: it waits for events, gives the programs' seccomp listeners to it, ends it and leaves the namespace as it was. Used
// by `sluice do` (guard.cc) and by the container runtime (control/oci/). For a process with one thread.
#pragma once

#include <poll.h>
#include <sys/types.h>

#include <string>
#include <string_view>
#include <vector>

#include "base/unique_fd.h"
#include "control/metrics/service.h"
#include "control/run/control_protocol.h"
#include "control/run/plan.h"

namespace sluice {

// What is needed to make and guard a sandbox; `who` begins the line ("do").
Status CheckPrivileges(const char* who);

class Sandbox {
 public:
  explicit Sandbox(SandboxPlan& plan) : plan_(plan) {}
  ~Sandbox() = default;
  Sandbox(const Sandbox&) = delete;
  Sandbox& operator=(const Sandbox&) = delete;

  // The steps of bringing it up, in this order. Nothing of the namespace is changed before Start.
  // Takes plan.netns for this process alone (its lock), and lifts what a dead sandbox left there.
  Status Take();
  // Enters it for good; --metrics is served from where the caller was.
  Status Enter();
  // Chooses the devices; refuses packet filters that would be bypassed. `resolver`: see CheckPacketFilters.
  Status LookAtNamespace(bool* resolver = nullptr);
  // Starts the processes; the broker silences the devices first. kReady follows as an event.
  Status Start();

  // A program of this sandbox: its init's pidfd, by which it is killed where the guard dies.
  bool AddProgram(int pidfd);
  // The listener of a filter; the calls under it are served from now on, or the sandbox ends. `container`: its id, under which
  // what its programs use of the sandbox is counted.
  bool AddListener(int listener, std::string_view container = {});
  // Have the sentry read the namespace anew and attach what is there; kReady follows.
  bool Synchronize();
  // Have connections deliver what they owe; kDrained follows.
  bool Drain();

  enum class Event {
    kNone,
    kReady,  // the stack stands, every device is attached
    kDrained,
    kListening,  // listening() is new; where plan.tell_listening
    kDead,       // it cannot go on; the programs must be killed before Finish
  };
  static constexpr size_t kPolled = 6;
  // Appends kPolled entries; OnPolled wants them back.
  void AddPolled(std::vector<pollfd>* polled) const;
  Event OnPolled(const pollfd* polled, std::string* why);

  // Where the stack listens, as the sentry says.
  const std::vector<control::LoopbackListener>& listening() const { return listening_; }
  // Hands on what the sentry has logged.
  void RelayLog();
  // Kills the processes, gives the devices back to the kernel, removes the registration. May be called at any step.
  void Finish();

 private:
  struct Child {
    pid_t pid = -1;
    UniqueFd pidfd;
    bool running() const { return pid > 0 && static_cast<bool>(pidfd); }
  };

  Status OpenForSentry();
  Status StartBesideMover();
  pid_t StartMoving();
  void FinishMoving(pid_t mover);
  void MakeEngineFlows();
  Status StartBroker();
  Status StartSentry();
  Event FromBroker(std::string* why);
  bool Send(control::Type type, const std::vector<int>& fds = {}, std::string_view body = {});
  void AwaitEnd(Child& child);

  SandboxPlan& plan_;
  Child broker_, keeper_, sentry_;
  int* sentry_pid_ = nullptr;  // shared with the keeper, which writes it
  std::vector<control::LoopbackListener> listening_;
  std::string log_rest_;
  MetricsService metrics_;
  bool registered_ = false;
};

}  // namespace sluice
