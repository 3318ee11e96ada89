#include "sentry/filter_table.h"

#include <errno.h>
#include <seccomp.h>
#include <sys/socket.h>

#include <bit>

namespace sluice::filter {
namespace {

constexpr uint64_t kLow32 = 0xffffffff;
constexpr uint64_t kAll = ~uint64_t{0};
constexpr uint32_t kTunSetIff = 0x400454ca;
constexpr uint32_t kSiocOutq = 0x5411;
constexpr uint32_t kFilterFlagNewListener = 1u << 3;
constexpr int kNotified = 0;

// A condition on an argument of which the kernel looks at 32 bits only.
Test Masked(unsigned arg, uint32_t mask, uint32_t value) { return {arg, false, mask, value}; }
Test Equals(unsigned arg, uint32_t value) { return {arg, false, kLow32, value}; }
Test NotNull(unsigned arg) { return {arg, true, 0, 0}; }
// Compares 64 bits: a value that differs in its upper half only is caught too, which is refused later.
Test Differs(unsigned arg, uint32_t value) { return {arg, true, 0, value}; }

class Table {
 public:
  Table();
  std::span<const Rule> rules() const { return rules_; }

 private:
  void Add(const char* name, int error, Tests tests = {}) {
    rules_.push_back({seccomp_syscall_resolve_name(name), name, error, std::move(tests)});
  }
  void Notify(const char* name, Tests tests = {}) { Add(name, kNotified, std::move(tests)); }
  void AddressCalls();
  void DataCalls();
  void Refusals();

  std::vector<Rule> rules_;
};

Table::Table() {
  Notify("socket", {Differs(0, AF_UNIX)});
  AddressCalls();
  // Also accept without an address: a connection that was accepted natively could not be told reset from ended (docs/limits.md).
  for (const char* name : {"listen", "accept", "accept4", "shutdown", "getsockname", "getpeername", "getsockopt", "setsockopt"})
    Notify(name);
  DataCalls();
  Notify("ioctl", {Masked(1, 0xffffff00, 0x8900)});
  Notify("ioctl", {Equals(1, kSiocOutq)});
  Refusals();
}

void Table::AddressCalls() {
  // Lengths of inet, inet6 (24: without the scope), netlink (within 16..28) and storage addresses; a program's own AF_UNIX
  // sockets mostly use others, and those that do not are answered with CONTINUE.
  for (const char* name : {"bind", "connect"}) {
    Notify(name, {Masked(2, 0xfffffff8, 16)});
    Notify(name, {Masked(2, 0xfffffffc, 24)});
    Notify(name, {Equals(2, 28)});
    Notify(name, {Equals(2, 12)});  // sockaddr_nl
    Notify(name, {Equals(2, 128)});
  }
}

void Table::DataCalls() {
  Notify("sendto", {NotNull(4)});
  Notify("sendto", {Masked(3, MSG_FASTOPEN, MSG_FASTOPEN)});  // which connects
  Notify("recvfrom", {NotNull(4)});
  // AF_UNIX ignores MSG_ERRQUEUE and would return stream bytes; MSG_TRUNC on a stream discards on TCP and copies on AF_UNIX.
  Notify("recvfrom", {Masked(3, MSG_ERRQUEUE, MSG_ERRQUEUE)});
  Notify("recvfrom", {Masked(3, MSG_TRUNC, MSG_TRUNC)});
  for (const char* name : {"sendmsg", "recvmsg", "sendmmsg", "recvmmsg"}) Notify(name);
}

void Table::Refusals() {
  Add("socketpair", EOPNOTSUPP, {Differs(0, AF_UNIX)});
  // io_uring reaches sockets without system calls that a filter sees.
  for (const char* name : {"io_uring_setup", "io_uring_enter", "io_uring_register"}) Add(name, ENOSYS);
  Add("bpf", EPERM);
  // Memory that blocks whoever copies it.
  Add("userfaultfd", EPERM);
  Add("ioctl", EPERM, {Equals(1, kTunSetIff)});
  // A listener of the program's own could answer CONTINUE to socket() once ours is gone; with ours open Linux says EBUSY too.
  Add("seccomp", EBUSY, {Equals(0, 1), Masked(1, kFilterFlagNewListener, kFilterFlagNewListener)});
}

// The alternatives of "not `test`", which exclude each other: one per bit of the mask, the bits above it as in the value.
std::vector<Test> Not(const Test& test) {
  if (test.differs) return {{test.arg, false, kAll, test.value}};
  std::vector<Test> out;
  uint64_t mask = 0;
  for (int bit = 63; bit >= 0; --bit) {
    const uint64_t one = uint64_t{1} << bit;
    if ((test.mask & one) == 0) continue;
    mask |= one;
    out.push_back({test.arg, false, mask, (test.value & mask) ^ one});
  }
  return out;
}

// `tests` and one more condition.
std::vector<Tests> AndTest(const Tests& tests, const Test& test) {
  for (size_t i = 0; i < tests.size(); ++i) {
    const Test& other = tests[i];
    if (other.arg != test.arg) continue;
    if (other == test) return {tests};
    if (!other.differs && !test.differs) {
      if (((other.value ^ test.value) & other.mask & test.mask) != 0) return {};
      Tests merged = tests;
      merged[i] = {test.arg, false, other.mask | test.mask, other.value | test.value};
      return {merged};
    }
    // "Differs" as alternatives that can be merged.
    Tests rest = tests;
    rest.erase(rest.begin() + static_cast<ptrdiff_t>(i));
    const Test& differs = test.differs ? test : other;
    const Test& same = test.differs ? other : test;
    std::vector<Tests> out;
    for (const Test& piece : Not({differs.arg, false, kAll, differs.value})) {
      Tests with = rest;
      with.push_back(piece);
      for (Tests& t : AndTest(with, same.differs ? Test{same} : same)) out.push_back(std::move(t));
    }
    return out;
  }
  Tests more = tests;
  more.push_back(test);
  return {more};
}

}  // namespace

std::span<const Rule> ProgramRules() {
  static const Table table;
  return table.rules();
}

std::vector<Tests> And(const Tests& a, const Tests& b) {
  std::vector<Tests> out{a};
  for (const Test& test : b) {
    std::vector<Tests> next;
    for (const Tests& tests : out) {
      for (Tests& t : AndTest(tests, test)) next.push_back(std::move(t));
    }
    out = std::move(next);
  }
  return out;
}

std::vector<Tests> AndNot(const Tests& a, const Tests& b) {
  if (And(a, b).empty()) return {a};
  std::vector<Tests> out;
  Tests before;  // the conditions of `b` that hold
  for (const Test& test : b) {
    for (const Tests& tests : And(a, before)) {
      for (const Test& piece : Not(test)) {
        for (Tests& t : AndTest(tests, piece)) out.push_back(std::move(t));
      }
    }
    before.push_back(test);
  }
  return out;
}

bool Holds(const Tests& tests, std::span<const uint64_t> args) {
  for (const Test& t : tests) {
    const uint64_t arg = args[t.arg];
    if (t.differs ? arg == t.value : (arg & t.mask) != t.value) return false;
  }
  return true;
}

}  // namespace sluice::filter
