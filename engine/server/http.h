// HTTP: a small server for JSON requests and streamed (SSE) replies. No route or model is known
// here. http_parser.cc is the only file that knows Boost.Beast; http_connection and http_server are
// the only ones that know Boost.Asio.
//
// Life of an exchange: the server reads a whole request within its limits, calls the handler on an
// I/O thread, and keeps the exchange until it was answered or the client left. The handler must not
// block: it hands the exchange to whoever answers, from any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "vmm/status.h"
#include "vmm/types.h"

namespace weir::server {

using HeaderList = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;  // "GET"
  std::string path;    // percent-decoded, without the query
  std::string query;   // as sent, without '?'
  HeaderList headers;  // names in lower case
  std::string body;
  std::string peer;        // "127.0.0.1:40210"
  TimeNs received_ns = 0;  // monotonic, when the whole request was there
  // First value of |name| (lower case), or empty.
  std::string_view Header(std::string_view name) const;
};

struct HttpResponse {
  unsigned status = 200;
  std::string content_type = "application/json";
  HeaderList headers;
  std::string body;
};

// Represents one request in flight and the right to answer it, once: Reply, or BeginStream, any
// number of Write, and EndStream or EndStreamWith. Thread-safe; calls after the client left do
// nothing. Dropping the last reference unanswered sends a 500, or in the middle of a stream resets
// the connection. The server itself writes Content-Length, Transfer-Encoding, Connection and Date,
// and leaves the body out of answers to HEAD. A FIN while an answer is being made counts as the
// client having left: it cannot be told from a half-closed connection.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;
  virtual const HttpRequest& request() const = 0;
  // The body, once, by whoever reads it: it does not count for HttpOptions::max_bodies_bytes any
  // more, and request() has none from then on.
  virtual std::string TakeBody() = 0;
  virtual void Reply(HttpResponse response) = 0;
  virtual void BeginStream(unsigned status, std::string content_type, HeaderList headers) = 0;
  // Lets |bytes| more than HttpOptions::max_buffered_bytes be unsent: what the answer repeats of
  // its request comes at once, however fast the client reads.
  virtual void AllowUnsent(uint64_t bytes) = 0;
  // Queues |bytes|; writes that queue up while one is under way leave together, in order. False
  // when the client has left or its unsent bytes would pass their limit (AllowUnsent): then
  // nothing was queued and the stream is to be given up (Abort) or held. When nothing is unsent
  // a write of any size passes.
  virtual bool Write(std::string bytes) = 0;
  virtual void EndStream() = 0;
  // Write and EndStream in one: a client that closes when it has read |bytes| does not count as
  // having left. The limit of unsent bytes does not hold for them. False: the client has left.
  virtual bool EndStreamWith(std::string bytes) = 0;
  // Closes the connection now.
  virtual void Abort() = 0;
  virtual size_t buffered_bytes() const = 0;
  // |left| runs once, on an I/O thread, when the client goes away before the answer is complete; at
  // once, on the caller's thread, if it already has. Not run after a complete answer. Replaces an
  // earlier callback. To own the exchange in it is a cycle.
  virtual void OnClientLeft(std::function<void()> left) = 0;
};

struct HttpOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;  // 0: any free one
  unsigned threads = 1;
  uint32_t max_header_bytes = 16 << 10;
  uint32_t max_headers = 100;
  uint32_t max_uri_bytes = 8 << 10;
  uint64_t max_body_bytes = 4 << 20;
  // Of all bodies that have arrived and not been taken; what would pass it is answered 503.
  uint64_t max_bodies_bytes = 256 << 20;
  uint32_t max_buffered_bytes = 256 << 10;  // unsent bytes of one stream
  uint32_t max_connections = 4096;          // more are answered 503 and closed
  TimeNs idle_timeout_ns = 30'000'000'000;  // between requests of one connection
  TimeNs request_timeout_ns =
      30'000'000'000;                        // from a request's first byte to its last (slowloris)
  TimeNs write_timeout_ns = 30'000'000'000;  // a client that reads nothing
};

struct HttpStats {
  uint64_t connections = 0;  // open now
  uint64_t accepted = 0;
  uint64_t requests = 0;
  uint64_t rejected = 0;  // answered by the server itself: malformed, too large, too slow, too many
  uint64_t body_bytes = 0;  // of max_bodies_bytes, now
};

class HttpServer {
 public:
  using Handler = std::function<void(std::shared_ptr<HttpExchange>)>;
  // Takes the port; who connects is refused until Listen. kInvalidArgument: not an address. kIo:
  // the port is taken, or may not be bound; the message says which.
  static Result<std::unique_ptr<HttpServer>> Bind(const HttpOptions& options);
  // Bind and Listen.
  static Result<std::unique_ptr<HttpServer>> Start(const HttpOptions& options, Handler handler);
  virtual ~HttpServer() = default;  // stops
  // Once: requests come as soon as this returns. kIo: another program that had bound the port as
  // well was the first to listen.
  virtual Status Listen(Handler handler) = 0;
  virtual uint16_t port() const = 0;
  virtual HttpStats stats() const = 0;
  // Accepts no new connection and no further request on open ones; exchanges in flight go on.
  virtual void StopAccepting() = 0;
  // Closes everything now and joins the threads. Not from a handler, and not while another thread
  // is in StopAccepting.
  virtual void Stop() = 0;
};

// Body of an error the server answers by itself: the OpenAI error object.
std::string ErrorBody(unsigned status, std::string_view message);

}  // namespace weir::server
