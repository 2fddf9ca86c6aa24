#include "engine/server/api_routes.h"

#include <nlohmann/json.hpp>

namespace weir::server {
namespace {

using nlohmann::json;

constexpr Route kRoutes[] = {
    {"POST", "/v1/completions", Access::kKey, Action::kGenerate, kCompletions,
     "POST /v1/completions", "Continue a prompt"},
    {"POST", "/v1/chat/completions", Access::kKey, Action::kGenerate, kChat,
     "POST /v1/chat/completions", "Answer a conversation"},
    {"GET", "/v1/models", Access::kKey, Action::kModels, kCompletions, "GET /v1/models",
     "The served models"},
    {"GET", "/v1/models/{id}", Access::kKey, Action::kModel, kCompletions, "GET /v1/models/{id}",
     "One served model"},
    {"POST", "/tokenize", Access::kKey, Action::kText, kTokenize, "POST /tokenize",
     "Text or conversation to token ids"},
    {"POST", "/detokenize", Access::kKey, Action::kText, kDetokenize, "POST /detokenize",
     "Token ids to text"},
    {"GET", "/health", Access::kOpen, Action::kHealth, kCompletions, "GET /health",
     "200 if requests are taken"},
    {"GET", "/ready", Access::kKey, Action::kHealth, kCompletions, "GET /ready", "As /health"},
    {"GET", "/ping", Access::kKey, Action::kHealth, kCompletions, "GET /ping", "As /health"},
    {"GET", "/version", Access::kKey, Action::kVersion, kCompletions, "GET /version",
     "The server's version"},
    {"GET", "/metrics", Access::kKey, Action::kMetrics, kCompletions, "GET /metrics",
     "Prometheus metrics"},
    {"GET", "/load", Access::kKey, Action::kLoad, kCompletions, "GET /load",
     "Requests in the engine"},
    {"GET", "/openapi.json", Access::kKey, Action::kOpenApi, kCompletions, "GET /openapi.json",
     "This document"},
};
constexpr std::string_view kId = "{id}";

json ErrorAnswer(const char* what) {
  return {
      {"description", what},
      {"content", {{"application/json", {{"schema", {{"$ref", "#/components/schemas/Error"}}}}}}}};
}

json ErrorSchema() {
  const json text = {{"type", "string"}}, maybe = {{"type", {"string", "integer", "null"}}};
  return {{"type", "object"},
          {"required", {"error"}},
          {"properties",
           {{"error",
             {{"type", "object"},
              {"required", {"message", "type", "param", "code"}},
              {"properties",
               {{"message", text}, {"type", text}, {"param", maybe}, {"code", maybe}}}}}}}};
}

json Answers(const Route& route) {
  const bool metrics = route.action == Action::kMetrics;
  json content = {{metrics ? "text/plain" : "application/json",
                   {{"schema", {{"type", metrics ? "string" : "object"}}}}}};
  if (route.action == Action::kGenerate) {
    content["text/event-stream"] = {{"schema", {{"type", "string"}}}};
  }
  json answers = {{"200", {{"description", "OK"}, {"content", std::move(content)}}}};
  const auto add = [&](const char* status, const char* what) {
    answers[status] = ErrorAnswer(what);
  };
  if (route.access == Access::kKey) add("401", "no key, or an unknown one");
  if (route.method == "POST") {
    add("400", "the request is not valid; `param` names the field");
    add("413", "the body is too large");
    add("415", "the content type is not application/json");
    add("503", "the server is full, or does not take requests now");
  }
  if (route.action == Action::kGenerate || route.action == Action::kModel ||
      route.action == Action::kText) {
    add("404", "the model is not served here");
  }
  if (route.action == Action::kGenerate) {
    add("422", "the request can never fit the memory budget");
    add("429", "too many requests of this key");
    add("500", "the engine failed");
    add("504", "the deadline has passed");
  }
  if (route.action == Action::kHealth) add("503", "the server does not take requests");
  return answers;
}

}  // namespace

std::span<const Route> Routes() {
  return kRoutes;
}

bool Matches(const Route& route, std::string_view path, std::string_view* id) {
  if (!route.path.ends_with(kId)) return route.path == path;
  const std::string_view prefix = route.path.substr(0, route.path.size() - kId.size());
  if (!path.starts_with(prefix) || path.size() == prefix.size()) return false;
  *id = path.substr(prefix.size());
  return true;
}

std::string OpenApiDocument(const ServedModel& model, std::string_view version) {
  const RequestLimits limits{model.vocab_size, model.max_model_len};
  json paths = json::object();
  for (const Route& route : kRoutes) {
    const std::string method = route.method == "GET" ? "get" : "post";
    json operation = {{"summary", route.summary}, {"responses", Answers(route)}};
    operation["security"] = route.access == Access::kKey
                                ? json::array({{{"key", json::array()}}, json::object()})
                                : json::array();
    if (route.path.ends_with(kId)) {
      operation["parameters"] = {{{"name", "id"},
                                  {"in", "path"},
                                  {"required", true},
                                  {"schema", {{"type", "string"}, {"minLength", 1}}},
                                  {"example", model.id}}};
    }
    if (route.method == "POST") {
      operation["requestBody"] = {
          {"required", true},
          {"content",
           {{"application/json", {{"schema", RequestSchema(route.endpoint, model.id, limits)}}}}}};
    }
    paths[std::string(route.path)][method] = std::move(operation);
  }
  const json document = {
      {"openapi", "3.1.0"},
      {"info", {{"title", "weir"}, {"version", version}}},
      {"paths", std::move(paths)},
      {"components",
       {{"schemas", {{"Error", ErrorSchema()}}},
        {"securitySchemes", {{"key", {{"type", "http"}, {"scheme", "bearer"}}}}}}}};
  return document.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace weir::server
