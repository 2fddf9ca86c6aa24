// Bytes in, one HTTP/1.x request out. Knows no socket, so that tests and the fuzzer feed it what
// they like; http_parser.cc is the only file that knows Boost.Beast, whose parser does the grammar.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "engine/server/http.h"

namespace weir::server {

// What a request is refused with.
struct HttpRefusal {
  unsigned status = 400;
  std::string message;
};

// Represents one request while it is being read: kHeader → kBody → kComplete, or kRefused from any
// of them. Not thread-safe. Memory is bounded by the limits of HttpOptions, whatever is fed.
class HttpParser {
 public:
  enum class State : uint8_t { kHeader, kBody, kComplete, kRefused };

  explicit HttpParser(const HttpOptions& limits);  // |limits| outlive the parser
  ~HttpParser();
  HttpParser(const HttpParser&) = delete;
  HttpParser& operator=(const HttpParser&) = delete;

  // Reads from |bytes| what belongs to this request and returns how many bytes that was. The rest
  // is to be fed again, with more behind it; in kComplete it begins the next request. Feeding a
  // request that is complete or refused takes nothing.
  size_t Feed(std::string_view bytes);

  State state() const;
  size_t body_bytes() const;  // read so far
  // The client waits for "100 Continue" before it sends the body.
  bool expects_continue() const;

  // In kComplete:
  HttpRequest TakeRequest();  // once; peer and received_ns are the caller's to fill in
  bool http11() const;
  bool keep_alive() const;

  // In kRefused:
  const HttpRefusal& refusal() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// |text| with %XX replaced, or nothing when a % is not followed by two hexadecimal digits.
std::optional<std::string> PercentDecode(std::string_view text);

}  // namespace weir::server
