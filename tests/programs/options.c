/* Socket options that the kernel answers by itself inside a sandbox; prints what happens, for comparison with the kernel's own sockets.
 *
 *   options table                      every option, values and lengths, on sockets of all kinds
 *   options cork HOST PORT ROUNDS      order with the data, by what leaves in how many segments (the peer: options acknowledge)
 *   options acknowledge PORT ROUNDS    reads 1000 bytes and answers one, ROUNDS times, then the same by 10 bytes
 *   options storm ROUNDS               many threads set options on many sockets: none is lost */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netlink.h>
#include <linux/tcp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SOL_TCP
#define SOL_TCP 6
#endif

static const struct {
  int level, name;
  const char* text;
} kOptions[] = {{SOL_TCP, TCP_NODELAY, "TCP_NODELAY"},     {SOL_TCP, TCP_CORK, "TCP_CORK"},         {SOL_TCP, TCP_QUICKACK, "TCP_QUICKACK"},
                {SOL_TCP, TCP_KEEPIDLE, "TCP_KEEPIDLE"},   {SOL_TCP, TCP_KEEPINTVL, "TCP_KEEPINTVL"}, {SOL_TCP, TCP_KEEPCNT, "TCP_KEEPCNT"},
                {SOL_TCP, TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT"}, {SOL_SOCKET, SO_KEEPALIVE, "SO_KEEPALIVE"}};
enum { kCount = sizeof kOptions / sizeof kOptions[0] };

static void fail(const char* what) {
  perror(what);
  exit(1);
}

static const char* result(long r) { return r == 0 ? "ok" : strerrorname_np(errno); }

static void read_back(int fd, int i) {
  int value = -12345;
  socklen_t length = sizeof value;
  int r = getsockopt(fd, kOptions[i].level, kOptions[i].name, &value, &length);
  printf(" -> %s %d\n", result(r), r == 0 ? value : 0);
}

static void on_socket(const char* kind, int fd) {
  static const int values[] = {0, 1, 2, -1, 127, 128, 32767, 32768, 0x7fffffff, (int)0x80000000};
  for (int i = 0; i < kCount; ++i) {
    for (size_t v = 0; v < sizeof values / sizeof values[0]; ++v) {
      int r = setsockopt(fd, kOptions[i].level, kOptions[i].name, &values[v], sizeof values[v]);
      printf("%s %s = %d: %s", kind, kOptions[i].text, values[v], result(r));
      read_back(fd, i);
    }
    struct {
      int value;
      char rest[12];
    } longer = {1, ""};
    static const int lengths[] = {0, 1, 3, 8, 16, -1};
    for (size_t l = 0; l < sizeof lengths / sizeof lengths[0]; ++l) {
      int r = setsockopt(fd, kOptions[i].level, kOptions[i].name, &longer, (socklen_t)lengths[l]);
      printf("%s %s length %d: %s", kind, kOptions[i].text, lengths[l], result(r));
      read_back(fd, i);
    }
    /* The kernel looks at 32 bits of each argument. */
    int on = 1;
    long r = syscall(SYS_setsockopt, fd, kOptions[i].level | 1L << 32, kOptions[i].name | 1L << 40, &on, sizeof on | 1L << 33);
    printf("%s %s wide: %s", kind, kOptions[i].text, result(r));
    read_back(fd, i);
  }
}

static int table(void) {
  int tcp = socket(AF_INET, SOCK_STREAM, 0), pair[2], pipes[2];
  on_socket("tcp", tcp);
  int bad = setsockopt(tcp, SOL_TCP, TCP_CORK, NULL, sizeof(int));
  printf("tcp null: %s\n", result(bad));
  printf("tcp wild: %s\n", result(setsockopt(tcp, SOL_TCP, TCP_NODELAY, (void*)0x10, sizeof(int))));
  on_socket("tcp6", socket(AF_INET6, SOCK_STREAM, 0));
  on_socket("udp", socket(AF_INET, SOCK_DGRAM, 0));
  on_socket("netlink", socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0 || pipe(pipes) != 0) fail("pair");
  on_socket("unix", pair[0]);
  on_socket("pipe", pipes[0]);
  on_socket("closed", 999);
  /* A listener's connections have what it had. */
  int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1, idle = 77;
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof a;
  if (bind(listener, (void*)&a, sizeof a) != 0 || listen(listener, 5) != 0) fail("listen");
  if (getsockname(listener, (void*)&a, &length) != 0) fail("getsockname");
  setsockopt(listener, SOL_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(listener, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(listener, SOL_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  for (int i = 0; i < kCount; ++i) {  /* what was set is there before a connection comes */
    printf("listener %s", kOptions[i].text);
    read_back(listener, i);
  }
  int client = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(client, SOL_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  if (connect(client, (void*)&a, sizeof a) != 0) fail("connect");
  int server = accept(listener, NULL, NULL);
  static const int inherited[] = {0, 1, 3, 4, 5, 6, 7};  /* TCP_QUICKACK reads back a state of the moment */
  for (size_t k = 0; k < sizeof inherited / sizeof inherited[0]; ++k) {
    printf("accepted %s", kOptions[inherited[k]].text);
    read_back(server, inherited[k]);
    printf("connected %s", kOptions[inherited[k]].text);
    read_back(client, inherited[k]);
  }
  int copy = dup(server);  /* the file counts, not the number */
  close(server);
  on_socket("dup", copy);
  puts("done");
  return 0;
}

static void exactly(int fd, size_t n) {
  char buffer[4096];
  while (n > 0) {
    ssize_t r = read(fd, buffer, n < sizeof buffer ? n : sizeof buffer);
    if (r <= 0) fail("read");
    n -= (size_t)r;
  }
}

static void put(int fd, size_t n) {
  static char bytes[4096];
  if (write(fd, bytes, n) != (ssize_t)n) fail("write");
}

static void set(int fd, int name, int value) {
  if (setsockopt(fd, SOL_TCP, name, &value, sizeof value) != 0) fail("setsockopt");
}

static unsigned segments(int fd) {
  struct tcp_info info;
  socklen_t length = sizeof info;
  memset(&info, 0, sizeof info);
  if (getsockopt(fd, SOL_TCP, TCP_INFO, &info, &length) != 0) fail("TCP_INFO");
  return info.tcpi_data_segs_out;
}

static int cork(const char* host, int port, int rounds) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  inet_pton(AF_INET, host, &a.sin_addr);
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(fd, (void*)&a, sizeof a) != 0) fail("connect");
  set(fd, TCP_NODELAY, 1);
  unsigned before = segments(fd);
  for (int i = 0; i < rounds; ++i) {  /* as nginx answers */
    set(fd, TCP_CORK, 1);
    put(fd, 300);
    put(fd, 300);
    put(fd, 400);
    set(fd, TCP_CORK, 0);
    exactly(fd, 1);
  }
  printf("corked: %u segments\n", segments(fd) - before);
  /* Corked again at once: what came before goes out all the same, not when the cork's own time is over. */
  set(fd, TCP_CORK, 1);
  for (int i = 0; i < rounds; ++i) {
    put(fd, 10);
    set(fd, TCP_CORK, 0);
    set(fd, TCP_CORK, 1);
    exactly(fd, 1);
  }
  /* TCP_NODELAY pushes what waits under a cork. */
  for (int i = 0; i < rounds; ++i) {
    put(fd, 10);
    set(fd, TCP_NODELAY, 1);
    exactly(fd, 1);
  }
  set(fd, TCP_CORK, 0);
  /* The last words before a close. */
  set(fd, TCP_CORK, 1);
  put(fd, 10);
  close(fd);
  puts("done");
  return 0;
}

static int acknowledge(int port, int rounds) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(listener, (void*)&a, sizeof a) != 0 || listen(listener, 5) != 0) fail("listen");
  puts("listening");
  fflush(stdout);
  int fd = accept(listener, NULL, NULL);
  set(fd, TCP_NODELAY, 1);
  for (int i = 0; i < 3 * rounds; ++i) {
    exactly(fd, i < rounds ? 1000 : 10);
    put(fd, 1);
  }
  exactly(fd, 10);
  char end;
  if (read(fd, &end, 1) != 0) fail("no end");
  puts("done");
  return 0;
}

enum { kThreads = 4, kSockets = 32 };
static int storm_rounds, storm_sockets[kThreads][kSockets];
static pthread_barrier_t storm_start;

static void* storm_thread(void* argument) {
  int* mine = argument;
  pthread_barrier_wait(&storm_start);
  for (int round = 1; round <= storm_rounds; ++round) {
    for (int i = 0; i < kSockets; ++i) {
      int value = (round * 31 + i * 7) % 30000 + 1, on = round & 1;
      setsockopt(mine[i], SOL_TCP, TCP_KEEPIDLE, &value, sizeof value);
      setsockopt(mine[i], SOL_TCP, TCP_USER_TIMEOUT, &value, sizeof value);
      setsockopt(mine[i], SOL_TCP, TCP_CORK, &on, sizeof on);
    }
    /* Sockets come and go meanwhile, and their slots with them. */
    close(mine[round % kSockets]);
    mine[round % kSockets] = socket(AF_INET, SOCK_STREAM, 0);
    int value = (round * 31 + round % kSockets * 7) % 30000 + 1, on = round & 1;
    setsockopt(mine[round % kSockets], SOL_TCP, TCP_KEEPIDLE, &value, sizeof value);
    setsockopt(mine[round % kSockets], SOL_TCP, TCP_USER_TIMEOUT, &value, sizeof value);
    setsockopt(mine[round % kSockets], SOL_TCP, TCP_CORK, &on, sizeof on);
  }
  return NULL;
}

static int expect(int fd, int name, int value) {
  int got = -1;
  socklen_t length = sizeof got;
  if (getsockopt(fd, SOL_TCP, name, &got, &length) == 0 && got == value) return 0;
  printf("option %d is %d, not %d\n", name, got, value);
  return 1;
}

static int storm(int rounds) {
  storm_rounds = rounds;
  pthread_t threads[kThreads];
  pthread_barrier_init(&storm_start, NULL, kThreads);
  for (int t = 0; t < kThreads; ++t) {
    for (int i = 0; i < kSockets; ++i) storm_sockets[t][i] = socket(AF_INET, SOCK_STREAM, 0);
    pthread_create(&threads[t], NULL, storm_thread, storm_sockets[t]);
  }
  for (int t = 0; t < kThreads; ++t) pthread_join(threads[t], NULL);
  int wrong = 0;
  for (int t = 0; t < kThreads; ++t) {
    for (int i = 0; i < kSockets; ++i) {
      int value = (rounds * 31 + i * 7) % 30000 + 1;
      wrong += expect(storm_sockets[t][i], TCP_KEEPIDLE, value) + expect(storm_sockets[t][i], TCP_USER_TIMEOUT, value) +
               expect(storm_sockets[t][i], TCP_CORK, rounds & 1);
    }
  }
  printf("%d wrong\n", wrong);
  return wrong != 0;
}

int main(int argc, char** argv) {
  if (argc == 2 && strcmp(argv[1], "table") == 0) return table();
  if (argc == 5 && strcmp(argv[1], "cork") == 0) return cork(argv[2], atoi(argv[3]), atoi(argv[4]));
  if (argc == 4 && strcmp(argv[1], "acknowledge") == 0) return acknowledge(atoi(argv[2]), atoi(argv[3]));
  if (argc == 3 && strcmp(argv[1], "storm") == 0) return storm(atoi(argv[2]));
  fputs("usage: see the head of the source\n", stderr);
  return 2;
}
