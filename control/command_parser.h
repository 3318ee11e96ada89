// CLI11 with the house's errors: one line and the exit status instead of an exception. For the files that parse commands.
#pragma once

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <string>
#include <vector>

#include "control/status.h"

namespace sluice {

inline Status UsageError(std::string line) { return Status::Error(std::move(line), kExitUsage); }

// "--name" of "--name=value".
inline std::string OptionName(const std::string& arg) { return arg.substr(0, arg.find('=')); }

class CommandParser {
 public:
  // Gives `app` -h and --help. What the app does not know is left in app->remaining(), not an error.
  CommandParser(CLI::App* app, bool* help);
  // An option that takes a value; given several times, it has several results().
  CLI::Option* Option(const std::string& name) { return app_->add_option(name)->take_all(); }
  // Takes a value by "=" only; "true" where none is given.
  CLI::Option* Flag(const std::string& name) { return app_->add_flag(name)->take_all(); }
  Status Parse(const std::vector<std::string>& args);
  // An error where an argument was not known.
  Status NothingLeft(const std::string& command) const;

 private:
  CLI::App* app_;
};

}  // namespace sluice
