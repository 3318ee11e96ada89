#include "control/capture.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "control/admin_client.h"
#include "control/log.h"
#include "control/run/admin_protocol.h"
#include "dataplane/pcapng.h"

namespace sluice {
namespace {

using nlohmann::json;

// A sentry that does not end the capture by then is not waited for.
constexpr int kEndMs = 2000;

class Capture {
 public:
  explicit Capture(const CommandLine& line) : line_(line), options_(line.capture) {}

  Status Run() {
    SLUICE_RETURN_IF_ERROR(CheckOutput());
    SLUICE_RETURN_IF_ERROR(client_.Connect(line_));
    const json request{{"snaplen", options_.snaplen}, {"devices", options_.devices}};
    json answer;
    SLUICE_RETURN_IF_ERROR(client_.Ask("capture " + request.dump(-1, ' ', false, json::error_handler_t::replace), &answer));
    SLUICE_RETURN_IF_ERROR(OpenOutput());
    CatchSignals();
    while (Turn()) {
    }
    return Finish();
  }

 private:
  struct Interface {
    uint32_t number = 0;
    uint64_t frames = 0, dropped = 0;
  };

  // Before the sandbox is asked.
  Status CheckOutput() const {
    if (!options_.file.empty() || isatty(STDOUT_FILENO) == 0) return {};
    return Status::Error("capture: the output is no text: name a file (-w FILE), or pipe it into a reader (| wireshark -k -i -)");
  }

  Status OpenOutput() {
    if (options_.file.empty() || options_.file == "-") {
      output_.Reset(fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3));
    } else {
      output_.Reset(open(options_.file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    }
    struct stat st{};
    if (!output_ || fstat(output_.get(), &st) < 0)
      return Status::Error("-w " + options_.file + ": cannot open the file" + ErrnoText(errno));
    // What a pipe that is writable takes at once; a file takes all.
    step_ = S_ISREG(st.st_mode) ? SIZE_MAX : PIPE_BUF;
    return {};
  }

  void CatchSignals() {
    sigset_t blocked;
    sigemptyset(&blocked);
    for (const int s : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&blocked, s);
    sigprocmask(SIG_BLOCK, &blocked, nullptr);
    signals_.Reset(signalfd(-1, &blocked, SFD_CLOEXEC));
    signal(SIGPIPE, SIG_IGN);
  }

  bool Turn() {
    Decode();
    const bool pending = written_ < blocks_.bytes().size();
    if (!pending && (input_ended_ || Enough())) return false;
    // No frame is read while the output takes none: then they wait in the sentry, which bounds and counts them.
    pollfd polled[] = {{pending || input_ended_ ? -1 : client_.fd(), POLLIN, 0},
                       {output_.get(), static_cast<short>(pending ? POLLOUT : 0), 0},
                       {signals_.get(), POLLIN, 0}};
    const int n = poll(polled, 3, stopping_ ? kEndMs : -1);
    if (n == 0) return false;
    if (n < 0) return errno == EINTR;
    if (polled[2].revents != 0 && !Stop()) return false;
    if ((polled[1].revents & POLLERR) != 0) return false;  // its reader is gone
    if (polled[1].revents != 0 && !Write()) return false;
    if (polled[0].revents != 0) Read();
    return true;
  }

  bool Enough() const { return options_.count != 0 && frames_ >= options_.count; }

  // Ends the capture in the sentry, which sends what it has; asked again, does not wait for that.
  bool Stop() {
    signalfd_siginfo info;
    if (read(signals_.get(), &info, sizeof info) != sizeof info || stopping_) return false;
    stopping_ = true;
    shutdown(client_.fd(), SHUT_WR);
    return true;
  }

  void Read() {
    char buffer[65536];
    const ssize_t n = read(client_.fd(), buffer, sizeof buffer);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
    input_ended_ = n <= 0;
    if (n > 0) client_.rest().append(buffer, static_cast<size_t>(n));
  }

  bool Write() {
    std::vector<uint8_t>& bytes = blocks_.bytes();
    const ssize_t n = write(output_.get(), bytes.data() + written_, std::min(bytes.size() - written_, step_));
    if (n < 0) {
      if (errno == EINTR || errno == EAGAIN) return true;
      if (errno != EPIPE) error_ = errno;
      return false;
    }
    written_ += static_cast<size_t>(n);
    if (written_ == bytes.size()) bytes.clear(), written_ = 0;
    return true;
  }

  // Every whole record that was read, up to --count.
  void Decode() {
    std::string& in = client_.rest();
    size_t at = 0;
    CaptureRecord record;
    while (!malformed_ && !Enough() && in.size() - at >= sizeof record) {
      std::memcpy(&record, in.data() + at, sizeof record);
      malformed_ = record.captured > kMaxCaptured || record.captured > record.original;
      if (malformed_ || in.size() - at - sizeof record < record.captured) break;
      TakeRecord(record, {in.data() + at + sizeof record, record.captured});
      at += sizeof record + record.captured;
    }
    in.erase(0, at);
    input_ended_ |= malformed_;
  }

  void TakeRecord(const CaptureRecord& record, std::string_view data) {
    if (record.kind == CaptureKind::kInterface && interfaces_.count(record.ifindex) == 0 && interfaces_.size() < 4096) {
      interfaces_[record.ifindex].number = blocks_.AddInterface(Clean(std::string(data.substr(0, 64))), options_.snaplen);
      return;
    }
    const auto it = interfaces_.find(record.ifindex);
    malformed_ = it == interfaces_.end();
    if (malformed_) return;
    if (record.kind == CaptureKind::kDropped) it->second.dropped = record.value;
    if (record.kind != CaptureKind::kFrame) return;
    const auto direction = record.direction == 2 ? FrameTap::Direction::kOut : FrameTap::Direction::kIn;
    const MutableBytes to = blocks_.AddFrame({it->second.number, direction, record.value, record.captured, record.original});
    std::memcpy(to.data(), data.data(), data.size());
    ++it->second.frames;
    ++frames_;
  }

  Status Finish() {
    uint64_t dropped = 0;
    timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    const uint64_t time = static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
    for (const auto& [ifindex, one] : interfaces_) {
      blocks_.AddStatistics(one.number, time, one.frames + one.dropped, one.dropped);
      dropped += one.dropped;
    }
    // A file takes the end at once; a pipe only where its reader still reads.
    for (pollfd out{output_.get(), POLLOUT, 0}; error_ == 0 && written_ < blocks_.bytes().size();) {
      if (poll(&out, 1, kEndMs) != 1 || (out.revents & POLLERR) != 0 || !Write()) break;
    }
    if (error_ != 0)
      return Status::Error("capture: cannot write " + (options_.file.empty() ? "it" : options_.file) + ErrnoText(error_));
    if (malformed_) return Status::Error("capture: the sandbox's answer is not one of sluice's");
    std::fprintf(stderr, "%llu frames captured, %llu dropped because the reader was too slow\n",
                 static_cast<unsigned long long>(frames_), static_cast<unsigned long long>(dropped));
    return {};
  }

  const CommandLine& line_;
  const CaptureOptions& options_;
  AdminClient client_;
  UniqueFd output_, signals_;
  size_t step_ = 0;
  PcapngEncoder blocks_;
  size_t written_ = 0;  // of its bytes
  std::map<int32_t, Interface> interfaces_;
  uint64_t frames_ = 0;
  bool stopping_ = false, input_ended_ = false, malformed_ = false;
  int error_ = 0;
};

}  // namespace

int RunCapture(const CommandLine& line) {
  const Status status = Capture(line).Run();
  if (!status.ok()) LogLine(LogLevel::kError, status.line());
  return status.exit_code();
}

}  // namespace sluice
