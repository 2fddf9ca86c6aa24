#include "engine/server/served_engine.h"

#include <utility>

namespace weir::server {
namespace {

class Place final : public QueuePlace {
 public:
  explicit Place(Admission taken) : admission(std::move(taken)) {}
  Admission admission;
};

}  // namespace

Result<std::unique_ptr<QueuePlace>> ServedEngine::Admit(const std::string& tenant) {
  Admission admission = WEIR_TRY(engine_.Admit(tenant));
  return std::unique_ptr<QueuePlace>(std::make_unique<Place>(std::move(admission)));
}

Result<uint64_t> ServedEngine::Submit(std::unique_ptr<QueuePlace> place, AsyncRequest request,
                                      std::shared_ptr<OutputSink> sink) {
  return engine_.Submit(std::move(static_cast<Place&>(*place).admission), std::move(request),
                        std::move(sink));
}

EngineState ServedEngine::state() const {
  AsyncStats stats = engine_.stats();
  return {
      .health = stats.health, .failure = std::move(stats.failure), .unfinished = stats.unfinished};
}

std::string ServedEngine::RenderMetrics() const {
  const HttpServer* http = http_;
  return metrics_.Render(engine_.stats(), http != nullptr ? http->stats() : HttpStats());
}

}  // namespace weir::server
