#include "engine/server/http.h"

#include <nlohmann/json.hpp>

namespace weir::server {

std::string_view HttpRequest::Header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (key == name) return value;
  }
  return {};
}

std::string ErrorBody(unsigned status, std::string_view message) {
  const char* type = status >= 500 ? "server_error" : "invalid_request_error";
  const nlohmann::json body = {
      {"error", {{"message", message}, {"type", type}, {"param", nullptr}, {"code", status}}}};
  // A message may quote what a client sent, which need not be UTF-8.
  return body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace weir::server
