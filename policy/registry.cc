#include "policy/registry.h"

#include <algorithm>

#include "policy/oneiros.h"
#include "policy/resident.h"
#include "policy/stress_random.h"
#include "policy/tide.h"

namespace weir {
namespace {

std::string_view Trim(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t\n");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\n") - first + 1);
}

bool IsName(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  });
}

Status Malformed(std::string_view spec, const std::string& what) {
  return InvalidArgument("policy \"" + std::string(spec) + "\": " + what +
                         "; accepted is name or name{key=value; key=value}");
}

// Splits `key=value; key=value`. A trailing semicolon is fine, a repeated key is not.
Result<PolicyParams> ParseParams(std::string_view spec, std::string_view body) {
  PolicyParams params;
  while (!Trim(body).empty()) {
    const size_t end = body.find(';');
    const std::string_view item = Trim(body.substr(0, end));
    body = end == std::string_view::npos ? std::string_view{} : body.substr(end + 1);
    if (item.empty()) return Malformed(spec, "empty parameter");
    const size_t equals = item.find('=');
    if (equals == std::string_view::npos) {
      return Malformed(spec, "\"" + std::string(item) + "\" has no \"=\"");
    }
    const std::string key(Trim(item.substr(0, equals)));
    const std::string value(Trim(item.substr(equals + 1)));
    for (const auto& [known, unused] : params) {
      if (known == key) return Malformed(spec, "parameter " + key + " is given twice");
    }
    params.emplace_back(key, value);
  }
  return params;
}

// A factory for a policy whose Config binds its own parameters.
template <typename PolicyT, typename Config>
Status RegisterConfigured(PolicyRegistry& registry, std::string name, std::string help,
                          PolicyUse use) {
  Config defaults;
  PolicyInfo info{std::move(name), std::move(help), use, defaults.Params().Describe()};
  return registry.Register(std::move(info),
                           [](const PolicyParams& params) -> Result<std::unique_ptr<Policy>> {
                             Config config;
                             ParamTable table = config.Params();
                             for (const auto& [key, value] : params)
                               WEIR_TRY(table.Set(key, value));
                             return std::unique_ptr<Policy>(std::make_unique<PolicyT>(config));
                           });
}

const PolicyRegistry& Builtins() {
  static const PolicyRegistry registry = [] {
    PolicyRegistry r;
    const Status status = RegisterBuiltinPolicies(r);
    WEIR_CHECK(status.ok(), status.message().c_str());
    return r;
  }();
  return registry;
}

}  // namespace

Status PolicyRegistry::Register(PolicyInfo info, Factory factory) {
  if (!IsName(info.name)) {
    return InvalidArgument("policy name \"" + info.name + "\" must be made of a-z, 0-9, _ and -");
  }
  for (const Entry& entry : entries_) {
    if (entry.info.name == info.name) {
      return InvalidArgument("policy \"" + info.name + "\" is registered already");
    }
  }
  entries_.push_back({std::move(info), std::move(factory)});
  return OkStatus();
}

Result<std::unique_ptr<Policy>> PolicyRegistry::Make(std::string_view spec) const {
  const std::string_view text = Trim(spec);
  const size_t brace = text.find('{');
  const std::string_view name = Trim(text.substr(0, brace));
  std::string_view body;
  if (brace != std::string_view::npos) {
    if (text.back() != '}') return Malformed(spec, "no closing \"}\"");
    body = text.substr(brace + 1, text.size() - brace - 2);
    if (body.find_first_of("{}") != std::string_view::npos) {
      return Malformed(spec, "braces inside braces");
    }
  }
  if (name.empty()) return Malformed(spec, "no name");
  const PolicyParams params = WEIR_TRY(ParseParams(spec, body));
  for (const Entry& entry : entries_) {
    if (entry.info.name != name) continue;
    auto made = entry.factory(params);
    if (!made.ok()) return made.status().WithContext("policy " + entry.info.name);
    return made;
  }
  std::vector<std::string> known;
  for (const Entry& entry : entries_) known.push_back(entry.info.name);
  return NotFound(UnknownNameMessage("policy", name, known));
}

std::vector<PolicyInfo> PolicyRegistry::List() const {
  std::vector<PolicyInfo> infos;
  for (const Entry& entry : entries_) infos.push_back(entry.info);
  return infos;
}

Status RegisterBuiltinPolicies(PolicyRegistry& registry) {
  WEIR_TRY((RegisterConfigured<ResidentPolicy, ResidentConfig>(
      registry, "resident", "nothing moves: a conventional engine", PolicyUse::kServing)));
  WEIR_TRY((RegisterConfigured<FixedPolicy, FixedConfig>(
      registry, "fixed", "a border set once by hand", PolicyUse::kServing)));
  WEIR_TRY((RegisterConfigured<StaticPolicy, StaticConfig>(
      registry, "static", "a fixed share of the weights away, as vLLM's prefetch offloading",
      PolicyUse::kServing)));
  WEIR_TRY((RegisterConfigured<ZeroInferencePolicy, ZeroInferenceConfig>(
      registry, "zero-inference", "every layer streamed in every step, all HBM to the batch",
      PolicyUse::kServing)));
  WEIR_TRY((RegisterConfigured<OneirosPolicy, OneirosConfig>(
      registry, "oneiros", "lends whole layers when KV is exhausted, as the paper of this name",
      PolicyUse::kServing)));
  WEIR_TRY((RegisterConfigured<TidePolicy, TideConfig>(
      registry, "tide", "moves the border to where the cost model predicts most tokens/s",
      PolicyUse::kServing)));
  return RegisterConfigured<StressRandomPolicy, StressRandomConfig>(
      registry, "stress_random", "for tests: random legal decisions", PolicyUse::kTests);
}

Result<std::unique_ptr<Policy>> MakePolicy(std::string_view spec) {
  return Builtins().Make(spec);
}
std::vector<PolicyInfo> ListPolicies() {
  return Builtins().List();
}

}  // namespace weir
