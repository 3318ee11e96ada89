/* The first process of a pod: holds its namespaces, reaps, ends when it is told to. */
#include <signal.h>
#include <unistd.h>

static void End(int signal) {
  (void)signal;
  _exit(0);
}

int main(void) {
  struct sigaction end = {.sa_handler = End}, reap = {.sa_handler = SIG_IGN, .sa_flags = SA_NOCLDWAIT};
  sigaction(SIGTERM, &end, 0);
  sigaction(SIGINT, &end, 0);
  sigaction(SIGCHLD, &reap, 0);
  for (;;) pause();
}
