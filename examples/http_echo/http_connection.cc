#include "examples/http_echo/http_connection.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>

namespace sluice::example {
namespace {

constexpr std::string_view kEnd = "\r\n\r\n";
constexpr size_t kRemembered = 64;  // sizes of small responses

Slice Copy(BlockPool& pool, std::string_view text) {
  BlockRef block(pool.Allocate(text.size()));
  if (!block) return {};
  std::memcpy(block->data, text.data(), text.size());
  return Slice{std::move(block), 0, static_cast<uint32_t>(text.size())};
}

std::string Head(std::string_view status, uint64_t body) {
  return "HTTP/1.1 " + std::string(status) +
         "\r\nServer: sluice\r\nContent-Type: application/octet-stream\r\nContent-Length: " + std::to_string(body) + "\r\n\r\n";
}

// The value of a header field, its name given in lower case; without the white space around it.
std::string_view Field(std::string_view head, std::string_view name) {
  for (size_t at = head.find("\r\n"); at != std::string_view::npos; at = head.find("\r\n", at + 2)) {
    const std::string_view line = head.substr(at + 2, head.find("\r\n", at + 2) - at - 2);
    if (line.size() <= name.size() || line[name.size()] != ':') continue;
    const bool same = std::equal(name.begin(), name.end(), line.begin(),
                                 [](char a, char b) { return a == (b >= 'A' && b <= 'Z' ? b + 32 : b); });
    if (!same) continue;
    std::string_view value = line.substr(name.size() + 1);
    while (!value.empty() && (value.front() == ' ' || value.front() == '\t')) value.remove_prefix(1);
    while (!value.empty() && (value.back() == ' ' || value.back() == '\t')) value.remove_suffix(1);
    return value;
  }
  return {};
}

}  // namespace

HttpContent::HttpContent(BlockPool& pool) : pool_(pool), body_(pool.Allocate(kBlock)) {
  for (uint64_t i = 0; body_ && i < kBlock; ++i) body_->data[i] = static_cast<uint8_t>('a' + i % 26);
}

Slice HttpContent::Body(uint64_t bytes) const { return Slice{body_, 0, static_cast<uint32_t>(std::min(bytes, kBlock))}; }

Slice HttpContent::Response(uint64_t body, bool with_body) {
  if (!with_body) return Copy(pool_, Head("200 OK", body));
  if (const auto found = whole_.find(body); found != whole_.end()) return found->second;
  const std::string head = Head("200 OK", body);
  const size_t bytes = std::min(body, kBlock);
  BlockRef block(pool_.Allocate(head.size() + bytes));
  if (!block || !body_) return {};
  std::memcpy(block->data, head.data(), head.size());
  std::memcpy(block->data + head.size(), body_->data, bytes);
  Slice slice{std::move(block), 0, static_cast<uint32_t>(head.size() + bytes)};
  if (body <= kBlock && whole_.size() < kRemembered) whole_.emplace(body, slice);
  return slice;
}

bool HttpConnection::Work() {
  if (gone()) return false;
  if (!SendBody()) return false;
  if (body_left_ == 0 && !close_ && !ReadRequests()) return false;
  return !(close_ && body_left_ == 0) && !gone();
}

// False: the connection is done with.
bool HttpConnection::ReadRequests() {
  for (;;) {
    // The answers of a client that does not read wait with it.
    if (socket_->send_space() == 0) return true;
    size_t end = input_.find(kEnd);
    if (end == std::string::npos) {
      std::array<Bytes, 16> spans;
      const size_t count = socket_->Peek(spans);
      if (count == 0) return !socket_->at_end();
      size_t bytes = 0;
      for (size_t i = 0; i < count; ++i) {
        input_.append(reinterpret_cast<const char*>(spans[i].data()), spans[i].size());
        bytes += spans[i].size();
      }
      socket_->Consume(bytes);
      end = input_.find(kEnd);
      if (end == std::string::npos) {
        if (input_.size() <= kMaxRequest) continue;
        close_ = true;
        return Reply("431 Request Header Fields Too Large", "the request is too long\n");
      }
    }
    const std::string head = input_.substr(0, end + 2);
    input_.erase(0, end + kEnd.size());
    if (!Answer(head)) return false;
    if (close_ || body_left_ != 0) return true;
  }
}

bool HttpConnection::Reply(std::string_view status, std::string_view text) {
  Slice slice = Copy(pool_, Head(status, text.size()) + std::string(text));
  return slice.block && socket_->Send(std::move(slice), false) == Errno::kOk;
}

bool HttpConnection::Answer(std::string_view head) {
  const std::string_view line = head.substr(0, head.find("\r\n"));
  const size_t first = line.find(' '), last = line.rfind(' ');
  if (first == std::string_view::npos || first == last) {
    close_ = true;
    return Reply("400 Bad Request", "the request line is malformed\n");
  }
  const std::string_view method = line.substr(0, first), target = line.substr(first + 1, last - first - 1),
                         version = line.substr(last + 1);
  const std::string_view wish = Field(head, "connection");
  close_ = wish == "close" || (version == "HTTP/1.0" && wish != "keep-alive" && wish != "Keep-Alive");
  const std::string_view length = Field(head, "content-length");
  if ((method != "GET" && method != "HEAD") || !Field(head, "transfer-encoding").empty() || (!length.empty() && length != "0")) {
    close_ = true;  // what follows the head is not read
    return Reply("501 Not Implemented", "GET and HEAD only, without a body\n");
  }
  if (target == "/") return Reply("200 OK", "served by sluice\n");
  uint64_t body = 0;
  const auto [end, error] = std::from_chars(target.data() + 1, target.data() + target.size(), body);
  if (target[0] != '/' || error != std::errc() || end != target.data() + target.size() || body > HttpContent::kMaxBody) {
    return Reply("404 Not Found", "ask for /N: N bytes\n");
  }
  const bool with_body = method == "GET";
  Slice response = content_.Response(body, with_body);
  if (!response.block || socket_->Send(std::move(response), false) != Errno::kOk) return false;
  if (with_body && body > HttpContent::kBlock) body_left_ = body - HttpContent::kBlock;
  return SendBody();
}

// False: the connection is gone.
bool HttpConnection::SendBody() {
  while (body_left_ > 0 && socket_->send_space() > 0) {
    Slice slice = content_.Body(body_left_);
    const uint64_t bytes = slice.length;
    if (socket_->Send(std::move(slice), body_left_ > bytes) != Errno::kOk) return false;
    body_left_ -= bytes;
  }
  return true;
}

}  // namespace sluice::example
