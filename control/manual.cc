#include "control/manual.h"

#include <algorithm>
#include <string_view>
#include <vector>

#include "control/flags.h"

namespace sluice {
namespace {

std::string Str(std::string_view s) { return std::string(s); }

bool Available(const FlagSpec& f) { return f.later != "*"; }

// Text that troff must not read as its own.
std::string Troff(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '-') {
      out += "\\-";
    } else if (c == '\\') {
      out += "\\e";
    } else {
      if ((c == '.' || c == '\'') && (out.empty() || out.back() == '\n')) out += "\\&";
      out += c;
    }
  }
  return out;
}

std::string Entry(const std::string& head, const std::string& text) {
  return ".TP\n.B " + Troff(head) + "\n" + Troff(text) + "\n";
}

// "create|run [...]" names two commands.
std::vector<std::string> NamesOf(const CommandSpec& command) {
  std::string names(command.usage.substr(0, command.usage.find(' ')));
  std::vector<std::string> out;
  for (size_t at = 0; at <= names.size();) {
    const size_t end = std::min(names.find('|', at), names.size());
    out.push_back(names.substr(at, end - at));
    at = end + 1;
  }
  return out;
}

// The options that a usage line names: "--json", "--netns=".
std::string OptionsOf(const CommandSpec& command) {
  std::string out;
  for (size_t at = 0; (at = command.usage.find("[-", at)) != std::string_view::npos;) {
    ++at;
    const size_t end = command.usage.find_first_of("=] ", at);
    out += Str(command.usage.substr(at, end - at)) + (command.usage[end] == '=' ? "= " : " ");
  }
  return out + "--help";
}

// "true, false" as words; empty where the values are described, not listed.
std::string WordsOf(const FlagSpec& flag) {
  if (flag.type != "enum" && flag.type != "bool") return {};
  std::string out(flag.allowed);
  std::erase(out, ',');
  return out;
}

}  // namespace

std::string ManualPage() {
  std::string out =
      ".TH SLUICE 1 \"\" \"sluice " + Str(VersionNumber()) +
      "\" \"User Commands\"\n.ad l\n.nh\n.SH NAME\nsluice \\- run programs and containers on a TCP/IP stack in user space\n"
      ".SH SYNOPSIS\n.B sluice\n.RI [ FLAG ]... \" COMMAND \" [ ARG ]...\n.SH DESCRIPTION\n"
      "Runs unmodified programs with a TCP/IP stack of its own in user space; the kernel's stack of the network namespace stays\n"
      "silent. As an OCI runtime it wraps\n.BR runc (8).\n.SH COMMANDS\n";
  for (const CommandSpec& c : CommandTable()) out += Entry(Str(c.usage), Str(c.help) + ".");
  out += ".SH FLAGS\nThey stand before the command, as \\-\\-flag=value or \\-\\-flag value; a bool alone is true.\n";
  for (const FlagSpec& f : FlagTable()) {
    if (!Available(f)) continue;
    out += Entry("--" + Str(f.name), Str(f.help) + ". Allowed: " + Str(f.allowed) + "." +
                                         (f.initial.empty() ? "" : " Default: " + Str(f.initial) + "."));
  }
  out += Entry("--help, --version", "What is told so.");
  out +=
      ".SH EXIT STATUS\nOf do: that of CMD, 128 + its signal; 125: the sandbox was ended because a part of sluice died; 126, "
      "127: CMD cannot\n"
      "be run, is not found; 1: wrong value or failed set\\-up; 2: wrong usage. Of a container's command: as runc.\n"
      ".SH FILES\n" +
      Entry("/run/sluice", "running sandboxes, with their admin sockets") +
      Entry("/etc/sluice/NAME.flags", "flags of the runtime that was called as NAME, for engines that pass no arguments") +
      Entry("/usr/share/doc/sluice", "documentation") + ".SH SEE ALSO\n.BR runc (8),\n.BR ip\\-netns (8)\n";
  return out;
}

std::string BashCompletion() {
  std::string commands, options, values, flags;
  for (const CommandSpec& c : CommandTable()) {
    std::string names;
    for (const std::string& name : NamesOf(c)) {
      commands += name + " ";
      names += (names.empty() ? "" : "|") + name;
    }
    options += "    " + names + ") words='" + OptionsOf(c) + "' ;;\n";
  }
  for (const FlagSpec& f : FlagTable()) {
    if (!Available(f)) continue;
    flags += "--" + Str(f.name) + (f.type == "bool" ? " " : "= ");
    if (const std::string words = WordsOf(f); !words.empty()) values += "    --" + Str(f.name) + ") words='" + words + "' ;;\n";
  }
  return R"bash(# bash completion of sluice, generated from its tables
_sluice() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command= words= i
  COMPREPLY=()
  if [[ $word == = ]]; then word=; elif [[ $before == = ]]; then before=${COMP_WORDS[COMP_CWORD-2]}; fi
  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${COMP_WORDS[i]} in
      --) return ;;
      -*) if [[ ${COMP_WORDS[i+1]} == = ]]; then ((i += 2)); fi ;;
      *) command=${command:-${COMP_WORDS[i]}} ;;
    esac
  done
  if [[ -z $command && $before == --* ]]; then
    case $before in
)bash" + values +
         R"bash(    esac
  fi
  if [[ -n $words ]]; then COMPREPLY=($(compgen -W "$words" -- "$word")); return; fi
  case $command in
    '') words=')bash" +
         flags + "--help --version " + commands + "' ;;\n" + options +
         R"bash(  esac
  case $command in
    stats|sockets|routes|neigh|drops|capture|top)
      words+=" $(sluice sandboxes 2>/dev/null | awk 'NR > 1 { print $1 }')" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]]; then compopt -o nospace; fi
}
complete -o default -F _sluice sluice
)bash";
}

}  // namespace sluice
