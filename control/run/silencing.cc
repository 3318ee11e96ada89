#include "control/run/silencing.h"

#include <cerrno>

#include "control/log.h"
#include "control/os.h"
#include "xdp/silence.h"

namespace sluice {
namespace {

SilenceOptions OptionsFor(const SandboxPlan& plan) {
  SilenceOptions options;
  options.mark = kSluiceMark;
  options.tcx = plan.flags.tcx;
  options.name = Format("net-%llu", static_cast<unsigned long long>(plan.netns_id.inode));
  if (plan.flow_programs) options.flows = &plan.flow_programs;
  return options;
}

}  // namespace

Status Silencing::Recover() {
  std::string error;
  Errno e = LiftAllPinned(OptionsFor(plan_), &error);
  if (e == Errno::kOk && plan_.netns) {
    const ScopedNetns inside(plan_.netns.get());
    e = inside.ok() ? LiftAllClsact(&error) : static_cast<Errno>(errno);
  }
  return e == Errno::kOk ? Status() : Status::Error("cannot lift what a dead sandbox left on the namespace: " + error);
}

Status Silencing::Silence(int ifindex, const std::string& name) {
  if (plan_.silenced.count(ifindex) != 0) return Renew(ifindex, name);
  std::string error;
  if (plan_.flow_maps && !plan_.flow_programs &&
      LoadEngineFlowPrograms(plan_.flow_maps, kSluiceMark, &plan_.flow_programs, &error) != Errno::kOk) {
    Log(LogLevel::kWarning, "names outside will not resolve through the engine: %s", error.c_str());
    plan_.flow_maps = {};
  }
  ::sluice::Silence silence;
  const Errno e = SilenceDevice(ifindex, OptionsFor(plan_), &silence, &error);
  if (e != Errno::kOk) return Status::Error("device " + name + ": the kernel cannot be silenced: " + error);
  plan_.silenced.emplace(ifindex, std::move(silence));
  return {};
}

Status Silencing::Renew(int ifindex, const std::string& name) {
  const auto known = plan_.silenced.find(ifindex);
  if (known == plan_.silenced.end()) return {};
  std::string reason;
  const Errno e = known->second.Check(&reason);
  if (e == Errno::kOk) return {};
  if (e != Errno::kENOENT) return Status::Error("device " + name + ": " + reason);
  Log(LogLevel::kInfo, "device %s: %s: silenced again", name.c_str(), reason.c_str());
  plan_.silenced.erase(known);
  return Silence(ifindex, name);
}

Status Silencing::Check() const {
  for (const auto& [ifindex, silence] : plan_.silenced) {
    std::string reason;
    const Errno e = silence.Check(&reason);
    if (e == Errno::kEAGAIN) Log(LogLevel::kWarning, "device %d: %s; the next look is in a second", ifindex, reason.c_str());
    if (e != Errno::kOk && e != Errno::kENODEV && e != Errno::kEAGAIN)
      return Status::Error("the kernel is not silenced any more: " + reason, kExitKilled);
  }
  return {};
}

void Silencing::Forget(int ifindex) {
  plan_.silenced.erase(ifindex);
  std::string error;
  if (LiftSilence(ifindex, OptionsFor(plan_), &error) != Errno::kOk) LogLine(LogLevel::kWarning, error);
}

void Silencing::LiftAll() {
  std::string error;
  // The links end when the pins go, and in the background, where nobody else holds them.
  plan_.silenced.clear();
  if (LiftAllPinned(OptionsFor(plan_), &error) != Errno::kOk) LogLine(LogLevel::kWarning, error);
  // Also of devices that came later, of which only the broker knows.
  if (LiftAllClsact(&error) != Errno::kOk) LogLine(LogLevel::kWarning, error);
}

}  // namespace sluice
