// Policies by name. Used where the program is put together, by tests and by benchmarks only.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "policy/params.h"
#include "policy/policy.h"
#include "vmm/status.h"

namespace weir {

enum class PolicyUse : uint8_t { kServing, kTests };

// One policy as listed to users.
struct PolicyInfo {
  std::string name;
  std::string help;  // one line
  PolicyUse use = PolicyUse::kServing;
  std::vector<ParamInfo> params;
};

using PolicyParams = std::vector<std::pair<std::string, std::string>>;  // key, value

// Represents the set of policies a program knows. Built-ins are added by a call, not by static
// initialisers, which a static library may drop.
class PolicyRegistry {
 public:
  using Factory = std::function<Result<std::unique_ptr<Policy>>(const PolicyParams&)>;

  // kInvalidArgument if the name is empty, holds other characters than [a-z0-9_-], or is taken.
  Status Register(PolicyInfo info, Factory factory);

  // |spec| is `name` or `name{key=value; key=value}`. kNotFound for an unknown name or key, with
  // the known ones; kInvalidArgument for a malformed spec or a value out of range.
  Result<std::unique_ptr<Policy>> Make(std::string_view spec) const;

  std::vector<PolicyInfo> List() const;  // in order of registration

 private:
  struct Entry {
    PolicyInfo info;
    Factory factory;
  };
  std::vector<Entry> entries_;
};

// resident, fixed, static, zero-inference, oneiros, tide, stress_random.
Status RegisterBuiltinPolicies(PolicyRegistry& registry);

// The same for the built-ins alone.
Result<std::unique_ptr<Policy>> MakePolicy(std::string_view spec);
std::vector<PolicyInfo> ListPolicies();

}  // namespace weir
