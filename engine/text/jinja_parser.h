// Chat templates, stage 2: tokens -> syntax tree.
#pragma once

#include <string_view>

#include "engine/text/jinja_ast.h"

namespace weir::jinja {

// Expressions and blocks may nest this deep, counting operators.
inline constexpr uint32_t kMaxSyntaxDepth = 200;

// Throws Error.
Block ParseTemplate(std::string_view source);

}  // namespace weir::jinja
