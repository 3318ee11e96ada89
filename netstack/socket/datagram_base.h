// What UDP, ping and raw sockets share: addresses, the receive queue and its accounting, the error queue, options, groups.
// Linux is the reference: net/ipv4/{datagram,ip_sockglue,udp,ping,raw}.c.
#pragma once

#include <array>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "netstack/ip/network.h"
#include "netstack/socket/ring.h"
#include "netstack/socket/socket.h"
#include "netstack/sysctls.h"

namespace sluice {

class DatagramBase;

// Sockets by port (or ICMP identifier): binding rules and the choice of a receiver.
class PortTable {
 public:
  explicit PortTable(Network& network) : network_(network) {}
  // `port` 0: an unused one of ip_local_port_range, from a random start (RFC 6056, algorithm 1); with `remote` one whose answers
  // come to this stack, where the host has several.
  Errno Claim(DatagramBase& socket, const IpAddress& local, uint16_t port, const Endpoint* remote = nullptr);
  void Release(DatagramBase& socket);

  struct Tuple {
    IpAddress local, remote;
    uint16_t local_port, remote_port;
    IfIndex ifindex;
  };
  // The one receiver of a unicast packet; nullptr where nobody listens.
  DatagramBase* Select(const Tuple& t) const;
  // Every receiver of a broadcast or multicast packet.
  void SelectAll(const Tuple& t, bool multicast, std::vector<DatagramBase*>* out) const;
  template <typename F>
  void ForEach(F f) const {
    for (const auto& [port, sockets] : ports_) {
      for (DatagramBase* s : sockets) f(*s);
    }
  }

 private:
  bool Conflicts(const DatagramBase& socket, const IpAddress& local, uint16_t port) const;
  uint16_t Choose(const DatagramBase& socket, const IpAddress& local, const Endpoint* remote);
  int Score(const DatagramBase& s, const Tuple& t) const;
  void Tell(const DatagramBase& socket, bool held) const;
  Network& network_;
  absl::flat_hash_map<uint16_t, std::vector<DatagramBase*>> ports_;
};

class DatagramBase : public DatagramSocket {
 public:
  DatagramBase(Network& network, Family family, uint8_t protocol, PortTable* ports);
  ~DatagramBase() override;

  Family family() const override { return family_; }
  uint32_t events() const override;
  Errno Bind(const Endpoint& local) override;
  Endpoint local() const override;
  std::optional<Endpoint> remote() const override;
  Errno Shutdown(bool read, bool write) override;
  Errno TakeError() override;
  Errno SetOption(SockOpt option, int64_t value) override;
  Errno GetOption(SockOpt option, int64_t* value) const override;
  void Close() override { delete this; }

  Errno Connect(std::optional<Endpoint> remote) override;
  bool Receive(Datagram* out) override;
  void Unreceive(Datagram&& d) override;
  std::optional<size_t> next_size() const override;
  bool ReceiveError(SocketError* out) override;
  Errno JoinGroup(const GroupRequest& request) override;
  Errno LeaveGroup(const GroupRequest& request) override;
  Errno SetMulticastInterface(const IpAddress& address, IfIndex ifindex) override;
  MulticastInterface multicast_interface() const override { return {multicast_source_, multicast_ifindex_}; }
  Errno SetIcmpFilter(uint32_t) override { return Errno::kENOPROTOOPT; }
  std::shared_ptr<const DatagramSettings> Settings() const override;
  void TakeSettings(const DatagramSettings& settings) override;

  // For the demultiplexers.
  uint8_t protocol() const { return protocol_; }
  uint16_t local_port() const { return local_port_; }
  const IpAddress& local_address() const { return local_; }
  bool Accepts(const IpAddress& destination) const;  // by the bound address
  bool AcceptsGroup(const IpAddress& group, IfIndex ifindex, const IpAddress& source) const;
  int64_t option(SockOpt o) const { return options_[static_cast<size_t>(o)]; }
  const IpAddress& remote_address() const { return remote_; }  // none: not connected
  uint16_t remote_port() const { return remote_port_; }
  bool v6only() const { return family_ == Family::kIpv6 && option(SockOpt::kIpv6V6Only) != 0; }
  SocketInfo info() const;
  // Queues a received payload, or drops and counts it where the buffer is full.
  void Enqueue(Packet payload, const IpInfo& info, uint16_t source_port, uint16_t gro_size, Counter full);
  // An ICMP error about a packet of this socket; `payload` is what is quoted of it behind the transport header.
  void OnIcmpError(const IcmpErrorInfo& e, uint16_t remote_port, Bytes payload);

 protected:
  virtual bool Supports(SockOpt option) const;
  struct Target {
    IpAddress address;
    uint16_t port = 0;
    Route route;
    IpSend how;
  };
  // Everything that comes before the packet is built: errors, address, autobind, route, TTL and TOS.
  Errno Prepare(const DatagramSend& how, bool needs_port, Target* target);
  // A refused send: IP_RECVERR hears of it too where the MTU was the reason.
  Errno Finish(Errno error, const Target& target);
  bool IsGroupOrBroadcast(const IpAddress& a) const { return a.IsMulticast() || network_.IsBroadcastAddress(a, 0); }
  Errno Autobind(const IpAddress& local, const Endpoint* remote = nullptr);
  void Changed(uint32_t rising) { Notify(rising); }

  Network& network_;
  StackContext& context_;
  const Family family_;
  const uint8_t protocol_;

 private:
  friend class PortTable;
  struct AllSettings;
  struct Group {
    IfIndex ifindex;
    IpAddress group;
    std::vector<IpAddress> sources;  // empty: any
  };
  Errno Normalize(const Endpoint& in, IpAddress* address) const;
  IpAddress Present(const IpAddress& a) const { return family_ == Family::kIpv6 ? a.Mapped() : a; }
  IpAddress ThisHost(Family family) const;
  Errno CheckBindable(const IpAddress& address) const;
  IfIndex GroupDevice(const GroupRequest& request) const;
  void ApplyDiscovery(Target* t) const;
  void QueueError(SocketError error);
  size_t ReceiveLimit() const { return static_cast<size_t>(option(SockOpt::kRcvBuf)); }
  void Hold(size_t charge);
  template <typename T>  // Datagram, SocketError
  static size_t Charge(const T& d) {
    return (d.payload ? d.payload.head_block()->capacity : 0) + 512;
  }

  PortTable* ports_;                                 // nullptr: raw
  IpAddress local_;                                  // Any where not bound to an address
  bool address_bound_ = false, port_bound_ = false;  // by the program
  uint16_t local_port_ = 0;
  IpAddress remote_;
  uint16_t remote_port_ = 0;
  Route route_;  // of the connected peer
  bool read_shut_ = false, write_shut_ = false;
  Errno error_ = Errno::kOk;
  Ring<Datagram> queue_;
  size_t queued_ = 0;  // charged against SO_RCVBUF
  Ring<SocketError> errors_;
  size_t queued_errors_ = 0;
  static constexpr size_t kMaxErrors = 64;
  std::array<int64_t, static_cast<size_t>(SockOpt::kCount)> options_{};
  IpAddress multicast_source_;
  IfIndex multicast_ifindex_ = 0;
  std::vector<Group> groups_;
  static constexpr size_t kMaxGroups = 20;  // igmp_max_memberships
};

}  // namespace sluice
