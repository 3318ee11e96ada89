#include "sentry/netlink/diag_filter.h"

#include <linux/inet_diag.h>

#include <algorithm>

namespace sluice::netlink {
namespace {

constexpr size_t kOp = sizeof(inet_diag_bc_op);

// Bytes an instruction and its operands take; 0 where the code is unknown.
size_t InstructionSize(uint8_t code) {
  switch (code) {
    case INET_DIAG_BC_NOP:
    case INET_DIAG_BC_JMP:
    case INET_DIAG_BC_AUTO:
      return kOp;
    case INET_DIAG_BC_S_GE:
    case INET_DIAG_BC_S_LE:
    case INET_DIAG_BC_D_GE:
    case INET_DIAG_BC_D_LE:
    case INET_DIAG_BC_S_EQ:
    case INET_DIAG_BC_D_EQ:
      return 2 * kOp;
    case INET_DIAG_BC_S_COND:
    case INET_DIAG_BC_D_COND:
      return kOp + sizeof(inet_diag_hostcond);
    case INET_DIAG_BC_DEV_COND:
      return kOp + sizeof(uint32_t);
    default:
      return 0;
  }
}

bool HostMatches(const Endpoint& endpoint, Family family, Bytes operand) {
  const auto condition = LoadPrefix<inet_diag_hostcond>(operand);
  const int port = static_cast<int>(condition.port);
  if (port != -1 && port != endpoint.port) return false;
  if (condition.prefix_len == 0) return true;
  const size_t size = AddressSize(condition.family);
  if (size == 0) return condition.family == 0;
  const IpAddress prefix = IpAddress::FromBytes(operand.subspan(sizeof condition, size));
  IpAddress address = endpoint.address;
  if (condition.family == 2 && family == Family::kIpv6) address = address.Unmapped();
  return address.family() == prefix.family() && address.InPrefix(prefix, condition.prefix_len);
}

bool HostOperandFits(Bytes code, size_t at) {
  const auto condition = LoadPrefix<inet_diag_hostcond>(code.subspan(at + kOp));
  const size_t size = AddressSize(condition.family);
  if (condition.family != 0 && size == 0) return false;
  return condition.prefix_len <= size * 8 && code.size() - at >= kOp + sizeof condition + size;
}

bool Test(Bytes code, size_t at, const SocketInfo& s) {
  const auto op = LoadPrefix<inet_diag_bc_op>(code.subspan(at));
  const uint16_t operand = LoadPrefix<inet_diag_bc_op>(code.subspan(std::min(at + kOp, code.size()))).no;
  const Bytes rest = code.subspan(std::min(at + kOp, code.size()));
  switch (op.code) {
    case INET_DIAG_BC_NOP:
      return true;
    case INET_DIAG_BC_JMP:
      return false;
    case INET_DIAG_BC_S_GE:
      return s.local.port >= operand;
    case INET_DIAG_BC_S_LE:
      return s.local.port <= operand;
    case INET_DIAG_BC_D_GE:
      return s.remote.port >= operand;
    case INET_DIAG_BC_D_LE:
      return s.remote.port <= operand;
    case INET_DIAG_BC_S_EQ:
      return s.local.port == operand;
    case INET_DIAG_BC_D_EQ:
      return s.remote.port == operand;
    case INET_DIAG_BC_S_COND:
      return HostMatches(s.local, s.family, rest);
    case INET_DIAG_BC_D_COND:
      return HostMatches(s.remote, s.family, rest);
    case INET_DIAG_BC_DEV_COND:
      return LoadPrefix<uint32_t>(rest) == static_cast<uint32_t>(s.ifindex);
    case INET_DIAG_BC_AUTO:
      return false;  // a port of the user's own choice: not known here, so none counts as automatic
    default:
      return false;
  }
}

}  // namespace

bool DiagFilter::Load(Bytes code) {
  std::vector<bool> starts(code.size() + kOp + 1, false);
  size_t at = 0;
  while (at < code.size()) {
    if (code.size() - at < kOp) return false;
    const auto op = LoadPrefix<inet_diag_bc_op>(code.subspan(at));
    const size_t size = InstructionSize(op.code);
    if (size == 0 || code.size() - at < size || op.yes < kOp || (op.yes & 3) != 0) return false;
    if ((op.code == INET_DIAG_BC_S_COND || op.code == INET_DIAG_BC_D_COND) && !HostOperandFits(code, at)) return false;
    if (op.yes > code.size() - at) return false;
    starts[at] = true;
    at += op.yes;
  }
  // `no` goes to an instruction behind this one, to the end, or one step past it (reject).
  for (at = 0; at < code.size();) {
    const auto op = LoadPrefix<inet_diag_bc_op>(code.subspan(at));
    if (op.code != INET_DIAG_BC_NOP) {
      const size_t target = at + op.no;
      if (op.no < kOp || (op.no & 3) != 0 || target > code.size() + kOp) return false;
      if (target < code.size() && !starts[target]) return false;
    }
    at += op.yes;
  }
  code_.assign(code.begin(), code.end());
  return true;
}

bool DiagFilter::Accepts(const SocketInfo& socket) const {
  size_t at = 0;
  while (at < code_.size()) {
    const auto op = LoadPrefix<inet_diag_bc_op>(Bytes(code_).subspan(at));
    at += Test(code_, at, socket) ? op.yes : op.no;
  }
  return at == code_.size();
}

}  // namespace sluice::netlink
