#include "sentry/sockaddr.h"

#include <netinet/in.h>
#include <string.h>

namespace sluice {

int SockaddrFamily(Bytes name) {
  if (name.size() < sizeof(sa_family_t)) return -1;
  sa_family_t family;
  memcpy(&family, name.data(), sizeof family);
  return family;
}

Errno ParseSockaddr(Bytes name, int family, bool for_bind, Endpoint* out) {
  int given = SockaddrFamily(name);
  if (family == AF_INET) {
    if (name.size() < sizeof(sockaddr_in)) return Errno::kEINVAL;
    sockaddr_in in;
    memcpy(&in, name.data(), sizeof in);
    bool unspecified = for_bind && given == AF_UNSPEC && in.sin_addr.s_addr == 0;
    if (given != AF_INET && !unspecified) return Errno::kEAFNOSUPPORT;
    *out = Endpoint{IpAddress::V4(ntohl(in.sin_addr.s_addr)), ntohs(in.sin_port)};
    return Errno::kOk;
  }
  constexpr size_t kWithoutScope = 24;  // RFC 2133's structure
  if (given == AF_INET && !for_bind) {
    // connect() and sendto() of an AF_INET6 socket take an AF_INET address too.
    Endpoint v4;
    Errno error = ParseSockaddr(name, AF_INET, false, &v4);
    if (error == Errno::kOk) *out = Endpoint{v4.address.Mapped(), v4.port};
    return error;
  }
  if (name.size() < kWithoutScope) return Errno::kEINVAL;
  if (given != AF_INET6) return for_bind ? Errno::kEINVAL : Errno::kEAFNOSUPPORT;
  sockaddr_in6 in6{};
  memcpy(&in6, name.data(), std::min(name.size(), sizeof in6));
  *out =
      Endpoint{IpAddress::FromBytes({in6.sin6_addr.s6_addr, 16}), ntohs(in6.sin6_port), static_cast<IfIndex>(in6.sin6_scope_id)};
  return Errno::kOk;
}

Sockaddr FormatSockaddr(const Endpoint& endpoint, int family) {
  Sockaddr out;
  if (family == AF_INET) {
    sockaddr_in in{};
    in.sin_family = AF_INET;
    in.sin_port = htons(endpoint.port);
    IpAddress a = endpoint.address.Unmapped();
    if (a.is_v4()) in.sin_addr.s_addr = htonl(a.v4());
    out.length = sizeof in;
    memcpy(out.bytes.data(), &in, sizeof in);
    return out;
  }
  sockaddr_in6 in6{};
  in6.sin6_family = AF_INET6;
  in6.sin6_port = htons(endpoint.port);
  IpAddress a = endpoint.address.Mapped();
  if (a.is_v6()) memcpy(in6.sin6_addr.s6_addr, a.bytes().data(), 16);
  in6.sin6_scope_id = static_cast<uint32_t>(endpoint.scope);
  out.length = sizeof in6;
  memcpy(out.bytes.data(), &in6, sizeof in6);
  return out;
}

}  // namespace sluice
