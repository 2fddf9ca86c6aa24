#include <cstdio>
#include <iostream>
#include <iterator>
#include <utility>

#include "engine/cli/command_line.h"
#include "engine/cli/logging.h"
#include "engine/cli/progress.h"
#include "engine/cli/prompts.h"
#include "engine/cli/signals.h"
#include "engine/cli/size_text.h"
#include "engine/engine.h"

namespace weir::cli {
namespace {

Result<GenerationRequest> MakeRequest(const Engine& engine, const Config& config,
                                      const GenerateOptions& options) {
  GenerationRequest request;
  request.sampling = config.settings().sampling;
  request.sampling.stop = options.stop;
  request.prompt = options.prompt;
  if (options.prompt == "-") {
    request.prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
  }
  if (options.chat || !options.system.empty()) {
    request.prompt =
        WEIR_TRY(engine.ApplyChatTemplate(MessagesJson(options.system, request.prompt)));
    request.add_special_tokens = false;
  }
  return request;
}

void Print(const GenerationOutput& output, bool raw) {
  if (!raw) {
    std::fwrite(output.text.data(), 1, output.text.size(), stdout);
  } else {
    for (const SampledToken& token : output.tokens) std::printf("%d\n", token.token);
  }
  std::fflush(stdout);
}

}  // namespace

int GenerateCommand(const Config& config, const GenerateOptions& options) {
  Progress progress(/*quiet=*/false);
  Result<std::unique_ptr<Engine>> opened =
      Engine::Open(config.settings().engine, progress.ForLoading());
  progress.Clear();
  if (!opened.ok()) return Fail(opened.status(), kExitUsage);
  Engine& engine = **opened;
  Result<GenerationRequest> request = MakeRequest(engine, config, options);
  if (!request.ok()) return Fail(request.status(), kExitUsage);
  CatchInterrupts();
  const TimeNs start = engine.driver().Now();
  const Result<RequestId> id = engine.Submit(std::move(*request));
  if (!id.ok()) return Fail(id.status(), kExitUsage);

  TimeNs first = 0;
  uint64_t tokens = 0;
  GenerationOutput last;
  while (!last.finished && !Interrupted()) {
    const Result<bool> worked = engine.Step();
    if (!worked.ok()) return Fail(worked.status(), kExitFailed);
    for (GenerationOutput& output : engine.TakeOutputs()) {
      if (first == 0) first = engine.driver().Now();
      tokens += output.tokens.size();
      Print(output, options.raw);
      last = std::move(output);
    }
  }
  if (!options.raw) std::printf("\n");
  if (!last.error.ok()) return Fail(last.error, kExitFailed);
  const TimeNs end = engine.driver().Now();
  const double decode_s = static_cast<double>(end - first) / 1e9;
  std::fprintf(stderr,
               "weir: %u prompt tokens (%u from the prefix cache), first token after %s ms; %s "
               "tokens, %s tokens/s (%s)\n",
               last.prompt_tokens, last.cached_tokens,
               Fixed(static_cast<double>(first - start) / 1e6, 0).c_str(),
               std::to_string(tokens).c_str(),
               Fixed(tokens > 1 ? static_cast<double>(tokens - 1) / decode_s : 0, 1).c_str(),
               Interrupted() ? "interrupted" : std::string(FinishReasonName(last.reason)).c_str());
  return Interrupted() ? kExitInterrupted : kExitOk;
}

}  // namespace weir::cli
