#include "control/flags_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>

#include "base/unique_fd.h"
#include "control/os.h"

namespace sluice {
namespace {

constexpr size_t kMaxSize = 64 << 10;

std::string_view Trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r";
  const size_t first = text.find_first_not_of(kSpace);
  return first == std::string_view::npos ? "" : text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

// One line: an error without its place.
Status SetLine(std::string_view line, Flags* flags) {
  if (line.substr(0, 2) != "--")
    return Status::Error(std::string(line) + ": not a flag (one --flag=value a line, # for comments)");
  const size_t equals = line.find('=');
  const std::string_view name = line.substr(2, equals == std::string_view::npos ? equals : equals - 2);
  const FlagSpec* flag = FindFlag(name);
  if (flag == nullptr) return Status::Error("--" + std::string(name) + ": unknown flag (see sluice flags)");
  if (equals == std::string_view::npos && flag->type == "bool") return SetFlag(*flag, "true", flags);
  if (equals == std::string_view::npos || equals + 1 == line.size())
    return Status::Error(std::string(line) + ": a value is missing (--" + std::string(name) + "=VALUE)");
  return SetFlag(*flag, line.substr(equals + 1), flags);
}

// Whoever can write the file decides what a runtime that runs as root does.
Status CheckOwner(int fd, const std::string& path) {
  struct stat st{};
  if (fstat(fd, &st) < 0) return Status::Error("cannot read " + path + ErrnoText(errno));
  if (st.st_uid == 0 && (st.st_mode & (S_IWGRP | S_IWOTH)) == 0) return {};
  return Status::Error(Format("%s: others than root can change it (owner %u, mode %o): chown root, chmod go-w", path.c_str(),
                              st.st_uid, st.st_mode & 07777));
}

}  // namespace

FlagsFile FlagsFileOf(std::string_view called_as) {
  std::string_view name = called_as.substr(called_as.rfind('/') + 1);
  if (name.empty()) name = "sluice";
  return {std::string(kSettingsDirectory) + "/" + std::string(name) + ".flags", name != "sluice"};
}

Status ParseFlagsText(std::string_view text, const std::string& path, Flags* flags) {
  for (int number = 1; !text.empty(); ++number) {
    const size_t end = text.find('\n');
    const std::string_view line = Trimmed(text.substr(0, end));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (line.empty() || line[0] == '#') continue;
    const Status status = SetLine(line, flags);
    if (!status.ok()) return Status::Error(Format("%s:%d: %s", path.c_str(), number, status.line().c_str()));
  }
  return {};
}

Status ReadFlagsFile(const FlagsFile& file, Flags* flags) {
  const std::string directory = file.path.substr(0, file.path.rfind('/'));
  UniqueFd folder(open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  UniqueFd fd;
  if (folder)
    fd.Reset(openat(folder.get(), file.path.c_str() + directory.size() + 1, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd && errno == ENOENT && !file.required) return {};
  if (!fd && errno == ENOENT) {
    return Status::Error(file.path +
                         ": does not exist, and a runtime of that name needs it: make it (it may be empty), or call the "
                         "program sluice");
  }
  if (!fd) {
    return Status::Error("cannot read " + file.path +
                         (errno == ELOOP ? ": it is a symbolic link; put the file itself there" : ErrnoText(errno)));
  }
  SLUICE_RETURN_IF_ERROR(CheckOwner(folder.get(), directory));
  SLUICE_RETURN_IF_ERROR(CheckOwner(fd.get(), file.path));
  const auto text = ReadSmallFile(Format("/proc/self/fd/%d", fd.get()), kMaxSize + 1);
  if (!text) return Status::Error("cannot read " + file.path + ErrnoText(errno));
  if (text->size() > kMaxSize) return Status::Error(file.path + ": longer than 64 KiB");
  return ParseFlagsText(*text, file.path, flags);
}

}  // namespace sluice
