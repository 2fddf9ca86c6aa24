#include "engine/server/api_generate.h"

#include <chrono>
#include <utility>

#include "engine/server/json_writer.h"

namespace weir::server {
namespace {

int64_t UnixSeconds() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::seconds>(now).count();
}

}  // namespace

class GenerationCall::Sink : public OutputSink {
 public:
  Sink(std::shared_ptr<GenerationCall> call, size_t index)
      : call_(std::move(call)), index_(index) {}
  void OnOutput(GenerationOutput output, const RequestTimes&) override {
    call_->OnOutput(index_, std::move(output));
  }

 private:
  std::shared_ptr<GenerationCall> call_;
  size_t index_;
};

GenerationCall::GenerationCall(Endpoint endpoint, std::shared_ptr<Answer> answer)
    : endpoint_(endpoint), answer_(std::move(answer)), context_(answer_->context()) {}

void GenerationCall::Start() {
  auto place = context_.engine->Admit(answer_->record().tenant);
  if (!place.ok()) return answer_->Fail(RefusedError(place.status()));
  answer_->exchange().OnClientLeft([weak = weak_from_this()] {
    if (const auto call = weak.lock()) call->ClientLeft();
  });
  // std::function copies, a place cannot be: shared until the job takes it.
  auto held = std::make_shared<std::unique_ptr<QueuePlace>>(std::move(*place));
  const bool posted = context_.workers->Post(
      answer_->request().body.size(),
      [self = shared_from_this(), held] { self->Prepare(std::move(*held)); });
  if (!posted) {
    answer_->Fail(RefusedError(NoMemory("too many requests wait to be read")));
  }
}

void GenerationCall::Prepare(std::unique_ptr<QueuePlace> first) {
  if (answer_->complete()) return;
  std::vector<std::unique_ptr<QueuePlace>> places;
  ApiRequest request;
  if (const auto error = Accept(&request, std::move(first), &places)) return answer_->Fail(*error);
  request_ = std::move(request);
  MakeChoices();
  Submit(std::move(places));
}

std::optional<ApiError> GenerationCall::Accept(ApiRequest* request,
                                               std::unique_ptr<QueuePlace> first,
                                               std::vector<std::unique_ptr<QueuePlace>>* places) {
  const ServedModel& model = context_.model;
  const RequestLimits limits{model.vocab_size, model.max_model_len};
  // Not kept while tokens are generated.
  if (auto error = ParseRequest(endpoint_, answer_->exchange().TakeBody(), limits, request)) {
    return error;
  }
  if (!request->model.empty() && request->model != model.id) {
    return UnknownModel("model", request->model, model.id);
  }
  places->push_back(std::move(first));
  const size_t prompts = std::max<size_t>(1, request->prompts.size());
  while (places->size() < prompts * request->n) {
    auto place = context_.engine->Admit(answer_->record().tenant);
    if (!place.ok()) return RefusedError(place.status());
    places->push_back(std::move(*place));
  }
  return PreparePrompts(model, *request, &prompts_);
}

void GenerationCall::MakeChoices() {
  const ServedModel& model = context_.model;
  format_ = std::make_unique<ReplyFormat>(
      ReplyHead{.endpoint = endpoint_,
                .id = (endpoint_ == kChat ? "chatcmpl-" : "cmpl-") + answer_->record().request_id,
                .created_s = UnixSeconds(),
                .model = model.id,
                .fingerprint = model.fingerprint,
                .logprobs = request_.sampling.logprobs,
                .return_token_ids = request_.return_token_ids,
                .tokenizer = model.tokenizer});
  RequestRecord& record = answer_->record();
  MutexLock lock(mutex_);
  for (const PreparedPrompt& prompt : prompts_) {
    record.prompt_tokens += prompt.tokens.size();
    for (uint32_t i = 0; i < request_.n; ++i) {
      choices_.emplace_back(LogprobList(endpoint_, model.tokenizer, 0));
    }
  }
  unfinished_ = choices_.size();
  record.choices = static_cast<uint32_t>(choices_.size());
}

AsyncRequest GenerationCall::EngineRequest(size_t index) const {
  AsyncRequest out;
  out.request.prompt_tokens = prompts_[index / request_.n].tokens;
  out.request.sampling = request_.sampling;
  out.request.sampling.max_tokens = prompts_[index / request_.n].max_tokens;
  if (out.request.sampling.seed) *out.request.sampling.seed += index % request_.n;
  out.request.cache_salt = context_.salts.Salt(answer_->record().tenant, request_.cache_salt);
  out.request.priority = request_.priority;
  if (request_.deadline_ms > 0) {
    out.deadline_ns = answer_->record().received_ns + request_.deadline_ms * 1'000'000ULL;
  }
  return out;
}

void GenerationCall::Submit(std::vector<std::unique_ptr<QueuePlace>> places) {
  for (size_t i = 0; i < places.size(); ++i) {
    auto ticket = context_.engine->Submit(std::move(places[i]), EngineRequest(i),
                                          std::make_shared<Sink>(shared_from_this(), i));
    std::vector<uint64_t> cancel;
    bool stop = false;
    {
      MutexLock lock(mutex_);
      stop = done_ || !ticket.ok();
      if (ticket.ok()) {
        choices_[i].ticket = *ticket;
        if (done_ && !choices_[i].finished) cancel.push_back(*ticket);
      } else if (!done_) {
        cancel = FailLocked(RefusedError(ticket.status()));
      }
    }
    CancelAll(cancel);
    if (stop) return;
  }
}

void GenerationCall::OnOutput(size_t index, GenerationOutput output) {
  std::vector<uint64_t> cancel;
  {
    MutexLock lock(mutex_);
    choices_[index].finished |= output.finished;
    if (!done_) cancel = Deliver(index, output);
  }
  CancelAll(cancel);
}

std::vector<uint64_t> GenerationCall::Deliver(size_t index, GenerationOutput& output) {
  Choice& choice = choices_[index];
  if (output.finished &&
      (output.reason == FinishReason::kError || output.reason == FinishReason::kCancelled)) {
    return FailLocked(EndedError(output.error));
  }
  choice.cached_tokens = output.cached_tokens;
  choice.finish = output.finished ? output.reason : FinishReason::kNone;
  if (output.finished) --unfinished_;
  std::string events;
  if (request_.stream) {
    events = Events(choice, index, output);
  } else {
    Collect(choice, index, output);
  }
  if (unfinished_ == 0) {
    Finish(std::move(events));
  } else if (request_.stream && !answer_->exchange().Write(std::move(events))) {
    RecordUsage();
    answer_->Abort(499, "the client left or read too slowly");
    return Close();
  }
  return {};
}

// The most that the first events hold of the prompts.
uint64_t GenerationCall::RepeatedBytes() const {
  constexpr uint64_t kMostOfByte = 6;  // "\u0000"
  constexpr uint64_t kMostOfId = 11;   // "2147483647,"
  uint64_t bytes = 0;
  for (const PreparedPrompt& prompt : prompts_) {
    if (request_.echo) bytes += kMostOfByte * prompt.text.size();
    if (request_.return_token_ids) bytes += kMostOfId * prompt.tokens.size();
  }
  return bytes * request_.n;
}

// One event a token, also for tokens without text: clients count them.
std::string GenerationCall::Events(Choice& choice, size_t index, const GenerationOutput& output) {
  if (!streaming_) {
    answer_->BeginStream();
    answer_->exchange().AllowUnsent(RepeatedBytes());
    streaming_ = true;
  }
  std::string out;
  const size_t events = std::max<size_t>(output.tokens.size(), output.finished ? 1 : 0);
  const PreparedPrompt& prompt = prompts_[index / request_.n];
  for (size_t i = 0; i < events; ++i) {
    const bool last = i + 1 == events;
    std::string text;
    if (!choice.started && request_.echo) text = prompt.text;
    if (last) text += output.text;
    ChoiceText chunk{.index = static_cast<uint32_t>(index), .text = text};
    int32_t id = -1;
    if (i < output.tokens.size()) {
      id = output.tokens[i].token;
      chunk.token_ids = {&id, 1};
      ++choice.completion_tokens;
      if (request_.sampling.logprobs >= 0) choice.logprobs.Add(output.tokens[i]);
    }
    if (request_.sampling.logprobs >= 0) chunk.logprobs = &choice.logprobs;
    chunk.first = !choice.started;
    if (chunk.first && request_.return_token_ids) chunk.prompt_token_ids = &prompt.tokens;
    if (last) chunk.finish = choice.finish;
    choice.started = true;
    const Usage usage = request_.continuous_usage ? TotalUsage() : Usage{};
    format_->AppendChunk(chunk, request_.continuous_usage ? &usage : nullptr, &out);
  }
  return out;
}

void GenerationCall::Collect(Choice& choice, size_t index, const GenerationOutput& output) {
  if (!choice.started && request_.echo) choice.text = prompts_[index / request_.n].text;
  choice.started = true;
  choice.text += output.text;
  choice.completion_tokens += output.tokens.size();
  for (const SampledToken& token : output.tokens) {
    if (request_.return_token_ids) choice.token_ids.push_back(token.token);
    if (request_.sampling.logprobs >= 0) choice.logprobs.Add(token);
  }
}

// Every choice has ended well. |last_events| of a stream have not been written yet.
void GenerationCall::Finish(std::string last_events) {
  done_ = true;
  const Usage usage = RecordUsage();
  if (request_.stream) {
    if (request_.include_usage) format_->AppendUsageChunk(usage, &last_events);
    last_events += "data: [DONE]\n\n";
    return answer_->EndStream(std::move(last_events));
  }
  std::vector<ChoiceText> choices;
  for (size_t i = 0; i < choices_.size(); ++i) {
    Choice& c = choices_[i];
    choices.push_back({.index = static_cast<uint32_t>(i),
                       .text = c.text,
                       .logprobs = request_.sampling.logprobs >= 0 ? &c.logprobs : nullptr,
                       .token_ids = c.token_ids,
                       .prompt_token_ids = &prompts_[i / request_.n].tokens,
                       .finish = c.finish});
  }
  answer_->Reply({.body = format_->Reply(choices, usage)});
}

Usage GenerationCall::TotalUsage() const {
  Usage usage;
  for (size_t i = 0; i < choices_.size(); ++i) {
    usage.completion_tokens += choices_[i].completion_tokens;
    if (i % request_.n != 0) continue;  // a prompt counts once, however many choices it has
    usage.prompt_tokens += prompts_[i / request_.n].tokens.size();
    usage.cached_tokens += choices_[i].cached_tokens;
  }
  return usage;
}

Usage GenerationCall::RecordUsage() {
  const Usage usage = TotalUsage();
  answer_->record().completion_tokens = usage.completion_tokens;
  answer_->record().cached_tokens = usage.cached_tokens;
  return usage;
}

std::vector<uint64_t> GenerationCall::FailLocked(const ApiError& error) {
  RecordUsage();
  if (!streaming_) {
    answer_->Fail(error);
  } else {
    answer_->EndStream("data: " + ErrorJson(error) + "\n\n", error.message);
  }
  return Close();
}

std::vector<uint64_t> GenerationCall::Close() {
  done_ = true;
  std::vector<uint64_t> tickets;
  for (const Choice& choice : choices_) {
    if (choice.ticket != 0 && !choice.finished) tickets.push_back(choice.ticket);
  }
  return tickets;
}

void GenerationCall::ClientLeft() {
  std::vector<uint64_t> cancel;
  {
    MutexLock lock(mutex_);
    if (!done_) {
      RecordUsage();
      cancel = Close();
    }
    answer_->ClientLeft();
  }
  CancelAll(cancel);
}

void GenerationCall::CancelAll(const std::vector<uint64_t>& tickets) {
  for (const uint64_t ticket : tickets) context_.engine->Cancel(ticket);
}

}  // namespace weir::server
