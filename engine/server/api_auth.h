// Who is calling: API keys, tenants and the salts of their prefix caches.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/server/api_service.h"

namespace weir::server {

// Represents the keys that are accepted. Immutable; any thread.
class KeyRing {
 public:
  explicit KeyRing(std::vector<ApiKey> keys) : keys_(std::move(keys)) {}
  // |authorization|: the header's value. The tenant, or null if the key is unknown. With no keys
  // configured everybody is one tenant. Takes the same time whichever key matches, and where a
  // wrong one differs: digests are compared, all of them, in constant time.
  const std::string* Tenant(std::string_view authorization) const;

 private:
  std::vector<ApiKey> keys_;
  std::string everybody_ = "default";
};

// Represents the secret that keeps tenants' prefixes apart: a salt can be computed only inside this
// process, so no tenant can name another's. New at each start.
class TenantSalts {
 public:
  TenantSalts();
  uint64_t Salt(std::string_view tenant, std::string_view request_salt) const;

 private:
  std::array<uint8_t, 32> secret_{};
};

}  // namespace weir::server
