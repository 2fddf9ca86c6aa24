#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "engine/backend.h"
#include "engine/model/checkpoint.h"
#include "engine/open_model.h"
#include "engine/trace_metadata.h"
#include "engine/trace_session.h"
#include "policy/registry.h"

namespace weir {
namespace {

// Enough KV for every sequence to reach the smaller of the model's context and this many tokens,
// when the user gives neither a budget nor a KV size.
constexpr uint64_t kTokensWantedPerSequence = 2048;

// Whatever one of the two calls an end. A model tuned for chat often has its end of a turn in the
// tokenizer's files only, and the base model's end of a text in config.json.
std::vector<int32_t> EosIds(const ModelConfig& model, const Tokenizer* tokenizer) {
  std::vector<int32_t> ids = model.eos_token_ids;
  if (tokenizer == nullptr) return ids;
  for (const int32_t id : tokenizer->eos_ids()) {
    const bool known = std::find(ids.begin(), ids.end(), id) != ids.end();
    if (!known && static_cast<uint32_t>(id) < model.vocab_size) ids.push_back(id);
  }
  return ids;
}

BackingTier BackingTierOf(BackingChoice choice) {
  switch (choice) {
    case BackingChoice::kHost: return BackingTier::kHost;
    case BackingChoice::kNvme: return BackingTier::kNvme;
    case BackingChoice::kNone: return BackingTier::kNone;
    case BackingChoice::kPeer: return BackingTier::kPeer;
  }
  return BackingTier::kNone;
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::Open(const EngineOptions& options,
                                             const ProgressFn& progress) {
  std::unique_ptr<Engine> engine(new Engine(options));
  WEIR_TRY(engine->Build(progress));
  return engine;
}

// Here, because both need the whole of Backend, which users of engine.h need not see.
Engine::Engine(const EngineOptions& options) : options_(options) {}
Engine::~Engine() = default;

Driver& Engine::driver() {
  return backend_->driver();
}

Status Engine::Build(const ProgressFn& progress) {
  if (options_.max_num_seqs == 0 || options_.max_num_batched_tokens == 0) {
    return InvalidArgument("max_num_seqs and max_num_batched_tokens must be at least 1");
  }
  policy_ = WEIR_TRY(MakePolicy(options_.policy));
  Checkpoint checkpoint = WEIR_TRY(OpenCheckpoint(options_));
  model_ = checkpoint.config();
  WEIR_TRY(LoadText(checkpoint));

  if (options_.max_model_len == 0) options_.max_model_len = model_.max_position;
  if (options_.max_model_len > model_.max_position) {
    return InvalidArgument("max_model_len " + std::to_string(options_.max_model_len) +
                           " exceeds the model's " + std::to_string(model_.max_position) +
                           " positions");
  }
  trace_ = WEIR_TRY(TraceSession::Start(options_.trace));
  const ComputeLimits limits{.max_rows = options_.max_num_batched_tokens,
                             .max_sequences = options_.max_num_seqs,
                             .max_context = options_.max_model_len,
                             .vocab_size = model_.vocab_size};
  auto phase = std::chrono::steady_clock::now();
  const auto lap = [&phase] {
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - std::exchange(phase, now)).count();
  };
  backend_ = WEIR_TRY(MakeBackend(options_, model_, limits));
  const auto load = [&](bool lookup_in_place) -> Status {
    WEIR_TRY(BuildMemory(lookup_in_place));
    info_.startup.memory = lap();
    info_.load = WEIR_TRY(backend_->Load(checkpoint, *memory_, progress));
    return OkStatus();
  };
  WEIR_TRY(
      LoadWithLookup(policy_->lookup_in_place(), BackingTierOf(options_.backing), &memory_, load));
  info_.most_kv_blocks = memory_->most_kv_blocks();
  if (!memory_->backing_refusal().ok()) {
    info_.backing_refusal = memory_->backing_refusal().ToString();
  }
  if (memory_->backing_tier() == Tier::kHost) {
    info_.host_memory_shortcoming = driver().properties().host_tier_shortcoming;
  }
  WEIR_TRY(memory_->MeasureLink());
  info_.startup.weights = lap();
  if (memory_->backing_tier() != Tier::kHbm) {
    checkpoint_.emplace(std::move(checkpoint));
    memory_->weights().SetSource([this](std::span<const WeightRange> ranges) -> Status {
      WEIR_TRY(checkpoint_->CheckUnchanged());
      return backend_->Reload(*checkpoint_, *memory_, ranges);
    });
  }
  compute_ = WEIR_TRY(backend_->MakeCompute(*memory_, progress));
  info_.startup.kernels = lap();

  CoreOptions core;
  core.scheduler.max_batched_tokens = options_.max_num_batched_tokens;
  core.scheduler.max_prefill_chunk = options_.max_num_batched_tokens;
  core.scheduler.max_sequences = options_.max_num_seqs;
  core.max_model_len = options_.max_model_len;
  core.eos_ids = EosIds(model_, tokenizer_.get());
  core_ = std::make_unique<EngineCore>(driver(), *memory_, *compute_, *policy_, core);
  if (progress) progress("calibrating", 0, 1);
  WEIR_TRY(core_->Calibrate());
  if (progress) progress("calibrating", 1, 1);
  info_.startup.calibration = lap();
  info_.device = compute_->description();
  info_.driver = driver().properties().name;
  info_.schedule_invariant = compute_->schedule_invariant();
  info_.clock_error_ns = compute_->clock_error_ns();
  info_.policy = options_.policy;
  info_.max_model_len = options_.max_model_len;
  info_.max_request_tokens = core_->max_request_tokens();
  if (trace_ != nullptr) {
    WEIR_TRY(trace_->tracer().SetMetadata(TraceMetadata(options_, info_, *memory_, *policy_)));
  }
  return OkStatus();
}

Status Engine::BuildMemory(bool lookup_in_place) {
  MemoryOptions m;
  m.hbm_budget_bytes = options_.hbm_budget;
  m.granule_bytes = options_.granule;
  m.kv_wanted_bytes = options_.kv_cache_bytes;
  backend_->Describe(&m);
  const uint64_t tokens = std::min<uint64_t>(options_.max_model_len, kTokensWantedPerSequence);
  if (m.kv_wanted_bytes == 0) {
    m.kv_wanted_bytes = options_.max_num_seqs * CeilDiv(tokens, kBlockTokens) * m.kv_block_bytes;
  }
  m.kv_least_blocks = CeilDiv(std::min(options_.max_model_len, kLeastRequestTokens), kBlockTokens);
  m.backing = BackingTierOf(options_.backing);
  m.file.directory = options_.backing_directory;
  m.pager.verify_stripes = options_.verify_stripes;
  m.prefix_caching = options_.enable_prefix_caching;
  m.scrub_kv = options_.scrub_kv;
  m.poison_freed = options_.poison_freed;
  m.ring_slots = options_.ring_slots;
  m.lookup_in_place = lookup_in_place;
  memory_ = WEIR_TRY(Memory::Create(driver(), m));
  info_.granule_bytes = memory_->view().granule_bytes;
  info_.budget_bytes = memory_->view().pool.total * info_.granule_bytes;
  info_.weight_bytes = m.weights.region_bytes;
  info_.lookup_bytes = memory_->lookup_bytes();
  info_.scratch_bytes = m.scratch_bytes;
  info_.kv_block_bytes = m.kv_block_bytes;
  return OkStatus();
}

Status Engine::LoadText(const Checkpoint& checkpoint) {
  const ModelTextFiles& files = checkpoint.text_files();
  tokenizer_ = WEIR_TRY(OpenTokenizer(files));
  if (files.chat_template.empty()) {
    chat_template_error_ = "the model has no chat template";
    return OkStatus();
  }
  // A template that cannot be parsed costs chat, not completion.
  Result<ChatTemplate> parsed = ChatTemplate::Parse(files.chat_template);
  if (parsed.ok()) {
    chat_template_ = std::make_unique<ChatTemplate>(std::move(*parsed));
  } else {
    chat_template_error_ = parsed.status().ToString();
  }
  return OkStatus();
}

Result<std::vector<int32_t>> Engine::Tokenize(std::string_view text,
                                              bool add_special_tokens) const {
  if (!tokenizer_) return Unsupported("this model has no tokenizer; give token ids");
  return tokenizer_->Encode(text, {.add_special_tokens = add_special_tokens});
}

Result<std::string> Engine::ApplyChatTemplate(std::string_view messages_json) const {
  if (!chat_template_) return Unsupported("chat: " + chat_template_error_);
  ChatInputs inputs;
  inputs.messages_json = std::string(messages_json);
  inputs.add_generation_prompt = true;
  if (tokenizer_) {
    if (const auto bos = tokenizer_->bos_id()) inputs.bos_token = tokenizer_->Piece(*bos);
    if (!tokenizer_->eos_ids().empty()) {
      inputs.eos_token = tokenizer_->Piece(tokenizer_->eos_ids().front());
    }
  }
  return chat_template_->Render(inputs);
}

Result<RequestId> Engine::Submit(GenerationRequest request) {
  CoreRequest core;
  core.prompt = std::move(request.prompt_tokens);
  if (core.prompt.empty()) {
    core.prompt = WEIR_TRY(Tokenize(request.prompt, request.add_special_tokens));
  }
  if (!request.sampling.stop.empty() && !tokenizer_) {
    return Unsupported("stop strings need a tokenizer, which this model lacks");
  }
  const SamplingParams& sampling = request.sampling;
  const StopText stop_text =
      sampling.include_stop_str_in_output ? StopText::kInclude : StopText::kExclude;
  Stream stream{.detokenizer = IncrementalDetokenizer(
                    tokenizer_.get(), {.skip_special_tokens = sampling.skip_special_tokens}),
                .stops = StopMatcher(sampling.stop, stop_text),
                .stop_text = stop_text,
                .unsearched = sampling.min_tokens};
  if (tokenizer_) stream.detokenizer.Continue(core.prompt);
  core.sampling = std::move(request.sampling);
  core.cache_salt = request.cache_salt;
  core.priority = request.priority;
  const RequestId id = WEIR_TRY(core_->Add(std::move(core)));
  streams_.emplace(id, std::move(stream));
  return id;
}

Status Engine::Cancel(RequestId id) {
  return core_->Finish(id, FinishReason::kCancelled);
}

Result<bool> Engine::Step() {
  const bool worked = WEIR_TRY(core_->Step());
  for (CoreOutput& output : core_->TakeOutputs()) {
    // A request that a stop string ended has been reported already.
    if (streams_.contains(output.id)) outputs_.push_back(Translate(std::move(output)));
  }
  return worked;
}

GenerationOutput Engine::Translate(CoreOutput core) {
  GenerationOutput out;
  out.id = core.id;
  out.finished = core.finished;
  out.reason = core.reason;
  out.error = std::move(core.error);
  out.prompt_tokens = core.prompt_tokens;
  out.cached_tokens = core.cached_tokens;
  out.scheduled_ns = core.scheduled_ns;
  out.tokens = std::move(core.tokens);
  const auto it = streams_.find(out.id);
  Stream& stream = it->second;
  if (tokenizer_) {
    out.text = TextOf(stream, out);
    if (stream.stops.matched() && !out.finished) {
      // Its blocks are free before the next step.
      const Status ended = core_->Finish(out.id, FinishReason::kStop);
      WEIR_CHECK(ended.ok(), "an unfinished request can be finished");
      out.finished = true;
    }
    if (stream.stops.matched()) out.reason = FinishReason::kStop;
  }
  if (out.finished) streams_.erase(it);
  return out;
}

// The text that |output|'s tokens complete, as far as it may be shown.
std::string Engine::TextOf(Stream& stream, const GenerationOutput& output) const {
  std::string text;
  for (size_t i = 0; i < output.tokens.size(); ++i) {
    // Below this layer only a token can stop a request: it is the last one, and like a stop string
    // it is not shown.
    const bool stopped = output.finished && output.reason == FinishReason::kStop;
    if (stopped && i + 1 == output.tokens.size() && stream.stop_text == StopText::kExclude) break;
    std::string piece = stream.detokenizer.Push(output.tokens[i].token);
    if (stream.unsearched > 0) {
      --stream.unsearched;
      text += piece;
    } else {
      text += stream.stops.Push(piece);
    }
  }
  if (output.finished) {
    text += stream.stops.Push(stream.detokenizer.Flush());
    text += stream.stops.Flush();
  }
  return text;
}

std::vector<GenerationOutput> Engine::TakeOutputs() {
  return std::exchange(outputs_, {});
}

}  // namespace weir
