/* Tries every known path to a host socket other than AF_UNIX from inside a sandbox, and says which ones led anywhere.
 *
 *   hostile            tries each path once; exit 1 where one led to a host socket
 *   hostile --loop     makes sockets until it is killed (the sentry dies meanwhile); prints ESCAPE where one is the host's
 *
 * What a descriptor really is, is asked of the kernel by fgetxattr("system.sockprotoname"), which nobody intercepts. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

static int escapes;

/* 1 where the descriptor is a host socket that is not AF_UNIX. */
static int is_host_socket(int fd) {
  struct stat st;
  if (fstat(fd, &st) != 0 || !S_ISSOCK(st.st_mode)) return 0;
  char name[64] = "";
  if (fgetxattr(fd, "system.sockprotoname", name, sizeof name - 1) < 0) return 0;
  return strncmp(name, "UNIX", 4) != 0;
}

static void escaped(const char* path, const char* detail) {
  ++escapes;
  printf("ESCAPE %s: %s\n", path, detail);
  fflush(stdout);
}

/* Judges what a path returned; closes it. */
static void judge(const char* path, long fd) {
  if (fd < 0) return;
  char name[64] = "?";
  fgetxattr((int)fd, "system.sockprotoname", name, sizeof name - 1);
  if (is_host_socket((int)fd)) escaped(path, name);
  close((int)fd);
}

/* A path that must fail outright; `result` >= 0 is an escape. */
static void must_fail(const char* path, long result) {
  if (result < 0) {
    printf("refused %s: %s\n", path, strerror(errno));
    return;
  }
  escaped(path, "succeeded");
}

static void families(const char* path) {
  static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET, SOCK_RDM, SOCK_DCCP, SOCK_PACKET};
  for (int family = 0; family < 48; ++family) {
    for (size_t t = 0; t < sizeof types / sizeof *types; ++t) {
      judge(path, socket(family, types[t], 0));
      judge(path, socket(family, types[t] | SOCK_CLOEXEC | SOCK_NONBLOCK, family == AF_INET ? 262 : 17)); /* 262: MPTCP */
      int pair[2] = {-1, -1};
      if (socketpair(family, types[t], 0, pair) == 0) {
        judge(path, pair[0]);
        judge(path, pair[1]);
      }
      /* The kernel takes the low 32 bits of each argument. */
      judge(path, syscall(SYS_socket, 0x100000000L | family, (long)types[t], 0L));
      judge(path, syscall(SYS_socket, (long)family, 0x100000000L | types[t], 0L));
    }
  }
  printf("tried %s\n", path);
  fflush(stdout);
}

static void in_child(const char* path, void (*body)(const char*)) {
  fflush(stdout);
  const pid_t pid = fork();
  if (pid == 0) {
    escapes = 0;
    body(path);
    fflush(stdout);
    _exit(escapes != 0);
  }
  int status = 0;
  if (pid < 0 || waitpid(pid, &status, 0) != pid) return;
  if (WIFSIGNALED(status)) printf("killed %s: signal %d\n", path, WTERMSIG(status));
  if (WIFEXITED(status) && WEXITSTATUS(status) != 0) ++escapes;
}

static void inet_stream(const char* path) { judge(path, socket(AF_INET, SOCK_STREAM, 0)); }

static void new_namespaces(const char* path) {
  static const int flags[] = {CLONE_NEWNET, CLONE_NEWUSER | CLONE_NEWNET, CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWPID};
  for (size_t i = 0; i < sizeof flags / sizeof *flags; ++i) {
    fflush(stdout);
    const pid_t pid = fork();
    if (pid == 0) {
      escapes = 0;
      if (unshare(flags[i]) == 0) families(path);
      _exit(escapes != 0);
    }
    int status = 0;
    if (waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) != 0) ++escapes;
  }
}

static void other_namespaces(const char* path) {
  for (int pid = 1; pid < 400; ++pid) {
    char name[64];
    snprintf(name, sizeof name, "/proc/%d/ns/net", pid);
    const int fd = open(name, O_RDONLY);
    if (fd < 0) continue;
    if (setns(fd, CLONE_NEWNET) == 0) inet_stream(path);
    close(fd);
  }
}

/* Descriptors of other processes, by pidfd_getfd. */
static void steal_descriptors(const char* path) {
  for (int pid = 1; pid < 400; ++pid) {
    const int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0) continue;
    for (int fd = 0; fd < 64; ++fd) judge(path, syscall(SYS_pidfd_getfd, pidfd, fd, 0));
    close(pidfd);
  }
}

#ifdef __x86_64__
static void x32_calls(const char* path) {
  judge(path, syscall(0x40000000L | SYS_socket, AF_INET, SOCK_STREAM, 0));
  int pair[2] = {-1, -1};
  if (syscall(0x40000000L | SYS_socketpair, AF_INET, SOCK_STREAM, 0, pair) == 0) judge(path, pair[0]);
}

static long int80(long number, long a, long b, long c) {
  long result;
  __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory", "r8", "r9", "r10", "r11");
  return result;
}

static void i386_calls(const char* path) {
  judge(path, int80(359, AF_INET, SOCK_STREAM, 0)); /* socket */
  uint32_t* arguments = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
  if (arguments == MAP_FAILED) return;
  arguments[0] = AF_INET;
  arguments[1] = SOCK_STREAM;
  arguments[2] = 0;
  judge(path, int80(102, 1, (long)(uintptr_t)arguments, 0)); /* socketcall(SYS_SOCKET) */
}
#endif

static void io_uring(const char* path) {
  char params[512] = {0};
  must_fail(path, syscall(SYS_io_uring_setup, 8, params));
}

static void bpf_call(const char* path) {
  union bpf_attr attr;
  memset(&attr, 0, sizeof attr);
  attr.map_type = BPF_MAP_TYPE_ARRAY;
  attr.key_size = attr.value_size = 4;
  attr.max_entries = 1;
  must_fail(path, syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr));
}

static void tun(const char* path) {
  int fd = open("/dev/net/tun", O_RDWR);
  if (fd < 0) {
    printf("refused %s: no /dev/net/tun\n", path);
    return;
  }
  struct ifreq ifr;
  memset(&ifr, 0, sizeof ifr);
  ifr.ifr_flags = IFF_TUN | IFF_NO_PI;
  must_fail(path, ioctl(fd, TUNSETIFF, &ifr));
  must_fail(path, syscall(SYS_ioctl, fd, 0x100000000UL | TUNSETIFF, &ifr));
  close(fd);
}

static void network_mounts(const char* path) {
  must_fail(path, mount("10.77.0.2:/x", "/mnt", "nfs", 0, "addr=10.77.0.2,vers=4"));
  must_fail(path, mount("//10.77.0.2/x", "/mnt", "cifs", 0, "ip=10.77.0.2,username=x"));
}

static void own_listener(const char* path) {
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof code / sizeof *code, code};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  must_fail(path, syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program));
  must_fail(path, syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0x100000000L | SECCOMP_FILTER_FLAG_NEW_LISTENER, &program));
}

static void userfault(const char* path) { must_fail(path, syscall(SYS_userfaultfd, O_CLOEXEC)); }

/* A stand-in passed over AF_UNIX stays a stand-in. */
static void passed(const char* path) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) return;
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  char byte = 'x', control[CMSG_SPACE(sizeof(int))] = {0};
  struct iovec iov = {&byte, 1};
  struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  struct cmsghdr* c = CMSG_FIRSTHDR(&m);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(c), &fd, sizeof fd);
  if (fd >= 0 && sendmsg(pair[0], &m, 0) == 1 && recvmsg(pair[1], &m, 0) == 1) {
    c = CMSG_FIRSTHDR(&m);
    int got = -1;
    if (c != NULL) memcpy(&got, CMSG_DATA(c), sizeof got);
    judge(path, got);
  }
  judge(path, fd);
}

/* Threads that change a bind address under the call: whatever wins, the descriptor stays what it is. */
static volatile int racing;
static struct sockaddr_storage shared;
static void* flip(void* unused) {
  (void)unused;
  while (racing) {
    shared.ss_family = AF_INET;
    shared.ss_family = AF_UNIX;
    shared.ss_family = AF_PACKET;
  }
  return NULL;
}

static void memory_race(const char* path) {
  pthread_t thread;
  racing = 1;
  if (pthread_create(&thread, NULL, flip, NULL) != 0) return;
  for (int i = 0; i < 300; ++i) {
    const int fd = socket(AF_INET, i % 2 != 0 ? SOCK_STREAM : SOCK_DGRAM, 0);
    if (fd < 0) continue;
    if (i % 3 == 0) bind(fd, (struct sockaddr*)&shared, sizeof(struct sockaddr_in));
    else if (i % 2 == 0) sendto(fd, "x", 1, MSG_DONTWAIT, (struct sockaddr*)&shared, sizeof(struct sockaddr_in));
    judge(path, fd);
  }
  racing = 0;
  pthread_join(thread, NULL);
}

static void* thread_body(void* path) {
  families(path);
  return NULL;
}

static void thread(const char* path) {
  pthread_t t;
  if (pthread_create(&t, NULL, thread_body, (void*)path) == 0) pthread_join(t, NULL);
}

static void inherited(const char* path) {
  for (int fd = 0; fd < 1024; ++fd) {
    if (is_host_socket(fd)) escaped(path, "an inherited descriptor is a host socket");
  }
}

static void loop(void) {
  printf("looping\n");
  fflush(stdout);
  while (1) {
    judge("after the sentry's death", socket(AF_INET, SOCK_STREAM, 0));
    judge("after the sentry's death", socket(AF_INET6, SOCK_DGRAM, 0));
    judge("after the sentry's death", socket(AF_NETLINK, SOCK_RAW, 0));
    judge("after the sentry's death", socket(AF_PACKET, SOCK_RAW, 0));
  }
}

int main(int argc, char** argv) {
  if (argc > 1 && strcmp(argv[1], "--loop") == 0) loop();
  if (argc > 1 && strcmp(argv[1], "--exec") == 0) {
    families("exec");
    return escapes != 0;
  }
  inherited("inherited descriptors");
  families("socket");
  in_child("fork", families);
  thread("thread");
  in_child("new namespaces", new_namespaces);
  in_child("other namespaces", other_namespaces);
  in_child("pidfd_getfd", steal_descriptors);
#ifdef __x86_64__
  in_child("x32", x32_calls);
  in_child("i386", i386_calls);
#endif
  in_child("io_uring", io_uring);
  in_child("bpf", bpf_call);
  in_child("tun", tun);
  in_child("network mounts", network_mounts);
  in_child("userfaultfd", userfault);
  in_child("SCM_RIGHTS", passed);
  in_child("memory race", memory_race);
  in_child("own listener", own_listener);
  fflush(stdout);
  const pid_t pid = fork();
  if (pid == 0) {
    execl("/proc/self/exe", "hostile", "--exec", (char*)NULL);
    _exit(0);
  }
  int status = 0;
  if (waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) != 0) ++escapes;
  printf("%d escapes\n", escapes);
  return escapes != 0;
}
