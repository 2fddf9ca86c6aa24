// Parsers of the fields that are more than one number, text or flag; for the table in
// api_fields.cc. Each gets a value that is not null.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "engine/server/api_request.h"

namespace weir::server {

FieldError ParsePrompt(const nlohmann::json& value, const RequestLimits& limits, ApiRequest* out);
FieldError ParseMessages(const nlohmann::json& value, const RequestLimits& limits, ApiRequest* out);
FieldError ParseTokens(const nlohmann::json& value, const RequestLimits& limits, ApiRequest* out);
FieldError ParseSeed(const nlohmann::json& value, const RequestLimits& limits, ApiRequest* out);
FieldError ParseLogitBias(const nlohmann::json& value, const RequestLimits& limits,
                          ApiRequest* out);
FieldError ParseStop(const nlohmann::json& value, const RequestLimits& limits, ApiRequest* out);
FieldError ParseStopTokenIds(const nlohmann::json& value, const RequestLimits& limits,
                             ApiRequest* out);
FieldError ParseStreamOptions(const nlohmann::json& value, const RequestLimits& limits,
                              ApiRequest* out);
FieldError ParseKwargs(const nlohmann::json& value, const RequestLimits& limits, ApiRequest* out);

// "a number", "a string", ...: what |value| is, for messages; numbers with their value.
std::string Describe(const nlohmann::json& value);
// |value| is a number without a fraction (1.0 counts) in [min, max].
bool IsInteger(const nlohmann::json& value, double min, double max);

}  // namespace weir::server
