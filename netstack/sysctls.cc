#include "netstack/sysctls.h"

#include <charconv>
#include <limits>

#include "netstack/tcp/fast_open.h"

namespace sluice {
namespace {

// Linux's own bounds where it has some; otherwise what the field can hold.
constexpr int kMaxInt = std::numeric_limits<int>::max();

bool ParseInts(std::string_view text, int* out, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    while (!text.empty() && (text[0] == ' ' || text[0] == '\t')) text.remove_prefix(1);
    int64_t wide = 0;
    const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), wide);
    // The kernel shows some signed values unsigned (tcp_notsent_lowat: 4294967295 is -1).
    if (ec != std::errc() || wide < std::numeric_limits<int>::min() || wide > std::numeric_limits<uint32_t>::max()) return false;
    out[i] = static_cast<int>(static_cast<uint32_t>(wide));
    text.remove_prefix(static_cast<size_t>(end - text.data()));
  }
  while (!text.empty() && (text[0] == ' ' || text[0] == '\t' || text[0] == '\n')) text.remove_prefix(1);
  return text.empty();
}

// One table for the names, the parser and the list of supported keys.
class Table {
 public:
  Table(const SysctlMap* map, Sysctls* out, std::vector<std::string>* names, std::vector<std::string>* problems)
      : map_(map), out_(out), names_(names), problems_(problems) {}

  void Int(const char* key, int Sysctls::* field, int min = 0, int max = kMaxInt) {
    int v;
    if (Find(key, &v, 1, min, max)) out_->*field = v;
  }
  void Bool(const char* key, bool Sysctls::* field) {
    int v;
    if (Find(key, &v, 1, 0, 255)) out_->*field = v != 0;
  }
  // A key in microseconds whose field is in milliseconds, rounded up.
  void Micros(const char* key, int Sysctls::* field) {
    int v;
    if (Find(key, &v, 1, 1, kMaxInt)) out_->*field = v / 1000 + (v % 1000 != 0);
  }
  template <size_t N>
  void Ints(const char* key, std::array<int, N> Sysctls::* field, int min, int max) {
    std::array<int, N> v;
    if (Find(key, v.data(), N, min, max)) out_->*field = v;
  }
  void Text(const char* key, std::string Sysctls::* field) {
    const std::string* value = Value(key);
    if (value == nullptr) return;
    if (value->empty()) return Problem(key, *value, "must not be empty");
    out_->*field = *value;
  }
  void FastOpenKey(const char* key, std::string Sysctls::* field) {
    const std::string* value = Value(key);
    if (value == nullptr) return;
    if (!tcp::FastOpenKeys::FromText(*value)) {
      return Problem(key, *value, "must be a key such as 00112233-44556677-8899aabb-ccddeeff, or two with a comma between");
    }
    out_->*field = *value;
  }
  void Problem(const char* key, const std::string& value, const std::string& why) {
    if (problems_ != nullptr) problems_->push_back(std::string(key) + " = \"" + value + "\": " + why + "; the default stays");
  }

 private:
  const std::string* Value(const char* key) {
    if (names_ != nullptr) names_->push_back(key);
    if (map_ == nullptr) return nullptr;
    const auto it = map_->find(std::string_view(key));
    return it == map_->end() ? nullptr : &it->second;
  }
  bool Find(const char* key, int* v, size_t n, int min, int max) {
    const std::string* value = Value(key);
    if (value == nullptr) return false;
    if (!ParseInts(*value, v, n)) {
      Problem(key, *value, n == 1 ? "must be one integer" : "must be " + std::to_string(n) + " integers");
      return false;
    }
    for (size_t i = 0; i < n; ++i) {
      if (v[i] < min || v[i] > max) {
        Problem(key, *value, "must be from " + std::to_string(min) + " to " + std::to_string(max));
        return false;
      }
    }
    return true;
  }

  const SysctlMap* map_;
  Sysctls* out_;
  std::vector<std::string>* names_;
  std::vector<std::string>* problems_;
};

void CoreAndIp(Table& t) {
  using S = Sysctls;
  t.Int("net.core.somaxconn", &S::somaxconn);
  t.Int("net.core.rmem_default", &S::rmem_default, 2304);
  t.Int("net.core.rmem_max", &S::rmem_max, 2304);
  t.Int("net.core.wmem_default", &S::wmem_default, 4608);
  t.Int("net.core.wmem_max", &S::wmem_max, 4608);
  t.Int("net.ipv4.ip_default_ttl", &S::ip_default_ttl, 1, 255);
  t.Int("net.ipv4.ip_unprivileged_port_start", &S::ip_unprivileged_port_start, 0, 65535);
  t.Ints("net.ipv4.ip_local_port_range", &S::ip_local_port_range, 1, 65535);
  t.Ints("net.ipv4.ping_group_range", &S::ping_group_range, 0, kMaxInt);
  t.Bool("net.ipv4.ip_nonlocal_bind", &S::ip_nonlocal_bind);
  t.Bool("net.ipv4.ip_no_pmtu_disc", &S::ip_no_pmtu_disc);
  t.Bool("net.ipv4.icmp_echo_ignore_all", &S::icmp_echo_ignore_all);
  t.Bool("net.ipv4.icmp_echo_ignore_broadcasts", &S::icmp_echo_ignore_broadcasts);
  t.Int("net.ipv4.icmp_ratelimit", &S::icmp_ratelimit_ms);
  t.Int("net.ipv4.icmp_msgs_per_sec", &S::icmp_msgs_per_sec);
  t.Int("net.ipv4.icmp_msgs_burst", &S::icmp_msgs_burst);
  t.Int("net.ipv4.ipfrag_high_thresh", &S::ipfrag_high_thresh);
  t.Int("net.ipv4.ipfrag_time", &S::ipfrag_time_s);
}

void Tcp(Table& t) {
  using S = Sysctls;
  t.Ints("net.ipv4.tcp_rmem", &S::tcp_rmem, 1, kMaxInt);
  t.Ints("net.ipv4.tcp_wmem", &S::tcp_wmem, 1, kMaxInt);
  t.Bool("net.ipv4.tcp_window_scaling", &S::tcp_window_scaling);
  t.Bool("net.ipv4.tcp_timestamps", &S::tcp_timestamps);
  t.Bool("net.ipv4.tcp_sack", &S::tcp_sack);
  t.Bool("net.ipv4.tcp_dsack", &S::tcp_dsack);
  t.Bool("net.ipv4.tcp_moderate_rcvbuf", &S::tcp_moderate_rcvbuf);
  t.Bool("net.ipv4.tcp_slow_start_after_idle", &S::tcp_slow_start_after_idle);
  t.Bool("net.ipv4.tcp_rfc1337", &S::tcp_rfc1337);
  t.Bool("net.ipv4.tcp_abort_on_overflow", &S::tcp_abort_on_overflow);
  t.Bool("net.ipv4.tcp_no_metrics_save", &S::tcp_no_metrics_save);
  t.Int("net.ipv4.tcp_syncookies", &S::tcp_syncookies, 0, 2);
  t.Int("net.ipv4.tcp_max_syn_backlog", &S::tcp_max_syn_backlog);
  t.Int("net.ipv4.tcp_tw_reuse", &S::tcp_tw_reuse, 0, 2);
  t.Int("net.ipv4.tcp_ecn", &S::tcp_ecn, 0, 5);
  t.Int("net.ipv4.tcp_ecn_fallback", &S::tcp_ecn_fallback, 0, 1);
  t.Int("net.ipv4.tcp_fastopen", &S::tcp_fastopen);
  t.Int("net.ipv4.tcp_fastopen_blackhole_timeout_sec", &S::tcp_fastopen_blackhole_timeout_s, 0);
  t.FastOpenKey("net.ipv4.tcp_fastopen_key", &S::tcp_fastopen_key);
  t.Int("net.ipv4.tcp_syn_retries", &S::tcp_syn_retries, 1, 127);
  t.Int("net.ipv4.tcp_synack_retries", &S::tcp_synack_retries, 0, 255);
  t.Int("net.ipv4.tcp_retries1", &S::tcp_retries1, 0, 255);
  t.Int("net.ipv4.tcp_retries2", &S::tcp_retries2, 0, 255);
  t.Int("net.ipv4.tcp_orphan_retries", &S::tcp_orphan_retries, 0, 255);
  t.Int("net.ipv4.tcp_fin_timeout", &S::tcp_fin_timeout_s);
  t.Int("net.ipv4.tcp_keepalive_time", &S::tcp_keepalive_time_s);
  t.Int("net.ipv4.tcp_keepalive_intvl", &S::tcp_keepalive_intvl_s);
  t.Int("net.ipv4.tcp_keepalive_probes", &S::tcp_keepalive_probes, 0, 255);
  t.Int("net.ipv4.tcp_max_tw_buckets", &S::tcp_max_tw_buckets);
  t.Int("net.ipv4.tcp_max_orphans", &S::tcp_max_orphans);
  t.Int("net.ipv4.tcp_challenge_ack_limit", &S::tcp_challenge_ack_limit);
  t.Int("net.ipv4.tcp_invalid_ratelimit", &S::tcp_invalid_ratelimit_ms);
  t.Int("net.ipv4.tcp_notsent_lowat", &S::tcp_notsent_lowat, std::numeric_limits<int>::min());
  t.Int("net.ipv4.tcp_adv_win_scale", &S::tcp_adv_win_scale, -31, 31);
  t.Int("net.ipv4.tcp_min_snd_mss", &S::tcp_min_snd_mss, 48, 65535);
  t.Int("net.ipv4.tcp_base_mss", &S::tcp_base_mss);
  t.Int("net.ipv4.tcp_mtu_probing", &S::tcp_mtu_probing, 0, 2);
  t.Int("net.ipv4.tcp_mtu_probe_floor", &S::tcp_mtu_probe_floor);
  t.Int("net.ipv4.tcp_probe_threshold", &S::tcp_probe_threshold);
  t.Int("net.ipv4.tcp_probe_interval", &S::tcp_probe_interval);
  t.Int("net.ipv4.tcp_reordering", &S::tcp_reordering, 1);
  t.Int("net.ipv4.tcp_recovery", &S::tcp_recovery);
  t.Int("net.ipv4.tcp_early_retrans", &S::tcp_early_retrans, 0, 4);
  t.Int("net.ipv4.tcp_frto", &S::tcp_frto, 0, 2);
  t.Micros("net.ipv4.tcp_rto_min_us", &S::tcp_min_rto_ms);
  t.Int("net.ipv4.tcp_min_tso_segs", &S::tcp_min_tso_segs, 1, 65535);
  t.Int("net.ipv4.tcp_tso_rtt_log", &S::tcp_tso_rtt_log, 0, 31);
  t.Int("net.ipv4.tcp_pacing_ss_ratio", &S::tcp_pacing_ss_ratio, 0, 1000);
  t.Int("net.ipv4.tcp_pacing_ca_ratio", &S::tcp_pacing_ca_ratio, 0, 1000);
  t.Text("net.ipv4.tcp_congestion_control", &S::tcp_congestion_control);
}

}  // namespace

std::vector<std::string> SupportedSysctls() {
  std::vector<std::string> names;
  Sysctls unused;
  Table table(nullptr, &unused, &names, nullptr);
  CoreAndIp(table);
  Tcp(table);
  return names;
}

Sysctls ParseSysctls(const SysctlMap& map, std::vector<std::string>* problems) {
  Sysctls s;
  const Sysctls defaults;
  Table table(&map, &s, nullptr, problems);
  CoreAndIp(table);
  Tcp(table);
  auto text = [](const std::array<int, 2>& r) { return std::to_string(r[0]) + " " + std::to_string(r[1]); };
  if (s.ip_local_port_range[0] > s.ip_local_port_range[1]) {
    table.Problem("net.ipv4.ip_local_port_range", text(s.ip_local_port_range), "the first must not exceed the second");
    s.ip_local_port_range = defaults.ip_local_port_range;
  }
  return s;
}

std::vector<std::string> SysctlsWithoutEffect(const SysctlMap& map) {
  const Sysctls given = ParseSysctls(map, nullptr), usual;
  std::vector<std::string> keys;
  auto check = [&](const char* name, auto Sysctls::* field) {
    if (given.*field != usual.*field) keys.push_back(std::string("net.ipv4.") + name);
  };
  check("tcp_recovery", &Sysctls::tcp_recovery);
  check("tcp_adv_win_scale", &Sysctls::tcp_adv_win_scale);
  check("tcp_no_metrics_save", &Sysctls::tcp_no_metrics_save);
  check("tcp_reordering", &Sysctls::tcp_reordering);
  return keys;
}

}  // namespace sluice
