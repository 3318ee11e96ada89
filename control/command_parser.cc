#include "control/command_parser.h"

#include <algorithm>

namespace sluice {

CommandParser::CommandParser(CLI::App* app, bool* help) : app_(app) {
  app->set_help_flag();
  app->add_flag("-h,--help", *help);
  app->allow_extras();
}

Status CommandParser::Parse(const std::vector<std::string>& args) {
  try {
    app_->parse(std::vector<std::string>(args.rbegin(), args.rend()));
  } catch (const CLI::ArgumentMismatch& e) {
    // Its text begins with the option's name.
    const std::string text = e.what();
    return UsageError(text.substr(0, text.find(':')) + ": a value is missing");
  } catch (const CLI::Error& e) {
    return UsageError(e.what());
  }
  // CLI11 takes "--name=" as "--name" and the next argument as its value.
  const size_t parsed = args.size() - app_->remaining().size();
  const auto empty = std::find_if(args.begin(), args.begin() + static_cast<ptrdiff_t>(parsed), [&](const std::string& arg) {
    return arg.rfind("--", 0) == 0 && arg.find('=') == arg.size() - 1 && app_->get_option_no_throw(OptionName(arg)) != nullptr;
  });
  if (empty != args.begin() + static_cast<ptrdiff_t>(parsed))
    return UsageError(OptionName(*empty) + ": an empty value is not allowed");
  for (const CLI::Option* option : app_->get_options()) {
    if (std::ranges::count(option->results(), "") != 0) return UsageError(option->get_name() + ": an empty value is not allowed");
  }
  return {};
}

Status CommandParser::NothingLeft(const std::string& command) const {
  const auto left = app_->remaining();
  return left.empty() ? Status()
                      : UsageError(left[0] + ": unknown argument of " + command + " (see sluice " + command + " --help)");
}

}  // namespace sluice
