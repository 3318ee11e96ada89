// Flags of engines that cannot pass arguments to a runtime: /etc/sluice/NAME.flags, NAME being the name that the program was
// called by, so that links to it are runtimes of their own. One --flag=value a line. Only root may be able to change it.
#pragma once

#include <string>
#include <string_view>

#include "control/flags.h"
#include "control/status.h"

namespace sluice {

inline constexpr char kSettingsDirectory[] = "/etc/sluice";

// `called_as`: argv[0]. The program's own name needs no file; any other was given to it for the sake of its file.
FlagsFile FlagsFileOf(std::string_view called_as);
// Sets what the file says. Errors name file and line.
Status ReadFlagsFile(const FlagsFile& file, Flags* flags);
// As ReadFlagsFile, of the file's text.
Status ParseFlagsText(std::string_view text, const std::string& path, Flags* flags);

}  // namespace sluice
