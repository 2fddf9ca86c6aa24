#include "engine/server/http_format.h"

#include <charconv>
#include <ctime>

namespace weir::server {
namespace {

std::string_view ReasonPhrase(unsigned status) {
  switch (status) {
    case 200: return "OK";
    case 201: return "Created";
    case 202: return "Accepted";
    case 204: return "No Content";
    case 304: return "Not Modified";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 413: return "Content Too Large";
    case 414: return "URI Too Long";
    case 415: return "Unsupported Media Type";
    case 417: return "Expectation Failed";
    case 422: return "Unprocessable Content";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 504: return "Gateway Timeout";
    case 505: return "HTTP Version Not Supported";
    default: return "";  // allowed by RFC 9112, section 4
  }
}

void AppendClean(std::string& out, std::string_view text) {
  for (const char c : text) out.push_back(c == '\r' || c == '\n' || c == '\0' ? ' ' : c);
}

void AppendField(std::string& out, std::string_view name, std::string_view value) {
  AppendClean(out, name);
  out += ": ";
  AppendClean(out, value);
  out += "\r\n";
}

// Written anew once a second and thread.
const std::string& Date() {
  thread_local std::string date;
  thread_local std::time_t written = -1;
  const std::time_t now = std::time(nullptr);
  if (now != written) {
    std::tm utc = {};
    gmtime_r(&now, &utc);
    char text[40];
    // The program never sets a locale, so names of days and months are English.
    date.assign(text, std::strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &utc));
    written = now;
  }
  return date;
}

}  // namespace

void AppendHead(std::string& out, const ResponseHead& head, const HeaderList& headers) {
  out += "HTTP/1.1 ";
  out += std::to_string(head.status);
  out += ' ';
  out += ReasonPhrase(head.status);
  out += "\r\n";
  AppendField(out, "Date", Date());
  if (!head.content_type.empty() && head.framing != BodyFraming::kNone) {
    AppendField(out, "Content-Type", head.content_type);
  }
  for (const auto& [name, value] : headers) AppendField(out, name, value);
  if (head.framing == BodyFraming::kLength) {
    AppendField(out, "Content-Length", std::to_string(head.length));
  } else if (head.framing == BodyFraming::kChunked) {
    AppendField(out, "Transfer-Encoding", "chunked");
  }
  if (!head.keep_alive) {
    AppendField(out, "Connection", "close");
  } else if (!head.http11) {
    AppendField(out, "Connection", "keep-alive");
  }
  out += "\r\n";
}

void AppendChunk(std::string& out, std::string_view bytes) {
  char size[16];
  const auto end = std::to_chars(size, size + sizeof(size), bytes.size(), 16);
  out.append(size, end.ptr);
  out += "\r\n";
  out += bytes;
  out += "\r\n";
}

}  // namespace weir::server
