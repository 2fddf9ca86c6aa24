#include "engine/server/api_service.h"

#include <cctype>
#include <utility>

#include "engine/server/api_answer.h"
#include "engine/server/api_generate.h"
#include "engine/server/api_prompt.h"
#include "engine/server/api_routes.h"
#include "engine/server/json_writer.h"

namespace weir::server {
namespace {

std::string Lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

// "application/json", with or without "; charset=utf-8".
bool IsJson(std::string_view content_type) {
  const std::string type = Lower(content_type.substr(0, content_type.find(';')));
  const size_t end = type.find_last_not_of(" \t");
  return end != std::string::npos && type.substr(0, end + 1) == "application/json";
}

std::string_view HealthName(Health health) {
  switch (health) {
    case Health::kStarting: return "starting";
    case Health::kReady: return "ready";
    case Health::kNotReady: return "not ready";
    case Health::kDraining: return "draining";
    case Health::kFailed: return "failed";
  }
  return "?";
}

class Service final : public ApiService {
 public:
  explicit Service(std::shared_ptr<ApiContext> context)
      : context_(std::move(context)),
        openapi_(OpenApiDocument(context_->model, context_->options.version)),
        workers_(context_->options.workers, context_->options.max_pending,
                 context_->options.max_pending_bytes) {
    context_->workers = &workers_;
  }

  void Handle(std::shared_ptr<HttpExchange> exchange) override {
    auto answer = std::make_shared<Answer>(context_, std::move(exchange));
    const HttpRequest& request = answer->request();
    const Route* found = nullptr;
    std::string_view id;
    std::string allowed;  // methods of this path
    for (const Route& route : Routes()) {
      if (!Matches(route, request.path, &id)) continue;
      allowed += (allowed.empty() ? "" : ", ") + std::string(route.method);
      if (route.method == request.method) found = &route;
    }
    // Before anything about the path is told: what is not open needs a key, also what is not there.
    const std::string* tenant = context_->keys.Tenant(request.Header("authorization"));
    const bool open = found != nullptr && found->access == Access::kOpen;
    if (tenant == nullptr && !open) {
      return answer->Fail(
          {401, "a valid API key is needed: Authorization: Bearer <key>", "", "invalid_api_key"});
    }
    if (tenant != nullptr) answer->record().tenant = *tenant;
    if (found != nullptr) {
      answer->record().route = found->name;
      return Dispatch(*found, id, std::move(answer));
    }
    if (allowed.empty()) {
      return answer->Fail({404, "no such path; GET /openapi.json lists them", "", "not_found"});
    }
    HttpResponse response =
        ErrorResponse({405, "the method must be " + allowed, "", "method_not_allowed"}, 0);
    response.headers.emplace_back("allow", allowed);
    answer->Reply(std::move(response));
  }

  uint32_t in_flight() const override { return context_->in_flight.load(); }

 private:
  void Dispatch(const Route& route, std::string_view id, std::shared_ptr<Answer> answer) {
    if (route.method == "POST" && !IsJson(answer->request().Header("content-type"))) {
      return answer->Fail(
          {415, "the content type must be application/json", "", "unsupported_media_type"});
    }
    switch (route.action) {
      case Action::kGenerate:
        return std::make_shared<GenerationCall>(route.endpoint, std::move(answer))->Start();
      case Action::kText: return StartText(route.endpoint, std::move(answer));
      case Action::kModels:
        return answer->Reply({.body = R"({"object":"list","data":[)" + ModelCard() + "]}"});
      case Action::kModel:
        if (id == context_->model.id) return answer->Reply({.body = ModelCard()});
        return answer->Fail(UnknownModel("", id, context_->model.id));
      case Action::kHealth: return ReplyHealth(*answer);
      case Action::kVersion: {
        std::string body = R"({"version":)";
        AppendJsonString(context_->options.version, &body);
        return answer->Reply({.body = body + "}"});
      }
      case Action::kMetrics:
        return answer->Reply({.content_type = "text/plain; version=0.0.4; charset=utf-8",
                              .body = context_->engine->RenderMetrics()});
      case Action::kLoad: {
        std::string body = R"({"server_load":)";
        AppendJsonNumber(context_->engine->state().unfinished, &body);
        return answer->Reply({.body = body + "}"});
      }
      case Action::kOpenApi: return answer->Reply({.body = openapi_});
    }
  }

  void StartText(Endpoint endpoint, std::shared_ptr<Answer> answer) {
    answer->exchange().OnClientLeft([weak = std::weak_ptr<Answer>(answer)] {
      if (const auto left = weak.lock()) left->ClientLeft();
    });
    const uint64_t bytes = answer->request().body.size();
    if (workers_.Post(bytes, [endpoint, answer] { ReplyText(endpoint, *answer); })) return;
    answer->Fail(RefusedError(NoMemory("too many requests wait to be read")));
  }

  static void ReplyText(Endpoint endpoint, Answer& answer) {
    const ServedModel& model = answer.context().model;
    ApiRequest request;
    FieldError error = ParseRequest(endpoint, answer.exchange().TakeBody(),
                                    {model.vocab_size, model.max_model_len}, &request);
    if (!error && !request.model.empty() && request.model != model.id) {
      error = UnknownModel("model", request.model, model.id);
    }
    std::string body;
    if (!error) {
      error = endpoint == kTokenize ? TokenizeReply(model, request, &body)
                                    : DetokenizeReply(model, request, &body);
    }
    if (error) return answer.Fail(*error);
    answer.Reply({.body = std::move(body)});
  }

  void ReplyHealth(Answer& answer) const {
    const EngineState state = context_->engine->state();
    if (state.health == Health::kReady) return answer.Reply({.body = R"({"status":"ready"})"});
    std::string why = "the server is " + std::string(HealthName(state.health));
    if (!state.failure.ok()) why += ": " + state.failure.message();
    answer.Fail({503, why, "", "server_not_ready", Retry::kLater});
  }

  std::string ModelCard() const {
    const ServedModel& model = context_->model;
    std::string card = R"({"id":)";
    AppendJsonString(model.id, &card);
    card += R"(,"object":"model","created":)";
    AppendJsonNumber(model.created_s, &card);
    card += R"(,"owned_by":"weir","root":)";
    AppendJsonString(model.id, &card);
    card += R"(,"parent":null,"max_model_len":)";
    AppendJsonNumber(model.max_model_len, &card);
    return card + "}";
  }

  std::shared_ptr<ApiContext> context_;
  const std::string openapi_;
  WorkerPool workers_;
};

}  // namespace

Result<std::unique_ptr<ApiService>> ApiService::Create(std::shared_ptr<RequestEngine> engine,
                                                       ServedModel model, ApiOptions options) {
  if (model.id.empty()) return InvalidArgument("the served model needs a name");
  if (options.workers == 0) return InvalidArgument("workers must be at least 1");
  for (size_t i = 0; i < options.keys.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (options.keys[i].sha256 == options.keys[j].sha256) {
        return InvalidArgument("tenants " + options.keys[j].tenant + " and " +
                               options.keys[i].tenant + " have the same key");
      }
    }
  }
  return std::unique_ptr<ApiService>(std::make_unique<Service>(
      std::make_shared<ApiContext>(std::move(engine), std::move(model), std::move(options))));
}

}  // namespace weir::server
