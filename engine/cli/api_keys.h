// The keys of `weir serve`: from a file and from the environment.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/server/api_service.h"
#include "vmm/status.h"

namespace weir::cli {

// One key a line: `key`, `name key` or `name sha256:<64 hex digits>`; empty lines and lines that
// begin with # are skipped. The name is the tenant's: its share of the queue and its prefix cache.
// Unnamed keys are called "key 1", "key 2" ... by their place. Messages name the line, never the
// key.
Result<std::vector<server::ApiKey>> ParseApiKeys(std::string_view text, const std::string& path);

// Those of |path| (empty: none) and of the variable WEIR_SERVER_API_KEY, whose tenant is "default".
Result<std::vector<server::ApiKey>> LoadApiKeys(const std::string& path);

// The file's permissions let others read it.
bool OthersMayRead(const std::string& path);

}  // namespace weir::cli
