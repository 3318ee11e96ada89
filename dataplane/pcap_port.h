// Capture to a file (pcapng.h): a Port around a Port that writes what passes in both directions. Super-segments
// are written whole, as they pass the port; checksums that the device or the peer finishes are seen unfinished.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dataplane/pcapng.h"
#include "dataplane/wrapped_port.h"
#include "xdp/unique_fd.h"

namespace sluice {

// One file, any number of devices and their queues. Any thread. The descriptor was opened by whoever may; only write(2) is used
// on it.
class PcapWriter {
 public:
  // Bytes of a frame above `snaplen` are left out (0: none).
  explicit PcapWriter(UniqueFd fd, uint32_t snaplen = 0);
  ~PcapWriter();

  // The queues of one device are one interface.
  uint32_t AddInterface(const std::string& name);
  void Write(uint32_t interface, FrameTap::Direction direction, const Packet& frame);
  // What was written so far reaches the file. Called by the port before its worker sleeps.
  void Flush();
  // 0, or the errno that ended the capture (a full disk); traffic goes on.
  int error() const { return error_; }
  uint64_t frames() const { return frames_; }

 private:
  void FlushLocked();

  std::mutex mutex_;
  UniqueFd fd_;
  uint32_t snaplen_;
  std::map<std::string, uint32_t> interfaces_;
  uint64_t frames_ = 0;
  int error_ = 0;
  PcapngEncoder blocks_;
};

class PcapPort final : public WrappedPort {
 public:
  PcapPort(std::unique_ptr<Port> inner, std::shared_ptr<PcapWriter> writer, const std::string& device_name);
  ~PcapPort() override;

  size_t Transmit(std::span<Packet> burst) override;
  size_t Receive(std::span<Packet> out) override;
  bool ArmWakeup() override;
  std::vector<std::string> describe() const override;

 private:
  std::shared_ptr<PcapWriter> writer_;
  uint32_t interface_;
};

}  // namespace sluice
