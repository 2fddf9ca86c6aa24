#include "engine/server/api_auth.h"

#include <cstring>

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include "vmm/check.h"

namespace weir::server {
namespace {

std::array<uint8_t, 32> Sha256(std::string_view text) {
  std::array<uint8_t, 32> digest{};
  const int done =
      EVP_Digest(text.data(), text.size(), digest.data(), nullptr, EVP_sha256(), nullptr);
  WEIR_CHECK(done == 1, "SHA-256 is available");
  return digest;
}

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

ApiKey ApiKey::FromSecret(std::string tenant, std::string_view secret) {
  return {std::move(tenant), Sha256(secret)};
}

Result<ApiKey> ApiKey::FromDigest(std::string tenant, std::string_view hex) {
  ApiKey key{.tenant = std::move(tenant)};
  bool valid = hex.size() == 2 * key.sha256.size();
  for (size_t i = 0; valid && i < hex.size(); i += 2) {
    const int high = HexValue(hex[i]), low = HexValue(hex[i + 1]);
    valid = high >= 0 && low >= 0;
    key.sha256[i / 2] = static_cast<uint8_t>(high * 16 + low);
  }
  if (!valid) {
    return InvalidArgument("the key of " + key.tenant +
                           " must be a SHA-256 digest of 64 hexadecimal digits");
  }
  return key;
}

const std::string* KeyRing::Tenant(std::string_view authorization) const {
  if (keys_.empty()) return &everybody_;
  static constexpr std::string_view kScheme = "bearer ";
  if (authorization.size() <= kScheme.size()) return nullptr;
  for (size_t i = 0; i < kScheme.size(); ++i) {
    if ((authorization[i] | 0x20) != (kScheme[i] | 0x20)) return nullptr;
  }
  const auto digest = Sha256(authorization.substr(kScheme.size()));
  const std::string* tenant = nullptr;
  for (const ApiKey& key : keys_) {
    if (CRYPTO_memcmp(key.sha256.data(), digest.data(), digest.size()) == 0) tenant = &key.tenant;
  }
  return tenant;
}

TenantSalts::TenantSalts() {
  WEIR_CHECK(RAND_bytes(secret_.data(), static_cast<int>(secret_.size())) == 1,
             "the system has random numbers");
}

uint64_t TenantSalts::Salt(std::string_view tenant, std::string_view request_salt) const {
  // The length keeps ("ab", "c") and ("a", "bc") apart.
  std::string text(reinterpret_cast<const char*>(secret_.data()), secret_.size());
  text += std::to_string(tenant.size());
  text += ':';
  text += tenant;
  text += request_salt;
  uint64_t salt = 0;
  std::memcpy(&salt, Sha256(text).data(), sizeof(salt));
  return salt;
}

}  // namespace weir::server
