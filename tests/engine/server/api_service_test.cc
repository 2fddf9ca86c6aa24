// The API over a fake exchange and a fake engine: shapes byte for byte, errors, keys, salts.
#include "engine/server/api_service.h"

#include <map>
#include <mutex>
#include <set>
#include <thread>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace weir::server {
namespace {

using nlohmann::json;

class FakeExchange : public HttpExchange {
 public:
  const HttpRequest& request() const override { return request_; }
  std::string TakeBody() override { return std::exchange(request_.body, {}); }
  void Reply(HttpResponse response) override {
    response_ = std::move(response);
    done_ = true;
  }
  void BeginStream(unsigned status, std::string type, HeaderList headers) override {
    response_.status = status;
    response_.content_type = std::move(type);
    response_.headers = std::move(headers);
  }
  void AllowUnsent(uint64_t bytes) override { allowed_ += bytes; }
  bool Write(std::string bytes) override {
    if (writes_left_ == 0) return false;
    --writes_left_;
    response_.body += bytes;
    return true;
  }
  void EndStream() override { done_ = true; }
  bool EndStreamWith(std::string bytes) override {
    response_.body += bytes;
    done_ = true;
    return true;
  }
  void Abort() override { aborted_ = done_ = true; }
  size_t buffered_bytes() const override { return 0; }
  void OnClientLeft(std::function<void()> left) override { left_ = std::move(left); }

  std::string HeaderOf(std::string_view name) const {
    for (const auto& [key, value] : response_.headers) {
      if (key == name) return value;
    }
    return {};
  }

  HttpRequest request_;
  HttpResponse response_;
  std::atomic<bool> done_{false};
  bool aborted_ = false;
  int writes_left_ = 1 << 20;
  uint64_t allowed_ = 0;
  std::function<void()> left_;
};

// Answers each request with |texts| as tokens 1, 2, ..., inside Submit.
class FakeEngine : public RequestEngine {
 public:
  Result<std::unique_ptr<QueuePlace>> Admit(const std::string& tenant) override {
    tenants_.push_back(tenant);
    if (!admit_.ok()) return admit_;
    return std::make_unique<QueuePlace>();
  }
  Result<uint64_t> Submit(std::unique_ptr<QueuePlace>, AsyncRequest request,
                          std::shared_ptr<OutputSink> sink) override {
    requests_.push_back(request.request);
    for (size_t i = 0; i < texts_.size(); ++i) {
      GenerationOutput output;
      output.text = texts_[i];
      output.tokens.push_back({.token = static_cast<int32_t>(i) + 1, .logprob = -0.5F});
      output.cached_tokens = 1;
      output.finished = i + 1 == texts_.size() && ending_.ok() && !hold_;
      if (output.finished) output.reason = FinishReason::kLength;
      sink->OnOutput(std::move(output), {});
    }
    if (!ending_.ok()) {
      GenerationOutput output;
      output.finished = true;
      output.reason = FinishReason::kError;
      output.error = ending_;
      sink->OnOutput(std::move(output), {});
    }
    if (hold_) sinks_.push_back(std::move(sink));
    return ++ticket_;
  }
  void Cancel(uint64_t ticket) override { cancelled_.push_back(ticket); }
  EngineState state() const override { return {.health = health_}; }
  std::string RenderMetrics() const override { return "weir_up 1\n"; }

  Status admit_;
  Status ending_;
  Health health_ = Health::kReady;
  bool hold_ = false;
  std::vector<std::string> texts_ = {"a\"", "", "\n"};
  std::vector<std::string> tenants_;
  std::vector<GenerationRequest> requests_;
  std::vector<std::shared_ptr<OutputSink>> sinks_;
  std::atomic<uint64_t> ticket_{0};
  std::vector<uint64_t> cancelled_;
};

class ApiServiceTest : public ::testing::Test {
 protected:
  // A sink keeps its call, the call this engine: a real one ends every request, this one may not.
  void TearDown() override { engine_->sinks_.clear(); }

  void Make() {
    options_.version = "1.2.3";
    options_.on_request_end = [this](const RequestRecord& record) {
      const std::lock_guard lock(records_mutex_);  // a request is reported after its reply
      records_.push_back(record);
    };
    auto api = ApiService::Create(
        engine_,
        {.id = "m", .created_s = 7, .max_model_len = 64, .vocab_size = 100, .fingerprint = "fp"},
        options_);
    ASSERT_TRUE(api.ok());
    api_ = std::move(*api);
  }
  std::shared_ptr<FakeExchange> Call(const std::string& method, const std::string& path,
                                     const std::string& body = "", const std::string& key = "",
                                     bool wait = true) {
    if (!api_) Make();
    auto exchange = std::make_shared<FakeExchange>();
    exchange->request_ = {.method = method, .path = path, .body = body};
    exchange->request_.headers = {{"content-type", "application/json"}, {"x-request-id", "r1"}};
    if (!key.empty()) exchange->request_.headers.emplace_back("authorization", "Bearer " + key);
    api_->Handle(exchange);
    for (int i = 0; wait && i < 5000 && !exchange->done_; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EXPECT_TRUE(!wait || exchange->done_);
    return exchange;
  }
  static std::string WithoutTime(std::string text) {
    for (size_t at = 0; (at = text.find("\"created\":", at)) != std::string::npos;) {
      at += 10;
      text.replace(at, text.find(',', at) - at, "0");
    }
    return text;
  }

  std::shared_ptr<FakeEngine> engine_ = std::make_shared<FakeEngine>();
  ApiOptions options_;
  std::mutex records_mutex_;
  std::vector<RequestRecord> records_;  // read when nobody reports any more
  std::unique_ptr<ApiService> api_;
};

constexpr char kPrompt[] = R"({"prompt":[3,4],"max_tokens":3)";

TEST_F(ApiServiceTest, AStreamHasOneEventATokenThenUsageIfAskedThenDone) {
  const auto x =
      Call("POST", "/v1/completions",
           std::string(kPrompt) + R"(,"stream":true,"stream_options":{"include_usage":true}})");
  EXPECT_EQ(x->response_.content_type, "text/event-stream; charset=utf-8");
  const std::string head =
      R"(data: {"id":"cmpl-r1","object":"text_completion","created":0,"model":"m",)"
      R"("system_fingerprint":"fp","choices":[)";
  const std::string choice = R"({"index":0,"text":)";
  EXPECT_EQ(WithoutTime(x->response_.body),
            head + choice + R"("a\"","logprobs":null,"finish_reason":null}]})" + "\n\n" + head +
                choice + R"("","logprobs":null,"finish_reason":null}]})" + "\n\n" + head + choice +
                R"("\n","logprobs":null,"finish_reason":"length"}]})" + "\n\n" + head +
                R"(],"usage":{"prompt_tokens":2,"total_tokens":5,"completion_tokens":3,)"
                R"("prompt_tokens_details":{"cached_tokens":1}}})" +
                "\n\ndata: [DONE]\n\n");
  EXPECT_EQ(x->HeaderOf("x-request-id"), "r1");
}

// A reader is not slow for what the server repeats of its own prompt.
TEST_F(ApiServiceTest, WhatAStreamRepeatsOfItsPromptMayBeUnsent) {
  std::string tokens = "99";
  for (int i = 1; i < 60; ++i) tokens += ",99";
  const auto x = Call(
      "POST", "/v1/completions",
      R"({"max_tokens":3,"stream":true,"return_token_ids":true,"n":3,"prompt":[)" + tokens + "]}");
  EXPECT_GE(x->allowed_, 3 * tokens.size());
  const auto plain = Call("POST", "/v1/completions",
                          R"({"max_tokens":3,"stream":true,"prompt":[)" + tokens + "]}");
  EXPECT_EQ(plain->allowed_, 0U);
}

TEST_F(ApiServiceTest, AWholeReplyHasEveryChoiceAndCountsThePromptOnce) {
  const auto x = Call("POST", "/v1/completions",
                      std::string(kPrompt) + R"(,"n":2,"seed":5,"return_token_ids":true})");
  const json body = json::parse(x->response_.body);
  ASSERT_EQ(body["choices"].size(), 2U);
  EXPECT_EQ(body["choices"][1]["text"], "a\"\n");
  EXPECT_EQ(body["choices"][1]["token_ids"], json({1, 2, 3}));
  EXPECT_EQ(body["choices"][1]["prompt_token_ids"], json({3, 4}));
  EXPECT_EQ(body["usage"]["prompt_tokens"], 2);
  EXPECT_EQ(body["usage"]["completion_tokens"], 6);
  EXPECT_EQ(*engine_->requests_[1].sampling.seed, 6U);
}

TEST_F(ApiServiceTest, ErrorsBeforeTheFirstTokenAreStatusesAndAfterItEvents) {
  engine_->ending_ = NoMemory("too big");
  const std::string body = std::string(kPrompt) + R"(,"stream":true})";
  const auto mid = Call("POST", "/v1/completions", body);
  EXPECT_EQ(mid->response_.status, 200U);
  EXPECT_NE(mid->response_.body.find("\n\ndata: {\"error\":{\"message\":\"too big\""),
            std::string::npos);
  engine_->texts_.clear();
  EXPECT_EQ(Call("POST", "/v1/completions", body)->response_.status, 422U);
}

TEST_F(ApiServiceTest, RefusalsSayWhenToComeBack) {
  engine_->admit_ = NoMemory("full");
  const auto full = Call("POST", "/v1/completions", std::string(kPrompt) + "}");
  EXPECT_EQ(full->response_.status, 503U);
  EXPECT_EQ(full->HeaderOf("retry-after"), "1");
  EXPECT_EQ(full->HeaderOf("x-should-retry"), "false");
  engine_->admit_ = ShouldWait("your share");
  const auto share = Call("POST", "/v1/completions", std::string(kPrompt) + "}");
  EXPECT_EQ(share->response_.status, 429U);
  EXPECT_EQ(share->HeaderOf("x-should-retry"), "true");
}

TEST_F(ApiServiceTest, EveryRouteButHealthNeedsAKey) {
  options_.keys = {ApiKey::FromSecret("a", "key-a"), ApiKey::FromSecret("b", "key-b")};
  for (const char* path : {"/v1/models", "/v1/models/m", "/ready", "/ping", "/version", "/metrics",
                           "/load", "/openapi.json", "/nothing"}) {
    EXPECT_EQ(Call("GET", path)->response_.status, 401U) << path;
    EXPECT_EQ(Call("GET", path, "", "key-c")->response_.status, 401U) << path;
    const unsigned expected = std::string(path) == "/nothing" ? 404 : 200;
    EXPECT_EQ(Call("GET", path, "", "key-b")->response_.status, expected) << path;
  }
  for (const char* path : {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"}) {
    EXPECT_EQ(Call("POST", path, "{}")->response_.status, 401U) << path;
    EXPECT_EQ(Call("POST", path, "{}", "key-a")->response_.status, 400U) << path;
  }
  EXPECT_EQ(Call("GET", "/health")->response_.status, 200U);
}

TEST_F(ApiServiceTest, SaltsKeepTenantsApartAndPartitionWithinOne) {
  options_.keys = {ApiKey::FromSecret("a", "key-a"), ApiKey::FromSecret("b", "key-b")};
  const auto salt = [&](const char* key, const std::string& extra) {
    Call("POST", "/v1/completions", std::string(kPrompt) + extra + "}", key);
    return engine_->requests_.back().cache_salt;
  };
  const uint64_t a = salt("key-a", "");
  EXPECT_EQ(salt("key-a", ""), a);
  EXPECT_NE(salt("key-b", ""), a);
  const uint64_t salted = salt("key-a", R"(,"cache_salt":"s")");
  EXPECT_NE(salted, a);
  EXPECT_NE(salt("key-b", R"(,"cache_salt":"s")"), salted);
}

TEST_F(ApiServiceTest, AClientThatLeavesIsCancelled) {
  engine_->hold_ = true;
  const auto x = Call("POST", "/v1/completions", std::string(kPrompt) + "}", "", false);
  for (int i = 0; i < 5000 && engine_->ticket_ == 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  x->left_();
  api_.reset();  // the worker is done
  EXPECT_EQ(engine_->cancelled_, std::vector<uint64_t>{1});
  EXPECT_EQ(records_.back().status, 499U);
}

// What the client was sent is complete, so its leaving right after that is no early end.
TEST_F(ApiServiceTest, TheLastTokensEventAndTheEndAreOneWrite) {
  engine_->texts_ = {"a"};
  const auto x = Call("POST", "/v1/completions", std::string(kPrompt) + R"(,"stream":true})");
  EXPECT_EQ(x->writes_left_, 1 << 20);
  EXPECT_NE(x->response_.body.find(R"("text":"a")"), std::string::npos);
  EXPECT_TRUE(x->response_.body.ends_with("data: [DONE]\n\n"));
}

TEST_F(ApiServiceTest, AClientThatLeavesAsTheAnswerEndsIsReportedOnce) {
  engine_->hold_ = true;
  engine_->texts_.clear();
  for (uint64_t round = 1; round <= 300; ++round) {
    const char* stream = round % 2 == 0 ? R"(,"stream":true})" : "}";
    const auto x = Call("POST", "/v1/completions", kPrompt + std::string(stream), "", false);
    while (engine_->ticket_ < round) std::this_thread::yield();
    std::thread client([&] { x->left_(); });
    GenerationOutput output;
    output.tokens.push_back({.token = 1});
    output.finished = true;
    output.reason = round % 3 == 0 ? FinishReason::kError : FinishReason::kLength;
    if (round % 3 == 0) output.error = NoMemory("too big");
    engine_->sinks_.back()->OnOutput(std::move(output), {});
    client.join();
    ASSERT_EQ(records_.size(), round);
    const RequestRecord& record = records_.back();
    ASSERT_EQ(record.error.empty(), record.status == 200 && round % 3 != 0) << round;
    EXPECT_EQ(api_->in_flight(), 0U);
  }
}

TEST_F(ApiServiceTest, BadRequestsNameTheField) {
  const std::map<std::string, std::string> cases = {
      {R"("temperature":2.1)", "temperature"},
      {R"("temperature":"1")", "temperature"},
      {R"("top_p":0)", "top_p"},
      {R"("top_k":-2)", "top_k"},
      {R"("min_p":1.5)", "min_p"},
      {R"("n":65)", "n"},
      {R"("best_of":2)", "best_of"},
      {R"("logprobs":21)", "logprobs"},
      {R"("max_completion_tokens":0)", "max_completion_tokens"},
      {R"("min_tokens":-1)", "min_tokens"},
      {R"("min_tokens":4)", "min_tokens"},
      {R"("seed":1.5)", "seed"},
      {R"("stop":"")", "stop"},
      {R"("stop_token_ids":[100])", "stop_token_ids[0]"},
      {R"("logit_bias":{"1":101})", "logit_bias"},
      {R"("logit_bias":{"x":1})", "logit_bias"},
      {R"("stream":1)", "stream"},
      {R"("stream_options":{})", "stream_options"},
      {R"("echo":true,"logprobs":1)", "echo"},
      {R"("ignore_eos":0)", "ignore_eos"},
      {R"("repetition_penalty":0)", "repetition_penalty"},
      {R"("repetition_penalty":5e-324)", "repetition_penalty"},
      {R"("presence_penalty":3)", "presence_penalty"},
      {R"("frequency_penalty":-3)", "frequency_penalty"},
      {R"("cache_salt":"")", "cache_salt"},
      {R"("priority":0.5)", "priority"},
      {R"("suffix":"x")", "suffix"},
      {R"("tools":[1])", "tools"},
      {R"("response_format":{"type":"json_object"})", "response_format"},
      {R"("deadline_ms":0)", "deadline_ms"}};
  for (const auto& [field, param] : cases) {
    const auto x = Call("POST", "/v1/completions", std::string(kPrompt) + "," + field + "}");
    EXPECT_EQ(x->response_.status, 400U) << field;
    EXPECT_EQ(json::parse(x->response_.body)["error"]["param"], param) << x->response_.body;
  }
  EXPECT_TRUE(engine_->requests_.empty());
}

// Prompt and output have at most 64 tokens in this server.
TEST_F(ApiServiceTest, WhatCannotBeHeldIsRefusedBeforeItIsQueued) {
  const auto tokens = [](size_t n) {
    std::string list = "1";
    for (size_t i = 1; i < n; ++i) list += ",1";
    return R"({"model":"m","prompt":[)" + list + "]";
  };
  const auto call = [&](size_t n, const std::string& extra) {
    return Call("POST", "/v1/completions", tokens(n) + extra + "}");
  };
  EXPECT_EQ(call(60, R"(,"max_tokens":4)")->response_.status, 200U);
  EXPECT_EQ(engine_->requests_.back().sampling.max_tokens, 4U);
  // Not given: the default, as far as there is room.
  EXPECT_EQ(call(10, "")->response_.status, 200U);
  EXPECT_EQ(engine_->requests_.back().sampling.max_tokens, 16U);
  EXPECT_EQ(call(10, R"(,"min_tokens":20)")->response_.status, 200U);
  EXPECT_EQ(engine_->requests_.back().sampling.max_tokens, 20U);
  EXPECT_EQ(call(60, "")->response_.status, 200U);
  EXPECT_EQ(engine_->requests_.back().sampling.max_tokens, 4U);
  const size_t before = engine_->requests_.size();
  for (const auto& [n, extra, param, said] :
       std::vector<std::tuple<size_t, std::string, std::string, std::string>>{
           {60, R"(,"max_tokens":5)", "max_tokens", "room for 4"},
           {60, R"(,"max_completion_tokens":5)", "max_completion_tokens", "room for 4"},
           {60, R"(,"min_tokens":5)", "min_tokens", "room for 4"},
           {64, "", "prompt", "64 tokens"},
           {64, R"(,"max_tokens":1)", "prompt", "64 tokens"}}) {
    const auto x = call(n, extra);
    EXPECT_EQ(x->response_.status, 400U) << extra;
    const auto error = json::parse(x->response_.body)["error"];
    EXPECT_EQ(error["param"], param) << x->response_.body;
    EXPECT_EQ(error["code"], "context_length_exceeded");
    EXPECT_EQ(error["type"], "invalid_request_error");
    EXPECT_NE(error["message"].get<std::string>().find(said), std::string::npos) << error;
    EXPECT_NE(error["message"].get<std::string>().find("at most 64 tokens"), std::string::npos);
  }
  EXPECT_EQ(engine_->requests_.size(), before);
}

TEST_F(ApiServiceTest, HostileJsonIsRefused) {
  for (const std::string& body :
       {std::string(), std::string("[]"), std::string("{"), std::string(R"({"prompt":[]})"),
        std::string(R"({"prompt":[1],"prompt":[2]})"), std::string("{\"prompt\":\"\xff\"}"),
        std::string(R"({"prompt":[1,"a"]})"), std::string(R"({"prompt":[-1]})"),
        std::string(R"({"prompt":[1e99]})"), std::string("\xce\x1a\xdf\x02"),
        std::string(R"({"prompt":"\ud800"})"),
        R"({"prompt":[1],"x":)" + std::string(200000, '[')}) {
    const auto x = Call("POST", "/v1/completions", body);
    EXPECT_EQ(x->response_.status, 400U) << body.substr(0, 40);
    // What it quotes of the request must not make the answer invalid.
    EXPECT_TRUE(json::accept(x->response_.body)) << x->response_.body;
  }
}

// Messages are logged, and no text of a request may be.
TEST_F(ApiServiceTest, ErrorsOfMalformedJsonSayWhereAndDoNotQuote) {
  std::multiset<std::string> messages, reported;
  for (const char* body : {R"({"prompt":"my secret)",
                           R"({"prompt":"my secret)"
                           "\n",
                           R"({"prompt":"my secret \xff)", "{\"prompt\":\"my secret \xff\"}",
                           R"({"prompt":"; last read: my secret)"}) {
    const auto x = Call("POST", "/v1/completions", body);
    EXPECT_EQ(x->response_.status, 400U);
    const std::string message = json::parse(x->response_.body)["error"]["message"];
    EXPECT_TRUE(message.starts_with("JSON, byte ")) << message;
    EXPECT_NE(message.find("invalid string: "), std::string::npos) << message;
    EXPECT_EQ(message.find("secret"), std::string::npos) << message;
    messages.insert(message);
  }
  api_.reset();  // the workers are done
  for (const RequestRecord& record : records_) reported.insert(record.error);
  EXPECT_EQ(reported, messages);
}

TEST_F(ApiServiceTest, ErrorsNameTheFieldThatWasGivenAndTheModelThatIsServed) {
  const auto error = [&](const std::string& path, const std::string& fields) {
    return json::parse(Call("POST", path, fields)->response_.body)["error"];
  };
  const auto few =
      error("/v1/completions", R"({"prompt":[3],"max_completion_tokens":3,"min_tokens":4})");
  EXPECT_EQ(few["message"], "min_tokens must be at most max_completion_tokens (3), got 4");
  for (const char* path : {"/v1/completions", "/detokenize"}) {
    const auto other = error(path, R"({"prompt":[3],"tokens":[3],"model":"a\"b"})");
    EXPECT_EQ(other["message"], "the model \"a\"b\" is not served here; \"m\" is") << path;
    EXPECT_EQ(other["param"], "model");
    EXPECT_EQ(other["code"], "model_not_found");
  }
  const auto asked = Call("GET", "/v1/models/x/y");
  EXPECT_EQ(asked->response_.status, 404U);
  EXPECT_EQ(json::parse(asked->response_.body)["error"]["message"],
            "the model \"x/y\" is not served here; \"m\" is");
}

TEST_F(ApiServiceTest, MessagesAreChecked) {
  // What a client library sends for a name that was not given.
  const auto unnamed = Call("POST", "/v1/chat/completions",
                            R"({"messages":[{"role":"user","content":"a","name":null}]})");
  EXPECT_EQ(json::parse(unnamed->response_.body)["error"]["message"], "chat is not available: ");
  for (const auto& [message, param] : std::vector<std::pair<std::string, std::string>>{
           {"1", "messages[0]"},
           {R"({"content":"a"})", "messages[0].role"},
           {R"({"role":1,"content":"a"})", "messages[0].role"},
           {R"({"role":"user","content":"a","name":{}})", "messages[0].name"}}) {
    const auto x = Call("POST", "/v1/chat/completions", R"({"messages":[)" + message + "]}");
    EXPECT_EQ(x->response_.status, 400U) << message;
    EXPECT_EQ(json::parse(x->response_.body)["error"]["param"], param) << x->response_.body;
  }
}

TEST_F(ApiServiceTest, NeutralValuesAndUnknownFieldsAreAccepted) {
  const auto x = Call("POST", "/v1/completions",
                      std::string(kPrompt) +
                          R"(,"best_of":1,"suffix":null,"logit_bias":{"1":-100},"stop":null,)"
                          R"("logprobs":null,"repetition_penalty":1.0,"user":"u","whatever":[1],)"
                          R"("tools":[],"response_format":{"type":"text"}})");
  EXPECT_EQ(x->response_.status, 200U) << x->response_.body;
}

}  // namespace
}  // namespace weir::server
