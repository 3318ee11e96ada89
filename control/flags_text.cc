// What the flag and command tables look like as text.
#include <algorithm>

#include "control/flags.h"

namespace sluice {
namespace {

std::string Str(std::string_view s) { return std::string(s); }

bool Available(const FlagSpec& f) { return f.later != "*"; }

}  // namespace

std::string_view VersionNumber() { return SLUICE_VERSION; }

std::string VersionText() { return "sluice version " SLUICE_VERSION "\ncommit: " SLUICE_COMMIT "\nspec: 1.0.2\n"; }

std::string HelpText() {
  std::string out =
      "usage: sluice [FLAG]... COMMAND [ARG]...\n\n"
      "Runs unmodified programs on a TCP/IP stack in user space.\n\nCommands:\n";
  for (const CommandSpec& c : CommandTable()) out += "  " + Str(c.usage) + "\n      " + Str(c.help) + "\n";
  out += "\nFlags (before the command, --flag=value or --flag value; a bool alone is true, or takes =true, =false):\n";
  for (const FlagSpec& f : FlagTable()) {
    if (!Available(f)) continue;
    out += "  --" + Str(f.name) + (f.initial.empty() ? "" : " (" + Str(f.initial) + ")") + "\n      " + Str(f.help) + "\n";
    if (f.type == "enum" || f.type == "duration" || f.type == "number") out += "      allowed: " + Str(f.allowed) + "\n";
  }
  out +=
      "  --help, --version\n\nExit status of do: that of CMD, 128 + its signal; 125: the sandbox was ended because a part of "
      "sluice died;\n"
      "126, 127: CMD cannot be run, is not found; 1: wrong value or failed set-up; 2: wrong usage.\n";
  return out;
}

std::string CommandHelpText(std::string_view command) {
  for (const CommandSpec& c : CommandTable()) {
    if (c.name == command) return "usage: sluice [FLAG]... " + Str(c.usage) + "\n\n" + Str(c.help) + "\n";
  }
  return HelpText();
}

std::string FlagsText() {
  size_t width = 0;
  for (const FlagSpec& f : FlagTable()) width = std::max(width, f.name.size());
  std::string out;
  for (const FlagSpec& f : FlagTable()) {
    if (!Available(f)) continue;
    out += "--" + Str(f.name) + std::string(width - f.name.size() + 2, ' ') + Str(f.type) +
           "  default: " + (f.initial.empty() ? "none" : Str(f.initial)) + "  allowed: " + Str(f.allowed) + "\n";
  }
  return out;
}

std::string FlagsMarkdown() {
  std::string out =
      "# Flags\n\n"
      "Generated from the table in `control/flags.cc` (`sluice flags --markdown > docs/flags.md`). Global flags stand before "
      "the\n"
      "command: `--flag=value` or `--flag value`; a bool is true where it stands alone and takes a value by `=` only.\n\n"
      "| flag | type | default | allowed | meaning |\n|---|---|---|---|---|\n";
  for (const FlagSpec& f : FlagTable()) {
    if (!Available(f)) continue;
    out += "| `--" + Str(f.name) + "` | " + Str(f.type) + " | " + (f.initial.empty() ? "" : "`" + Str(f.initial) + "`") + " | " +
           Str(f.allowed) + " | " + Str(f.help) + " |\n";
  }
  out += "\nRefused in this build, never ignored:\n\n| flag | what is refused |\n|---|---|\n";
  for (const FlagSpec& f : FlagTable()) {
    if (f.later.empty()) continue;
    out += "| `--" + Str(f.name) + "` | " + (Available(f) ? Str(f.later) : "the flag") + " |\n";
  }
  out +=
      "\n## Flags in a file\n\n"
      "containerd and podman start a runtime without arguments of its administrator's. Its flags then stand in a file:\n"
      "`/etc/sluice/NAME.flags`, where NAME is the name by which the program was called: `sluice`, or that of a link to it.\n"
      "So a link `sluice-none` and a file `sluice-none.flags` make a second runtime (`sluice install` makes both). One\n"
      "`--flag=value` a line, values as they are, without quotes; a line that begins with `#` is a comment. The file acts on "
      "the\n"
      "container commands alone, in every engine. Without the file `sluice` has the defaults, and any other name is refused.\n"
      "Folder and file must be root's and writable by root alone.\n\n"
      "Later wins: default, file, command line, annotation.\n\n"
      "## Annotations\n\n"
      "The annotation `dev.sluice.flag.NAME` of a container sets `--NAME` for its sandbox (containers that share a network\n"
      "namespace must agree). Whoever may start containers may set annotations, so a value is taken where the runtime has\n"
      "`--allow-flag-override`, and else only where it tightens. Every other annotation `dev.sluice.*` is refused.\n\n"
      "| flag | taken without `--allow-flag-override`: the same value, or one further right |\n|---|---|\n";
  for (const AnnotationRule& rule : AnnotationRules())
    out += "| `" + Str(rule.flag) + "` | " + (rule.tighter.empty() ? "" : Str(rule.tighter)) + " |\n";
  out += "\n## Commands\n\n| command | meaning |\n|---|---|\n";
  for (const CommandSpec& c : CommandTable()) {
    std::string usage = Str(c.usage);
    for (size_t at = 0; (at = usage.find('|', at)) != std::string::npos; at += 2) usage.insert(at, "\\");
    out += "| `" + usage + "` | " + Str(c.help) + " |\n";
  }
  return out;
}

}  // namespace sluice
