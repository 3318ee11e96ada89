/* Blocking socket calls under a storm of signals without SA_RESTART: every byte must arrive once, every connection be found.
 *
 *   signals serve PORT CONNECTIONS BYTES           accepts, reads and echoes BYTES on each connection
 *   signals connect HOST PORT CONNECTIONS BYTES    connects, sends BYTES and checks what comes back
 *
 * A timer interrupts at ever changing moments; every call that says EINTR is made again, as a correct program does. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static volatile sig_atomic_t fired;
static unsigned long interrupted;

/* Re-arms itself at 50 us to 2 ms: the storm hits every stage of a call, and calls still get through. */
static void arm(void) {
  static uint32_t random = 12345;
  random = random * 1664525 + 1013904223;
  struct itimerval t = {.it_value = {0, 50 + (long)(random >> 8) % 2000}};
  setitimer(ITIMER_REAL, &t, NULL);
}
static void handler(int number) {
  (void)number;
  ++fired;
  arm();
}

static void die(const char* what) {
  printf("FAILED %s: %s\n", what, strerror(errno));
  exit(1);
}

#define RETRY(call) __extension__({                                  \
  long result_;                                                      \
  while ((result_ = (call)) < 0 && errno == EINTR) ++interrupted;    \
  result_;                                                           \
})

static unsigned char pattern(size_t at, int connection) { return (unsigned char)(at * 31 + (at >> 8) + (at >> 16) + (size_t)connection); }

static void send_all(int fd, const unsigned char* p, size_t n) {
  while (n > 0) {
    const long sent = RETRY(send(fd, p, n, MSG_NOSIGNAL));
    if (sent <= 0) die("send");
    p += sent;
    n -= (size_t)sent;
  }
}

/* connect() interrupted goes on by itself: the next call waits for the same connection, or says EISCONN. Where calls are intercepted
 * a signal may come before the call was seen: then the next call begins it. Either way there is one connection in the end. */
static int connect_once(const struct sockaddr_in* a) {
  const int fd = (int)RETRY(socket(AF_INET, SOCK_STREAM, 0));
  if (fd < 0) die("socket");
  if (RETRY(connect(fd, (const struct sockaddr*)a, sizeof *a)) != 0 && errno != EISCONN) die("connect");
  return fd;
}

static void exchange(int fd, int connection, size_t bytes, int echo) {
  static unsigned char out[8192], in[8192];
  size_t at = 0;
  while (at < bytes) {
    const size_t part = bytes - at < sizeof out ? bytes - at : sizeof out;
    if (!echo) {
      for (size_t i = 0; i < part; ++i) out[i] = pattern(at + i, connection);
      send_all(fd, out, part);
    }
    for (size_t got = 0; got < part;) {
      const long n = RETRY(recv(fd, in + got, part - got, 0));
      if (n <= 0) die("recv");
      got += (size_t)n;
    }
    for (size_t i = 0; i < part; ++i) {
      if (in[i] == pattern(at + i, connection)) continue;
      printf("FAILED byte %zu of connection %d is wrong\n", at + i, connection);
      exit(1);
    }
    if (echo) send_all(fd, in, part);
    at += part;
  }
}

int main(int argc, char** argv) {
  const int serve = argc == 5 && strcmp(argv[1], "serve") == 0;
  if (!serve && !(argc == 6 && strcmp(argv[1], "connect") == 0)) return 2;
  struct sockaddr_in a = {.sin_family = AF_INET};
  a.sin_addr.s_addr = serve ? htonl(INADDR_ANY) : inet_addr(argv[2]);
  a.sin_port = htons((uint16_t)atoi(argv[serve ? 2 : 3]));
  const int connections = atoi(argv[serve ? 3 : 4]);
  const size_t bytes = (size_t)atol(argv[serve ? 4 : 5]);
  struct sigaction action = {.sa_handler = handler}; /* no SA_RESTART */
  sigaction(SIGALRM, &action, NULL);
  int listener = -1;
  if (serve) {
    const int one = 1;
    listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr*)&a, sizeof a) != 0 || listen(listener, 128) != 0) die("listen");
    printf("listening\n");
    fflush(stdout);
  }
  arm();
  for (int i = 0; i < connections; ++i) {
    struct sockaddr_in from;
    socklen_t length = sizeof from;
    const int fd = serve ? (int)RETRY(accept(listener, (struct sockaddr*)&from, &length)) : connect_once(&a);
    if (fd < 0) die("accept");
    exchange(fd, i, bytes, serve);
    if (serve) {  /* the client closes first, so that the order of connections is the same at both ends */
      unsigned char byte;
      if (RETRY(recv(fd, &byte, 1, 0)) != 0) die("end of stream");
    }
    close(fd);
  }
  printf("%d connections of %zu bytes, all right; %d signals, %lu calls interrupted\n", connections, bytes, (int)fired, interrupted);
  return 0;
}
