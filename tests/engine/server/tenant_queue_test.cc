#include "engine/server/tenant_queue.h"

#include <random>

#include <gtest/gtest.h>

namespace weir::server {
namespace {

class Queue {
 public:
  explicit Queue(const TenantQueue::Options& options = TenantQueue::Options()) : queue(options) {}
  uint64_t Push(const std::string& tenant, uint32_t tokens = 10, int32_t priority = 0) {
    queue.Push({.ticket = ++last, .tenant = tenant, .priority = priority, .prompt_tokens = tokens});
    return last;
  }
  std::string PopTenant() {
    const auto next = queue.Pop();
    return next ? next->tenant : "";
  }
  TenantQueue queue;
  uint64_t last = 0;
};

TEST(TenantQueue, OneTenantIsServedInOrderOfPriorityThenArrival) {
  Queue q;
  const uint64_t first = q.Push("a");
  const uint64_t second = q.Push("a");
  const uint64_t urgent = q.Push("a", 10, -1);
  const uint64_t later = q.Push("a", 10, 5);
  for (const uint64_t ticket : {urgent, first, second, later}) {
    EXPECT_EQ(q.queue.Pop()->ticket, ticket);
  }
  EXPECT_FALSE(q.queue.Pop());
}

TEST(TenantQueue, ABurstOfOneTenantDoesNotDelayAnother) {
  Queue q;
  for (int i = 0; i < 100; ++i) q.Push("flood");
  EXPECT_EQ(q.PopTenant(), "flood");
  EXPECT_EQ(q.PopTenant(), "flood");
  q.Push("late");
  EXPECT_EQ(q.PopTenant(), "flood");  // equal counters after the lift: ties by name
  EXPECT_EQ(q.PopTenant(), "late");
}

TEST(TenantQueue, ServiceIsCountedInTokensNotInRequests) {
  Queue q;
  for (int i = 0; i < 40; ++i) q.Push("long", 100);
  for (int i = 0; i < 400; ++i) q.Push("short", 10);
  uint64_t long_tokens = 0;
  uint64_t short_tokens = 0;
  for (int i = 0; i < 200; ++i) {
    const auto next = *q.queue.Pop();
    (next.tenant == "long" ? long_tokens : short_tokens) += next.prompt_tokens;
  }
  EXPECT_LE(long_tokens > short_tokens ? long_tokens - short_tokens : short_tokens - long_tokens,
            100U);
}

TEST(TenantQueue, OutputTokensCountTwice) {
  Queue q;
  for (int i = 0; i < 10; ++i) {
    q.Push("a");
    q.Push("b");
  }
  EXPECT_EQ(q.PopTenant(), "a");
  q.queue.ChargeOutput("a", 25);  // 10 + 50
  EXPECT_EQ(q.queue.counter_of("a"), 60U);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(q.PopTenant(), "b");  // 60 tokens
  EXPECT_EQ(q.PopTenant(), "a");
}

TEST(TenantQueue, AnIdleTenantDoesNotSaveUp) {
  Queue q;
  for (int i = 0; i < 100; ++i) q.Push("busy");
  for (int i = 0; i < 50; ++i) q.PopTenant();
  q.Push("back");
  EXPECT_EQ(q.queue.counter_of("back"), 500U);
  for (int i = 0; i < 20; ++i) q.Push("back");
  int back = 0;
  for (int i = 0; i < 20; ++i) back += q.PopTenant() == "back" ? 1 : 0;
  EXPECT_EQ(back, 10);
}

TEST(TenantQueue, WhoeverComesToAnEmptyQueueStartsWhereTheLastOneLeft) {
  Queue q;
  q.Push("a", 70);
  EXPECT_EQ(q.PopTenant(), "a");
  q.Push("b", 1);
  EXPECT_EQ(q.queue.counter_of("b"), 70U);
}

TEST(TenantQueue, WhatIsRemovedIsNotChargedFor) {
  Queue q;
  const uint64_t a = q.Push("a", 1000);
  q.Push("b", 10);
  EXPECT_EQ(q.queue.prompt_tokens(), 1010U);
  EXPECT_EQ(q.queue.Remove(a)->tenant, "a");
  EXPECT_FALSE(q.queue.Remove(a));
  EXPECT_FALSE(q.queue.Remove(999));
  EXPECT_EQ(q.queue.counter_of("a"), 0U);
  EXPECT_EQ(q.queue.prompt_tokens(), 10U);
  EXPECT_EQ(q.queue.waiting_of("a"), 0U);
  EXPECT_EQ(q.queue.size(), 1U);
}

TEST(TenantQueue, TheNumberOfTenantsIsBounded) {
  Queue q({.max_tenants = 4});
  for (int i = 0; i < 100; ++i) {
    q.Push("t" + std::to_string(i));
    q.PopTenant();
  }
  EXPECT_LE(q.queue.tenants(), 4U);
  for (int i = 0; i < 10; ++i) q.Push("w" + std::to_string(i));  // those that wait all stay
  EXPECT_EQ(q.queue.size(), 10U);
  EXPECT_EQ(q.queue.waiting_of("w0"), 1U);
}

// The paper's bound (theorem 4.4): while both have work, what two tenants got differs by at most
// twice max(the longest prompt, the tokens that can be generated at once).
TEST(TenantQueue, TwoTenantsWithWorkAreNeverFarApart) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    std::mt19937_64 random(seed);
    Queue q;
    constexpr uint32_t kLongest = 200;
    std::map<std::string, uint64_t> served;
    for (int i = 0; i < 300; ++i) {
      q.Push("a", static_cast<uint32_t>(1 + random() % kLongest));
      q.Push("b", static_cast<uint32_t>(1 + random() % kLongest));
    }
    while (q.queue.waiting_of("a") > 0 && q.queue.waiting_of("b") > 0) {
      const auto next = *q.queue.Pop();
      served[next.tenant] += next.prompt_tokens;
      const uint64_t output = random() % 50;
      q.queue.ChargeOutput(next.tenant, output);
      served[next.tenant] += 2 * output;
      const uint64_t a = served["a"];
      const uint64_t b = served["b"];
      ASSERT_LE(a > b ? a - b : b - a, 2 * (kLongest + 100)) << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace weir::server
