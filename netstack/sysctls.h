// The `net.*` keys that the stack uses, parsed. Defaults are Linux's. Parse() is in sysctls.cc; a key that does not parse keeps
// its default and is reported.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/time.h"
#include "netstack/config.h"

namespace sluice {

struct Sysctls {
  // net.core
  int somaxconn = 4096;
  int rmem_default = 212992, rmem_max = 212992, wmem_default = 212992, wmem_max = 212992;
  // net.ipv4
  int ip_default_ttl = 64;
  int ip_unprivileged_port_start = 1024;
  std::array<int, 2> ip_local_port_range{32768, 60999};
  std::array<int, 2> ping_group_range{1, 0};
  bool ip_nonlocal_bind = false;
  bool ip_no_pmtu_disc = false;
  bool icmp_echo_ignore_all = false, icmp_echo_ignore_broadcasts = true;
  int icmp_ratelimit_ms = 1000, icmp_msgs_per_sec = 1000, icmp_msgs_burst = 50;
  int ipfrag_high_thresh = 4194304, ipfrag_time_s = 30;
  // net.ipv4.tcp_*
  std::array<int, 3> tcp_rmem{4096, 131072, 6291456};
  std::array<int, 3> tcp_wmem{4096, 16384, 4194304};
  bool tcp_window_scaling = true, tcp_timestamps = true, tcp_sack = true, tcp_dsack = true, tcp_moderate_rcvbuf = true;
  bool tcp_slow_start_after_idle = true, tcp_rfc1337 = false, tcp_abort_on_overflow = false, tcp_no_metrics_save = false;
  int tcp_syncookies = 1, tcp_max_syn_backlog = 1024, tcp_tw_reuse = 2, tcp_ecn = 2, tcp_ecn_fallback = 1, tcp_fastopen = 1;
  int tcp_syn_retries = 6, tcp_synack_retries = 5, tcp_retries1 = 3, tcp_retries2 = 15, tcp_orphan_retries = 0;
  int tcp_fin_timeout_s = 60, tcp_keepalive_time_s = 7200, tcp_keepalive_intvl_s = 75, tcp_keepalive_probes = 9;
  int tcp_max_tw_buckets = 65536, tcp_max_orphans = 65536, tcp_challenge_ack_limit = 1000, tcp_invalid_ratelimit_ms = 500;
  int tcp_notsent_lowat = -1, tcp_adv_win_scale = 1, tcp_min_snd_mss = 48, tcp_base_mss = 1024, tcp_mtu_probing = 0;
  int tcp_mtu_probe_floor = 48, tcp_probe_threshold = 8, tcp_probe_interval = 600;
  int tcp_reordering = 3, tcp_recovery = 1, tcp_early_retrans = 3, tcp_frto = 2, tcp_min_rto_ms = 200;
  int tcp_fastopen_blackhole_timeout_s = 0;
  std::string tcp_fastopen_key;  // tcp::FastOpenKeys::FromText; all zeros, or empty: none was set
  int tcp_min_tso_segs = 2, tcp_tso_rtt_log = 9, tcp_pacing_ss_ratio = 200, tcp_pacing_ca_ratio = 120;
  std::string tcp_congestion_control = "cubic";
};

// The keys with a field above, for the mirror ("net.ipv4.tcp_rmem").
std::vector<std::string> SupportedSysctls();
// `problems` gets one line per key that does not parse or is out of range.
Sysctls ParseSysctls(const SysctlMap& map, std::vector<std::string>* problems);
// The keys that are mirrored and act on nothing in this stack, where `map` has another value than Linux's default.
std::vector<std::string> SysctlsWithoutEffect(const SysctlMap& map);

}  // namespace sluice
