// The only file that knows sockets (Boost.Asio). An I/O thread (Worker) owns its connections and
// everything in them; other threads reach a connection only through HttpAnswer, which posts.
//
// A peer that closed its sending side cannot be told from one that is gone: both send a FIN, and
// without an answer to send there is nothing to learn more from. While an answer is being made a
// FIN therefore means that the client left (nginx and uvicorn read it so); once the answer is
// complete the rest of it is still sent.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <latch>
#include <memory>
#include <thread>
#include <unordered_set>
#include <utility>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/socket.h>

#include "engine/server/http.h"
#include "engine/server/http_answer.h"
#include "engine/server/http_format.h"
#include "engine/server/http_parser.h"
#include "vmm/check.h"

namespace weir::server {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr int kBacklog = 4096;
constexpr size_t kReadBytes = 64 << 10;
constexpr size_t kMaxPipelinedBytes = 64 << 10;  // read ahead while an answer is under way
constexpr int kUnsentKernelBytes = 128 << 10;    // of a stream, in the socket
constexpr size_t kKeptBufferBytes = 64 << 10;
constexpr uint32_t kMaxTurnedAway = 64;  // connections told that there are too many, at a time
constexpr TimeNs kLingerNs = 2'000'000'000;
constexpr TimeNs kNever = ~TimeNs{0};

TimeNs Now() {
  return static_cast<TimeNs>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                 std::chrono::steady_clock::now().time_since_epoch())
                                 .count());
}

struct Shared {
  HttpOptions options;
  HttpServer::Handler handler;
  std::atomic<uint64_t> open{0}, serving{0}, accepted{0}, requests{0}, rejected{0};
};

class Connection;

struct Worker {
  asio::io_context context{1};
  asio::executor_work_guard<asio::io_context::executor_type> work{context.get_executor()};
  asio::steady_timer sweep{context};
  std::unordered_set<std::shared_ptr<Connection>> connections;
  std::string scratch = std::string(kReadBytes, '\0');
  bool draining = false;
  std::thread thread;
};

class Exchange final : public HttpExchange {
 public:
  Exchange(HttpRequest request, std::shared_ptr<HttpAnswer> answer)
      : request_(std::move(request)), answer_(std::move(answer)) {}
  ~Exchange() override { answer_->Drop(); }
  const HttpRequest& request() const override { return request_; }
  void Reply(HttpResponse response) override { answer_->Reply(response); }
  void BeginStream(unsigned status, std::string content_type, HeaderList headers) override {
    answer_->BeginStream(status, content_type, headers);
  }
  bool Write(std::string bytes) override { return answer_->Write(bytes); }
  void EndStream() override { answer_->EndStream(); }
  bool EndStreamWith(std::string bytes) override { return answer_->EndStreamWith(bytes); }
  void Abort() override { answer_->Abort(); }
  size_t buffered_bytes() const override { return answer_->buffered_bytes(); }
  void OnClientLeft(std::function<void()> left) override { answer_->OnClientLeft(std::move(left)); }

 private:
  const HttpRequest request_;
  const std::shared_ptr<HttpAnswer> answer_;
};

// Represents one connection; lives in its worker's set until Close. All on the worker's thread.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  enum class Place : uint8_t { kServed, kTurnedAway };

  Connection(Worker& worker, Shared& shared, tcp::socket socket, Place place)
      : worker_(worker), shared_(shared), socket_(std::move(socket)), place_(place) {
    shared_.open += 1;
    if (place_ == Place::kServed) shared_.serving += 1;
  }
  ~Connection() {
    if (answer_) answer_->Detach();
    shared_.open -= 1;
    if (place_ == Place::kServed) shared_.serving -= 1;
  }

  void Start() {
    const tcp::endpoint peer = socket_.remote_endpoint(ec_);
    if (ec_) return Close();
    const std::string address = peer.address().to_string();
    peer_ = (peer.address().is_v6() ? "[" + address + "]" : address) + ":" +
            std::to_string(peer.port());
    SetSocketOptions();
    deadline_ = Now() + shared_.options.idle_timeout_ns;
    if (place_ == Place::kTurnedAway) {
      Refuse({503, "too many connections"});
    } else if (worker_.draining) {
      return Close();
    }
    if (state_ != State::kClosed) ArmRead();
  }

  // No further request: what is being answered goes on, what is being read is refused.
  void Drain() {
    if (state_ == State::kIdle) return Close();
    if (state_ == State::kReading) return Refuse({503, "the server is shutting down"});
    if (answer_) answer_->CloseAfterwards();
  }

  void CheckDeadline(TimeNs now) {
    if (now < deadline_) return;
    if (state_ == State::kReading && !waiting_writable_) {
      return Refuse({408, "the request took too long to arrive"});
    }
    if (waiting_writable_) ResetOnClose();
    Close();
  }

  void Close() {
    if (state_ == State::kClosed) return;
    state_ = State::kClosed;
    error_code ignored;
    socket_.close(ignored);
    const auto self = shared_from_this();
    worker_.connections.erase(self);
    if (const auto answer = std::exchange(answer_, nullptr)) answer->Detach();
  }

 private:
  enum class State : uint8_t { kIdle, kReading, kAnswering, kRefusing, kLingering, kClosed };

  // Runs |step| of this connection; what it throws (out of memory) ends the connection only.
  template <typename Step>
  void Guard(const Step& step) {
    try {
      if (state_ != State::kClosed) step();
    } catch (const std::exception&) {
      Close();
    }
  }

  void SetSocketOptions() {
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

  void ArmRead() {
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

  void OnReadable() {
    const size_t room = state_ == State::kAnswering
                            ? kMaxPipelinedBytes - std::min(in_.size(), kMaxPipelinedBytes)
                            : kReadBytes;
    error_code error;
    const size_t got =
        socket_.read_some(asio::buffer(worker_.scratch.data(), std::min(room, kReadBytes)), error);
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
  void OnEnd() {
    if (state_ == State::kAnswering && answer_->answered()) {
      read_ended_ = true;  // the answer is complete: send the rest, or find out by that
      answer_->CloseAfterwards();
      return;
    }
    Close();
  }

  void ReadRequest() {
    size_t used = 0;
    while (state_ == State::kIdle || state_ == State::kReading) {
      const std::string_view unread = std::string_view(in_).substr(used);
      // Empty lines before a request are ignored (RFC 9112, section 2.2).
      if (!parser_ && unread.starts_with("\r\n")) {
        used += 2;
        continue;
      }
      if (unread.empty() || (!parser_ && unread == "\r")) break;
      if (!parser_) {
        parser_ = std::make_unique<HttpParser>(shared_.options);
        state_ = State::kReading;
        deadline_ = Now() + shared_.options.request_timeout_ns;
        told_to_continue_ = false;
      }
      used += parser_->Feed(unread);
      if (parser_->state() == HttpParser::State::kRefused) {
        Refuse(parser_->refusal());
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

  void Handle() {
    HttpRequest request = parser_->TakeRequest();
    request.peer = peer_;
    request.received_ns = Now();
    const HttpAnswer::Terms terms = {
        .head = request.method == "HEAD",
        .http11 = parser_->http11(),
        .keep_alive = parser_->keep_alive() && !worker_.draining,
        .max_buffered_bytes = shared_.options.max_buffered_bytes,
    };
    parser_.reset();
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
      shared_.handler(std::make_shared<Exchange>(std::move(request), answer_));
    } catch (const std::exception&) {
      // The exchange was dropped on the way out, which answers 500.
    }
  }

  // Answers by itself and ends the connection.
  void Refuse(const HttpRefusal& refusal) {
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
    state_ = State::kRefusing;
    deadline_ = Now() + shared_.options.write_timeout_ns;
    Flush();
  }

  // Sends what there is until the socket takes no more. Everything queued meanwhile leaves in one.
  void Flush() {
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

  void OnSent(size_t sent) {
    out_sent_ += sent;
    if (out_is_answer_ && answer_) answer_->Sent(sent);
  }

  void WaitWritable() {
    waiting_writable_ = true;
    // A request's own limit stays the nearer one.
    if (state_ != State::kReading) deadline_ = Now() + shared_.options.write_timeout_ns;
    socket_.async_wait(tcp::socket::wait_write, [self = shared_from_this()](error_code) {
      self->waiting_writable_ = false;
      if (self->state_ == State::kAnswering) self->deadline_ = kNever;
      self->Guard([&] { self->Flush(); });
    });
  }

  void NextRequest() {
    const bool keep = answer_->keep_alive() && !worker_.draining;
    std::exchange(answer_, nullptr)->Detach();
    if (!keep) return Linger();
    state_ = State::kIdle;
    deadline_ = Now() + shared_.options.idle_timeout_ns;
    ReadRequest();
    if (state_ == State::kClosed) return;
    // A wait for a reset only is to become a wait for the next request.
    if (read_armed_ && waiting_for_reset_) socket_.cancel(ec_);
    ArmRead();
  }

  // Lets the peer read what was sent: closing with unread input would reset the connection.
  void Linger() {
    if (read_ended_) return Close();
    state_ = State::kLingering;
    deadline_ = Now() + kLingerNs;
    in_.clear();
    socket_.shutdown(tcp::socket::shutdown_send, ec_);
    if (read_armed_ && waiting_for_reset_) socket_.cancel(ec_);
    ArmRead();
  }

  void ResetOnClose() { socket_.set_option(asio::socket_base::linger(true, 0), ec_); }

  Worker& worker_;
  Shared& shared_;
  tcp::socket socket_;
  const Place place_;
  State state_ = State::kIdle;
  std::string peer_;
  TimeNs deadline_ = kNever;
  std::string in_;  // read and not yet parsed
  std::unique_ptr<HttpParser> parser_;
  std::shared_ptr<HttpAnswer> answer_;
  std::string out_;  // being sent
  size_t out_sent_ = 0;
  bool out_is_answer_ = false;
  bool waiting_writable_ = false;
  bool read_armed_ = false;
  bool waiting_for_reset_ = false;
  bool read_ended_ = false;
  bool told_to_continue_ = false;
  error_code ec_;
};

Result<tcp::endpoint> EndpointOf(const HttpOptions& options) {
  std::string host = options.host == "localhost" ? "127.0.0.1" : options.host;
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  error_code error;
  const auto address = asio::ip::make_address(host, error);
  if (error) {
    return InvalidArgument("'" + options.host +
                           "' is not an address to listen on; accepted: an IPv4 or IPv6 address of "
                           "this machine, localhost, or 0.0.0.0 and :: for all of them");
  }
  return tcp::endpoint(address, options.port);
}

Status CheckOptions(const HttpOptions& o) {
  if (o.threads == 0 || o.max_header_bytes == 0 || o.max_headers == 0 || o.max_uri_bytes == 0 ||
      o.max_connections == 0 || o.idle_timeout_ns == 0 || o.request_timeout_ns == 0 ||
      o.write_timeout_ns == 0) {
    return InvalidArgument("threads, limits and timeouts of the HTTP server must be at least 1");
  }
  return {};
}

class Server final : public HttpServer {
 public:
  Server(const HttpOptions& options, Handler handler) {
    shared_.options = options;
    shared_.handler = std::move(handler);
    const TimeNs shortest =
        std::min({options.idle_timeout_ns, options.request_timeout_ns, options.write_timeout_ns});
    sweep_every_ =
        std::chrono::nanoseconds(std::clamp<TimeNs>(shortest / 8, 5'000'000, 250'000'000));
    for (unsigned i = 0; i < options.threads; ++i) workers_.push_back(std::make_unique<Worker>());
    acceptor_ = std::make_unique<tcp::acceptor>(workers_[0]->context);
    retry_accept_ = std::make_unique<asio::steady_timer>(workers_[0]->context);
  }
  ~Server() override { Stop(); }

  Status Listen() {
    const tcp::endpoint endpoint = WEIR_TRY(EndpointOf(shared_.options));
    error_code error;
    acceptor_->open(endpoint.protocol(), error);
    if (!error) acceptor_->set_option(tcp::acceptor::reuse_address(true), error);
    if (!error && endpoint.protocol() == tcp::v6()) {
      acceptor_->set_option(asio::ip::v6_only(false), error);
    }
    if (!error) acceptor_->bind(endpoint, error);
    if (!error) acceptor_->listen(kBacklog, error);
    if (!error) port_ = acceptor_->local_endpoint(error).port();
    if (!error) return {};
    const std::string where = shared_.options.host + ":" + std::to_string(shared_.options.port);
    if (error == asio::error::address_in_use) {
      return IoError("port " + where +
                     " is taken by another program; choose another, or 0 for any");
    }
    if (error == asio::error::access_denied) {
      return IoError("port " + where + " may not be bound: ports below 1024 need privileges");
    }
    return IoError("cannot listen on " + where + ": " + error.message());
  }

  void Run() {
    for (size_t i = 0; i < workers_.size(); ++i) {
      Worker& worker = *workers_[i];
      Sweep(worker);
      worker.thread = std::thread([&worker, i] {
        pthread_setname_np(pthread_self(),
                           ("weir-http-" + std::to_string(i)).substr(0, 15).c_str());
        while (true) {
          try {
            worker.context.run();
            return;
          } catch (const std::exception&) {
            // Out of memory between connections: go on with the others.
          }
        }
      });
    }
    asio::post(workers_[0]->context, [this] { Accept(); });
  }

  uint16_t port() const override { return port_; }
  HttpStats stats() const override {
    return {.connections = shared_.open,
            .accepted = shared_.accepted,
            .requests = shared_.requests,
            .rejected = shared_.rejected};
  }

  void StopAccepting() override {
    OnEveryWorker([this](Worker& worker) {
      if (&worker == workers_[0].get()) CloseAcceptor();
      worker.draining = true;
      const auto connections = worker.connections;  // Drain takes out of the set
      for (const auto& connection : connections) connection->Drain();
    });
  }

  void Stop() override {
    if (stopped_.exchange(true)) return;
    for (const auto& worker : workers_) {
      WEIR_CHECK(worker->thread.get_id() != std::this_thread::get_id(),
                 "an HTTP handler must not stop its server");
    }
    OnEveryWorker([this](Worker& worker) {
      if (&worker == workers_[0].get()) CloseAcceptor();
      worker.draining = true;
      worker.sweep.cancel();
      const auto connections = worker.connections;
      for (const auto& connection : connections) connection->Close();
      worker.work.reset();
    });
    for (const auto& worker : workers_) {
      if (worker->thread.joinable()) worker->thread.join();
    }
  }

 private:
  // Returns when |task| has run on all, unless called on one of them, which must not wait.
  void OnEveryWorker(const std::function<void(Worker&)>& task) {
    const auto done = std::make_shared<std::latch>(static_cast<std::ptrdiff_t>(workers_.size()));
    bool inside = false;
    for (const auto& worker : workers_) {
      if (!worker->thread.joinable()) {  // never started, or stopped
        done->count_down();
        continue;
      }
      inside = inside || worker->thread.get_id() == std::this_thread::get_id();
      asio::post(worker->context, [&worker = *worker, task, done] {
        task(worker);
        done->count_down();
      });
    }
    if (!inside) done->wait();
  }

  void CloseAcceptor() {
    error_code ignored;
    acceptor_->close(ignored);
    retry_accept_->cancel();
  }

  void Accept() {
    if (!acceptor_->is_open()) return;
    Worker& worker = *workers_[next_worker_++ % workers_.size()];
    acceptor_->async_accept(worker.context, [this, &worker](error_code error, tcp::socket socket) {
      if (!error) {
        try {
          Admit(worker, std::move(socket));
        } catch (const std::exception&) {
          shared_.rejected += 1;  // out of memory: this connection is closed, the next one may do
        }
        return Accept();
      }
      if (!acceptor_->is_open()) return;
      if (error == asio::error::connection_aborted) return Accept();
      // Out of descriptors or memory: the connections that are open go on, and may end.
      retry_accept_->expires_after(std::chrono::milliseconds(50));
      retry_accept_->async_wait([this](error_code) { Accept(); });
    });
  }

  void Admit(Worker& worker, tcp::socket socket) {
    shared_.accepted += 1;
    const uint64_t serving = shared_.serving;
    const bool full = serving >= shared_.options.max_connections;
    if (full && shared_.open - serving >= kMaxTurnedAway) {
      shared_.rejected += 1;
      return;  // closes the socket
    }
    const auto connection = std::make_shared<Connection>(
        worker, shared_, std::move(socket),
        full ? Connection::Place::kTurnedAway : Connection::Place::kServed);
    const auto start = [&worker, connection] {
      worker.connections.insert(connection);
      connection->Start();
    };
    if (&worker == workers_[0].get()) {
      start();
    } else {
      asio::post(worker.context, start);
    }
  }

  void Sweep(Worker& worker) {
    worker.sweep.expires_after(sweep_every_);
    worker.sweep.async_wait([this, &worker](error_code error) {
      if (error || stopped_) return;
      Sweep(worker);
      const TimeNs now = Now();
      const auto connections = worker.connections;  // closing takes out of the set
      for (const auto& connection : connections) connection->CheckDeadline(now);
    });
  }

  Shared shared_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::unique_ptr<tcp::acceptor> acceptor_;
  std::unique_ptr<asio::steady_timer> retry_accept_;
  std::chrono::nanoseconds sweep_every_{};
  size_t next_worker_ = 0;
  uint16_t port_ = 0;
  std::atomic<bool> stopped_{false};
};

}  // namespace

Result<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpOptions& options, Handler handler) {
  const Status checked = CheckOptions(options);
  if (!checked.ok()) return checked;
  try {
    auto server = std::make_unique<Server>(options, std::move(handler));
    const Status listening = server->Listen();
    if (!listening.ok()) return listening;
    server->Run();
    return std::unique_ptr<HttpServer>(std::move(server));
  } catch (const std::exception& error) {
    return IoError(std::string("cannot start the HTTP server: ") + error.what());
  }
}

}  // namespace weir::server
