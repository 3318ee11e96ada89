// Keeps the namespace's kernel from answering and emitting on the sandbox's devices. The programs are pinned: they outlive any of
// our processes, and whoever cleans up (guard; broker where that died; the next sluice on the namespace where both did) lifts
// them by the pins.
#pragma once

#include <string>

#include "control/run/plan.h"

namespace sluice {

class Silencing {
 public:
  explicit Silencing(SandboxPlan& plan) : plan_(plan) {}
  // Lifts what a sandbox of this namespace left whose guard and broker were both killed.
  Status Recover();
  // In the namespace. Where it was done before (the plan knows, also in the processes forked after): Renew.
  Status Silence(int ifindex, const std::string& name);
  // A device that was moved out of the namespace and back between two looks has its index, but not the silence, which ends with
  // the move: it is silenced again. Nothing to do for one that was not silenced, or still is. An error where another's program is
  // in front.
  Status Renew(int ifindex, const std::string& name);
  // Still in place and first in the chain? Not so where somebody put a program in front or took ours off. What cannot be looked
  // at for want of memory or descriptors counts as in place until the next look.
  Status Check() const;
  // The device is gone.
  void Forget(int ifindex);
  // Every device of this sandbox. In the namespace.
  void LiftAll();

 private:
  SandboxPlan& plan_;
};

}  // namespace sluice
