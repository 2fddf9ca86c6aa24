// Bytes of an HTTP/1.1 response.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "engine/server/http.h"

namespace weir::server {

// How the client finds the end of the body.
enum class BodyFraming : uint8_t { kLength, kChunked, kUntilClose, kNone };

struct ResponseHead {
  unsigned status = 200;
  std::string_view content_type;
  BodyFraming framing = BodyFraming::kLength;
  uint64_t length = 0;  // of kLength
  bool http11 = true;   // what the request spoke
  bool keep_alive = true;
};

// Appends status line, header and the empty line. Line ends and NUL in |headers| become spaces: a
// value that quotes a client cannot add a header.
void AppendHead(std::string& out, const ResponseHead& head, const HeaderList& headers);
// Appends |bytes|, not empty, as one chunk.
void AppendChunk(std::string& out, std::string_view bytes);
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

}  // namespace weir::server
