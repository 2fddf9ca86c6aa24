// ParamTable: the named numbers and choices of a policy, with meaning, unit and range.
//
// Binds names to the fields of a policy's Config, so that a spec string can set them, the contract
// test can check them and the documentation can list them. Owns nothing: the Config must outlive
// the table.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "policy/policy.h"
#include "vmm/status.h"

namespace weir {

// One parameter as documented to users.
struct ParamInfo {
  std::string name;
  std::string default_value;
  std::string range;  // "[0, 1]", or "stripe, layer"
  std::string help;   // one line: meaning, unit, what 0 does
};

class ParamTable {
 public:
  void Bind(std::string name, double* field, double least, double most, std::string help);
  void Bind(std::string name, uint64_t* field, uint64_t least, uint64_t most, std::string help);
  // By name; |accepted| are those that this policy knows.
  void Bind(std::string name, Placement* field, std::vector<Placement> accepted, std::string help);

  // kNotFound for an unknown key (lists the known ones and the nearest), kInvalidArgument for a
  // value that is not a number, out of range or not accepted. The field is unchanged after an
  // error.
  Status Set(std::string_view key, std::string_view value);

  std::vector<ParamInfo> Describe() const;                          // as bound
  std::vector<std::pair<std::string, std::string>> Values() const;  // as they are now

 private:
  struct Real {
    double* field;
    double least, most;
  };
  struct Count {
    uint64_t* field;
    uint64_t least, most;
  };
  struct Choice {
    Placement* field;
    std::vector<Placement> accepted;
  };
  struct Entry {
    std::string name;
    std::variant<Real, Count, Choice> target;
    std::string help;
    std::string default_value;
  };
  std::vector<Entry> entries_;
};

// The member of |known| with the smallest edit distance to |name|; empty when none is near.
std::string NearestName(std::string_view name, const std::vector<std::string>& known);

// "unknown policy "tid"; known are: fixed, resident, tide. Did you mean "tide"?"
std::string UnknownNameMessage(std::string_view what, std::string_view name,
                               const std::vector<std::string>& known);

// A short decimal rendering: "0.05", "16", "1e+09".
std::string FormatNumber(double value);

}  // namespace weir
