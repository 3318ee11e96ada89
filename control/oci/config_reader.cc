#include "control/oci/config_reader.h"

#include <algorithm>
#include <set>
#include <span>
#include <vector>

namespace sluice::oci {
namespace {

using nlohmann::json;

// nlohmann's writer and copies recurse; runc's own limit is 10000.
constexpr size_t kMaxDepth = 500;
constexpr size_t kMaxShown = 200;

std::string Shown(std::string text) {
  if (text.size() <= kMaxShown) return text;
  return text.substr(0, kMaxShown) + "...";
}

enum class Kind { kText, kNumber, kTexts, kObject, kObjects };

struct Member {
  std::string_view name;
  Kind kind;
  std::span<const Member> inner;
};

constexpr Member kCondition[] = {
    {"index", Kind::kNumber, {}}, {"value", Kind::kNumber, {}}, {"valueTwo", Kind::kNumber, {}}, {"op", Kind::kText, {}}};
constexpr Member kRule[] = {{"names", Kind::kTexts, {}},
                            {"action", Kind::kText, {}},
                            {"errnoRet", Kind::kNumber, {}},
                            {"args", Kind::kObjects, kCondition}};
constexpr Member kSeccomp[] = {{"defaultAction", Kind::kText, {}},  {"defaultErrnoRet", Kind::kNumber, {}},
                               {"architectures", Kind::kTexts, {}}, {"flags", Kind::kTexts, {}},
                               {"listenerPath", Kind::kText, {}},   {"listenerMetadata", Kind::kText, {}},
                               {"syscalls", Kind::kObjects, kRule}};
constexpr Member kNamespace[] = {{"type", Kind::kText, {}}, {"path", Kind::kText, {}}};
constexpr Member kLinux[] = {{"namespaces", Kind::kObjects, kNamespace}, {"seccomp", Kind::kObject, kSeccomp}};
constexpr Member kConfig[] = {{"linux", Kind::kObject, kLinux}, {"annotations", Kind::kObject, {}}};

// As Go compares keys: case-insensitively, with the two letters beyond ASCII that fold to ASCII ones.
std::string Folded(std::string_view key) {
  std::string out;
  for (size_t i = 0; i < key.size(); ++i) {
    const std::string_view rest = key.substr(i);
    if (rest.starts_with("\u017f")) {
      out += 's';
      i += 1;
    } else if (rest.starts_with("\u212a")) {
      out += 'k';
      i += 2;
    } else {
      out += key[i] >= 'A' && key[i] <= 'Z' ? static_cast<char>(key[i] + ('a' - 'A')) : key[i];
    }
  }
  return out;
}

const char* Wanted(Kind kind) {
  constexpr const char* kWords[] = {"a string", "a number from 0 on", "an array of strings", "an object", "an array of objects"};
  return kWords[static_cast<int>(kind)];
}

bool HasKind(const json& value, Kind kind) {
  const auto is_text = [](const json& one) { return one.is_string(); };
  const auto is_object = [](const json& one) { return one.is_object(); };
  switch (kind) {
    case Kind::kText:
      return value.is_string();
    case Kind::kNumber:
      return value.is_number_unsigned();
    case Kind::kObject:
      return value.is_object();
    case Kind::kTexts:
      return value.is_array() && std::all_of(value.begin(), value.end(), is_text);
    case Kind::kObjects:
      return value.is_array() && std::all_of(value.begin(), value.end(), is_object);
  }
  return false;
}

Status CheckObject(const json& object, std::span<const Member> members, const std::string& where);

Status CheckMember(const json& value, const Member& member, const std::string& where) {
  if (value.is_null()) return {};
  if (!HasKind(value, member.kind))
    return Status::Error("config.json: " + where + ": not a valid value (must be " + Wanted(member.kind) + ")");
  if (member.kind == Kind::kObject) return CheckObject(value, member.inner, where + ".");
  if (member.kind != Kind::kObjects) return {};
  for (size_t i = 0; i < value.size(); ++i)
    SLUICE_RETURN_IF_ERROR(CheckObject(value[i], member.inner, where + "[" + std::to_string(i) + "]."));
  return {};
}

Status CheckObject(const json& object, std::span<const Member> members, const std::string& where) {
  for (const auto& [key, value] : object.items()) {
    const std::string folded = Folded(key);
    for (const Member& member : members) {
      if (key == member.name) {
        SLUICE_RETURN_IF_ERROR(CheckMember(value, member, where + key));
      } else if (folded == Folded(member.name)) {
        return Status::Error("config.json: " + where + Shown(key) + ": runc takes this for \"" + std::string(member.name) +
                             "\": write it so");
      }
    }
  }
  return {};
}

// What the library's parser does not look at. (Its own callbacks would do, but cost the square of a long array's length.)
class Watch final : public nlohmann::json_sax<json> {
 public:
  const std::string& wrong() const { return wrong_; }

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(json::number_integer_t) override { return true; }
  bool number_unsigned(json::number_unsigned_t) override { return true; }
  bool number_float(json::number_float_t, const std::string&) override { return true; }
  bool string(std::string&) override { return true; }
  bool binary(json::binary_t&) override { return true; }
  bool start_object(size_t) override { return Open(); }
  bool start_array(size_t) override { return Open(); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool key(std::string& name) override {
    return open_.back().insert(name).second || Wrong("the key \"" + Shown(name) + "\" is there twice in one object");
  }
  bool parse_error(size_t, const std::string&, const json::exception& e) override {
    // Behind the library's own tag.
    std::string what = e.what();
    std::replace_if(what.begin(), what.end(), [](char c) { return static_cast<unsigned char>(c) > 0x7e; }, '?');
    const size_t begin = what.find("] ");
    return Wrong("not valid JSON: " + Shown(begin == std::string::npos ? what : what.substr(begin + 2)));
  }

 private:
  bool Wrong(const std::string& what) {
    wrong_ = what;
    return false;
  }
  bool Open() {
    open_.emplace_back();
    return open_.size() <= kMaxDepth || Wrong("nested deeper than " + std::to_string(kMaxDepth) + " levels");
  }
  bool Close() {
    open_.pop_back();
    return true;
  }

  std::vector<std::set<std::string>> open_;  // the keys of each object and array that is open
  std::string wrong_;
};

}  // namespace

Status ParseConfig(std::string_view text, json* out) {
  Watch watch;
  if (!json::sax_parse(text, &watch)) return Status::Error("config.json: " + watch.wrong());
  *out = json::parse(text, nullptr, false);
  if (!out->is_object()) return Status::Error("config.json: not a JSON object");
  return CheckObject(*out, kConfig, "");
}

}  // namespace sluice::oci
