// TenantQueue: which waiting request is next, fair between tenants.
//
// Represents the requests in front of the engine and a virtual counter of service for each tenant:
// Sheng et al., "Fairness in Serving Large Language Models" (VTC), OSDI'24, section 4. The tenant
// with waiting requests that has been served least goes next; within one tenant the lower priority
// number, then arrival. A tenant that was idle does not save up: on its return its counter is
// lifted to the least of those that wait. Not thread-safe; touches no clock and no engine.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>

namespace weir::server {

// One waiting request as the queue sees it.
struct QueuedRequest {
  uint64_t ticket = 0;  // in order of arrival; unique
  std::string tenant;
  int32_t priority = 0;        // lower goes first within the tenant
  uint32_t prompt_tokens = 0;  // what it costs when it goes
};

class TenantQueue {
 public:
  struct Options {
    // What a token costs, as in the paper's evaluation: an output token twice an input token.
    uint64_t input_weight = 1;
    uint64_t output_weight = 2;
    size_t max_tenants = 4096;  // idle ones beyond so many are forgotten, the least served first
  };
  TenantQueue();
  explicit TenantQueue(const Options& options) : options_(options) {}

  void Push(QueuedRequest request);
  // Takes the next request and charges its tenant for the prompt.
  std::optional<QueuedRequest> Pop();
  // Takes |ticket| out without charging for it; nothing if it does not wait.
  std::optional<QueuedRequest> Remove(uint64_t ticket);
  // |tenant| was served |output_tokens| more.
  void ChargeOutput(const std::string& tenant, uint64_t output_tokens);

  size_t size() const { return by_ticket_.size(); }
  bool empty() const { return by_ticket_.empty(); }
  uint64_t prompt_tokens() const { return prompt_tokens_; }  // of all that wait
  size_t waiting_of(const std::string& tenant) const;
  uint64_t counter_of(const std::string& tenant) const;  // 0: unknown
  size_t tenants() const { return tenants_.size(); }

 private:
  // (priority, ticket): the first is next.
  using Order = std::pair<int32_t, uint64_t>;
  struct Tenant {
    uint64_t served = 0;  // weighted tokens
    std::map<Order, QueuedRequest> waiting;
  };
  using Tenants = std::unordered_map<std::string, Tenant>;

  QueuedRequest Take(Tenants::iterator tenant, std::map<Order, QueuedRequest>::iterator request);
  void ForgetIdle();

  Options options_;
  Tenants tenants_;
  std::set<std::pair<uint64_t, std::string>> active_;  // (served, name) of those that wait
  std::unordered_map<uint64_t, std::pair<std::string, Order>> by_ticket_;
  uint64_t prompt_tokens_ = 0;
  uint64_t last_left_ = 0;  // counter of the tenant whose last request went most recently
};

}  // namespace weir::server
