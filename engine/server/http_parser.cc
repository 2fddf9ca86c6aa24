#include "engine/server/http_parser.h"

#include <algorithm>
#include <cstdlib>

#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/error.hpp>

namespace weir::server {
namespace {

namespace beast = boost::beast;
namespace http = boost::beast::http;

// A length that is only announced must not cost much.
constexpr size_t kFirstBodyReserve = 16 << 10;

std::string_view View(beast::string_view text) {
  return {text.data(), text.size()};
}

std::string Lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string AtMost(uint64_t limit, std::string_view unit) {
  return std::to_string(limit) + " " + std::string(unit) + " are accepted";
}

}  // namespace

std::optional<std::string> PercentDecode(std::string_view text) {
  std::string decoded;
  decoded.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      decoded.push_back(text[i]);
      continue;
    }
    if (text.size() - i < 3) return std::nullopt;
    const int high = HexDigit(text[i + 1]);
    const int low = HexDigit(text[i + 2]);
    if (high < 0 || low < 0) return std::nullopt;
    decoded.push_back(static_cast<char>(high * 16 + low));
    i += 2;
  }
  return decoded;
}

// Beast calls the on_..._impl functions while it parses; a refusal stops it through |ec|.
class HttpParser::Impl final : public http::basic_parser<true> {
 public:
  explicit Impl(const HttpOptions& limits) : limits_(limits) {
    eager(true);
    header_limit(limits.max_header_bytes);
    body_limit(limits.max_body_bytes);
  }

  size_t Feed(std::string_view bytes) {
    size_t used = 0;
    // One call may stop between header and body, so go on while something is taken.
    while (state_ != State::kComplete && state_ != State::kRefused && used < bytes.size()) {
      beast::error_code ec;
      const std::string_view rest = bytes.substr(used);
      const bool header_was_done = header_done_;
      const size_t taken = put(boost::asio::const_buffer(rest.data(), rest.size()), ec);
      used += taken;
      if (!header_was_done && !header_done_) header_bytes_ += taken;
      if (ec == http::error::need_more) {
        CheckUnread(bytes.substr(used));
        break;
      }
      if (ec) RefuseFor(ec, bytes.substr(used));
      if (taken == 0) break;
    }
    return used;
  }

  // What Beast waits for the end of: a header, or the line before a chunk and the trailer.
  void CheckUnread(std::string_view unread) {
    if (header_bytes_ + unread.size() <= limits_.max_header_bytes) return;
    if (header_done_) {
      Refuse(400, "the header or trailer of a chunk is too long: at most " +
                      AtMost(limits_.max_header_bytes, "bytes"));
    } else if (!request_line_done_ &&
               std::min(unread.find('\n'), unread.size()) > limits_.max_uri_bytes) {
      RefuseUri();
    } else {
      RefuseHeader();
    }
  }

  void RefuseFor(beast::error_code ec, std::string_view unread) {
    if (state_ == State::kRefused) return;  // by one of the functions below
    if (ec == http::error::body_limit) {
      Refuse(413, "the body is too large: at most " + AtMost(limits_.max_body_bytes, "bytes"));
    } else if (ec == http::error::header_limit) {
      header_bytes_ = limits_.max_header_bytes;
      CheckUnread(unread);
    } else if (ec == http::error::bad_version) {
      Refuse(505, "HTTP/1.1 and HTTP/1.0 are accepted");
    } else {
      Refuse(400, "malformed HTTP request: " + ec.message());
    }
    // Beast's limits are the ones above or wider; never leave a failed parse without an answer.
    if (state_ != State::kRefused) Refuse(400, "malformed HTTP request: " + ec.message());
  }

  void Refuse(unsigned status, std::string message) {
    refusal_ = {status, std::move(message)};
    state_ = State::kRefused;
  }

  State state() const { return state_; }
  bool expects_continue() const { return expects_continue_ && state_ == State::kBody; }
  size_t body_bytes() const { return request_.body.size(); }
  bool http11() const { return version_ >= 11; }
  HttpRequest TakeRequest() { return std::move(request_); }
  const HttpRefusal& refusal() const { return refusal_; }

 private:
  void RefuseUri() {
    Refuse(414,
           "the request target is too long: at most " + AtMost(limits_.max_uri_bytes, "bytes"));
  }
  void RefuseHeader() {
    Refuse(431,
           "the request header is too long: at most " + AtMost(limits_.max_header_bytes, "bytes"));
  }

  // Ends the parse when something above has refused the request.
  void StopIfRefused(beast::error_code& ec) const {
    if (state_ == State::kRefused) ec = http::error::bad_value;
  }

  void on_request_impl(http::verb, beast::string_view method, beast::string_view target,
                       int version, beast::error_code& ec) override {
    request_line_done_ = true;
    parsed_bytes_ = method.size() + target.size() + 12;
    version_ = version;
    request_.method = View(method);
    ReadTarget(View(target));
    StopIfRefused(ec);
  }

  // origin-form, absolute-form and "*" (RFC 9112, section 3.2); authority-form is for CONNECT only.
  void ReadTarget(std::string_view target) {
    if (target.size() > limits_.max_uri_bytes) return RefuseUri();
    if (target.front() != '/' && target != "*" && request_.method != "CONNECT") {
      const std::string scheme = Lower(target.substr(0, 8));
      const size_t authority = scheme.starts_with("http://") ? 7 : scheme == "https://" ? 8 : 0;
      if (authority == 0) {
        return Refuse(400, "the request target must begin with '/' or be an http URL");
      }
      const size_t path = target.find_first_of("/?", authority);
      target = path == target.npos ? std::string_view("/") : target.substr(path);
    }
    const size_t mark = target.find('?');
    if (mark != target.npos) request_.query = target.substr(mark + 1);
    auto path = PercentDecode(target.substr(0, mark));
    if (!path) {
      return Refuse(400, "a '%' in the path must be followed by two hexadecimal digits");
    }
    request_.path = path->empty() ? "/" : std::move(*path);
  }

  void on_field_impl(http::field name, beast::string_view name_string, beast::string_view value,
                     beast::error_code& ec) override {
    // Fields behind a chunked body: nothing here needs one, and they must not pass as headers.
    if (header_done_) return;
    // Beast limits the request line and the fields separately.
    parsed_bytes_ += name_string.size() + value.size() + 4;
    if (parsed_bytes_ > limits_.max_header_bytes) {
      RefuseHeader();
    } else if (request_.headers.size() >= limits_.max_headers) {
      Refuse(431, "too many header fields: at most " + AtMost(limits_.max_headers, "fields"));
    } else if (name == http::field::transfer_encoding) {
      transfer_encodings_ += 1;
      if (Lower(View(value)) != "chunked" || transfer_encodings_ > 1) {
        Refuse(501, "the only transfer encoding accepted is chunked");
      } else if (version_ < 11) {
        Refuse(400, "HTTP/1.0 has no transfer encodings");
      }
    } else if (name == http::field::host) {
      hosts_ += 1;
    } else if (name == http::field::expect && version_ >= 11) {
      expects_continue_ = Lower(View(value)) == "100-continue";
      if (!expects_continue_) Refuse(417, "the only expectation accepted is 100-continue");
    }
    request_.headers.emplace_back(Lower(View(name_string)), View(value));
    StopIfRefused(ec);
  }

  void on_header_impl(beast::error_code& ec) override {
    header_done_ = true;
    state_ = State::kBody;
    // RFC 9112, section 3.2: two hosts are an attack on whoever routes by them.
    if (hosts_ > 1 || (hosts_ == 0 && version_ >= 11)) {
      Refuse(400, "a request must have exactly one Host header");
    }
    StopIfRefused(ec);
  }

  void on_body_init_impl(const boost::optional<std::uint64_t>& length,
                         beast::error_code&) override {
    if (length) request_.body.reserve(std::min<size_t>(*length, kFirstBodyReserve));
  }

  std::size_t on_body_impl(beast::string_view bytes, beast::error_code&) override {
    request_.body.append(bytes.data(), bytes.size());
    return bytes.size();
  }

  void on_chunk_header_impl(std::uint64_t, beast::string_view, beast::error_code&) override {}

  std::size_t on_chunk_body_impl(std::uint64_t, beast::string_view bytes,
                                 beast::error_code& ec) override {
    return on_body_impl(bytes, ec);
  }

  void on_finish_impl(beast::error_code&) override {
    // A request without a body is finished even when its header was refused.
    if (state_ != State::kRefused) state_ = State::kComplete;
  }

  void on_response_impl(int, beast::string_view, int, beast::error_code&) override {
    std::abort();  // a basic_parser<true> never sees a response
  }

  const HttpOptions& limits_;
  State state_ = State::kHeader;
  HttpRequest request_;
  HttpRefusal refusal_;
  size_t header_bytes_ = 0;  // taken while the header was not complete
  size_t parsed_bytes_ = 0;  // of request line and fields
  uint32_t hosts_ = 0;
  uint32_t transfer_encodings_ = 0;
  int version_ = 11;
  bool request_line_done_ = false;
  bool header_done_ = false;
  bool expects_continue_ = false;
};

HttpParser::HttpParser(const HttpOptions& limits) : impl_(std::make_unique<Impl>(limits)) {}
HttpParser::~HttpParser() = default;
size_t HttpParser::Feed(std::string_view bytes) {
  return impl_->Feed(bytes);
}
HttpParser::State HttpParser::state() const {
  return impl_->state();
}
size_t HttpParser::body_bytes() const {
  return impl_->body_bytes();
}
bool HttpParser::expects_continue() const {
  return impl_->expects_continue();
}
HttpRequest HttpParser::TakeRequest() {
  return impl_->TakeRequest();
}
bool HttpParser::http11() const {
  return impl_->http11();
}
bool HttpParser::keep_alive() const {
  return impl_->keep_alive();
}
const HttpRefusal& HttpParser::refusal() const {
  return impl_->refusal();
}

}  // namespace weir::server
