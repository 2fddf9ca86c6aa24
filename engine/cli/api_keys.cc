#include "engine/cli/api_keys.h"

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <utility>

#include <sys/stat.h>

#include "engine/cli/config.h"
#include "engine/cli/size_text.h"

namespace weir::cli {
namespace {

constexpr size_t kLeastKeyBytes = 8;
constexpr size_t kMostKeyBytes = 512;
constexpr std::string_view kDigest = "sha256:";

// Bearer tokens are visible ASCII (RFC 6750, section 2.1): another byte could never be sent.
Status CheckSecret(std::string_view secret) {
  if (secret.size() < kLeastKeyBytes || secret.size() > kMostKeyBytes) {
    return InvalidArgument("a key has " + std::to_string(kLeastKeyBytes) + " to " +
                           std::to_string(kMostKeyBytes) + " characters");
  }
  for (const char c : secret) {
    if (c <= ' ' || c > '~') return InvalidArgument("a key is of visible ASCII characters");
  }
  return OkStatus();
}

Result<server::ApiKey> ParseLine(std::string_view line, size_t number) {
  std::istringstream words{std::string(line)};
  std::string first;
  std::string second;
  std::string third;
  words >> first >> second >> third;
  if (!third.empty()) return InvalidArgument("accepted: [name] key, or name sha256:digest");
  const bool named = !second.empty();
  // With a space, which no name has: an unnamed key is never another one's tenant.
  const std::string tenant = named ? first : "key " + std::to_string(number);
  const std::string& secret = named ? second : first;
  if (named && secret.starts_with(kDigest)) {
    return server::ApiKey::FromDigest(tenant, std::string_view(secret).substr(kDigest.size()));
  }
  if (secret.starts_with(kDigest)) {
    return InvalidArgument("a digest needs a name in front of it: name sha256:digest");
  }
  WEIR_TRY(CheckSecret(secret));
  return server::ApiKey::FromSecret(tenant, secret);
}

}  // namespace

Result<std::vector<server::ApiKey>> ParseApiKeys(std::string_view text, const std::string& path) {
  std::vector<server::ApiKey> keys;
  std::istringstream lines{std::string(text)};
  std::string line;
  for (size_t number = 1; std::getline(lines, line); ++number) {
    const size_t start = line.find_first_not_of(" \t\r");
    if (start == std::string::npos || line[start] == '#') continue;
    Result<server::ApiKey> key = ParseLine(line, keys.size() + 1);
    if (!key.ok()) return key.status().WithContext(path + ":" + std::to_string(number));
    keys.push_back(std::move(*key));
  }
  if (keys.empty()) return InvalidArgument(path + ": no key in it; give one a line");
  return keys;
}

Result<std::vector<server::ApiKey>> LoadApiKeys(const std::string& path) {
  std::vector<server::ApiKey> keys;
  if (!path.empty()) {
    std::ifstream in(path, std::ios::binary);
    std::ostringstream text;
    if (!in || !(text << in.rdbuf())) {
      return IoError("cannot read the key file " + OneLine(path, 300));
    }
    keys = WEIR_TRY(ParseApiKeys(std::move(text).str(), OneLine(path, 300)));
  }
  if (const char* secret = std::getenv(std::string(kApiKeyVariable).c_str())) {
    const Status sound = CheckSecret(secret);
    if (!sound.ok()) return sound.WithContext(kApiKeyVariable);
    keys.push_back(server::ApiKey::FromSecret("default", secret));
  }
  return keys;
}

bool OthersMayRead(const std::string& path) {
  struct stat info = {};
  return stat(path.c_str(), &info) == 0 && (info.st_mode & (S_IRGRP | S_IROTH)) != 0;
}

}  // namespace weir::cli
