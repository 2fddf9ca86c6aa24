// Listening, the I/O threads, and what is over all connections; see http_connection.h.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <latch>
#include <memory>
#include <thread>
#include <utility>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <pthread.h>

#include "engine/server/http.h"
#include "engine/server/http_connection.h"
#include "vmm/check.h"

namespace weir::server {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr int kBacklog = 4096;
constexpr uint32_t kMaxTurnedAway = 64;  // connections told that there are too many, at a time

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
  if (o.max_bodies_bytes < o.max_body_bytes) {
    return InvalidArgument("max_bodies_bytes must hold one body of max_body_bytes");
  }
  return {};
}

class Server final : public HttpServer {
 public:
  explicit Server(const HttpOptions& options) {
    shared_.options = options;
    shared_.bodies = std::make_shared<ByteBudget>(options.max_bodies_bytes);
    const TimeNs shortest =
        std::min({options.idle_timeout_ns, options.request_timeout_ns, options.write_timeout_ns});
    sweep_every_ =
        std::chrono::nanoseconds(std::clamp<TimeNs>(shortest / 8, 5'000'000, 250'000'000));
    for (unsigned i = 0; i < options.threads; ++i)
      workers_.push_back(std::make_unique<HttpWorker>());
    acceptor_ = std::make_unique<tcp::acceptor>(workers_[0]->context);
    retry_accept_ = std::make_unique<asio::steady_timer>(workers_[0]->context);
  }
  ~Server() override { Stop(); }

  Status BindPort() {
    const tcp::endpoint endpoint = WEIR_TRY(EndpointOf(shared_.options));
    error_code error;
    acceptor_->open(endpoint.protocol(), error);
    if (!error) acceptor_->set_option(tcp::acceptor::reuse_address(true), error);
    if (!error && endpoint.protocol() == tcp::v6()) {
      acceptor_->set_option(asio::ip::v6_only(false), error);
    }
    if (!error) acceptor_->bind(endpoint, error);
    if (!error) port_ = acceptor_->local_endpoint(error).port();
    return Bound(error);
  }

  Status Listen(Handler handler) override {
    shared_.handler = std::move(handler);
    error_code error;
    acceptor_->listen(kBacklog, error);
    WEIR_TRY(Bound(error));
    try {
      Run();
    } catch (const std::exception& failed) {
      return CannotStart(failed);
    }
    return OkStatus();
  }

  static Status CannotStart(const std::exception& error) {
    return IoError(std::string("cannot start the HTTP server: ") + error.what());
  }

  uint16_t port() const override { return port_; }
  HttpStats stats() const override {
    return {.connections = shared_.open,
            .accepted = shared_.accepted,
            .requests = shared_.requests,
            .rejected = shared_.rejected,
            .body_bytes = shared_.bodies->used()};
  }

  void StopAccepting() override {
    OnEveryWorker([this](HttpWorker& worker) {
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
    OnEveryWorker([this](HttpWorker& worker) {
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
  // What came of binding or listening.
  Status Bound(const error_code& error) const {
    if (!error) return OkStatus();
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
      HttpWorker& worker = *workers_[i];
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

  // Returns when |task| has run on all, unless called on one of them, which must not wait.
  void OnEveryWorker(const std::function<void(HttpWorker&)>& task) {
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
    HttpWorker& worker = *workers_[next_worker_++ % workers_.size()];
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

  void Admit(HttpWorker& worker, tcp::socket socket) {
    shared_.accepted += 1;
    const uint64_t serving = shared_.serving;
    const bool full = serving >= shared_.options.max_connections;
    if (full && shared_.open - serving >= kMaxTurnedAway) {
      shared_.rejected += 1;
      return;  // closes the socket
    }
    const auto connection = std::make_shared<HttpConnection>(
        worker, shared_, std::move(socket),
        full ? HttpConnection::Place::kTurnedAway : HttpConnection::Place::kServed);
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

  void Sweep(HttpWorker& worker) {
    worker.sweep.expires_after(sweep_every_);
    worker.sweep.async_wait([this, &worker](error_code error) {
      if (error || stopped_) return;
      Sweep(worker);
      const TimeNs now = HttpNow();
      const auto connections = worker.connections;  // closing takes out of the set
      for (const auto& connection : connections) connection->CheckDeadline(now);
    });
  }

  HttpShared shared_;
  std::vector<std::unique_ptr<HttpWorker>> workers_;
  std::unique_ptr<tcp::acceptor> acceptor_;
  std::unique_ptr<asio::steady_timer> retry_accept_;
  std::chrono::nanoseconds sweep_every_{};
  size_t next_worker_ = 0;
  uint16_t port_ = 0;
  std::atomic<bool> stopped_{false};
};

}  // namespace

Result<std::unique_ptr<HttpServer>> HttpServer::Bind(const HttpOptions& options) {
  WEIR_TRY(CheckOptions(options));
  try {
    auto server = std::make_unique<Server>(options);
    WEIR_TRY(server->BindPort());
    return std::unique_ptr<HttpServer>(std::move(server));
  } catch (const std::exception& error) {
    return Server::CannotStart(error);
  }
}

Result<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpOptions& options, Handler handler) {
  std::unique_ptr<HttpServer> server = WEIR_TRY(Bind(options));
  WEIR_TRY(server->Listen(std::move(handler)));
  return server;
}

}  // namespace weir::server
