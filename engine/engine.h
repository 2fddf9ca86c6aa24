// Engine: a served model. Prompts in, text out; the embedding API of weir.
//
//   auto engine = *weir::Engine::Open({.model = "model-directory", .hbm_budget = 300 << 20});
//   auto id = engine->Submit({.prompt = "Once upon a time"});
//   while (*engine->Step()) for (auto& out : engine->TakeOutputs()) std::cout << out.text;
//
// Represents {driver, memory, compute, policy, tokenizer, core} put together. Not thread-safe: one
// thread submits, steps and takes outputs.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/core.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_config.h"
#include "engine/options.h"
#include "engine/text/chat_template.h"
#include "engine/text/detokenizer.h"
#include "engine/text/tokenizer.h"
#include "engine/weight_loader.h"

namespace weir {

class Backend;
class TraceSession;

struct GenerationRequest {
  std::string prompt;                  // text, unless |prompt_tokens| is given
  std::vector<int32_t> prompt_tokens;  // used as they are
  bool add_special_tokens = true;      // bos, as the tokenizer says, in front of |prompt|
  SamplingParams sampling;             // includes stop strings
  uint64_t cache_salt = 0;
  int32_t priority = 0;
};

// What is new about one request since the last TakeOutputs.
struct GenerationOutput {
  RequestId id = 0;
  std::string text;  // complete UTF-8; what stopped it is not in it unless asked for
  SampledTokens tokens;
  bool finished = false;
  FinishReason reason = FinishReason::kNone;
  Status error;
  uint32_t prompt_tokens = 0;
  uint32_t cached_tokens = 0;
  TimeNs scheduled_ns = 0;  // start of the first step it took part in; 0: none yet
};

// Seconds of the phases of Engine::Open.
struct StartupTimes {
  double memory = 0;   // device, granules, mappings
  double weights = 0;  // loading
  double kernels = 0;  // recording the step; on a GPU, choosing algorithms and capturing
  double calibration = 0;
};

struct EngineInfo {
  std::string device;              // "cpu avx512, 2 threads" ...
  std::string driver;              // "host"
  bool schedule_invariant = true;  // Compute::schedule_invariant
  std::string policy;
  uint64_t granule_bytes = 0;
  uint64_t budget_bytes = 0;  // the pool: granules * granule size
  uint64_t weight_bytes = 0;
  uint64_t lookup_bytes = 0;  // of them: never at home, read in place (Memory::lookup_bytes)
  uint64_t scratch_bytes = 0;
  uint64_t kv_block_bytes = 0;
  uint64_t most_kv_blocks = 0;  // whatever the border
  uint32_t max_model_len = 0;
  uint64_t max_request_tokens = 0;  // EngineCore::max_request_tokens: max_model_len or less
  uint64_t clock_error_ns = 0;      // Compute::clock_error_ns, after calibration
  // DriverProperties::host_tier_shortcoming, where the backing copy lies there.
  std::string host_memory_shortcoming;
  std::string backing_refusal;  // why weights cannot leave although they were to; "": they can
  WeightLoadReport load;
  StartupTimes startup;
};

class Engine {
 public:
  using ProgressFn = std::function<void(std::string_view phase, uint64_t done, uint64_t total)>;
  // Loads the model, maps memory, calibrates. Errors name the option or file and what is accepted.
  static Result<std::unique_ptr<Engine>> Open(const EngineOptions& options,
                                              const ProgressFn& progress = {});
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const EngineOptions& options() const { return options_; }
  const EngineInfo& info() const { return info_; }
  const ModelConfig& model() const { return model_; }
  const Tokenizer* tokenizer() const {
    return tokenizer_.get();
  }  // null: a dummy without text files
  // Null when the model has no chat template; the reason is then in chat_template_error().
  const ChatTemplate* chat_template() const { return chat_template_.get(); }
  const std::string& chat_template_error() const { return chat_template_error_; }

  Result<std::vector<int32_t>> Tokenize(std::string_view text, bool add_special_tokens) const;
  // |messages_json|: an array of {"role", "content"}; the prompt for the assistant's next turn.
  Result<std::string> ApplyChatTemplate(std::string_view messages_json) const;

  // kInvalidArgument: not UTF-8, too long, bad sampling parameters. kNoMemory: cannot fit.
  Result<RequestId> Submit(GenerationRequest request);
  Status Cancel(RequestId id);
  // One step of the batch; false when idle.
  Result<bool> Step();
  std::vector<GenerationOutput> TakeOutputs();

  EngineCore& core() { return *core_; }
  Compute& compute() { return *compute_; }
  Driver& driver();

 private:
  // Text state of one request.
  struct Stream {
    IncrementalDetokenizer detokenizer;
    StopMatcher stops;
    StopText stop_text = StopText::kExclude;
    uint32_t unsearched = 0;  // tokens still to come whose text may hold a stop string (min_tokens)
  };

  explicit Engine(const EngineOptions& options);
  Status Build(const ProgressFn& progress);
  Status LoadText(const Checkpoint& checkpoint);
  Status BuildMemory(bool lookup_in_place);
  GenerationOutput Translate(CoreOutput output);
  std::string TextOf(Stream& stream, const GenerationOutput& output) const;

  EngineOptions options_;
  EngineInfo info_;
  ModelConfig model_;
  std::optional<Checkpoint> checkpoint_;  // where weights are read anew if their copy is gone
  std::unique_ptr<TraceSession> trace_;   // outlives everything that emits
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Memory> memory_;
  std::unique_ptr<Compute> compute_;
  std::unique_ptr<Policy> policy_;
  std::unique_ptr<EngineCore> core_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_template_;
  std::string chat_template_error_;
  std::unordered_map<RequestId, Stream> streams_;
  std::vector<GenerationOutput> outputs_;
};

}  // namespace weir
