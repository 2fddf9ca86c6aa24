#include "engine/server/tenant_queue.h"

#include <algorithm>
#include <utility>

#include "vmm/check.h"

namespace weir::server {

TenantQueue::TenantQueue() : TenantQueue(Options()) {}

void TenantQueue::Push(QueuedRequest request) {
  auto at = tenants_.find(request.tenant);
  if (at == tenants_.end()) {
    ForgetIdle();
    at = tenants_.try_emplace(request.tenant).first;
  }
  Tenant& tenant = at->second;
  if (tenant.waiting.empty()) {
    // Algorithm 2 of the paper, lines 6 to 13: the lift.
    const uint64_t least = active_.empty() ? last_left_ : active_.begin()->first;
    tenant.served = std::max(tenant.served, least);
    active_.emplace(tenant.served, at->first);
  }
  const Order order{request.priority, request.ticket};
  prompt_tokens_ += request.prompt_tokens;
  const bool added = by_ticket_.try_emplace(request.ticket, request.tenant, order).second;
  WEIR_CHECK(added, "a ticket is queued once");
  tenant.waiting.emplace(order, std::move(request));
}

QueuedRequest TenantQueue::Take(Tenants::iterator at,
                                std::map<Order, QueuedRequest>::iterator request) {
  Tenant& tenant = at->second;
  QueuedRequest taken = std::move(request->second);
  tenant.waiting.erase(request);
  by_ticket_.erase(taken.ticket);
  prompt_tokens_ -= taken.prompt_tokens;
  if (tenant.waiting.empty()) {
    active_.erase({tenant.served, at->first});
    last_left_ = tenant.served;
  }
  return taken;
}

std::optional<QueuedRequest> TenantQueue::Pop() {
  if (active_.empty()) return std::nullopt;
  const std::string name = active_.begin()->second;
  const auto at = tenants_.find(name);
  QueuedRequest next = Take(at, at->second.waiting.begin());
  const uint64_t cost = options_.input_weight * next.prompt_tokens;
  Tenant& tenant = at->second;
  if (tenant.waiting.empty()) {
    tenant.served += cost;
    last_left_ = tenant.served;
  } else {
    active_.erase({tenant.served, name});
    tenant.served += cost;
    active_.emplace(tenant.served, name);
  }
  return next;
}

std::optional<QueuedRequest> TenantQueue::Remove(uint64_t ticket) {
  const auto known = by_ticket_.find(ticket);
  if (known == by_ticket_.end()) return std::nullopt;
  const auto at = tenants_.find(known->second.first);
  return Take(at, at->second.waiting.find(known->second.second));
}

void TenantQueue::ChargeOutput(const std::string& tenant, uint64_t output_tokens) {
  const auto at = tenants_.find(tenant);
  if (at == tenants_.end()) return;  // forgotten: it was the least served
  const bool waits = !at->second.waiting.empty();
  if (waits) active_.erase({at->second.served, tenant});
  at->second.served += options_.output_weight * output_tokens;
  if (waits) active_.emplace(at->second.served, tenant);
}

size_t TenantQueue::waiting_of(const std::string& tenant) const {
  const auto at = tenants_.find(tenant);
  return at == tenants_.end() ? 0 : at->second.waiting.size();
}

uint64_t TenantQueue::counter_of(const std::string& tenant) const {
  const auto at = tenants_.find(tenant);
  return at == tenants_.end() ? 0 : at->second.served;
}

// The lift makes the loss small: whoever comes back starts no lower than the least that waits.
void TenantQueue::ForgetIdle() {
  if (tenants_.size() < options_.max_tenants) return;
  auto victim = tenants_.end();
  for (auto at = tenants_.begin(); at != tenants_.end(); ++at) {
    if (!at->second.waiting.empty()) continue;
    if (victim == tenants_.end() || at->second.served < victim->second.served) victim = at;
  }
  if (victim != tenants_.end()) tenants_.erase(victim);
}

}  // namespace weir::server
