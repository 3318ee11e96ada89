#include "control/oci/relay_process.h"

#include <grp.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "control/log.h"
#include "control/os.h"
#include "control/run/plan.h"
#include "sentry/filter.h"

namespace sluice::oci {
namespace {

constexpr uid_t kUid = 0x6fffffff;  // owned by nobody, and not of a sentry

bool DropRights() {
  for (int cap = 0; prctl(PR_CAPBSET_READ, cap) >= 0; ++cap) {
    if (prctl(PR_CAPBSET_DROP, cap) < 0) return false;
  }
  if (setgroups(0, nullptr) < 0 || setresgid(kUid, kUid, kUid) < 0 || setresuid(kUid, kUid, kUid) < 0) return false;
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  const __user_cap_data_struct none[2]{};
  return syscall(SYS_capset, &header, none) == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
}

[[noreturn]] void RunRelay(const char* name, RelayBody& body, int tell, int go) {
  prctl(PR_SET_NAME, name);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::string error;
  UniqueFd listener;
  if (body.BeforeFilter()) listener = InstallProgramFilter({}, &error);
  const int number = listener.get();
  char word = 0;
  if (!WriteAll(tell, &number, sizeof number) || read(go, &word, 1) != 1) _exit(1);
  listener.Reset();
  close(go);
  if (!body.UnderFilter() || !DropRights()) _exit(2);
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // forgotten at the change of user
  body.Run();
  _exit(3);  // never: the compiler does not see it of an override
}

}  // namespace

Status RelayProcess::Start(const char* name, const std::string& what, std::vector<int> keep,
                           const std::function<std::unique_ptr<RelayBody>()>& make, UniqueFd* listener) {
  UniqueFd ready_read, ready_write, go_read, go_write;
  SLUICE_RETURN_IF_ERROR(MakePipe(&ready_read, &ready_write));
  SLUICE_RETURN_IF_ERROR(MakePipe(&go_read, &go_write));
  pid_ = CloneProcess(0, &pidfd_);
  if (pid_ == 0) {
    keep.insert(keep.end(), {ready_write.get(), go_read.get(), LogFileFd()});
    CloseAllBut(std::move(keep));
    RunRelay(name, *make().release(), ready_write.get(), go_read.get());  // never freed
  }
  if (pid_ < 0) return Status::Error("cannot start " + what + ErrnoText(errno));
  ready_write.Reset();
  int number = -1;
  if (read(ready_read.get(), &number, sizeof number) == sizeof number && number >= 0)
    *listener = PidfdGetfd(pidfd_.get(), number);
  const char go = 1;
  if (*listener && WriteAll(go_write.get(), &go, 1)) return {};
  Stop();
  return Status::Error("cannot set " + what + " up");
}

void RelayProcess::Stop() {
  if (!pidfd_) return;
  PidfdSignal(pidfd_.get(), SIGKILL);
  waitpid(pid_, nullptr, __WALL);
  pidfd_.Reset();
}

}  // namespace sluice::oci
