#include "engine/text/jinja_parser.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "engine/text/jinja_lexer.h"

namespace weir::jinja {
namespace {

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(Tokenize(source)) {}

  Block Run() {
    Block block = ParseBlock({});
    if (Current().kind != TokenKind::kEnd) FailHere("unexpected tag '" + Current().text + "'");
    return block;
  }

 private:
  using Kind = ExpressionKind;

  // Counts the nesting of the parser's own recursion.
  class Nesting {
   public:
    explicit Nesting(Parser* parser) : parser_(parser) {
      if (++parser_->nesting_ > kMaxSyntaxDepth) parser_->FailHere("the template nests too deeply");
    }
    ~Nesting() { --parser_->nesting_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    Parser* parser_;
  };

  const Token& Current() const { return tokens_[pos_]; }
  const Token& Peek() const { return tokens_[std::min(pos_ + 1, tokens_.size() - 1)]; }
  [[noreturn]] void FailHere(const std::string& message) const {
    throw Error{message, Current().line};
  }
  Token Next() {
    Token token = Current();
    if (pos_ + 1 < tokens_.size()) ++pos_;
    return token;
  }
  bool IsOperator(std::string_view text) const {
    return Current().kind == TokenKind::kOperator && Current().text == text;
  }
  bool IsName(std::string_view text) const {
    return Current().kind == TokenKind::kName && Current().text == text;
  }
  bool SkipOperator(std::string_view text) {
    if (!IsOperator(text)) return false;
    Next();
    return true;
  }
  bool SkipName(std::string_view text) {
    if (!IsName(text)) return false;
    Next();
    return true;
  }
  void ExpectOperator(const std::string& text) {
    if (!SkipOperator(text)) FailHere("expected '" + text + "', got '" + Current().text + "'");
  }
  std::string ExpectName() {
    if (Current().kind != TokenKind::kName)
      FailHere("expected a name, got '" + Current().text + "'");
    return Next().text;
  }
  void ExpectBlockEnd() {
    if (Current().kind != TokenKind::kBlockEnd) {
      FailHere("expected the end of the tag, got '" + Current().text + "'");
    }
    Next();
  }

  // --- expressions -----------------------------------------------------------------------------
  ExpressionPtr Make(Kind kind, size_t line) const {
    auto e = std::make_unique<Expression>();
    e->kind = kind;
    e->line = line;
    return e;
  }
  // Adds an operand (maybe null) and keeps the depth right.
  void Adopt(Expression* parent, ExpressionPtr child) const {
    Deepen(parent, child.get());
    parent->operands.push_back(std::move(child));
  }
  void Deepen(Expression* parent, const Expression* child) const {
    if (child == nullptr) return;
    parent->depth = std::max(parent->depth, child->depth + 1);
    if (parent->depth > kMaxSyntaxDepth) FailHere("the expression nests too deeply");
  }
  template <typename... Operands>
  ExpressionPtr MakeWith(Kind kind, size_t line, Operands... operands) const {
    auto e = Make(kind, line);
    (Adopt(e.get(), std::move(operands)), ...);
    return e;
  }

  ExpressionPtr ParseExpression() { return ParseConditional(); }

  // a, b, c -> tuple; a single expression stays itself.
  ExpressionPtr ParseTuple(bool with_conditional = true) {
    const size_t line = Current().line;
    auto first = with_conditional ? ParseExpression() : ParseOr();
    if (!IsOperator(",")) return first;
    auto tuple = Make(Kind::kTuple, line);
    Adopt(tuple.get(), std::move(first));
    while (SkipOperator(",")) {
      if (Current().kind == TokenKind::kBlockEnd || Current().kind == TokenKind::kOutputEnd ||
          IsOperator(")") || IsOperator("=")) {
        break;
      }
      Adopt(tuple.get(), with_conditional ? ParseExpression() : ParseOr());
    }
    return tuple;
  }

  ExpressionPtr ParseConditional() {
    const Nesting nesting(this);
    const size_t line = Current().line;
    auto value = ParseOr();
    while (SkipName("if")) {
      auto condition = ParseOr();
      ExpressionPtr otherwise = SkipName("else") ? ParseConditional() : nullptr;
      value = MakeWith(Kind::kConditional, line, std::move(value), std::move(condition),
                       std::move(otherwise));
    }
    return value;
  }

  ExpressionPtr ParseOr() {
    auto left = ParseAnd();
    for (size_t line = Current().line; SkipName("or"); line = Current().line) {
      left = MakeWith(Kind::kOr, line, std::move(left), ParseAnd());
    }
    return left;
  }

  ExpressionPtr ParseAnd() {
    auto left = ParseNot();
    for (size_t line = Current().line; SkipName("and"); line = Current().line) {
      left = MakeWith(Kind::kAnd, line, std::move(left), ParseNot());
    }
    return left;
  }

  ExpressionPtr ParseNot() {
    const Nesting nesting(this);
    const size_t line = Current().line;
    if (SkipName("not")) return MakeWith(Kind::kNot, line, ParseNot());
    return ParseCompare();
  }

  ExpressionPtr ParseCompare() {
    const size_t line = Current().line;
    auto first = ParseSum();
    ExpressionPtr compare;
    while (true) {
      std::string op;
      for (const char* candidate : {"==", "!=", "<", "<=", ">", ">="}) {
        if (IsOperator(candidate)) op = candidate;
      }
      if (IsName("in")) op = "in";
      const bool not_in = IsName("not") && Peek().kind == TokenKind::kName && Peek().text == "in";
      if (not_in) op = "not in";
      if (op.empty()) break;
      Next();
      if (not_in) Next();
      if (!compare) compare = MakeWith(Kind::kCompare, line, std::move(first));
      Adopt(compare.get(), ParseSum());
      compare->operators.push_back(op);
    }
    return compare ? std::move(compare) : std::move(first);
  }

  ExpressionPtr MakeBinary(ExpressionPtr left, const Token& op, ExpressionPtr right) const {
    auto e = MakeWith(Kind::kBinary, op.line, std::move(left), std::move(right));
    e->name = op.text;
    return e;
  }

  ExpressionPtr ParseSum() {
    auto left = ParseConcat();
    while (IsOperator("+") || IsOperator("-")) {
      const Token op = Next();
      left = MakeBinary(std::move(left), op, ParseConcat());
    }
    return left;
  }

  ExpressionPtr ParseConcat() {
    const size_t line = Current().line;
    auto first = ParseProduct();
    if (!IsOperator("~")) return first;
    auto concat = MakeWith(Kind::kConcat, line, std::move(first));
    while (SkipOperator("~")) Adopt(concat.get(), ParseProduct());
    return concat;
  }

  ExpressionPtr ParseProduct() {
    auto left = ParsePower();
    while (IsOperator("*") || IsOperator("/") || IsOperator("//") || IsOperator("%")) {
      const Token op = Next();
      left = MakeBinary(std::move(left), op, ParsePower());
    }
    return left;
  }

  ExpressionPtr ParsePower() {
    auto left = ParseUnary(true);
    while (IsOperator("**")) {
      const Token op = Next();
      left = MakeBinary(std::move(left), op, ParseUnary(true));
    }
    return left;
  }

  ExpressionPtr ParseUnary(bool with_filter) {
    const Nesting nesting(this);
    const size_t line = Current().line;
    ExpressionPtr value;
    if (SkipOperator("-")) {
      value = MakeWith(Kind::kNegate, line, ParseUnary(false));
    } else if (SkipOperator("+")) {
      value = MakeWith(Kind::kPlus, line, ParseUnary(false));
    } else {
      value = ParsePrimary();
    }
    value = ParsePostfix(std::move(value));
    return with_filter ? ParseFilters(std::move(value)) : std::move(value);
  }

  ExpressionPtr Literal(Value value, size_t line) const {
    auto e = Make(Kind::kLiteral, line);
    e->value = std::move(value);
    return e;
  }

  ExpressionPtr ParseName() {
    const Token token = Next();
    const std::string& name = token.text;
    if (name == "true" || name == "True") return Literal(true, token.line);
    if (name == "false" || name == "False") return Literal(false, token.line);
    if (name == "none" || name == "None") return Literal(None{}, token.line);
    auto e = Make(Kind::kName, token.line);
    e->name = name;
    return e;
  }

  ExpressionPtr ParsePrimary() {
    const Token token = Current();
    switch (token.kind) {
      case TokenKind::kName: return ParseName();
      case TokenKind::kString: {
        std::string text;
        while (Current().kind == TokenKind::kString) text += Next().text;
        return Literal(std::move(text), token.line);
      }
      case TokenKind::kInteger: {
        int64_t value = 0;
        const char* end = token.text.data() + token.text.size();
        if (std::from_chars(token.text.data(), end, value).ptr != end) FailHere("a bad number");
        if (token.text.size() > 18) FailHere("a number with more than 18 digits");
        Next();
        return Literal(value, token.line);
      }
      case TokenKind::kFloat:
        Next();
        return Literal(std::strtod(token.text.c_str(), nullptr), token.line);
      case TokenKind::kOperator: break;
      default: FailHere("expected an expression, got '" + token.text + "'");
    }
    if (SkipOperator("(")) {
      if (SkipOperator(")")) return Make(Kind::kTuple, token.line);
      auto inner = ParseTuple();
      ExpectOperator(")");
      return inner;
    }
    if (IsOperator("[")) return ParseListLiteral();
    if (IsOperator("{")) return ParseDictLiteral();
    FailHere("expected an expression, got '" + token.text + "'");
  }

  ExpressionPtr ParseListLiteral() {
    auto list = Make(Kind::kList, Next().line);
    while (!IsOperator("]")) {
      if (!list->operands.empty()) ExpectOperator(",");
      if (IsOperator("]")) break;
      Adopt(list.get(), ParseExpression());
    }
    ExpectOperator("]");
    return list;
  }

  ExpressionPtr ParseDictLiteral() {
    auto dict = Make(Kind::kDict, Next().line);
    while (!IsOperator("}")) {
      if (!dict->operands.empty()) ExpectOperator(",");
      if (IsOperator("}")) break;
      Adopt(dict.get(), ParseExpression());
      ExpectOperator(":");
      Adopt(dict.get(), ParseExpression());
    }
    ExpectOperator("}");
    return dict;
  }

  ExpressionPtr ParsePostfix(ExpressionPtr value) {
    while (true) {
      if (IsOperator(".")) {
        value = ParseDot(std::move(value));
      } else if (IsOperator("[")) {
        value = ParseSubscript(std::move(value));
      } else if (IsOperator("(")) {
        value = ParseCall(std::move(value));
      } else {
        return value;
      }
    }
  }

  ExpressionPtr ParseDot(ExpressionPtr value) {
    const size_t line = Next().line;
    if (Current().kind == TokenKind::kInteger) {  // a.0
      auto index = ParsePrimary();
      return MakeWith(Kind::kItem, line, std::move(value), std::move(index));
    }
    auto e = MakeWith(Kind::kAttribute, line, std::move(value));
    e->name = ExpectName();
    return e;
  }

  ExpressionPtr ParseSubscript(ExpressionPtr value) {
    const size_t line = Next().line;
    ExpressionPtr parts[3];
    size_t colons = 0;
    while (!IsOperator("]")) {
      if (SkipOperator(":")) {
        if (++colons > 2) FailHere("a slice has at most three parts");
      } else if (parts[colons] == nullptr) {
        parts[colons] = ParseTuple();
      } else {
        FailHere("expected ']', got '" + Current().text + "'");
      }
    }
    ExpectOperator("]");
    if (colons == 0) {
      if (parts[0] == nullptr) FailHere("an empty subscript");
      return MakeWith(Kind::kItem, line, std::move(value), std::move(parts[0]));
    }
    return MakeWith(Kind::kSlice, line, std::move(value), std::move(parts[0]), std::move(parts[1]),
                    std::move(parts[2]));
  }

  // Arguments in parentheses are added to |call|.
  void ParseArguments(Expression* call) {
    ExpectOperator("(");
    bool first = true;
    while (!IsOperator(")")) {
      if (!first) ExpectOperator(",");
      if (IsOperator(")")) break;
      first = false;
      if (IsOperator("*") || IsOperator("**")) FailHere("* and ** arguments are not supported");
      if (Current().kind == TokenKind::kName && Peek().kind == TokenKind::kOperator &&
          Peek().text == "=") {
        std::string name = Next().text;
        Next();
        auto value = ParseExpression();
        Deepen(call, value.get());
        call->named.emplace_back(std::move(name), std::move(value));
      } else {
        if (!call->named.empty()) FailHere("a positional argument after a named one");
        Adopt(call, ParseExpression());
      }
    }
    ExpectOperator(")");
  }

  ExpressionPtr ParseCall(ExpressionPtr callee) {
    auto call = MakeWith(Kind::kCall, Current().line, std::move(callee));
    ParseArguments(call.get());
    return call;
  }

  std::string ParseDottedName() {
    std::string name = ExpectName();
    while (SkipOperator(".")) name += "." + ExpectName();
    return name;
  }

  ExpressionPtr ParseFilter(ExpressionPtr value) {
    auto filter = Make(Kind::kFilter, Current().line);
    filter->name = ParseDottedName();
    Adopt(filter.get(), std::move(value));
    if (IsOperator("(")) ParseArguments(filter.get());
    return filter;
  }

  ExpressionPtr ParseTest(ExpressionPtr value) {
    const size_t line = Current().line;
    const bool negated = SkipName("not");
    auto test = Make(Kind::kTest, line);
    test->name = ParseDottedName();
    Adopt(test.get(), std::move(value));
    const TokenKind kind = Current().kind;
    if (IsOperator("(")) {
      ParseArguments(test.get());
    } else if (((kind == TokenKind::kName || kind == TokenKind::kString ||
                 kind == TokenKind::kInteger || kind == TokenKind::kFloat) ||
                IsOperator("[") || IsOperator("{")) &&
               !IsName("else") && !IsName("or") && !IsName("and")) {
      if (IsName("is")) FailHere("tests cannot be chained with 'is'");
      Adopt(test.get(), ParsePostfix(ParsePrimary()));
    }
    return negated ? MakeWith(Kind::kNot, line, std::move(test)) : std::move(test);
  }

  ExpressionPtr ParseFilters(ExpressionPtr value) {
    while (true) {
      if (SkipOperator("|")) {
        value = ParseFilter(std::move(value));
      } else if (SkipName("is")) {
        value = ParseTest(std::move(value));
      } else if (IsOperator("(")) {
        value = ParseCall(std::move(value));
      } else {
        return value;
      }
    }
  }

  // --- statements ------------------------------------------------------------------------------
  // Statements up to a tag named in |ends|, whose {% and name are consumed and kept in end_.
  Block ParseBlock(const std::vector<std::string_view>& ends) {
    const Nesting nesting(this);
    Block block;
    while (Current().kind != TokenKind::kEnd) {
      const Token token = Next();
      if (token.kind == TokenKind::kData) {
        auto s = MakeStatement(StatementKind::kData, token.line);
        s->text = token.text;
        block.push_back(std::move(s));
      } else if (token.kind == TokenKind::kOutputBegin) {
        auto s = MakeStatement(StatementKind::kOutput, token.line);
        s->expression = ParseTuple();
        if (Current().kind != TokenKind::kOutputEnd) {
          FailHere("expected '}}', got '" + Current().text + "'");
        }
        Next();
        block.push_back(std::move(s));
      } else {
        if (Current().kind != TokenKind::kName) FailHere("a tag begins with a name");
        if (std::find(ends.begin(), ends.end(), Current().text) != ends.end()) {
          end_ = Next().text;
          return block;
        }
        block.push_back(ParseStatement());
      }
    }
    if (!ends.empty())
      FailHere("the template ends inside a block; expected " + std::string(ends.back()));
    return block;
  }

  // The rest of a block: body and end tag.
  Block ParseBody(std::string_view end) {
    ExpectBlockEnd();
    Block body = ParseBlock({end});
    ExpectEndTag();
    return body;
  }
  void ExpectEndTag() { ExpectBlockEnd(); }

  StatementPtr MakeStatement(StatementKind kind, size_t line) const {
    auto s = std::make_unique<Statement>();
    s->kind = kind;
    s->line = line;
    return s;
  }

  StatementPtr ParseStatement() {
    const Token tag = Next();
    const std::string& name = tag.text;
    if (name == "if") return ParseIf(tag.line);
    if (name == "for") return ParseFor(tag.line);
    if (name == "set") return ParseSet(tag.line);
    if (name == "macro") return ParseMacro(tag.line);
    if (name == "call") return ParseCallBlock(tag.line);
    if (name == "filter") return ParseFilterBlock(tag.line);
    if (name == "with") return ParseWith(tag.line);
    if (name == "generation") {
      auto s = MakeStatement(StatementKind::kScope, tag.line);
      s->body = ParseBody("endgeneration");
      return s;
    }
    if (name == "break" || name == "continue") {
      if (loops_ == 0) FailHere("'" + name + "' outside a loop");
      ExpectBlockEnd();
      return MakeStatement(name == "break" ? StatementKind::kBreak : StatementKind::kContinue,
                           tag.line);
    }
    FailHere(
        "unknown tag '" + name +
        "'; accepted: if, for, set, macro, call, filter, with, raw, generation, break, continue");
  }

  StatementPtr ParseIf(size_t line) {
    auto s = MakeStatement(StatementKind::kIf, line);
    while (true) {
      auto condition = ParseTuple();
      ExpectBlockEnd();
      Block body = ParseBlock({"elif", "else", "endif"});
      s->branches.emplace_back(std::move(condition), std::move(body));
      if (end_ == "elif") continue;
      if (end_ == "else") {
        ExpectBlockEnd();
        s->orelse = ParseBlock({"endif"});
      }
      ExpectEndTag();
      return s;
    }
  }

  std::vector<std::string> ParseTargets() {
    std::vector<std::string> targets;
    const bool parenthesized = SkipOperator("(");
    do {
      if (!targets.empty() && Current().kind != TokenKind::kName) break;
      targets.push_back(ExpectName());
      const std::string& name = targets.back();
      if (name == "true" || name == "false" || name == "none" || name == "True" ||
          name == "False" || name == "None") {
        FailHere("cannot assign to '" + name + "'");
      }
    } while (SkipOperator(","));
    if (parenthesized) ExpectOperator(")");
    return targets;
  }

  StatementPtr ParseFor(size_t line) {
    auto s = MakeStatement(StatementKind::kFor, line);
    s->targets = ParseTargets();
    if (!SkipName("in")) FailHere("expected 'in', got '" + Current().text + "'");
    s->expression = ParseTuple(/*with_conditional=*/false);
    if (SkipName("if")) s->condition = ParseExpression();
    if (IsName("recursive")) FailHere("recursive loops are not supported");
    ExpectBlockEnd();
    ++loops_;
    s->body = ParseBlock({"else", "endfor"});
    --loops_;
    if (end_ == "else") {
      ExpectBlockEnd();
      s->orelse = ParseBlock({"endfor"});
    }
    ExpectEndTag();
    return s;
  }

  StatementPtr ParseSet(size_t line) {
    auto s = MakeStatement(StatementKind::kSet, line);
    if (Peek().kind == TokenKind::kOperator && Peek().text == ".") {
      s->target_object = ExpectName();
      Next();
      s->targets.push_back(ExpectName());
    } else {
      s->targets = ParseTargets();
    }
    if (SkipOperator("=")) {
      s->expression = ParseTuple();
      ExpectBlockEnd();
      return s;
    }
    s->kind = StatementKind::kSetBlock;
    if (s->targets.size() != 1) FailHere("a block sets one name");
    if (IsOperator("|")) s->expression = ParseFilters(nullptr);
    s->body = ParseBody("endset");
    return s;
  }

  std::vector<Parameter> ParseParameters() {
    std::vector<Parameter> parameters;
    ExpectOperator("(");
    while (!IsOperator(")")) {
      if (!parameters.empty()) ExpectOperator(",");
      if (IsOperator(")")) break;
      Parameter parameter;
      parameter.name = ExpectName();
      if (SkipOperator("=")) {
        parameter.fallback = ParseExpression();
      } else if (!parameters.empty() && parameters.back().fallback) {
        FailHere("a parameter without a default after one with a default");
      }
      parameters.push_back(std::move(parameter));
    }
    ExpectOperator(")");
    return parameters;
  }

  // A body in which break and continue of an outer loop mean nothing.
  Block ParseClosedBody(std::string_view end) {
    const size_t loops = std::exchange(loops_, 0);
    Block body = ParseBody(end);
    loops_ = loops;
    return body;
  }

  StatementPtr ParseMacro(size_t line) {
    auto s = MakeStatement(StatementKind::kMacro, line);
    s->name = ExpectName();
    s->parameters = ParseParameters();
    s->body = ParseClosedBody("endmacro");
    return s;
  }

  StatementPtr ParseCallBlock(size_t line) {
    auto s = MakeStatement(StatementKind::kCall, line);
    if (IsOperator("(")) s->parameters = ParseParameters();
    s->expression = ParseExpression();
    if (s->expression->kind != Kind::kCall) FailHere("a call block calls a macro");
    s->body = ParseClosedBody("endcall");
    return s;
  }

  StatementPtr ParseFilterBlock(size_t line) {
    auto s = MakeStatement(StatementKind::kFilter, line);
    s->expression = ParseFilters(ParseFilter(nullptr));
    s->body = ParseBody("endfilter");
    return s;
  }

  StatementPtr ParseWith(size_t line) {
    auto s = MakeStatement(StatementKind::kWith, line);
    while (Current().kind != TokenKind::kBlockEnd) {
      if (!s->assignments.empty()) ExpectOperator(",");
      std::string name = ExpectName();
      ExpectOperator("=");
      s->assignments.emplace_back(std::move(name), ParseExpression());
    }
    s->body = ParseBody("endwith");
    return s;
  }

  std::vector<Token> tokens_;
  size_t pos_ = 0;
  uint32_t nesting_ = 0;
  size_t loops_ = 0;
  std::string end_;
};

}  // namespace

Block ParseTemplate(std::string_view source) {
  return Parser(source).Run();
}

}  // namespace weir::jinja
