// One connection of the HTTP server. With http_server.cc the only files that know Boost.Asio.
//
// A peer that closed its sending side cannot be told from one that is gone: both send a FIN, and
// without an answer to send there is nothing to learn more from. While an answer is being made a
// FIN therefore means that the client left (nginx and uvicorn read it so); once the answer is
// complete the rest of it is still sent.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <unordered_set>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>

#include "engine/server/byte_budget.h"
#include "engine/server/http.h"
#include "engine/server/http_answer.h"
#include "engine/server/http_parser.h"

namespace weir::server {

// What all connections of a server share.
struct HttpShared {
  HttpOptions options;
  HttpServer::Handler handler;
  std::shared_ptr<ByteBudget> bodies;  // of requests, until their handler has taken them
  std::atomic<uint64_t> open{0}, serving{0}, accepted{0}, requests{0}, rejected{0};
};

class HttpConnection;

// An I/O thread with its connections and everything in them; other threads reach a connection only
// through HttpAnswer, which posts.
struct HttpWorker {
  static constexpr size_t kReadBytes = 64 << 10;

  boost::asio::io_context context{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work{
      context.get_executor()};
  boost::asio::steady_timer sweep{context};
  std::unordered_set<std::shared_ptr<HttpConnection>> connections;
  std::string scratch = std::string(kReadBytes, '\0');
  bool draining = false;
  std::thread thread;
};

// Represents one connection; lives in its worker's set until Close. All on the worker's thread.
//
//   idle ──first byte──► reading ──request complete──► answering ──answer sent──► idle
//   idle, reading ──malformed, too large, too slow──► refusing ──► lingering ──► closed
//
// An answer after which the connection does not go on leads to lingering; everything may close.
class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  enum class Place : uint8_t { kServed, kTurnedAway };

  HttpConnection(HttpWorker& worker, HttpShared& shared, boost::asio::ip::tcp::socket socket,
                 Place place);
  ~HttpConnection();
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  void Start();
  // No further request: what is being answered goes on, what is being read is refused.
  void Drain();
  void CheckDeadline(TimeNs now);
  void Close();

 private:
  enum class State : uint8_t { kIdle, kReading, kAnswering, kRefusing, kLingering, kClosed };

  template <typename Step>
  void Guard(const Step& step);
  void SetSocketOptions();
  void ArmRead();
  void OnReadable();
  void OnEnd();
  void ReadRequest();
  void BeginRequest();
  void CloseIdle();
  void Handle();
  void Refuse(const HttpRefusal& refusal);
  void Flush();
  void OnSent(size_t sent);
  void WaitWritable();
  void NextRequest();
  void Linger();
  void ResetOnClose();

  HttpWorker& worker_;
  HttpShared& shared_;
  boost::asio::ip::tcp::socket socket_;
  const Place place_;
  State state_ = State::kIdle;
  std::string peer_;
  TimeNs deadline_;
  std::string in_;  // read and not yet parsed
  std::unique_ptr<HttpParser> parser_;
  std::unique_ptr<ByteShare> body_;  // of the request being read
  std::shared_ptr<HttpAnswer> answer_;
  std::string out_;  // being sent
  size_t out_sent_ = 0;
  bool out_is_answer_ = false;
  bool waiting_writable_ = false;
  bool read_armed_ = false;
  bool waiting_for_reset_ = false;
  bool read_ended_ = false;
  bool told_to_continue_ = false;
  boost::system::error_code ec_;
};

// The clock of every deadline here.
TimeNs HttpNow();

}  // namespace weir::server
