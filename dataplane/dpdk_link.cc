#include "dataplane/dpdk_link.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>

namespace sluice {
namespace {

constexpr const char* kModuleName = "libsluice_dpdk.so";

std::string ProgramFolder() {
  char path[PATH_MAX];
  const ssize_t n = readlink("/proc/self/exe", path, sizeof path);
  if (n <= 0) return ".";
  const std::string program(path, static_cast<size_t>(n));
  return program.substr(0, program.rfind('/'));
}

std::vector<std::string> Candidates(const std::string& named) {
  if (!named.empty()) return {named};
  const std::string folder = ProgramFolder();
  return {folder + "/" + kModuleName, folder + "/../lib/sluice/" + kModuleName};
}

// Never unloaded: EAL's threads run in it.
const DpdkModule* Load(const std::string& named, std::string* error) {
  static const DpdkModule* loaded = nullptr;
  if (loaded != nullptr) return loaded;
  std::string first_problem;
  for (const std::string& path : Candidates(named)) {
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      const char* problem = dlerror();
      // The reason worth telling is that of a module that is there.
      if (first_problem.empty() || access(path.c_str(), F_OK) == 0) first_problem = problem != nullptr ? problem : path;
      continue;
    }
    const auto* module = static_cast<const DpdkModule*>(dlsym(handle, "sluice_dpdk_module"));
    if (module != nullptr && module->version == DpdkModule::kVersion) return loaded = module;
    first_problem = path + " is of another build";
    dlclose(handle);
  }
  *error = "the DPDK module cannot be loaded: " + first_problem + " (it is built where libdpdk-dev is installed)";
  return nullptr;
}

}  // namespace

Errno OpenDpdk(const DpdkOptions& options, BlockPool& pool, DpdkLink* out, std::string* error) {
  const DpdkModule* module = Load(options.module, error);
  return module == nullptr ? Errno::kENOENT : module->open(options, pool, out, error);
}

}  // namespace sluice
