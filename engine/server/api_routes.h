// The table of routes; the router and /openapi.json read it.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "engine/server/api_request.h"
#include "engine/server/request_engine.h"

namespace weir::server {

enum class Access : uint8_t { kOpen, kKey };
enum class Action : uint8_t {
  kGenerate,  // Route::endpoint
  kText,      // tokenize, detokenize: Route::endpoint
  kModels,
  kModel,
  kHealth,
  kVersion,
  kMetrics,
  kLoad,
  kOpenApi,
};

struct Route {
  std::string_view method;
  std::string_view path;  // ends with {id}: the rest of the path, slashes too
  Access access = Access::kKey;
  Action action = Action::kHealth;
  Endpoint endpoint = kCompletions;  // of kGenerate and kText
  std::string_view name;             // "POST /v1/completions"
  std::string_view summary;
};
std::span<const Route> Routes();

// Whether |path| belongs to |route|; sets |id| to what stands for {id}.
bool Matches(const Route& route, std::string_view path, std::string_view* id);

// OpenAPI 3.1 of all routes.
std::string OpenApiDocument(const ServedModel& model, std::string_view version);

}  // namespace weir::server
