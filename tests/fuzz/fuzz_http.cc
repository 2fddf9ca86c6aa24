// Any bytes as a connection's input. The requests read, or the refusal, must not depend on how the
// bytes are cut, and nothing accepted passes a limit.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "engine/server/http_parser.h"
#include "vmm/check.h"

namespace {

weir::server::HttpOptions Limits() {
  weir::server::HttpOptions limits;
  limits.max_header_bytes = 512;
  limits.max_headers = 8;
  limits.max_uri_bytes = 128;
  limits.max_body_bytes = 256;
  return limits;
}

// What |bytes| are as requests, as text, when at most |step| new bytes arrive at a time.
std::string Read(std::string_view bytes, size_t step) {
  using weir::server::HttpParser;
  const weir::server::HttpOptions limits = Limits();
  std::string log;
  size_t used = 0;
  while (used < bytes.size()) {
    HttpParser parser(limits);
    size_t arrived = used;
    while (parser.state() == HttpParser::State::kHeader ||
           parser.state() == HttpParser::State::kBody) {
      if (arrived == bytes.size()) return log + "incomplete";
      arrived = std::min(bytes.size(), arrived + step);
      used += parser.Feed(bytes.substr(used, arrived - used));
      WEIR_CHECK(used <= arrived, "no more is taken than was given");
      // What stays unread is kept in memory by the connection.
      WEIR_CHECK(parser.state() == HttpParser::State::kComplete ||
                     parser.state() == HttpParser::State::kRefused ||
                     arrived - used <= limits.max_header_bytes,
                 "unread bytes are bounded");
    }
    if (parser.state() == HttpParser::State::kRefused) {
      WEIR_CHECK(parser.refusal().status >= 400 && !parser.refusal().message.empty(),
                 "a refusal explains itself");
      return log + "refused";
    }
    const bool keep_alive = parser.keep_alive();
    const weir::server::HttpRequest request = parser.TakeRequest();
    WEIR_CHECK(request.body.size() <= limits.max_body_bytes, "body limit");
    WEIR_CHECK(request.headers.size() <= limits.max_headers, "header limit");
    WEIR_CHECK(request.path.size() + request.query.size() <= limits.max_uri_bytes + 1, "URI limit");
    WEIR_CHECK(!request.method.empty() && !request.path.empty(), "a request has a target");
    log += request.method + ' ' + request.path + '?' + request.query + (keep_alive ? "+" : "-");
    for (const auto& [name, value] : request.headers) log += name + ':' + value + ';';
    log += request.body + '\n';
  }
  return log;
}

// How far a malformed or oversized request is read before that is seen depends on the cuts; the
// requests before it do not.
bool SameRequests(std::string_view a, std::string_view b) {
  if (!a.ends_with("refused") && !b.ends_with("refused")) return a == b;
  for (std::string_view* log : {&a, &b}) {
    if (log->ends_with("refused")) log->remove_suffix(7);
    if (log->ends_with("incomplete")) log->remove_suffix(10);
  }
  return a.starts_with(b) || b.starts_with(a);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 4096) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const std::string one = Read(bytes, 1);
  WEIR_CHECK(SameRequests(one, Read(bytes, 7)), "the same requests, however the bytes are cut");
  WEIR_CHECK(SameRequests(one, Read(bytes, size + 1)), "the same requests, in one piece");
  return 0;
}
