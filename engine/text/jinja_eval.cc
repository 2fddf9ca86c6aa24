#include "engine/text/jinja_eval.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace weir::jinja {
namespace {

class NamespaceObject : public Object {
 public:
  std::string Describe() const override { return "<Namespace>"; }
  Value Attribute(std::string_view name) const override {
    const Value* value = variables.Find(name);
    return value == nullptr ? Value(Undefined{std::string(name)}) : *value;
  }
  Scope variables;
};

class LoopObject : public Object {
 public:
  std::string Describe() const override { return "<LoopContext>"; }
  Value Attribute(std::string_view name) const override {
    const auto size = static_cast<int64_t>(items.size());
    const auto at = static_cast<int64_t>(index);
    if (name == "index") return at + 1;
    if (name == "index0") return at;
    if (name == "revindex") return size - at;
    if (name == "revindex0") return size - at - 1;
    if (name == "first") return at == 0;
    if (name == "last") return at + 1 == size;
    if (name == "length") return size;
    if (name == "depth") return int64_t{1};
    if (name == "depth0") return int64_t{0};
    if (name == "previtem" && index > 0) return items[index - 1];
    if (name == "nextitem" && index + 1 < items.size()) return items[index + 1];
    return Undefined{std::string(name)};
  }
  std::vector<Value> items;
  size_t index = 0;
  Value changed;  // what loop.changed() was last given
};

class LoopFunction : public Object {
 public:
  LoopFunction(LoopObject* loop, bool cycle) : loop_(loop), cycle_(cycle) {}
  std::string Describe() const override { return "<loop function>"; }
  bool IsCallable() const override { return true; }
  Value Call(Evaluator&, const Arguments& arguments) override {
    if (cycle_) {
      if (arguments.positional.empty()) Fail("no items for cycling given");
      return arguments.positional[loop_->index % arguments.positional.size()];
    }
    Value now = MakeList(arguments.positional, ListKind::kTuple);
    const bool changed = !Equal(now, loop_->changed);
    loop_->changed = std::move(now);
    return changed;
  }

 private:
  LoopObject* loop_;
  bool cycle_;
};

class BoundMethod : public Object {
 public:
  BoundMethod(Value object, std::string name)
      : object_(std::move(object)), name_(std::move(name)) {}
  std::string Describe() const override { return "<built-in method " + name_ + ">"; }
  bool IsCallable() const override { return true; }
  Value Call(Evaluator& evaluator, const Arguments& arguments) override {
    return CallMethod(evaluator, object_, name_, arguments);
  }

 private:
  Value object_;
  std::string name_;
};

using BuiltIn = Value (*)(Evaluator&, const Arguments&);

class FunctionObject : public Object {
 public:
  FunctionObject(std::string name, BuiltIn function)
      : name_(std::move(name)), function_(function) {}
  std::string Describe() const override { return "<function " + name_ + ">"; }
  bool IsCallable() const override { return true; }
  Value Call(Evaluator& evaluator, const Arguments& arguments) override {
    return function_(evaluator, arguments);
  }

 private:
  std::string name_;
  BuiltIn function_;
};

Value CallRange(Evaluator& evaluator, const Arguments& arguments) {
  const auto& a = arguments.positional;
  if (a.empty() || a.size() > 3 || !arguments.named.empty()) Fail("range takes 1 to 3 numbers");
  for (const Value& v : a) {
    if (!v.is_int() && !v.is_bool()) Fail("range takes integers");
  }
  int64_t at = a.size() == 1 ? 0 : a[0].integer();
  const int64_t stop = a.size() == 1 ? a[0].integer() : a[1].integer();
  const int64_t step = a.size() == 3 ? a[2].integer() : 1;
  if (step == 0) Fail("range() with a step of 0");
  std::vector<Value> items;
  while (step > 0 ? at < stop : at > stop) {
    if (items.size() >= 100'000) Fail("range too big, at most 100000 numbers");
    evaluator.Charge(1);
    items.emplace_back(at);
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  return MakeList(std::move(items));
}

Value CallNamespace(Evaluator& evaluator, const Arguments& arguments) {
  auto* object = evaluator.NewObject<NamespaceObject>();
  for (const Value& value : arguments.positional) {
    if (!value.is_dict()) Fail("namespace takes mappings and named arguments");
    for (const auto& [key, item] : value.dict().items) object->variables.Set(ToText(key), item);
  }
  for (const auto& [name, value] : arguments.named) object->variables.Set(name, value);
  return Value(object);
}

Value CallDict(Evaluator&, const Arguments& arguments) {
  std::vector<std::pair<Value, Value>> items;
  for (const Value& value : arguments.positional) {
    if (!value.is_dict()) Fail("dict takes a mapping and named arguments");
    items.insert(items.end(), value.dict().items.begin(), value.dict().items.end());
  }
  for (const auto& [name, value] : arguments.named) items.emplace_back(Value(name), value);
  return MakeDict(std::move(items));
}

Value CallRaise(Evaluator&, const Arguments& arguments) {
  const Value* message = arguments.Find(0, "message");
  Fail(message == nullptr ? "raise_exception" : ToText(*message));
}

Value CallStrftime(Evaluator& evaluator, const Arguments& arguments) {
  const Value* format = arguments.Find(0, "format");
  if (format == nullptr || !format->is_string() || format->string().size() > 256) {
    Fail("strftime_now takes a format of at most 256 bytes");
  }
  const std::time_t now =
      evaluator.now ? static_cast<std::time_t>(*evaluator.now) : std::time(nullptr);
  std::tm fields{};
  localtime_r(&now, &fields);
  char buffer[4096];
  const size_t size = std::strftime(buffer, sizeof(buffer), format->string().c_str(), &fields);
  return evaluator.Text(std::string(buffer, size));
}

int64_t FloorDivide(int64_t a, int64_t b) {
  if (b == 0) Fail("division by zero");
  if (b == -1) {
    int64_t result = 0;
    if (__builtin_sub_overflow(int64_t{0}, a, &result)) Fail("integer overflow");
    return result;
  }
  return a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);
}

int64_t FloorModulo(int64_t a, int64_t b) {
  if (b == 0) Fail("division by zero");
  if (b == -1) return 0;
  const int64_t r = a % b;
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}

Value IntegerArithmetic(const std::string& op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  if (op == "+") {
    overflow = __builtin_add_overflow(a, b, &result);
  } else if (op == "-") {
    overflow = __builtin_sub_overflow(a, b, &result);
  } else if (op == "*") {
    overflow = __builtin_mul_overflow(a, b, &result);
  } else if (op == "//") {
    result = FloorDivide(a, b);
  } else if (op == "%") {
    result = FloorModulo(a, b);
  } else if (op == "**") {
    if (b < 0) return std::pow(static_cast<double>(a), static_cast<double>(b));
    result = 1;
    for (int64_t i = 0; i < b && !overflow && !(result == 0 || (a == 1)); ++i) {
      if (a == -1 && i >= 2) {  // the sign alternates
        result = b % 2 == 0 ? 1 : -1;
        break;
      }
      overflow = __builtin_mul_overflow(result, a, &result);
    }
  } else {
    if (b == 0) Fail("division by zero");
    return static_cast<double>(a) / static_cast<double>(b);
  }
  if (overflow) Fail("integer overflow");
  return result;
}

Value FloatArithmetic(const std::string& op, double a, double b) {
  if (op == "+") return a + b;
  if (op == "-") return a - b;
  if (op == "*") return a * b;
  if (op == "**") return std::pow(a, b);
  if (b == 0) Fail("division by zero");
  if (op == "/") return a / b;
  if (op == "//") return std::floor(a / b);
  const double r = std::fmod(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}

}  // namespace

// A macro or the body of a call block, with the scope it was written in.
class MacroObject : public Object {
 public:
  MacroObject(const Statement* statement, std::shared_ptr<Scope> closure)
      : statement_(statement), closure_(std::move(closure)) {}
  std::string Describe() const override { return "<Macro '" + statement_->name + "'>"; }
  bool IsCallable() const override { return true; }
  Value Attribute(std::string_view name) const override {
    if (name == "name") return Value(statement_->name);
    return Undefined{std::string(name)};
  }
  Value Call(Evaluator& evaluator, const Arguments& arguments) override {
    const auto& parameters = statement_->parameters;
    if (arguments.positional.size() > parameters.size()) {
      Fail("macro '" + statement_->name + "' takes not more than " +
           std::to_string(parameters.size()) + " argument(s)");
    }
    auto scope = std::make_shared<Scope>();
    scope->parent = closure_;
    for (size_t i = 0; i < parameters.size(); ++i) {
      const Parameter& parameter = parameters[i];
      if (const Value* given = arguments.Find(i, parameter.name)) {
        scope->Set(parameter.name, *given);
      } else if (parameter.fallback) {
        const auto outer = std::exchange(evaluator.scope_, scope);
        Value value = evaluator.Evaluate(*parameter.fallback);
        evaluator.scope_ = outer;
        scope->Set(parameter.name, std::move(value));
      } else {
        scope->Set(parameter.name, Undefined{parameter.name});
      }
    }
    for (const auto& argument : arguments.named) {
      const std::string& name = argument.first;
      const bool known = std::any_of(parameters.begin(), parameters.end(),
                                     [&](const auto& p) { return p.name == name; });
      if (!known && name != "caller") {
        Fail("macro '" + statement_->name + "' takes no argument '" + name + "'");
      }
      if (name == "caller") scope->Set(name, argument.second);
    }
    return evaluator.Text(
        evaluator.RunClosure(closure_, statement_->body, std::move(scope->variables)));
  }

 private:
  const Statement* statement_;
  std::shared_ptr<Scope> closure_;
};

class Evaluator::DepthGuard {
 public:
  explicit DepthGuard(Evaluator* evaluator) : evaluator_(evaluator) {
    if (++evaluator_->depth_ > evaluator_->limits_.depth) {
      --evaluator_->depth_;
      Fail("the template nests or recurses deeper than " +
           std::to_string(evaluator_->limits_.depth));
    }
  }
  ~DepthGuard() { --evaluator_->depth_; }
  DepthGuard(const DepthGuard&) = delete;
  DepthGuard& operator=(const DepthGuard&) = delete;

 private:
  Evaluator* evaluator_;
};

const Value* Scope::Find(std::string_view name) const {
  for (const Scope* scope = this; scope != nullptr; scope = scope->parent.get()) {
    for (const auto& [n, value] : scope->variables) {
      if (n == name) return &value;
    }
  }
  return nullptr;
}

void Scope::Set(const std::string& name, Value value) {
  for (auto& [n, v] : variables) {
    if (n == name) {
      v = std::move(value);
      return;
    }
  }
  variables.emplace_back(name, std::move(value));
}

Value FindGlobal(Evaluator& evaluator, const std::string& name) {
  constexpr std::pair<std::string_view, BuiltIn> kGlobals[] = {
      {"range", CallRange},           {"namespace", CallNamespace},   {"dict", CallDict},
      {"raise_exception", CallRaise}, {"strftime_now", CallStrftime},
  };
  for (const auto& [n, function] : kGlobals) {
    if (n == name) return Value(evaluator.NewObject<FunctionObject>(name, function));
  }
  return Undefined{name};
}

std::string Evaluator::Run(const Block& block) {
  std::string out;
  out_ = &out;
  RunBlock(block);
  return out;
}

void Evaluator::Charge(uint64_t steps) {
  steps_ += steps;
  if (steps_ > limits_.steps) {
    Fail("the template took more than " + std::to_string(limits_.steps) + " steps");
  }
}

Value Evaluator::Text(std::string text) {
  if (text.size() > limits_.output_bytes) {
    Fail("a string is longer than " + std::to_string(limits_.output_bytes) + " bytes");
  }
  Charge(1 + text.size() / 16);
  return Value(std::move(text));
}

void Evaluator::Emit(std::string_view text) {
  if (out_->size() + text.size() > limits_.output_bytes) {
    Fail("the output is longer than " + std::to_string(limits_.output_bytes) + " bytes");
  }
  Charge(text.size() / 16);
  *out_ += text;
}

std::string Evaluator::RunClosure(const std::shared_ptr<Scope>& closure, const Block& block,
                                  std::vector<std::pair<std::string, Value>> variables) {
  auto scope = std::make_shared<Scope>();
  scope->parent = closure;
  scope->variables = std::move(variables);
  const auto outer = std::exchange(scope_, std::move(scope));
  std::string text = Capture(block);
  scope_ = outer;
  return text;
}

std::string Evaluator::Capture(const Block& block) {
  std::string text;
  std::string* outer = std::exchange(out_, &text);
  RunBlock(block);
  out_ = outer;
  return text;
}

Evaluator::Flow Evaluator::RunScoped(const Block& block) {
  auto scope = std::make_shared<Scope>();
  scope->parent = scope_;
  const auto outer = std::exchange(scope_, std::move(scope));
  const Flow flow = RunBlock(block);
  scope_ = outer;
  return flow;
}

Evaluator::Flow Evaluator::RunBlock(const Block& block) {
  const DepthGuard guard(this);
  for (const auto& statement : block) {
    Flow flow = Flow::kNormal;
    try {
      flow = RunStatement(*statement);
    } catch (Error& error) {
      if (error.line == 0) error.line = statement->line;
      throw;
    }
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Evaluator::Flow Evaluator::RunStatement(const Statement& s) {
  Charge(1);
  switch (s.kind) {
    case StatementKind::kData: Emit(s.text); break;
    case StatementKind::kOutput: {
      const Value value = Evaluate(*s.expression);
      Charge(value.weight() / 16);
      if (value.is_string()) {
        Emit(value.string());
      } else {
        Emit(ToText(value));
      }
      break;
    }
    case StatementKind::kIf: return RunIf(s);
    case StatementKind::kFor: return RunFor(s);
    case StatementKind::kSet: RunSet(s); break;
    case StatementKind::kSetBlock: {
      Value text = Text(Capture(s.body));
      if (s.expression) text = EvaluateFilter(*s.expression, &text);
      scope_->Set(s.targets[0], std::move(text));
      break;
    }
    case StatementKind::kMacro:
      scope_->Set(s.name, Value(NewObject<MacroObject>(&s, scope_)));
      break;
    case StatementKind::kCall: RunCallBlock(s); break;
    case StatementKind::kFilter: {
      const Value text = Text(RunClosure(scope_, s.body, {}));
      Emit(ToText(EvaluateFilter(*s.expression, &text)));
      break;
    }
    case StatementKind::kWith: {
      std::vector<std::pair<std::string, Value>> variables;
      for (const auto& [name, value] : s.assignments)
        variables.emplace_back(name, Evaluate(*value));
      auto scope = std::make_shared<Scope>();
      scope->parent = scope_;
      for (auto& [name, value] : variables) scope->Set(name, std::move(value));
      const auto outer = std::exchange(scope_, std::move(scope));
      const Flow flow = RunBlock(s.body);
      scope_ = outer;
      return flow;
    }
    case StatementKind::kScope: return RunScoped(s.body);
    case StatementKind::kBreak: return Flow::kBreak;
    case StatementKind::kContinue: return Flow::kContinue;
  }
  return Flow::kNormal;
}

Evaluator::Flow Evaluator::RunIf(const Statement& s) {
  for (const auto& [condition, body] : s.branches) {
    if (Truthy(Evaluate(*condition))) return RunBlock(body);
  }
  return RunBlock(s.orelse);
}

void Evaluator::Bind(const std::vector<std::string>& targets, const Value& value) {
  if (targets.size() == 1) {
    scope_->Set(targets[0], value);
    return;
  }
  const std::vector<Value> parts = Iterate(value);
  if (parts.size() != targets.size()) {
    Fail("cannot unpack " + std::to_string(parts.size()) + " values into " +
         std::to_string(targets.size()) + " names");
  }
  for (size_t i = 0; i < targets.size(); ++i) scope_->Set(targets[i], parts[i]);
}

Evaluator::Flow Evaluator::RunFor(const Statement& s) {
  std::vector<Value> items = Iterate(Evaluate(*s.expression));
  Charge(items.size());
  const auto outer = scope_;
  const auto enter = [&] {
    scope_ = std::make_shared<Scope>();
    scope_->parent = outer;
  };
  if (s.condition) {
    std::vector<Value> kept;
    for (Value& item : items) {
      enter();
      Bind(s.targets, item);
      if (Truthy(Evaluate(*s.condition))) kept.push_back(std::move(item));
    }
    items = std::move(kept);
  }
  if (items.empty()) {
    enter();
    const Flow flow = RunBlock(s.orelse);
    scope_ = outer;
    return flow;
  }
  auto* loop = NewObject<LoopObject>();
  loop->items = std::move(items);
  for (loop->index = 0; loop->index < loop->items.size(); ++loop->index) {
    enter();
    scope_->Set("loop", Value(loop));
    Bind(s.targets, loop->items[loop->index]);
    if (RunBlock(s.body) == Flow::kBreak) break;
  }
  scope_ = outer;
  return Flow::kNormal;
}

void Evaluator::RunSet(const Statement& s) {
  const Value value = Evaluate(*s.expression);
  if (s.target_object.empty()) {
    Bind(s.targets, value);
    return;
  }
  const Value* object = scope_->Find(s.target_object);
  auto* variables = object != nullptr && object->is_object()
                        ? dynamic_cast<NamespaceObject*>(object->object())
                        : nullptr;
  if (variables == nullptr) Fail("cannot assign attribute on a non-namespace object");
  variables->variables.Set(s.targets[0], value);
}

void Evaluator::RunCallBlock(const Statement& s) {
  const Expression& call = *s.expression;
  Arguments arguments = EvaluateArguments(call);
  arguments.named.emplace_back("caller", Value(NewObject<MacroObject>(&s, scope_)));
  const Value callee = Evaluate(*call.operands[0]);
  if (!callee.is_object() || !callee.object()->IsCallable()) Fail("a call block calls a macro");
  Emit(ToText(callee.object()->Call(*this, arguments)));
}

Value Evaluator::Evaluate(const Expression& e) {
  const DepthGuard guard(this);
  Charge(1);
  try {
    return EvaluateInner(e);
  } catch (Error& error) {
    if (error.line == 0) error.line = e.line;
    throw;
  }
}

Value Evaluator::EvaluateInner(const Expression& e) {
  switch (e.kind) {
    case ExpressionKind::kLiteral: return e.value;
    case ExpressionKind::kName: return EvaluateName(e);
    case ExpressionKind::kList:
    case ExpressionKind::kTuple: {
      std::vector<Value> items;
      for (const auto& operand : e.operands) items.push_back(Evaluate(*operand));
      return MakeList(std::move(items),
                      e.kind == ExpressionKind::kTuple ? ListKind::kTuple : ListKind::kList);
    }
    case ExpressionKind::kDict: {
      std::vector<std::pair<Value, Value>> items;
      for (size_t i = 0; i + 1 < e.operands.size(); i += 2) {
        Value key = Evaluate(*e.operands[i]);
        if (key.is_dict() || (key.is_list() && key.list().kind != ListKind::kTuple)) {
          Fail(std::string("a ") + key.TypeName() + " cannot be a key");
        }
        items.emplace_back(std::move(key), Evaluate(*e.operands[i + 1]));
      }
      return MakeDict(std::move(items));
    }
    case ExpressionKind::kAttribute: return GetAttribute(Evaluate(*e.operands[0]), e.name);
    case ExpressionKind::kItem: {
      const Value object = Evaluate(*e.operands[0]);
      return GetItem(object, Evaluate(*e.operands[1]));
    }
    case ExpressionKind::kSlice: return EvaluateSlice(e);
    case ExpressionKind::kCall: return EvaluateCall(e);
    case ExpressionKind::kFilter: return EvaluateFilter(e, nullptr);
    case ExpressionKind::kTest: {
      const Value input = Evaluate(*e.operands[0]);
      return ApplyTest(*this, e.name, input, EvaluateArguments(e));
    }
    case ExpressionKind::kNot: return !Truthy(Evaluate(*e.operands[0]));
    case ExpressionKind::kNegate:
    case ExpressionKind::kPlus: {
      const Value value = Evaluate(*e.operands[0]);
      if (!value.is_number())
        Fail(std::string("a sign before a value of type ") + value.TypeName());
      const bool negate = e.kind == ExpressionKind::kNegate;
      if (value.is_float()) return negate ? -value.number() : value.number();
      return IntegerArithmetic(negate ? "-" : "+", 0, value.integer());
    }
    case ExpressionKind::kBinary: return EvaluateBinary(e);
    case ExpressionKind::kConcat: {
      std::string text;
      for (const auto& operand : e.operands) {
        const Value part = Evaluate(*operand);
        Charge(part.weight() / 16);
        text += ToText(part);
        if (text.size() > limits_.output_bytes) Fail("a string is too long");
      }
      return Text(std::move(text));
    }
    case ExpressionKind::kAnd: {
      Value left = Evaluate(*e.operands[0]);
      return Truthy(left) ? Evaluate(*e.operands[1]) : left;
    }
    case ExpressionKind::kOr: {
      Value left = Evaluate(*e.operands[0]);
      return Truthy(left) ? left : Evaluate(*e.operands[1]);
    }
    case ExpressionKind::kCompare: return EvaluateCompare(e);
    case ExpressionKind::kConditional:
      if (Truthy(Evaluate(*e.operands[1]))) return Evaluate(*e.operands[0]);
      return e.operands[2] ? Evaluate(*e.operands[2]) : Value(Undefined{"the inline if"});
  }
  return {};
}

Value Evaluator::EvaluateName(const Expression& e) {
  if (const Value* value = scope_->Find(e.name)) return *value;
  return FindGlobal(*this, e.name);
}

Value Evaluator::GetAttribute(const Value& object, const std::string& name) {
  if (object.is_undefined()) Fail("'" + object.undefined_name() + "' is undefined");
  if (object.is_object()) {
    if (auto* loop = dynamic_cast<LoopObject*>(object.object())) {
      if (name == "cycle" || name == "changed") {
        return Value(NewObject<LoopFunction>(loop, name == "cycle"));
      }
    }
    return object.object()->Attribute(name);
  }
  if (IsMethod(object, name)) return Value(NewObject<BoundMethod>(object, name));
  if (object.is_dict()) {
    Charge(object.dict().items.size() / 8);
    if (const Value* value = object.dict().Find(Value(name))) return *value;
  }
  return Undefined{name};
}

Value Evaluator::GetItem(const Value& object, const Value& key) {
  if (object.is_undefined()) Fail("'" + object.undefined_name() + "' is undefined");
  if (object.is_dict()) {
    Charge(object.dict().items.size() / 8);
    if (const Value* value = object.dict().Find(key)) return *value;
  } else if ((object.is_list() || object.is_string()) && (key.is_int() || key.is_bool())) {
    if (object.is_list() && object.list().kind >= ListKind::kGenerator) return Undefined{"item"};
    const int64_t size = Length(object);
    const int64_t index = key.integer() < 0 ? key.integer() + size : key.integer();
    if (index < 0 || index >= size) return Undefined{"item " + std::to_string(key.integer())};
    if (object.is_list()) return object.list().items[static_cast<size_t>(index)];
    Charge(object.weight() / 16);
    return Value(SplitCharacters(object.string())[static_cast<size_t>(index)]);
  }
  return key.is_string() ? GetAttribute(object, key.string()) : Value(Undefined{ToText(key)});
}

Value Evaluator::EvaluateSlice(const Expression& e) {
  const Value object = Evaluate(*e.operands[0]);
  std::optional<int64_t> parts[3];
  for (size_t i = 0; i < 3; ++i) {
    if (e.operands[i + 1] == nullptr) continue;
    const Value part = Evaluate(*e.operands[i + 1]);
    if (part.is_none()) continue;
    if (!part.is_int() && !part.is_bool()) Fail("a slice is made of integers");
    parts[i] = part.integer();
  }
  if (object.is_undefined()) Fail("'" + object.undefined_name() + "' is undefined");
  if (!object.is_list() && !object.is_string()) return Undefined{"slice"};
  Charge(object.weight() / 16);
  const std::vector<Value> items = Iterate(object);
  const auto size = static_cast<int64_t>(items.size());
  const int64_t step = parts[2].value_or(1);
  if (step == 0) Fail("a slice with a step of 0");
  // Python's slice.indices().
  const int64_t low = step > 0 ? 0 : -1;
  const int64_t high = step > 0 ? size : size - 1;
  const auto clamp = [&](std::optional<int64_t> part, int64_t fallback) {
    if (!part) return fallback;
    return std::clamp(*part < 0 ? *part + size : *part, low, high);
  };
  const int64_t start = clamp(parts[0], step > 0 ? 0 : size - 1);
  const int64_t stop = clamp(parts[1], step > 0 ? size : -1);
  std::vector<Value> picked;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    picked.push_back(items[static_cast<size_t>(i)]);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  if (object.is_list()) return MakeList(std::move(picked), object.list().kind);
  std::string text;
  for (const Value& c : picked) text += c.string();
  return Text(std::move(text));
}

Arguments Evaluator::EvaluateArguments(const Expression& e) {
  Arguments arguments;
  for (size_t i = 1; i < e.operands.size(); ++i) {
    arguments.positional.push_back(Evaluate(*e.operands[i]));
  }
  for (const auto& [name, value] : e.named) arguments.named.emplace_back(name, Evaluate(*value));
  return arguments;
}

Value Evaluator::EvaluateCall(const Expression& e) {
  const Expression& callee = *e.operands[0];
  Value target;
  if (callee.kind == ExpressionKind::kAttribute) {
    const Value object = Evaluate(*callee.operands[0]);
    if (IsMethod(object, callee.name)) {
      return CallMethod(*this, object, callee.name, EvaluateArguments(e));
    }
    target = GetAttribute(object, callee.name);
  } else {
    target = Evaluate(callee);
  }
  if (target.is_undefined()) Fail("'" + target.undefined_name() + "' is undefined");
  if (!target.is_object() || !target.object()->IsCallable()) {
    Fail(std::string("a value of type ") + target.TypeName() + " is not callable");
  }
  const Arguments arguments = EvaluateArguments(e);
  return target.object()->Call(*this, arguments);
}

Value Evaluator::EvaluateFilter(const Expression& e, const Value* block_text) {
  if (e.kind != ExpressionKind::kFilter) Fail("expected a filter");
  const DepthGuard guard(this);
  Value input;
  if (e.operands[0] == nullptr) {
    if (block_text == nullptr) Fail("a filter without a value");
    input = *block_text;
  } else if (block_text != nullptr) {
    input = EvaluateFilter(*e.operands[0], block_text);
  } else {
    input = Evaluate(*e.operands[0]);
  }
  return ApplyFilter(*this, e.name, input, EvaluateArguments(e));
}

Value Evaluator::EvaluateBinary(const Expression& e) {
  const Value a = Evaluate(*e.operands[0]);
  const Value b = Evaluate(*e.operands[1]);
  if (a.is_number() && b.is_number()) {
    return a.is_float() || b.is_float() ? FloatArithmetic(e.name, a.number(), b.number())
                                        : IntegerArithmetic(e.name, a.integer(), b.integer());
  }
  if (e.name == "+" && a.is_string() && b.is_string()) {
    if (a.string().size() + b.string().size() > limits_.output_bytes) Fail("a string is too long");
    return Text(a.string() + b.string());
  }
  if (e.name == "+" && a.is_list() && b.is_list() && a.list().kind == b.list().kind &&
      a.list().kind <= ListKind::kTuple) {
    std::vector<Value> items = a.list().items;
    items.insert(items.end(), b.list().items.begin(), b.list().items.end());
    Charge(items.size());
    return MakeList(std::move(items), a.list().kind);
  }
  if (e.name == "*" && (a.is_string() || a.is_list()) && (b.is_int() || b.is_bool())) {
    const int64_t times = std::max<int64_t>(b.integer(), 0);
    const uint64_t weight = std::max<uint64_t>(a.weight(), 1);
    if (static_cast<uint64_t>(times) > limits_.output_bytes / weight)
      Fail("a repetition is too long");
    Charge(static_cast<uint64_t>(times) * (1 + weight / 16));
    std::string text;
    std::vector<Value> items;
    for (int64_t i = 0; i < times; ++i) {
      if (a.is_string()) {
        text += a.string();
      } else {
        items.insert(items.end(), a.list().items.begin(), a.list().items.end());
      }
    }
    return a.is_string() ? Value(std::move(text)) : MakeList(std::move(items), a.list().kind);
  }
  for (const Value* v : {&a, &b}) {
    if (v->is_undefined()) Fail("'" + v->undefined_name() + "' is undefined");
  }
  Fail("'" + e.name + "' is not supported between " + a.TypeName() + " and " + b.TypeName());
}

bool Contains(Evaluator& evaluator, const Value& container, const Value& item) {
  evaluator.Charge(container.weight() / 16);
  if (container.is_string()) {
    if (!item.is_string()) Fail("'in <string>' requires a string on the left");
    return container.string().find(item.string()) != std::string::npos;
  }
  if (container.is_dict()) return container.dict().Find(item) != nullptr;
  if (container.is_undefined()) return false;
  if (!container.is_list()) {
    Fail(std::string("a value of type ") + container.TypeName() + " contains nothing");
  }
  const auto& items = container.list().items;
  return std::any_of(items.begin(), items.end(), [&](const Value& v) { return Equal(v, item); });
}

bool Evaluator::EvaluateCompare(const Expression& e) {
  Value left = Evaluate(*e.operands[0]);
  for (size_t i = 0; i < e.operators.size(); ++i) {
    Value right = Evaluate(*e.operands[i + 1]);
    const std::string& op = e.operators[i];
    Charge(std::min(left.weight(), right.weight()) / 16);
    bool holds = false;
    if (op == "==" || op == "!=") {
      holds = Equal(left, right) == (op == "==");
    } else if (op == "in" || op == "not in") {
      holds = Contains(*this, right, left) == (op == "in");
    } else if (op == "<" || op == ">") {
      holds = op == "<" ? Less(left, right) : Less(right, left);
    } else {
      holds = op == "<=" ? !Less(right, left) : !Less(left, right);
    }
    if (!holds) return false;
    left = std::move(right);
  }
  return true;
}

}  // namespace weir::jinja
