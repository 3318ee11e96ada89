#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "control/bench/bench.h"
#include "control/capture.h"
#include "control/flags.h"
#include "control/flags_file.h"
#include "control/log.h"
#include "control/manual.h"
#include "control/oci/front_end.h"
#include "control/oci/install.h"
#include "control/query.h"
#include "control/run/guard.h"
#include "control/top.h"

namespace {

// A closed standard descriptor would be given to the next file that is opened.
void OpenStandardDescriptors() {
  for (int fd = open("/dev/null", O_RDWR); fd >= 0; fd = open("/dev/null", O_RDWR)) {
    if (fd <= STDERR_FILENO) continue;
    close(fd);
    return;
  }
}

int Fail(const sluice::Status& status) {
  sluice::LogLine(sluice::LogLevel::kError, status.line());
  return status.exit_code();
}

std::string FlagsIn(const std::string& form) {
  if (form == "markdown") return sluice::FlagsMarkdown();
  if (form == "man") return sluice::ManualPage();
  return form == "completion" ? sluice::BashCompletion() : sluice::FlagsText();
}

int Print(const std::string& text) { return fputs(text.c_str(), stdout) < 0 || fflush(stdout) != 0 ? 1 : 0; }

}  // namespace

int main(int argc, char** argv) {
  using namespace sluice;  // NOLINT(google-build-using-namespace): the program's own
  OpenStandardDescriptors();
  CommandLine line;
  const FlagsFile flags_file = FlagsFileOf(argv[0]);
  const Status parsed = ParseCommandLine(std::vector<std::string>(argv + 1, argv + argc), &line, &flags_file);
  // Engines show the last line of the log that they name.
  const auto start_log = [&] {
    return StartLog({.file = line.flags.log, .json = line.flags.log_json, .debug = line.flags.debug});
  };
  if (!parsed.ok()) {
    if (oci::IsCommand(line.command)) static_cast<void>(start_log());
    return Fail(parsed);
  }
  if (line.command == "help") return Print(HelpText());
  if (line.command == "version") return Print(VersionText());
  if (line.help) return Print(CommandHelpText(line.command));
  if (line.command == "flags") return Print(FlagsIn(line.form));
  const Status log = start_log();
  if (!log.ok()) return Fail(log);
  if (line.command == "do") return RunDo(line);
  if (oci::IsCommand(line.command)) return oci::Run(line);
  if (line.command == "bench") return RunBench(line);
  if (line.command == "top") return RunTop(line);
  if (line.command == "capture") return RunCapture(line);
  if (line.command == "install" || line.command == "uninstall") return oci::RunInstall(line);
  return RunQuery(line);
}
