// The manual page and the shell's completion, from the tables of flags and commands.
#pragma once

#include <string>

namespace sluice {

std::string ManualPage();      // troff, for sluice(1)
std::string BashCompletion();  // a script for bash-completion

}  // namespace sluice
