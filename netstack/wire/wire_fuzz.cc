// Every parser on any bytes: what it accepts, its accessors may read (the address sanitizer watches an exact copy), and what is
// written from a parsed value parses back to the same.
#include <cstdlib>
#include <memory>

#include "netstack/wire/headers.h"

using namespace sluice;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const uint8_t which = data[0];
  ++data, --size;
  const std::unique_ptr<uint8_t[]> copy(new uint8_t[size]);
  if (size > 0) std::memcpy(copy.get(), data, size);
  const Bytes b{copy.get(), size};
  switch (which % 7) {
    case 0:
      if (const auto v = wire::EthernetView::Parse(b)) {
        uint8_t out[wire::kEthernetHeader];
        wire::WriteEthernet(out, v->destination(), v->source(), v->type());
        if (std::memcmp(out, b.data(), sizeof out) != 0) std::abort();
      }
      break;
    case 1:
      if (const auto m = wire::ArpMessage::Parse(b)) {
        uint8_t out[wire::kArpSize];
        m->Write(out);
        if (std::memcmp(out, b.data(), sizeof out) != 0) std::abort();
      }
      break;
    case 2:
      if (const auto v = wire::Ipv4View::Parse(b, size)) {
        if (v->header_length() + v->options().size() < 20 || v->total_length() > size) std::abort();
        (void)v->ChecksumOk();
        (void)wire::Ipv4Options::Parse(v->options());
        wire::Ipv4Fields f{.source = v->source(),
                           .destination = v->destination(),
                           .total_length = v->total_length(),
                           .id = v->id(),
                           .fragment = LoadBe16(b.data() + 6),
                           .tos = v->tos(),
                           .ttl = v->ttl(),
                           .protocol = v->protocol(),
                           .options = v->options()};
        uint8_t out[wire::kIpv4MaxHeader];
        f.Write(out);
        if (std::memcmp(out, b.data(), 10) != 0 || !wire::Ipv4View::Parse({out, f.header_length()}, size)->ChecksumOk())
          std::abort();
      }
      break;
    case 3:
      if (const auto v = wire::Ipv4View::ParseQuoted(b)) (void)v->options().size();
      (void)wire::Ipv4Options::Parse(b);
      break;
    case 4:
      if (const auto v = wire::Ipv6View::Parse(b, size)) {
        wire::Ipv6Fields f{.source = v->source(),
                           .destination = v->destination(),
                           .payload_length = v->payload_length(),
                           .flow_label = v->flow_label(),
                           .traffic_class = v->traffic_class(),
                           .hop_limit = v->hop_limit(),
                           .next_header = v->next_header()};
        uint8_t out[wire::kIpv6Header];
        f.Write(out);
        if (std::memcmp(out, b.data(), sizeof out) != 0) std::abort();
      }
      break;
    case 5:
      if (const auto v = wire::UdpView::Parse(b, size)) {
        if (v->length() < wire::kUdpHeader || v->length() > size) std::abort();
      }
      if (const auto v = wire::IcmpView::Parse(b)) (void)(v->type() + v->code() + v->ident() + v->sequence());
      break;
    default: {
      const std::string text(reinterpret_cast<const char*>(b.data()), size);
      if (const auto a = IpAddress::Parse(text)) {
        if (IpAddress::Parse(ToString(*a)) != a) std::abort();
      }
    }
  }
  return 0;
}
