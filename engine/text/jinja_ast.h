// Chat templates: the syntax tree. Immutable after parsing, shared by concurrent renderings.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/text/jinja_value.h"

namespace weir::jinja {

struct Expression;
struct Statement;
using ExpressionPtr = std::unique_ptr<Expression>;
using StatementPtr = std::unique_ptr<Statement>;
using Block = std::vector<StatementPtr>;

enum class ExpressionKind : uint8_t {
  kLiteral,      // value
  kName,         // name
  kList,         // operands
  kTuple,        // operands
  kDict,         // operands: key, value, key, value, ...
  kAttribute,    // operands[0] . name
  kItem,         // operands[0] [ operands[1] ]
  kSlice,        // operands[0] [ 1 : 2 : 3 ], missing parts null
  kCall,         // operands[0] ( 1 ..., named )
  kFilter,       // operands[0] | name ( 1 ..., named ); operands[0] null: the body of a block
  kTest,         // operands[0] is name ( 1 ..., named )
  kNot,          // operands[0]
  kNegate,       // operands[0]
  kPlus,         // operands[0]
  kBinary,       // operands[0] name operands[1]
  kConcat,       // operands ~ ...
  kAnd,          // operands[0] and operands[1]
  kOr,           // operands[0] or operands[1]
  kCompare,      // operands[0] operators[0] operands[1] operators[1] ...
  kConditional,  // operands[0] if operands[1] else operands[2] (null: undefined)
};

struct Expression {
  ExpressionKind kind = ExpressionKind::kLiteral;
  size_t line = 0;
  uint32_t depth = 1;  // of the tree
  std::string name;
  Value value;
  std::vector<ExpressionPtr> operands;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  std::vector<std::string> operators;
};

enum class StatementKind : uint8_t {
  kData,      // text
  kOutput,    // expression
  kIf,        // branches; body: else
  kFor,       // targets in expression if condition: body, orelse
  kSet,       // targets (or target_object.targets[0]) = expression
  kSetBlock,  // targets = body through the filters of expression
  kMacro,     // name(parameters): body
  kCall,      // expression with caller(parameters): body
  kFilter,    // body through the filters of expression
  kWith,      // assignments: body
  kScope,     // body in a scope of its own ({% generation %})
  kBreak,
  kContinue,
};

struct Parameter {
  std::string name;
  ExpressionPtr fallback;  // null: none
};

struct Statement {
  StatementKind kind = StatementKind::kData;
  size_t line = 0;
  std::string text;
  std::string name;           // of a macro
  std::string target_object;  // {% set object.name = %}; empty: a plain name
  std::vector<std::string> targets;
  ExpressionPtr expression;
  ExpressionPtr condition;
  std::vector<std::pair<ExpressionPtr, Block>> branches;
  std::vector<std::pair<std::string, ExpressionPtr>> assignments;
  std::vector<Parameter> parameters;
  Block body;
  Block orelse;
};

}  // namespace weir::jinja
