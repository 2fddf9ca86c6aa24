#include "engine/server/api_answer.h"

#include <algorithm>

#include <openssl/rand.h>

namespace weir::server {
namespace {

// The client's id if it is harmless in headers, logs and JSON, otherwise one of our own.
std::string RequestIdOf(const HttpRequest& request) {
  const std::string_view given = request.Header("x-request-id");
  const auto harmless = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
           c == '_' || c == '.' || c == ':';
  };
  if (!given.empty() && given.size() <= 128 && std::all_of(given.begin(), given.end(), harmless)) {
    return std::string(given);
  }
  static constexpr char kHex[] = "0123456789abcdef";
  unsigned char bytes[16] = {};
  WEIR_CHECK(RAND_bytes(bytes, sizeof(bytes)) == 1, "the system has random numbers");
  std::string id;
  for (const unsigned char byte : bytes) {
    id += kHex[byte >> 4];
    id += kHex[byte & 15];
  }
  return id;
}

}  // namespace

Answer::Answer(std::shared_ptr<ApiContext> context, std::shared_ptr<HttpExchange> exchange)
    : context_(std::move(context)), exchange_(std::move(exchange)) {
  record_.request_id = RequestIdOf(request());
  record_.peer = request().peer;
  record_.received_ns = request().received_ns;
  context_->in_flight.fetch_add(1);
}

Answer::~Answer() {
  if (!complete()) Fail({500, "the request was dropped", "", "internal_error"});
}

bool Answer::Complete(unsigned status) {
  if (complete_.exchange(true)) return false;
  record_.status = status;
  return true;
}

void Answer::Report() {
  record_.finished_ns = MonotonicNow();
  context_->in_flight.fetch_sub(1);
  if (context_->options.on_request_end) context_->options.on_request_end(record_);
}

void Answer::Reply(HttpResponse response, const std::string& error) {
  if (!Complete(response.status)) return;
  record_.error = error;
  response.headers.emplace_back("x-request-id", record_.request_id);
  exchange_->Reply(std::move(response));
  Report();
}

void Answer::Fail(const ApiError& error) {
  Reply(ErrorResponse(error, context_->options.retry_after_s), error.message);
}

void Answer::BeginStream() {
  exchange_->BeginStream(200, "text/event-stream; charset=utf-8",
                         {{"cache-control", "no-cache"},
                          {"x-accel-buffering", "no"},
                          {"x-request-id", record_.request_id}});
}

void Answer::EndStream(std::string last, const std::string& error) {
  // In this order, so that whoever left before the end is a client that left.
  if (!exchange_->EndStreamWith(std::move(last))) return ClientLeft();
  if (!Complete(200)) return;
  record_.error = error;
  Report();
}

void Answer::Abort(unsigned status, std::string why) {
  if (!Complete(status)) return;
  record_.error = std::move(why);
  exchange_->Abort();
  Report();
}

void Answer::ClientLeft() {
  if (!Complete(499)) return;
  record_.error = "the client left";
  Report();
}

}  // namespace weir::server
