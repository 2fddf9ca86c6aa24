// AsyncEngine over a stand-in whose steps the test controls.
#include "engine/server/async_engine.h"

#include <chrono>
#include <random>
#include <thread>

#include <gtest/gtest.h>

#include "engine/server/metrics.h"
#include "tests/engine/server/fake_engine.h"
#include "tests/support/iterations.h"

namespace weir::server {
namespace {

using testing::FakeControl;
using testing::FakeEngine;
using testing::Gather;
using namespace std::chrono_literals;

constexpr TimeNs kSecond = 1'000'000'000;

class Server {
 public:
  explicit Server(const AsyncOptions& options = {},
                  const StepLimits& limits = {.max_sequences = 4,
                                              .max_batched_tokens = 64,
                                              .max_model_len = 1000})
      : engine(AsyncEngine::Start(std::make_unique<FakeEngine>(control, limits), options).value()) {
  }

  // |prompt| tokens in, |output| out.
  Result<uint64_t> Send(const std::shared_ptr<Gather>& sink, uint32_t output = 1,
                        uint32_t prompt = 1, const std::string& tenant = "t", int32_t priority = 0,
                        TimeNs deadline_ns = 0) {
    Admission admission = WEIR_TRY(engine->Admit(tenant));
    AsyncRequest request;
    request.request.prompt_tokens.assign(prompt, 7);
    request.request.sampling.max_tokens = output;
    request.request.priority = priority;
    request.deadline_ns = deadline_ns;
    return engine->Submit(std::move(admission), std::move(request), sink);
  }
  std::shared_ptr<Gather> MustSend(uint32_t output = 1, uint32_t prompt = 1,
                                   const std::string& tenant = "t", int32_t priority = 0) {
    auto sink = std::make_shared<Gather>();
    const auto ticket = Send(sink, output, prompt, tenant, priority);
    EXPECT_TRUE(ticket.ok()) << ticket.status().ToString();
    return sink;
  }

  std::shared_ptr<FakeControl> control = std::make_shared<FakeControl>();
  std::unique_ptr<AsyncEngine> engine;
};

std::vector<int32_t> Count(int32_t n) {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < n; ++i) tokens.push_back(i);
  return tokens;
}

template <typename Condition>
bool Eventually(Condition condition) {
  for (int i = 0; i < 5000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(1ms);
  }
  return false;
}

TEST(AsyncEngine, OutputsComeInOrderWithTimesAndOneEnd) {
  Server s;
  auto sink = std::make_shared<Gather>();
  const uint64_t ticket = s.Send(sink, 20, 5).value();
  const GenerationOutput last = sink->AwaitEnd();
  EXPECT_EQ(sink->tokens(), Count(20));
  EXPECT_EQ(last.id, ticket);
  EXPECT_EQ(last.reason, FinishReason::kLength);
  EXPECT_EQ(last.prompt_tokens, 5U);
  const RequestTimes t = sink->times();
  EXPECT_GT(t.queued_ns, 0U);
  EXPECT_LE(t.queued_ns, t.scheduled_ns);
  EXPECT_LE(t.scheduled_ns, t.first_token_ns);
  EXPECT_LT(t.first_token_ns, t.last_token_ns);
  EXPECT_TRUE(s.engine->Drain(kSecond));
  EXPECT_EQ(s.engine->stats().unfinished, 0U);
}

TEST(AsyncEngine, ARequestTheEngineRefusesEndsWithItsStatus) {
  Server s;
  auto sink = std::make_shared<Gather>();
  AsyncRequest request;
  request.request.prompt_tokens = {-1};
  ASSERT_TRUE(s.engine->Submit(s.engine->Admit("t").value(), std::move(request), sink).ok());
  const GenerationOutput last = sink->AwaitEnd();
  EXPECT_EQ(last.reason, FinishReason::kError);
  EXPECT_EQ(last.error.code(), StatusCode::kInvalidArgument);
  // What cannot be tokenized is refused at once, and its place is free again.
  EXPECT_EQ(s.engine->Submit(s.engine->Admit("t").value(), AsyncRequest(), sink).status().code(),
            StatusCode::kUnsupported);
  EXPECT_TRUE(s.engine->Drain(kSecond));
}

TEST(AsyncEngine, PlacesAreBoundedAndComeBack) {
  Server s({.max_queued_requests = 3, .max_queued_per_tenant = 2});
  std::vector<Admission> held;
  held.push_back(s.engine->Admit("a").value());
  held.push_back(s.engine->Admit("a").value());
  EXPECT_EQ(s.engine->Admit("a").status().code(), StatusCode::kShouldWait);
  held.push_back(s.engine->Admit("b").value());
  EXPECT_EQ(s.engine->Admit("c").status().code(), StatusCode::kNoMemory);
  held.erase(held.begin());
  EXPECT_TRUE(s.engine->Admit("a").ok());  // given back at once
  EXPECT_TRUE(s.engine->Admit("c").ok());
}

TEST(AsyncEngine, WhatRunsTakesNoPlaceInTheQueue) {
  Server s({.max_queued_requests = 1});
  s.control->Hold();
  std::vector<std::shared_ptr<Gather>> sinks;
  sinks.push_back(s.MustSend(2));
  s.control->AwaitHeld();
  sinks.push_back(s.MustSend(2));
  EXPECT_EQ(s.engine->Admit("t").status().code(), StatusCode::kNoMemory);
  s.control->Release();
  for (const auto& sink : sinks) EXPECT_EQ(sink->AwaitEnd().reason, FinishReason::kLength);
  EXPECT_TRUE(s.engine->Admit("t").ok());
}

TEST(AsyncEngine, PromptTokensThatWaitAreBounded) {
  Server s({.max_queued_tokens = 100});
  s.control->Hold();
  std::vector<std::shared_ptr<Gather>> sinks;
  sinks.push_back(s.MustSend(1, 1));
  s.control->AwaitHeld();
  sinks.push_back(s.MustSend(1, 150));  // alone it may be longer
  auto refused = std::make_shared<Gather>();
  EXPECT_EQ(s.Send(refused, 1, 1).status().code(), StatusCode::kNoMemory);
  EXPECT_EQ(s.engine->stats().queued_tokens, 150U);
  s.control->Release();
  for (const auto& sink : sinks) sink->AwaitEnd();
  EXPECT_FALSE(refused->ended());
}

TEST(AsyncEngine, TheEngineGetsOnlyWhatItMaySoonRun) {
  Server s;
  s.control->Hold();
  std::vector<std::shared_ptr<Gather>> sinks;
  sinks.push_back(s.MustSend(50, 1));
  s.control->AwaitHeld();
  for (int i = 0; i < 50; ++i) sinks.push_back(s.MustSend(3, 40));
  s.control->Allow(1);
  ASSERT_TRUE(Eventually([&] { return s.control->submitted > 1; }));
  s.control->AwaitHeld();
  // 64 tokens a step: two prompts of 40 fill it.
  EXPECT_EQ(s.control->submitted, 3U);
  EXPECT_EQ(s.control->queued_seen, 48U);
  s.control->Release();
  for (const auto& sink : sinks) sink->AwaitEnd();
  EXPECT_LE(s.control->most_waiting, 3U);
}

TEST(AsyncEngine, ACancelledRequestsBlocksAreFreeBeforeTheNextStep) {
  Server s;
  s.control->Hold();
  auto sink = std::make_shared<Gather>();
  const uint64_t ticket = s.Send(sink, 1000).value();
  s.control->AwaitHeld();
  s.control->Allow(2);
  ASSERT_TRUE(Eventually([&] { return s.control->steps == 2; }));
  s.control->AwaitHeld();  // inside step 3
  const auto other = s.MustSend(5);
  s.engine->Cancel(ticket);
  EXPECT_EQ(s.control->used_blocks, 1U);
  s.control->Allow(1);
  ASSERT_TRUE(Eventually([&] { return s.control->steps == 3; }));
  s.control->AwaitHeld();  // step 4 has not run
  EXPECT_EQ(s.control->used_blocks, 0U);
  s.control->Release();
  EXPECT_EQ(sink->AwaitEnd().reason, FinishReason::kCancelled);
  EXPECT_EQ(sink->tokens(), Count(3));
  EXPECT_EQ(other->AwaitEnd().reason, FinishReason::kLength);
}

TEST(AsyncEngine, AWaitingRequestIsCancelledWithoutRunning) {
  Server s({}, {.max_sequences = 1, .max_batched_tokens = 8, .max_model_len = 100});
  s.control->Hold();
  const auto first = s.MustSend(2);
  s.control->AwaitHeld();
  auto sink = std::make_shared<Gather>();
  s.engine->Cancel(s.Send(sink).value());
  s.engine->Cancel(123456);  // nobody
  s.control->Allow(1);
  EXPECT_EQ(sink->AwaitEnd().reason, FinishReason::kCancelled);
  EXPECT_TRUE(sink->tokens().empty());
  EXPECT_EQ(sink->times().scheduled_ns, 0U);
  s.control->Release();
  first->AwaitEnd();
  EXPECT_EQ(s.control->submitted, 1U);
}

TEST(AsyncEngine, ASinkMayCancelItsRequest) {
  Server s;
  auto sink = std::make_shared<Gather>();
  std::atomic<uint64_t> ticket{0};
  sink->on_output = [&] {
    if (ticket != 0) s.engine->Cancel(ticket);
  };
  ticket = s.Send(sink, 1'000'000).value();
  EXPECT_EQ(sink->AwaitEnd().reason, FinishReason::kCancelled);
}

TEST(AsyncEngine, DeadlinesEndWhatWaitsAndWhatRuns) {
  Server s({}, {.max_sequences = 1, .max_batched_tokens = 8, .max_model_len = 100});
  s.control->Hold();
  auto running = std::make_shared<Gather>();
  auto waiting = std::make_shared<Gather>();
  // On a busy machine the engine thread takes a while until it has the first one.
  const TimeNs soon = MonotonicNow() + kSecond;
  ASSERT_TRUE(s.Send(running, 1000, 1, "t", 0, soon).ok());
  s.control->AwaitHeld();
  ASSERT_TRUE(s.Send(waiting, 1000, 1, "t", 0, soon).ok());
  while (MonotonicNow() <= soon) std::this_thread::sleep_for(10ms);
  s.control->Release();
  for (const auto& sink : {running, waiting}) {
    const GenerationOutput last = sink->AwaitEnd();
    EXPECT_EQ(last.reason, FinishReason::kError);
    EXPECT_EQ(last.error.code(), StatusCode::kCancelled);
    EXPECT_NE(last.error.message().find("deadline"), std::string::npos);
  }
  EXPECT_TRUE(s.engine->Drain(kSecond));
}

TEST(AsyncEngine, TheTimeoutHoldsForRequestsWithoutADeadlineAndWithALaterOne) {
  Server s({.request_timeout_ns = 1});
  EXPECT_EQ(s.MustSend(1'000'000)->AwaitEnd().error.code(), StatusCode::kCancelled);
  auto patient = std::make_shared<Gather>();
  ASSERT_TRUE(s.Send(patient, 1'000'000, 1, "t", 0, MonotonicNow() + 3600 * kSecond).ok());
  EXPECT_EQ(patient->AwaitEnd().error.code(), StatusCode::kCancelled);
}

TEST(AsyncEngine, DrainLetsWhatIsKnownEndAndRefusesTheRest) {
  Server s;
  s.control->Hold();
  std::vector<std::shared_ptr<Gather>> sinks;
  for (int i = 0; i < 10; ++i) sinks.push_back(s.MustSend(20));
  Admission early = s.engine->Admit("t").value();
  std::atomic<int> drained{-1};
  std::thread drain([&] { drained = s.engine->Drain(60 * kSecond) ? 1 : 0; });
  ASSERT_TRUE(Eventually([&] { return s.engine->stats().health == Health::kDraining; }));
  EXPECT_EQ(s.engine->Admit("t").status().code(), StatusCode::kBadState);
  s.control->Release();
  for (const auto& sink : sinks) EXPECT_EQ(sink->AwaitEnd().reason, FinishReason::kLength);
  EXPECT_EQ(drained, -1);  // who was admitted before is waited for
  auto late = std::make_shared<Gather>();
  AsyncRequest request;
  request.request.prompt_tokens = {1};
  request.request.sampling.max_tokens = 3;
  ASSERT_TRUE(s.engine->Submit(std::move(early), std::move(request), late).ok());
  drain.join();
  EXPECT_EQ(drained, 1);
  EXPECT_TRUE(late->ended());
  EXPECT_EQ(late->tokens(), Count(3));
}

TEST(AsyncEngine, ADrainThatTakesTooLongAborts) {
  Server s;
  std::vector<std::shared_ptr<Gather>> sinks;
  for (int i = 0; i < 10; ++i) sinks.push_back(s.MustSend(1'000'000'000));
  Admission unused = s.engine->Admit("t").value();
  EXPECT_FALSE(s.engine->Drain(20'000'000));
  for (const auto& sink : sinks) {
    ASSERT_TRUE(sink->ended());
    EXPECT_EQ(sink->AwaitEnd().reason, FinishReason::kError);
    EXPECT_EQ(sink->AwaitEnd().error.code(), StatusCode::kBadState);
  }
  AsyncRequest request;
  request.request.prompt_tokens = {1};
  EXPECT_EQ(s.engine->Submit(std::move(unused), std::move(request), sinks[0]).status().code(),
            StatusCode::kBadState);
}

TEST(AsyncEngine, AnAbortEndsADrainAtOnce) {
  Server s;
  const auto sink = s.MustSend(1'000'000'000);
  std::thread drain([&] { EXPECT_FALSE(s.engine->Drain(3600 * kSecond)); });
  ASSERT_TRUE(Eventually([&] { return s.engine->stats().health == Health::kDraining; }));
  s.engine->Abort();
  drain.join();
  EXPECT_TRUE(sink->ended());
}

TEST(AsyncEngine, WhatAnAbortEndedDidNotEndInTimeHoweverSoonItWasGone) {
  Server s;
  const auto sink = s.MustSend(1'000'000'000);
  s.engine->Abort();
  sink->AwaitEnd();
  ASSERT_TRUE(Eventually([&] { return s.engine->stats().unfinished == 0; }));
  EXPECT_FALSE(s.engine->Drain(3600 * kSecond));
}

TEST(AsyncEngine, AnAbortWithNothingToDoIsACleanEnd) {
  Server s;
  s.engine->Abort();
  EXPECT_TRUE(s.engine->Drain(3600 * kSecond));
}

TEST(AsyncEngine, TheDestructorGivesEverySinkItsEnd) {
  std::vector<std::shared_ptr<Gather>> sinks;
  std::optional<Admission> outlives;
  {
    Server s;
    for (int i = 0; i < 20; ++i) sinks.push_back(s.MustSend(1'000'000'000));
    outlives = s.engine->Admit("t").value();
  }
  for (const auto& sink : sinks) EXPECT_TRUE(sink->ended());
}

TEST(AsyncEngine, AFailedStepEndsEverythingAndIsTheHealth) {
  Server s;
  s.control->Hold();
  std::vector<std::shared_ptr<Gather>> sinks;
  for (int i = 0; i < 20; ++i) sinks.push_back(s.MustSend(1000));
  s.control->fail = true;
  const TimeNs start = MonotonicNow();
  s.control->Release();
  for (const auto& sink : sinks) {
    const GenerationOutput last = sink->AwaitEnd();
    EXPECT_EQ(last.reason, FinishReason::kError);
    EXPECT_NE(last.error.message().find("device is gone"), std::string::npos);
  }
  ASSERT_TRUE(Eventually([&] { return s.engine->stats().health == Health::kFailed; }));
  EXPECT_LT(MonotonicNow() - start, kSecond);
  EXPECT_EQ(s.engine->stats().failure.code(), StatusCode::kDriver);
  EXPECT_EQ(s.engine->Admit("t").status().code(), StatusCode::kBadState);
  EXPECT_TRUE(s.engine->Drain(kSecond));
}

TEST(AsyncEngine, StepsThatFailAgainAndAgainAreAFailure) {
  Server s;
  s.control->fail_steps = true;
  const auto first = s.MustSend(10);
  EXPECT_EQ(first->AwaitEnd().error.code(), StatusCode::kDriver);
  EXPECT_EQ(s.engine->stats().health, Health::kReady);  // it may have been the batch's fault
  const auto second = s.MustSend(10);
  EXPECT_EQ(second->AwaitEnd().reason, FinishReason::kError);
  ASSERT_TRUE(Eventually([&] { return s.engine->stats().health == Health::kFailed; }));
}

TEST(AsyncEngine, WeightsThatCannotBeReadAreNotReadyUntilTheyCan) {
  Server s;
  s.control->Hold();
  const auto cut_off = s.MustSend(1000);
  s.control->link_lost = true;
  s.control->Release();
  const GenerationOutput last = cut_off->AwaitEnd();
  EXPECT_EQ(last.error.code(), StatusCode::kBadState);
  ASSERT_TRUE(Eventually([&] { return s.engine->stats().health == Health::kNotReady; }));
  EXPECT_NE(s.engine->stats().failure.message().find("cannot be read"), std::string::npos);
  const Status refused = s.engine->Admit("t").status();
  EXPECT_EQ(refused.code(), StatusCode::kBadState);
  EXPECT_NE(refused.message().find("cannot be read"), std::string::npos);
  // Nobody asks for anything: the engine looks by itself.
  s.control->link_lost = false;
  ASSERT_TRUE(Eventually([&] { return s.engine->stats().health == Health::kReady; }));
  EXPECT_EQ(s.MustSend(10)->AwaitEnd().reason, FinishReason::kLength);
}

TEST(AsyncEngine, ALeakFoundWhenIdleIsAFailure) {
  Server s;
  s.control->leak = true;
  auto sink = std::make_shared<Gather>();
  const uint64_t ticket = s.Send(sink, 1'000'000).value();
  ASSERT_TRUE(Eventually([&] { return s.control->used_blocks == 1; }));
  s.engine->Cancel(ticket);
  sink->AwaitEnd();
  ASSERT_TRUE(Eventually([&] { return s.engine->stats().health == Health::kFailed; }));
  EXPECT_NE(s.engine->stats().failure.message().find("idle check"), std::string::npos);
}

TEST(AsyncEngine, ATenantsBurstDoesNotHoldUpAnother) {
  Server s({.max_queued_requests = 1000, .max_queued_per_tenant = 1000},
           {.max_sequences = 1, .max_batched_tokens = 8, .max_model_len = 100});
  s.control->Hold();
  std::atomic<int> ended{0};
  int quiet_rank = 0;
  std::vector<std::shared_ptr<Gather>> sinks;
  for (int i = 0; i < 100; ++i) {
    sinks.push_back(std::make_shared<Gather>());
    sinks.back()->on_output = [&ended, sink = sinks.back().get()] { ended += sink->ended(); };
    ASSERT_TRUE(s.Send(sinks.back(), 2, 4, "burst").ok());
  }
  auto quiet = std::make_shared<Gather>();
  quiet->on_output = [&] {
    if (quiet->ended()) quiet_rank = ended;
  };
  ASSERT_TRUE(s.Send(quiet, 2, 4, "quiet").ok());
  s.control->Release();
  quiet->AwaitEnd();
  for (const auto& sink : sinks) sink->AwaitEnd();
  EXPECT_LE(quiet_rank, 3);
}

TEST(AsyncEngine, PriorityOrdersATenantsRequests) {
  Server s({}, {.max_sequences = 1, .max_batched_tokens = 8, .max_model_len = 100});
  s.control->Hold();
  const auto first = s.MustSend(2);
  s.control->AwaitHeld();
  std::vector<std::shared_ptr<Gather>> plain;
  for (int i = 0; i < 20; ++i) plain.push_back(s.MustSend(2));
  const auto urgent = s.MustSend(2, 1, "t", -5);
  s.control->Release();
  const TimeNs urgent_end = (urgent->AwaitEnd(), urgent->times().last_token_ns);
  for (const auto& sink : plain) {
    sink->AwaitEnd();
    EXPECT_LT(urgent_end, sink->times().last_token_ns);
  }
}

TEST(AsyncEngine, WhileWeightsAreAwayAnIdleEngineStepsOn) {
  Server s;
  s.control->evicted_bytes = 1;
  s.MustSend(1)->AwaitEnd();
  // Idle turns renew the stats; the thread is not asleep. Then the weights are home.
  std::this_thread::sleep_for(20ms);
  s.control->evicted_bytes = 0;
  EXPECT_TRUE(Eventually([&] { return s.engine->stats().evicted_bytes == 0; }));
}

TEST(AsyncEngine, TheMetricsCountWhatVllmsWould) {
  ServerMetrics metrics({.model_name = "m", .max_model_len = 1000});
  constexpr int kRequests = 10;
  constexpr int kTokens = 7;
  std::string text;
  {
    Server s({.max_queued_requests = 100, .metrics = &metrics});
    std::vector<std::shared_ptr<Gather>> sinks;
    for (int i = 0; i < kRequests; ++i) sinks.push_back(s.MustSend(kTokens, 3));
    for (const auto& sink : sinks) sink->AwaitEnd();
    EXPECT_TRUE(s.engine->Drain(kSecond));
    EXPECT_FALSE(s.engine->Admit("t").ok());
    text = metrics.Render(s.engine->stats(), {});
  }
  const auto expect = [&](const std::string& name, const std::string& labels, double value) {
    const std::string line = "\n" + name + "{model_name=\"m\",engine=\"0\"" + labels + "} ";
    const size_t at = text.find(line);
    ASSERT_NE(at, std::string::npos) << name << labels;
    EXPECT_EQ(std::stod(text.substr(at + line.size())), value) << name << labels;
  };
  expect("vllm:inter_token_latency_seconds_count", "", kRequests * (kTokens - 1));
  expect("vllm:time_to_first_token_seconds_count", "", kRequests);
  expect("vllm:iteration_tokens_total_sum", "", kRequests * (kTokens + 3));
  expect("vllm:prompt_tokens_total", "", kRequests * 3);
  expect("vllm:generation_tokens_total", "", kRequests * kTokens);
  expect("weir_generation_tokens_total", "", kRequests * kTokens);
  expect("vllm:request_success_total", ",finished_reason=\"length\"", kRequests);
  expect("vllm:request_success_total", ",finished_reason=\"abort\"", 0);
  expect("vllm:e2e_request_latency_seconds_count", "", kRequests);
  expect("vllm:request_generation_tokens_sum", "", kRequests * kTokens);
  expect("vllm:num_requests_running", "", 0);
  expect("vllm:num_requests_waiting", "", 0);
  expect("vllm:admission_rejections_total", ",reason=\"not_ready\"", 1);
  expect("weir_health", ",state=\"draining\"", 1);
}

// Threads that submit, cancel, set deadlines, admit without submitting, while one drains: each
// request that was taken has one end, with a prefix of its tokens, and nothing is left.
//   WEIR_ASYNC_RUNS=1000   how many seeds;  WEIR_ASYNC_SEED=17   one of them
class Stress {
 public:
  explicit Stress(uint64_t seed)
      : random_(seed),
        server_({.max_queued_requests = static_cast<uint32_t>(2 + random_() % 40),
                 .max_queued_tokens = 1 + random_() % 200,
                 .max_queued_per_tenant = static_cast<uint32_t>(1 + random_() % 20)},
                {.max_sequences = static_cast<uint32_t>(1 + random_() % 6),
                 .max_batched_tokens = static_cast<uint32_t>(1 + random_() % 40),
                 .max_model_len = 500}) {}

  void Run() {
    constexpr int kThreads = 4;
    std::vector<std::thread> threads;
    std::vector<std::vector<Sent>> sent(kThreads);
    for (int t = 0; t < kThreads; ++t) {
      const uint64_t seed = random_();
      threads.emplace_back([this, t, seed, &sent] { Client(t, seed, &sent[size_t(t)]); });
    }
    const uint64_t how = random_() % 4;
    std::this_thread::sleep_for(std::chrono::microseconds(random_() % 5000));
    if (how == 0) server_.engine->Drain(0);
    if (how == 1) server_.control->fail = true;
    if (how == 2) server_.engine->Abort();
    for (std::thread& t : threads) t.join();
    server_.engine->Drain(60 * kSecond);
    EXPECT_EQ(server_.engine->stats().unfinished, 0U);
    EXPECT_EQ(server_.engine->stats().queued, 0U);
    if (how != 1) {
      EXPECT_EQ(server_.control->used_blocks, 0U);
    }
    server_.engine.reset();
    for (const auto& list : sent) {
      for (const Sent& one : list) Check(one);
    }
  }

 private:
  struct Sent {
    std::shared_ptr<Gather> sink;
    int32_t output;
  };

  void Client(int thread, uint64_t seed, std::vector<Sent>* sent) {
    std::mt19937_64 random(seed);
    std::vector<uint64_t> tickets;
    for (int i = 0; i < 60; ++i) {
      const std::string tenant =
          "t" + std::to_string((static_cast<uint64_t>(thread) + random()) % 3);
      if (random() % 10 == 0) {
        const auto unused = server_.engine->Admit(tenant);
        continue;
      }
      const auto output = static_cast<int32_t>(1 + random() % 30);
      const TimeNs deadline = random() % 8 == 0 ? MonotonicNow() + random() % 1'000'000 : 0;
      auto sink = std::make_shared<Gather>();
      const auto ticket = server_.Send(sink, static_cast<uint32_t>(output),
                                       static_cast<uint32_t>(1 + random() % 30), tenant,
                                       static_cast<int32_t>(random() % 3), deadline);
      if (ticket.ok()) {
        sent->push_back({sink, output});
        tickets.push_back(*ticket);
      }
      if (!tickets.empty() && random() % 4 == 0) {
        server_.engine->Cancel(tickets[random() % tickets.size()]);
      }
      if (random() % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 200));
    }
  }

  static void Check(const Sent& one) {
    ASSERT_TRUE(one.sink->ended());
    const std::vector<int32_t> tokens = one.sink->tokens();
    const GenerationOutput last = one.sink->AwaitEnd();
    EXPECT_EQ(tokens, Count(static_cast<int32_t>(tokens.size())));
    EXPECT_LE(tokens.size(), static_cast<size_t>(one.output));
    if (last.reason == FinishReason::kLength) {
      EXPECT_EQ(tokens.size(), static_cast<size_t>(one.output));
    } else {
      EXPECT_TRUE(last.reason == FinishReason::kCancelled || last.reason == FinishReason::kError);
      EXPECT_EQ(last.reason == FinishReason::kError, !last.error.ok());
    }
  }

  std::mt19937_64 random_;
  Server server_;
};

TEST(AsyncEngine, EveryRequestOfARandomLifeEndsOnce) {
  const uint64_t only = weir::testing::Iterations("WEIR_ASYNC_SEED", 0);
  const uint64_t runs = only != 0 ? only + 1 : weir::testing::Iterations("WEIR_ASYNC_RUNS", 150);
  for (uint64_t seed = only; seed < runs; ++seed) {
    SCOPED_TRACE("WEIR_ASYNC_SEED=" + std::to_string(seed));
    Stress(seed).Run();
    ASSERT_FALSE(HasFailure());
  }
}

}  // namespace
}  // namespace weir::server
