#include "control/oci/container.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

namespace sluice::oci {
namespace {

using nlohmann::json;

bool MakeAddress(const std::string& path, sockaddr_un* out) {
  out->sun_family = AF_UNIX;
  if (path.size() >= sizeof out->sun_path) return false;
  std::memcpy(out->sun_path, path.c_str(), path.size() + 1);
  return true;
}

bool LoadFrom(const std::string& folder, Container* out) {
  const json state = json::parse(ReadSmallFile(folder + "/state.json").value_or(""), nullptr, false);
  if (!state.is_object() || !state.contains("id") || !state["id"].is_string()) return false;
  out->id = state["id"];
  out->root = state.value("root", "");
  out->netns.inode = state.value("inode", uint64_t{0});
  out->netns.device = state.value("device", uint64_t{0});
  out->log = state.value("log", "");
  out->log_json = state.value("logJson", false);
  out->own_pids = state.value("ownPids", true);
  return true;
}

}  // namespace

std::string Container::key() const {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  const auto mix = [&hash](const std::string& text) {
    for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
    hash *= 0x100000001b3;
  };
  mix(root);
  mix(id);
  return Format("%016llx", static_cast<unsigned long long>(hash));
}

Status MakeFolder(const Container& container) {
  for (const std::string& path : {std::string(kRunDirectory), std::string(kRunDirectory) + "/oci"}) {
    if (mkdir(path.c_str(), 0700) < 0 && errno != EEXIST) return Status::Error("cannot make " + path + ErrnoText(errno));
  }
  if (mkdir(container.folder().c_str(), 0700) == 0) return {};
  if (errno == EEXIST) return Status::Error("container with given ID already exists");
  return Status::Error("cannot make " + container.folder() + ErrnoText(errno));
}

Status SaveContainer(const Container& container) {
  const json state{{"id", container.id},
                   {"root", container.root},
                   {"inode", container.netns.inode},
                   {"device", container.netns.device},
                   {"log", container.log},
                   {"logJson", container.log_json},
                   {"ownPids", container.own_pids}};
  const std::string path = container.folder() + "/state.json";
  const std::string text = state.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
  UniqueFd fd(open((path + ".new").c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd || !WriteAll(fd.get(), text.data(), text.size()) || rename((path + ".new").c_str(), path.c_str()) < 0) {
    return Status::Error("cannot write " + path + ErrnoText(errno));
  }
  return {};
}

bool LoadContainer(const std::string& root, const std::string& id, Container* out) {
  Container wanted;
  wanted.id = id;
  wanted.root = root;
  return LoadFrom(wanted.folder(), out) && out->id == id && out->root == root;
}

void RemoveFolder(const Container& container) {
  for (const char* name : {"/listener", "/state.json", "/state.json.new", "/pid"}) unlink((container.folder() + name).c_str());
  rmdir(container.folder().c_str());
}

bool FindContainer(const std::string& id_prefix, Container* out) {
  const std::string all = std::string(kRunDirectory) + "/oci";
  DIR* dir = opendir(all.c_str());
  if (dir == nullptr) return false;
  int found = 0;
  while (const dirent* entry = readdir(dir)) {
    Container c;
    if (entry->d_name[0] == '.' || !LoadFrom(all + "/" + entry->d_name, &c) || c.id.rfind(id_prefix, 0) != 0) continue;
    if (found == 0 || c.id == id_prefix) *out = c;
    found = c.id == id_prefix ? 1 : found + 1;
    if (c.id == id_prefix) break;
  }
  closedir(dir);
  return found == 1;
}

Status ListenAt(const std::string& path, int type, UniqueFd* out) {
  sockaddr_un address{};
  if (!MakeAddress(path, &address)) return Status::Error(path + ": too long for a socket");
  unlink(path.c_str());
  UniqueFd fd(socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd || bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) < 0 || chmod(path.c_str(), 0600) < 0 ||
      listen(fd.get(), 128) < 0) {
    return Status::Error("cannot make " + path + ErrnoText(errno));
  }
  *out = std::move(fd);
  return {};
}

UniqueFd ConnectTo(const std::string& path, int type) {
  sockaddr_un address{};
  UniqueFd fd(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  if (!fd || !MakeAddress(path, &address) || connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) < 0)
    return UniqueFd();
  return fd;
}

}  // namespace sluice::oci
