#include "control/metrics/exposition.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>

namespace sluice {
namespace {

using nlohmann::json;

json Stats() {
  return {{"counters", {{"TcpRetransSegs", 3}, {"TcpDSACKRecv", 4}, {"IpReasmOKs", 5}, {"DropIpChecksum", 6}, {"Evil{}", 7}}},
          {"ports",
           {{{"device", "eth0"}, {"kind", "packet"}, {"rx_frames", 8}, {"faults", {{"device_down", 2}, {"evil", 3}}}},
            {{"device", "eth0"}, {"kind", "x"}, {"rx_frames", 9}}}},
          {"process", {{"cpu_ns", 1500000000}}},
          {"tcp", {{"established", 2}}}};
}

bool Has(const std::string& text, const std::string& line) { return ("\n" + text).find("\n" + line + "\n") != std::string::npos; }

TEST(Exposition, NamesLabelsUnitsAndHelp) {
  const std::string text = Exposition({{"web", "", Stats()}, {"pod", "c1,c2", json()}});
  EXPECT_TRUE(Has(text, "sluice_tcp_retrans_segs_total{sandbox=\"web\"} 3")) << text;
  EXPECT_TRUE(Has(text, "# HELP sluice_tcp_retrans_segs_total segments retransmitted"));
  EXPECT_TRUE(Has(text, "# TYPE sluice_tcp_retrans_segs_total counter"));
  EXPECT_TRUE(Has(text, "sluice_tcp_dsack_recv_total{sandbox=\"web\"} 4"));
  EXPECT_TRUE(Has(text, "sluice_ip_reasm_oks_total{sandbox=\"web\"} 5"));
  EXPECT_TRUE(Has(text, "sluice_drops_total{sandbox=\"web\",reason=\"ip_checksum\"} 6"));
  EXPECT_TRUE(Has(text, "sluice_port_receive_frames_total{sandbox=\"web\",device=\"eth0\",kind=\"packet\"} 8"));
  EXPECT_TRUE(Has(text, "sluice_port_faults_total{sandbox=\"web\",device=\"eth0\",kind=\"packet\",fault=\"device_down\"} 2"))
      << text;
  EXPECT_EQ(text.find("kind=\"x\""), std::string::npos);
  EXPECT_TRUE(Has(text, "sluice_sentry_cpu_seconds_total{sandbox=\"web\"} 1.5"));
  EXPECT_TRUE(Has(text, "# TYPE sluice_tcp_established gauge"));
  EXPECT_TRUE(Has(text, "sluice_up{sandbox=\"web\"} 1"));
  EXPECT_TRUE(Has(text, "sluice_up{sandbox=\"pod\",container=\"c1,c2\"} 0"));
  EXPECT_EQ(text.find("vil"), std::string::npos);
}

TEST(Exposition, HostileAnswersAreLeftOut) {
  for (const char* answer :
       {"[]", "5", "{\"counters\":[],\"ports\":{},\"tcp\":7,\"process\":null}",
        "{\"counters\":{\"TcpInSegs\":\"1\\n2\"},\"ports\":[1,[],{\"device\":7},{\"device\":\"e\",\"rx_frames\":{}}]}"}) {
    const std::string text = Exposition({{"a\"\n{", "", json::parse(answer)}});
    EXPECT_NE(text.find("sluice_up{sandbox=\"a\\\"\\n{\"}"), std::string::npos) << text;
    std::istringstream lines(text);
    const std::regex form(R"((# (HELP|TYPE) .*)|([a-z_]+\{[a-z]+=".*"\} [0-9.e+-]+))");
    for (std::string line; std::getline(lines, line);) EXPECT_TRUE(std::regex_match(line, form)) << line;
  }
}

TEST(Exposition, EveryNameIsOneOfPrometheusAndHasHelp) {
  std::set<std::string> names;
  for (const auto& family : MetricFamilies({})) {
    EXPECT_TRUE(std::regex_match(family.name, std::regex("sluice(_[a-z0-9]+)+"))) << family.name;
    EXPECT_FALSE(family.help.empty()) << family.name;
    EXPECT_EQ(family.name.ends_with("_total"), family.type == prometheus::MetricType::Counter) << family.name;
    EXPECT_TRUE(names.insert(family.name).second) << family.name;
  }
}

TEST(Dashboard, UsesMetricsThatExist) {
  std::set<std::string> names;
  for (const auto& family : MetricFamilies({})) names.insert(family.name);
  std::ifstream file(SLUICE_SOURCE_DIR "/deploy/grafana/sluice.json");
  const json dashboard = json::parse(file);
  std::set<std::string> used;
  for (const json& panel : dashboard.at("panels")) {
    EXPECT_FALSE(panel.at("targets").empty()) << panel.at("title");
    for (const json& target : panel.at("targets")) {
      const std::string expression = target.at("expr");
      const std::regex word("sluice_[a-z0-9_]+");
      const std::sregex_iterator begin(expression.begin(), expression.end(), word), end;
      EXPECT_NE(begin, end) << expression;
      for (auto it = begin; it != end; ++it) used.insert(it->str());
    }
  }
  EXPECT_GT(used.size(), 8u);
  for (const std::string& name : used) EXPECT_TRUE(names.contains(name)) << name;
}

}  // namespace
}  // namespace sluice
