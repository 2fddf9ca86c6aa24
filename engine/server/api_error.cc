#include "engine/server/api_error.h"

#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "engine/server/json_writer.h"

namespace weir::server {
namespace {

std::string_view TypeOf(unsigned status) {
  if (status == 429) return "rate_limit_error";
  return status >= 500 ? "server_error" : "invalid_request_error";
}

void AppendStringOrNull(const std::string& text, std::string* out) {
  if (text.empty()) {
    *out += "null";
  } else {
    AppendJsonString(text, out);
  }
}

}  // namespace

ApiError InvalidField(std::string param, std::string message) {
  return {.status = 400, .message = std::move(message), .param = std::move(param)};
}

ApiError UnknownModel(std::string param, std::string_view asked, std::string_view served) {
  return {404,
          "the model \"" + std::string(asked) + "\" is not served here; \"" + std::string(served) +
              "\" is",
          std::move(param), "model_not_found"};
}

std::string ErrorJson(const ApiError& error) {
  std::string json = R"({"error":{"message":)";
  // It may quote what the client sent, which need not be UTF-8.
  json +=
      nlohmann::json(error.message).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  json += R"(,"type":")";
  json += TypeOf(error.status);
  json += R"(","param":)";
  AppendStringOrNull(error.param, &json);
  json += R"(,"code":)";
  AppendStringOrNull(error.code, &json);
  json += "}}";
  return json;
}

HttpResponse ErrorResponse(const ApiError& error, uint32_t retry_after_s) {
  HttpResponse response{.status = error.status, .body = ErrorJson(error)};
  if (error.status == 429 || error.status == 503) {
    response.headers.emplace_back("retry-after", std::to_string(retry_after_s));
    response.headers.emplace_back("retry-after-ms", std::to_string(retry_after_s * 1000ULL));
  }
  if (error.status == 429 || error.status >= 500) {
    response.headers.emplace_back("x-should-retry",
                                  error.retry == Retry::kLater ? "true" : "false");
  }
  if (error.status == 401) response.headers.emplace_back("www-authenticate", "Bearer");
  return response;
}

ApiError RefusedError(const Status& status) {
  const std::string& message = status.message();
  switch (status.code()) {
    case StatusCode::kShouldWait: return {429, message, "", "rate_limit_exceeded", Retry::kLater};
    // The whole server is full: a client that tries again by itself would multiply the load.
    case StatusCode::kNoMemory: return {503, message, "", "server_overloaded", Retry::kNo};
    case StatusCode::kBadState: return {503, message, "", "server_not_ready", Retry::kLater};
    case StatusCode::kInvalidArgument:
    case StatusCode::kUnsupported: return {400, message, "", ""};
    default: return {500, message, "", "internal_error"};
  }
}

ApiError EndedError(const Status& status) {
  const std::string& message = status.message();
  switch (status.code()) {
    case StatusCode::kOk:
      return {503, "the server stopped the request: it is shutting down", "", "server_not_ready",
              Retry::kLater};
    case StatusCode::kNoMemory: return {422, message, "", "request_does_not_fit"};
    case StatusCode::kCancelled: return {504, message, "", "deadline_exceeded"};
    case StatusCode::kShouldWait:
    case StatusCode::kBadState:
    case StatusCode::kInvalidArgument:
    case StatusCode::kUnsupported: return RefusedError(status);
    default: return {500, message, "", "internal_error"};
  }
}

}  // namespace weir::server
