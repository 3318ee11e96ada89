/* Passes wild pointers and lengths to every socket call that the sandbox intercepts and prints each call's errno. The output on the
 * kernel and in a sandbox is compared line by line: wild PORT (free TCP and UDP ports PORT and PORT+1 on the loopback). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static char* unmapped;   /* a page that is not mapped, behind one that is */
static char* read_only;  /* a page that can only be read */
static char* forbidden;  /* a page without rights */

struct pointer {
  const char* name;
  void* p;
};
static struct pointer pointers[6];

static const char* state;
static void say(const char* call, const char* what, long result) {
  printf("%s %s %s: %s\n", state, call, what, result < 0 ? strerrorname_np(errno) : "ok");
  fflush(stdout);
}

static void make_pages(void) {
  char* pages = mmap(NULL, 4096 * 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) abort();
  munmap(pages + 4096, 4096);
  mprotect(pages + 8192, 4096, PROT_READ);
  mprotect(pages + 12288, 4096, PROT_NONE);
  unmapped = pages + 4096;
  read_only = pages + 8192;
  forbidden = pages + 12288;
  pointers[0] = (struct pointer){"null", NULL};
  pointers[1] = (struct pointer){"one", (void*)1};
  pointers[2] = (struct pointer){"unmapped", unmapped};
  pointers[3] = (struct pointer){"no-rights", forbidden};
  pointers[4] = (struct pointer){"kernel", (void*)0xffff888000000000UL};
  pointers[5] = (struct pointer){"last-bytes", unmapped - 2};
}

static void reads(int fd) {
  for (int i = 0; i < 6; ++i) {
    void* p = pointers[i].p;
    const char* n = pointers[i].name;
    say("bind", n, syscall(SYS_bind, fd, p, 16));
    say("connect", n, syscall(SYS_connect, fd, p, 16));
    say("setsockopt-keepalive", n, syscall(SYS_setsockopt, fd, SOL_SOCKET, SO_KEEPALIVE, p, 4));
    say("setsockopt-linger", n, syscall(SYS_setsockopt, fd, SOL_SOCKET, SO_LINGER, p, 8));
    if (p != NULL) say("sendto-address", n, syscall(SYS_sendto, fd, "x", 1, MSG_DONTWAIT | MSG_NOSIGNAL, p, 16));
    say("sendmsg", n, syscall(SYS_sendmsg, fd, p, MSG_DONTWAIT | MSG_NOSIGNAL));
    say("recvmsg", n, syscall(SYS_recvmsg, fd, p, MSG_DONTWAIT));
    say("sendmmsg", n, syscall(SYS_sendmmsg, fd, p, 1, MSG_DONTWAIT | MSG_NOSIGNAL));
    say("recvmmsg", n, syscall(SYS_recvmmsg, fd, p, 1, MSG_DONTWAIT, NULL));
    say("ioctl-SIOCGIFFLAGS", n, syscall(SYS_ioctl, fd, SIOCGIFFLAGS, p));
    say("ioctl-SIOCGIFCONF", n, syscall(SYS_ioctl, fd, SIOCGIFCONF, p));
    struct msghdr m = {.msg_iov = p, .msg_iovlen = 1};
    say("sendmsg-iov", n, syscall(SYS_sendmsg, fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL));
    say("recvmsg-iov", n, syscall(SYS_recvmsg, fd, &m, MSG_DONTWAIT));
  }
  static const int lengths[] = {0, 1, 2, 8, 15, 129, 100000, -1, INT32_MIN};
  char address[256] = {0};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; ++i) {
    char n[32];
    snprintf(n, sizeof n, "length %d", lengths[i]);
    say("bind", n, syscall(SYS_bind, fd, address, lengths[i]));
    say("setsockopt-keepalive", n, syscall(SYS_setsockopt, fd, SOL_SOCKET, SO_KEEPALIVE, address, lengths[i]));
    say("setsockopt-nodelay", n, syscall(SYS_setsockopt, fd, IPPROTO_TCP, TCP_NODELAY, address, lengths[i]));
  }
}

static void writes(int fd) {
  struct pointer targets[7];
  memcpy(targets, pointers, sizeof pointers);
  targets[6] = (struct pointer){"read-only", read_only};
  for (int i = 0; i < 7; ++i) {
    void* p = targets[i].p;
    const char* n = targets[i].name;
    socklen_t length = 16;
    say("getsockname", n, syscall(SYS_getsockname, fd, p, &length));
    length = 16;
    say("getpeername", n, syscall(SYS_getpeername, fd, p, &length));
    length = 4;
    say("getsockopt-error", n, syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_ERROR, p, &length));
    length = 4;
    say("getsockopt-type", n, syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_TYPE, p, &length));
    char buffer[128];
    say("getsockname-length", n, syscall(SYS_getsockname, fd, buffer, p));
    say("getsockopt-length", n, syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_TYPE, buffer, p));
    say("ioctl-FIONREAD", n, syscall(SYS_ioctl, fd, FIONREAD, p));
  }
  static const int lengths[] = {0, 1, 3, -1, INT32_MIN};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; ++i) {
    char buffer[128], n[32];
    snprintf(n, sizeof n, "length %d", lengths[i]);
    socklen_t length = (socklen_t)lengths[i];
    say("getsockname", n, syscall(SYS_getsockname, fd, buffer, &length));
    length = (socklen_t)lengths[i];
    say("getsockopt-type", n, syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_TYPE, buffer, &length));
  }
}

static struct sockaddr_in loopback(int port) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  return a;
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const int port = atoi(argv[1]);
  make_pages();
  state = "fresh-tcp";
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (fd < 0) return 1;
  reads(fd);
  writes(fd);
  close(fd);

  state = "fresh-udp";
  fd = socket(AF_INET, SOCK_DGRAM, 0);
  reads(fd);
  writes(fd);
  close(fd);

  state = "listening";
  const struct sockaddr_in a = loopback(port);
  const int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener, (const struct sockaddr*)&a, sizeof a) != 0 || listen(listener, 16) != 0) return 1;
  writes(listener);
  /* accept with a wild address: the connection is taken or not as on Linux, and a later accept still works. */
  for (int i = 1; i < 6; ++i) {
    const int c = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c, (const struct sockaddr*)&a, sizeof a) != 0) return 1;
    socklen_t length = 16;
    const long got = syscall(SYS_accept4, listener, pointers[i].p, &length, 0);
    say("accept4", pointers[i].name, got);
    if (got >= 0) close((int)got);
    close(c);
  }

  state = "connected";
  fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(fd, (const struct sockaddr*)&a, sizeof a) != 0) return 1;
  const int other = accept(listener, NULL, NULL);
  reads(fd);
  writes(fd);
  char byte = 'y';
  say("still-works", "send", send(fd, &byte, 1, MSG_NOSIGNAL));
  say("still-works", "recv", recv(other, &byte, 1, 0));
  close(fd);
  close(other);

  state = "udp-received";
  fd = socket(AF_INET, SOCK_DGRAM, 0);
  const struct sockaddr_in u = loopback(port + 1);
  if (bind(fd, (const struct sockaddr*)&u, sizeof u) != 0) return 1;
  for (int i = 1; i < 6; ++i) {
    char buffer[16];
    socklen_t length = 16;
    if (sendto(fd, "datagram", 8, 0, (const struct sockaddr*)&u, sizeof u) != 8) return 1;
    say("recvfrom-address", pointers[i].name, syscall(SYS_recvfrom, fd, buffer, sizeof buffer, 0, pointers[i].p, &length));
    if (sendto(fd, "datagram", 8, 0, (const struct sockaddr*)&u, sizeof u) != 8) return 1;
    say("recvfrom-length", pointers[i].name, syscall(SYS_recvfrom, fd, buffer, sizeof buffer, 0, &u, pointers[i].p));
    while (recv(fd, buffer, sizeof buffer, MSG_DONTWAIT) >= 0) {
    }
  }
  printf("done\n");
  return 0;
}
