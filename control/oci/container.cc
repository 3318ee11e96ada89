#include "control/oci/container.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
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
  try {
    const json state = json::parse(ReadSmallFile(folder + "/state.json").value_or(""));
    out->id = state.at("id");
    out->root = state.at("root");
    out->netns.inode = state.at("inode");
    out->netns.device = state.at("device");
    out->bundle = state.at("bundle");
    out->log = state.at("log");
    out->log_json = state.at("logJson");
    out->own_pids = state.at("ownPids");
    out->netns_path = state.value("netnsPath", "");  // these came later
    out->maker = state.value("maker", 0);
    return true;
  } catch (const json::exception&) {
    return false;
  }
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

Status HoldFolder(const Container& container, UniqueFd* hold, bool* was_there) {
  for (const std::string& path : {std::string(kRunDirectory), std::string(kRunDirectory) + "/oci"}) {
    if (mkdir(path.c_str(), 0700) < 0 && errno != EEXIST) return Status::Error("cannot make " + path + ErrnoText(errno));
  }
  const std::string folder = container.folder();
  for (;;) {
    *was_there = mkdir(folder.c_str(), 0700) < 0;
    if (*was_there && errno != EEXIST) return Status::Error("cannot make " + folder + ErrnoText(errno));
    UniqueFd fd(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!fd && errno != ENOENT) return Status::Error("cannot open " + folder + ErrnoText(errno));
    if (fd && flock(fd.get(), LOCK_EX | LOCK_NB) < 0) return Status::Error("container with given ID already exists");
    // Who had it may have removed it meanwhile.
    struct stat ours{}, named{};
    if (fd && fstat(fd.get(), &ours) == 0 && stat(folder.c_str(), &named) == 0 && ours.st_ino == named.st_ino) {
      *hold = std::move(fd);
      return {};
    }
  }
}

Status SaveContainer(const Container& container) {
  const json state{{"id", container.id},
                   {"root", container.root},
                   {"inode", container.netns.inode},
                   {"device", container.netns.device},
                   {"bundle", container.bundle},
                   {"log", container.log},
                   {"logJson", container.log_json},
                   {"ownPids", container.own_pids},
                   {"netnsPath", container.netns_path},
                   {"maker", container.maker}};
  const std::string path = container.folder() + "/state.json";
  const std::string text = state.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
  UniqueFd fd(open((path + ".new").c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd || !WriteAll(fd.get(), text.data(), text.size()) || rename((path + ".new").c_str(), path.c_str()) < 0) {
    return Status::Error("cannot write " + path + ErrnoText(errno));
  }
  return {};
}

Kept LoadContainer(const std::string& root, const std::string& id, Container* out) {
  Container wanted;
  wanted.id = id;
  wanted.root = root;
  if (access(wanted.folder().c_str(), F_OK) < 0) return Kept::kNone;
  if (LoadFrom(wanted.folder(), out) && out->id == id && out->root == root) return Kept::kReadable;
  *out = wanted;
  return Kept::kBroken;
}

void RemoveFolder(const Container& container) {
  for (const char* name : {"/listener", "/state.json", "/state.json.new", "/pid"}) unlink((container.folder() + name).c_str());
  rmdir(container.folder().c_str());
}

std::vector<Container> ListContainers() {
  const std::string all = std::string(kRunDirectory) + "/oci";
  std::vector<Container> out;
  DIR* dir = opendir(all.c_str());
  if (dir == nullptr) return out;
  while (const dirent* entry = readdir(dir)) {
    Container c;
    if (entry->d_name[0] != '.' && LoadFrom(all + "/" + entry->d_name, &c)) out.push_back(std::move(c));
  }
  closedir(dir);
  return out;
}

bool FindContainer(const std::string& id_prefix, Container* out) {
  int found = 0;
  for (Container& c : ListContainers()) {
    const bool whole = c.id == id_prefix;
    if (c.id.rfind(id_prefix, 0) != 0) continue;
    *out = std::move(c);
    if (whole) return true;
    ++found;
  }
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
