#include "engine/server/http_connection.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

#include <boost/asio/buffer.hpp>
#include <boost/asio/post.hpp>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "engine/server/http_format.h"

namespace weir::server {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr size_t kMaxPipelinedBytes = 64 << 10;  // read ahead while an answer is under way
constexpr int kUnsentKernelBytes = 128 << 10;    // of a stream, in the socket
constexpr size_t kKeptBufferBytes = 64 << 10;
constexpr TimeNs kLingerNs = 2'000'000'000;
constexpr TimeNs kNever = ~TimeNs{0};

class Exchange final : public HttpExchange {
 public:
  Exchange(HttpRequest request, ByteShare body, std::shared_ptr<HttpAnswer> answer)
      : request_(std::move(request)), body_(std::move(body)), answer_(std::move(answer)) {}
  ~Exchange() override { answer_->Drop(); }
  const HttpRequest& request() const override { return request_; }
  std::string TakeBody() override {
    body_.Release();
    return std::exchange(request_.body, {});
  }
  void Reply(HttpResponse response) override { answer_->Reply(response); }
  void BeginStream(unsigned status, std::string content_type, HeaderList headers) override {
    answer_->BeginStream(status, content_type, headers);
  }
  void AllowUnsent(uint64_t bytes) override { answer_->AllowUnsent(bytes); }
  bool Write(std::string bytes) override { return answer_->Write(bytes); }
  void EndStream() override { answer_->EndStream(); }
  bool EndStreamWith(std::string bytes) override { return answer_->EndStreamWith(bytes); }
  void Abort() override { answer_->Abort(); }
  size_t buffered_bytes() const override { return answer_->buffered_bytes(); }
  void OnClientLeft(std::function<void()> left) override { answer_->OnClientLeft(std::move(left)); }

 private:
  HttpRequest request_;
  ByteShare body_;
  const std::shared_ptr<HttpAnswer> answer_;
};

}  // namespace

TimeNs HttpNow() {
  return static_cast<TimeNs>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                 std::chrono::steady_clock::now().time_since_epoch())
                                 .count());
}

HttpConnection::HttpConnection(HttpWorker& worker, HttpShared& shared, tcp::socket socket,
                               Place place)
    : worker_(worker),
      shared_(shared),
      socket_(std::move(socket)),
      place_(place),
      deadline_(kNever) {
  shared_.open += 1;
  if (place_ == Place::kServed) shared_.serving += 1;
}

HttpConnection::~HttpConnection() {
  if (answer_) answer_->Detach();
  shared_.open -= 1;
  if (place_ == Place::kServed) shared_.serving -= 1;
}

void HttpConnection::Start() {
  const tcp::endpoint peer = socket_.remote_endpoint(ec_);
  if (ec_) return Close();
  const std::string address = peer.address().to_string();
  peer_ =
      (peer.address().is_v6() ? "[" + address + "]" : address) + ":" + std::to_string(peer.port());
  SetSocketOptions();
  deadline_ = HttpNow() + shared_.options.idle_timeout_ns;
  if (place_ == Place::kTurnedAway) {
    Refuse({503, "too many connections"});
  } else if (worker_.draining) {
    return Close();
  }
  if (state_ != State::kClosed) ArmRead();
}

void HttpConnection::Drain() {
  if (state_ == State::kIdle) return CloseIdle();
  if (state_ == State::kReading) return Refuse({503, "the server is shutting down"});
  if (answer_) answer_->CloseAfterwards();
}

void HttpConnection::CheckDeadline(TimeNs now) {
  if (now < deadline_) return;
  if (state_ == State::kReading && !waiting_writable_) {
    return Refuse({408, "the request took too long to arrive"});
  }
  if (waiting_writable_) ResetOnClose();
  if (state_ == State::kIdle) return CloseIdle();
  Close();
}

// Unless a request has arrived that was not read yet: its client could not tell the closed
// connection from a lost answer.
void HttpConnection::CloseIdle() {
  if (socket_.available(ec_) == 0) Close();
}

void HttpConnection::Close() {
  if (state_ == State::kClosed) return;
  state_ = State::kClosed;
  error_code ignored;
  socket_.close(ignored);
  const auto self = shared_from_this();
  worker_.connections.erase(self);
  if (const auto answer = std::exchange(answer_, nullptr)) answer->Detach();
}

// Runs |step| of this connection; what it throws (out of memory) ends the connection only.
template <typename Step>
void HttpConnection::Guard(const Step& step) {
  try {
    if (state_ != State::kClosed) step();
  } catch (const std::exception&) {
    Close();
  }
}

void HttpConnection::SetSocketOptions() {
  const int fd = socket_.native_handle();
  const auto set = [fd](int level, int name, int value) {
    // Best effort: a connection without one of these still works.
    (void)setsockopt(fd, level, name, &value, sizeof(value));
  };
  socket_.non_blocking(true, ec_);
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(IPPROTO_TCP, TCP_NOTSENT_LOWAT, kUnsentKernelBytes);
  // Finds hosts that went away without a word while a request waits.
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 60);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 10);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
}

void HttpConnection::ArmRead() {
  if (read_armed_ || read_ended_ || state_ == State::kClosed) return;
  read_armed_ = true;
  // A client that sent more than is read ahead is watched for a reset only.
  const bool full = state_ == State::kAnswering && in_.size() >= kMaxPipelinedBytes;
  waiting_for_reset_ = full;
  socket_.async_wait(full ? tcp::socket::wait_error : tcp::socket::wait_read,
                     [self = shared_from_this(), full](error_code error) {
                       self->read_armed_ = false;
                       if (error == asio::error::operation_aborted) {
                         return self->Guard([&] { self->ArmRead(); });
                       }
                       self->Guard([&] { full ? self->OnEnd() : self->OnReadable(); });
                     });
}

void HttpConnection::OnReadable() {
  const size_t room = state_ == State::kAnswering
                          ? kMaxPipelinedBytes - std::min(in_.size(), kMaxPipelinedBytes)
                          : HttpWorker::kReadBytes;
  error_code error;
  const size_t got = socket_.read_some(
      asio::buffer(worker_.scratch.data(), std::min(room, HttpWorker::kReadBytes)), error);
  if (error && error != asio::error::would_block && error != asio::error::interrupted) {
    return OnEnd();
  }
  if (state_ == State::kIdle || state_ == State::kReading || state_ == State::kAnswering) {
    in_.append(worker_.scratch, 0, got);
    ReadRequest();
  }
  ArmRead();
}

// The peer sends nothing more, or is gone.
void HttpConnection::OnEnd() {
  if (state_ == State::kAnswering && answer_->answered()) {
    read_ended_ = true;  // the answer is complete: send the rest, or find out by that
    answer_->CloseAfterwards();
    return;
  }
  Close();
}

void HttpConnection::ReadRequest() {
  size_t used = 0;
  while (state_ == State::kIdle || state_ == State::kReading) {
    const std::string_view unread = std::string_view(in_).substr(used);
    // Empty lines before a request are ignored (RFC 9112, section 2.2).
    if (!parser_ && unread.starts_with("\r\n")) {
      used += 2;
      continue;
    }
    if (unread.empty() || (!parser_ && unread == "\r")) break;
    if (!parser_) BeginRequest();
    used += parser_->Feed(unread);
    if (parser_->state() == HttpParser::State::kRefused) {
      Refuse(parser_->refusal());
    } else if (!body_->GrowTo(parser_->body_bytes())) {
      Refuse({503, "the server holds too many request bodies; try again later"});
    } else if (parser_->state() == HttpParser::State::kComplete) {
      Handle();
    } else {
      if (parser_->expects_continue() && !told_to_continue_) {
        told_to_continue_ = true;
        out_ += "HTTP/1.1 100 Continue\r\n\r\n";
        Flush();
      }
      break;
    }
  }
  in_.erase(0, used);
}

void HttpConnection::BeginRequest() {
  parser_ = std::make_unique<HttpParser>(shared_.options);
  body_ = std::make_unique<ByteShare>(shared_.bodies);
  state_ = State::kReading;
  deadline_ = HttpNow() + shared_.options.request_timeout_ns;
  told_to_continue_ = false;
}

void HttpConnection::Handle() {
  HttpRequest request = parser_->TakeRequest();
  request.peer = peer_;
  request.received_ns = HttpNow();
  const HttpAnswer::Terms terms = {
      .head = request.method == "HEAD",
      .http11 = parser_->http11(),
      .keep_alive = parser_->keep_alive() && !worker_.draining,
      .max_buffered_bytes = shared_.options.max_buffered_bytes,
  };
  parser_.reset();
  const std::unique_ptr<ByteShare> body = std::move(body_);
  state_ = State::kAnswering;
  deadline_ = kNever;
  shared_.requests += 1;
  answer_ =
      std::make_shared<HttpAnswer>(terms, [&context = worker_.context, weak = weak_from_this()] {
        asio::post(context, [weak] {
          if (const auto self = weak.lock()) self->Guard([&] { self->Flush(); });
        });
      });
  try {
    shared_.handler(std::make_shared<Exchange>(std::move(request), std::move(*body), answer_));
  } catch (const std::exception&) {
    // The exchange was dropped on the way out, which answers 500.
  }
}

// Answers by itself and ends the connection.
void HttpConnection::Refuse(const HttpRefusal& refusal) {
  shared_.rejected += 1;
  HeaderList headers;
  if (refusal.status == 503) headers.emplace_back("Retry-After", "1");
  const std::string body = ErrorBody(refusal.status, refusal.message);
  AppendHead(out_,
             {.status = refusal.status,
              .content_type = "application/json",
              .length = body.size(),
              .keep_alive = false},
             headers);
  out_ += body;
  parser_.reset();
  body_.reset();
  state_ = State::kRefusing;
  deadline_ = HttpNow() + shared_.options.write_timeout_ns;
  Flush();
}

// Sends what there is until the socket takes no more. Everything queued meanwhile leaves in one.
void HttpConnection::Flush() {
  if (waiting_writable_) return;
  while (state_ != State::kClosed) {
    while (out_sent_ < out_.size()) {
      error_code error;
      const size_t sent = socket_.write_some(asio::buffer(out_) + out_sent_, error);
      if (error == asio::error::interrupted) continue;
      if (error == asio::error::would_block) return WaitWritable();
      if (error) return Close();
      OnSent(sent);
    }
    out_.clear();
    out_sent_ = 0;
    if (out_.capacity() > kKeptBufferBytes) std::string().swap(out_);
    if (state_ == State::kRefusing) return Linger();
    if (state_ != State::kAnswering) return;
    out_is_answer_ = true;
    const HttpAnswer::Progress progress = answer_->Take(out_);
    if (progress == HttpAnswer::Progress::kAborted) {
      ResetOnClose();
      return Close();
    }
    if (!out_.empty()) continue;
    out_is_answer_ = false;
    if (progress == HttpAnswer::Progress::kComplete) NextRequest();
    return;
  }
}

void HttpConnection::OnSent(size_t sent) {
  out_sent_ += sent;
  if (out_is_answer_ && answer_) answer_->Sent(sent);
}

void HttpConnection::WaitWritable() {
  waiting_writable_ = true;
  // A request's own limit stays the nearer one.
  if (state_ != State::kReading) deadline_ = HttpNow() + shared_.options.write_timeout_ns;
  socket_.async_wait(tcp::socket::wait_write, [self = shared_from_this()](error_code) {
    self->waiting_writable_ = false;
    if (self->state_ == State::kAnswering) self->deadline_ = kNever;
    self->Guard([&] { self->Flush(); });
  });
}

void HttpConnection::NextRequest() {
  const bool keep = answer_->keep_alive() && !worker_.draining;
  std::exchange(answer_, nullptr)->Detach();
  if (!keep) return Linger();
  state_ = State::kIdle;
  deadline_ = HttpNow() + shared_.options.idle_timeout_ns;
  ReadRequest();
  if (state_ == State::kClosed) return;
  // A wait for a reset only is to become a wait for the next request.
  if (read_armed_ && waiting_for_reset_) socket_.cancel(ec_);
  ArmRead();
}

// Lets the peer read what was sent: closing with unread input would reset the connection.
void HttpConnection::Linger() {
  if (read_ended_) return Close();
  state_ = State::kLingering;
  deadline_ = HttpNow() + kLingerNs;
  in_.clear();
  socket_.shutdown(tcp::socket::shutdown_send, ec_);
  if (read_armed_ && waiting_for_reset_) socket_.cancel(ec_);
  ArmRead();
}

void HttpConnection::ResetOnClose() {
  socket_.set_option(asio::socket_base::linger(true, 0), ec_);
}

}  // namespace weir::server
