// Prints docs/socket-options.md; with a file name, compares it with what the file has (exit status 1 where it is not current).
#include <stdio.h>

#include <fstream>
#include <iterator>
#include <string>

#include "sentry/options.h"

int main(int argc, char** argv) {
  std::string text = sluice::DescribeSocketOptions();
  if (argc < 2) return fputs(text.c_str(), stdout) < 0;
  std::ifstream file(argv[1]);
  std::string have{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (have == text) return 0;
  fprintf(stderr, "%s is not current: run print_socket_options > %s\n", argv[1], argv[1]);
  return 1;
}
