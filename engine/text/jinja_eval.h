// Chat templates, stage 3: running a syntax tree. A sandbox: values are JSON, nothing mutates its
// input, and every run is bounded by Limits.
#pragma once

#include <cstdint>
#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/text/jinja_ast.h"

namespace weir::jinja {

struct Limits {
  size_t output_bytes = size_t{16} << 20;
  uint64_t steps = 20'000'000;  // expressions, statements, and 1 per 16 bytes of text made
  uint32_t depth = 250;         // nested blocks, expressions and macro calls, together
};

// Variables of one scope; inner scopes see outer ones.
struct Scope {
  std::shared_ptr<Scope> parent;
  std::vector<std::pair<std::string, Value>> variables;

  const Value* Find(std::string_view name) const;
  void Set(const std::string& name, Value value);
};

// Represents one rendering; used once, by one thread.
class Evaluator {
 public:
  explicit Evaluator(const Limits& limits) : limits_(limits), scope_(std::make_shared<Scope>()) {}

  // A variable that templates see and may shadow.
  void Define(const std::string& name, Value value) { scope_->Set(name, std::move(value)); }
  // Seconds since 1970 for strftime_now; the clock if unset.
  std::optional<int64_t> now;

  // Throws Error.
  std::string Run(const Block& block);

  // For filters, tests, methods and macros:
  // Pays |steps|; throws when the budget is spent.
  void Charge(uint64_t steps);
  // A string value, paid for.
  Value Text(std::string text);
  template <typename T, typename... Args>
  T* NewObject(Args&&... args) {
    Charge(8);
    objects_.push_back(std::make_unique<T>(std::forward<Args>(args)...));
    return static_cast<T*>(objects_.back().get());
  }
  // environment.getattr and environment.getitem.
  Value GetAttribute(const Value& object, const std::string& name);
  Value GetItem(const Value& object, const Value& key);
  // The output of |block| run in a new scope of |closure| with |variables|.
  std::string RunClosure(const std::shared_ptr<Scope>& closure, const Block& block,
                         std::vector<std::pair<std::string, Value>> variables);
  Value Evaluate(const Expression& e);

 private:
  friend class MacroObject;
  enum class Flow : uint8_t { kNormal, kBreak, kContinue };

  class DepthGuard;

  Flow RunBlock(const Block& block);
  Flow RunStatement(const Statement& s);
  Flow RunIf(const Statement& s);
  Flow RunFor(const Statement& s);
  void RunSet(const Statement& s);
  void RunCallBlock(const Statement& s);
  Flow RunScoped(const Block& block);
  std::string Capture(const Block& block);
  void Emit(std::string_view text);
  void Bind(const std::vector<std::string>& targets, const Value& value);

  Value EvaluateInner(const Expression& e);
  Value EvaluateName(const Expression& e);
  Value EvaluateCall(const Expression& e);
  Value EvaluateFilter(const Expression& e, const Value* block_text);
  Value EvaluateSlice(const Expression& e);
  Value EvaluateBinary(const Expression& e);
  bool EvaluateCompare(const Expression& e);
  Arguments EvaluateArguments(const Expression& e);

  Limits limits_;
  uint64_t steps_ = 0;
  uint32_t depth_ = 0;
  std::vector<std::unique_ptr<Object>> objects_;
  std::shared_ptr<Scope> scope_;
  std::string* out_ = nullptr;
};

// The built-in functions: all throw Error for a bad argument or an unknown name.
Value ApplyFilter(Evaluator& evaluator, const std::string& name, const Value& input,
                  const Arguments& arguments);
bool ApplyTest(Evaluator& evaluator, const std::string& name, const Value& input,
               const Arguments& arguments);
bool IsMethod(const Value& object, std::string_view name);
Value CallMethod(Evaluator& evaluator, const Value& object, const std::string& name,
                 const Arguments& arguments);
bool Contains(Evaluator& evaluator, const Value& container, const Value& item);
// A global function such as range, or undefined.
Value FindGlobal(Evaluator& evaluator, const std::string& name);

// Python's str.split family and str.replace; |count| < 0: all.
std::vector<std::string> SplitOn(std::string_view text, std::string_view separator, int64_t count);
std::vector<std::string> SplitWords(std::string_view text, int64_t count);
std::vector<std::string> SplitLines(std::string_view text, bool keep_ends);
std::string ReplaceText(Evaluator& evaluator, std::string_view text, std::string_view from,
                        std::string_view to, int64_t count);

}  // namespace weir::jinja
