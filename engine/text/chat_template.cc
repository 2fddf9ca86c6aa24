#include "engine/text/chat_template.h"

#include <algorithm>
#include <exception>
#include <new>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "engine/text/jinja_eval.h"
#include "engine/text/jinja_parser.h"
#include "engine/text/utf8.h"

namespace weir {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint32_t kMaxJsonDepth = 64;

jinja::Value ToValue(const Json& json, uint32_t depth) {
  if (depth > kMaxJsonDepth) jinja::Fail("JSON nests deeper than " + std::to_string(kMaxJsonDepth));
  switch (json.type()) {
    case Json::value_t::boolean: return json.get<bool>();
    case Json::value_t::number_integer: return json.get<int64_t>();
    case Json::value_t::number_unsigned:
      if (json.get<uint64_t>() > INT64_MAX) return static_cast<double>(json.get<uint64_t>());
      return json.get<int64_t>();
    case Json::value_t::number_float: return json.get<double>();
    case Json::value_t::string: return json.get_ref<const std::string&>();
    case Json::value_t::array: {
      std::vector<jinja::Value> items;
      items.reserve(json.size());
      for (const Json& item : json) items.push_back(ToValue(item, depth + 1));
      return jinja::MakeList(std::move(items));
    }
    case Json::value_t::object: {
      std::vector<std::pair<jinja::Value, jinja::Value>> items;
      for (const auto& [key, item] : json.items()) {
        items.emplace_back(jinja::Value(key), ToValue(item, depth + 1));
      }
      return jinja::MakeDistinctDict(std::move(items));  // ordered_json keeps keys distinct
    }
    default: return jinja::None{};
  }
}

// |text| as a value; null if it is empty.
Result<jinja::Value> ParseInput(const std::string& text, const char* name, Json::value_t type) {
  if (text.empty()) return jinja::Value(jinja::None{});
  // The callback stops deep nesting and keeps ordered_json's linear search for duplicate keys
  // within bounds.
  bool too_wide = false;
  bool too_deep = false;
  std::vector<uint32_t> keys;
  const auto watch = [&](int depth, Json::parse_event_t event, Json&) {
    const auto level = static_cast<size_t>(depth);
    if (event == Json::parse_event_t::object_start) {
      keys.resize(std::max(keys.size(), level + 2));
      keys[level + 1] = 0;
    }
    if (event == Json::parse_event_t::key && keys.size() > level && ++keys[level] > 4096) {
      too_wide = true;
    }
    too_deep |= depth > static_cast<int>(kMaxJsonDepth);
    return !too_wide && !too_deep;
  };
  const Json json = Json::parse(text, watch, /*allow_exceptions=*/false);
  if (too_wide) return InvalidArgument(std::string(name) + ": an object has more than 4096 keys");
  if (too_deep) {
    return InvalidArgument(std::string(name) + " nests deeper than " +
                           std::to_string(kMaxJsonDepth));
  }
  if (json.is_discarded()) return InvalidArgument(std::string(name) + " is not valid JSON");
  if (json.is_null() && type == Json::value_t::array) return jinja::Value(jinja::None{});
  if (json.type() != type) {
    return InvalidArgument(std::string(name) + " is not a JSON " +
                           (type == Json::value_t::array ? "array" : "object"));
  }
  return ToValue(json, 0);
}

Status ToStatus(const jinja::Error& error) {
  const std::string where = error.line > 0 ? " at line " + std::to_string(error.line) : "";
  return InvalidArgument("chat template" + where + ": " + error.message);
}

// Runs |body| and turns every exception into a Status.
template <typename Body>
auto Guarded(Body body) -> decltype(body()) {
  try {
    return body();
  } catch (const jinja::Error& error) {
    return ToStatus(error);
  } catch (const std::bad_alloc&) {
    return NoMemory("no memory for a chat template");
  } catch (const std::exception& e) {
    return InvalidArgument(std::string("chat template: ") + e.what());
  }
}

}  // namespace

struct ChatTemplate::Impl {
  jinja::Block block;
  ChatTemplateLimits limits;
};

ChatTemplate::ChatTemplate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

Result<ChatTemplate> ChatTemplate::Parse(std::string_view source) {
  return Parse(source, {});
}

Result<ChatTemplate> ChatTemplate::Parse(std::string_view source,
                                         const ChatTemplateLimits& limits) {
  if (source.size() > limits.source_bytes) {
    return InvalidArgument("chat template: " + std::to_string(source.size()) + " bytes, at most " +
                           std::to_string(limits.source_bytes) + " are accepted");
  }
  if (const size_t bad = FindInvalidUtf8(source); bad != source.size()) {
    return InvalidArgument("chat template: not valid UTF-8 at byte " + std::to_string(bad));
  }
  return Guarded([&]() -> Result<ChatTemplate> {
    auto impl = std::make_unique<Impl>();
    impl->block = jinja::ParseTemplate(source);
    impl->limits = limits;
    return ChatTemplate(std::move(impl));
  });
}

Result<std::string> ChatTemplate::Render(const ChatInputs& inputs) const {
  const ChatTemplateLimits& limits = impl_->limits;
  const size_t input_bytes = inputs.messages_json.size() + inputs.tools_json.size() +
                             inputs.documents_json.size() + inputs.extra_json.size();
  if (input_bytes > limits.input_bytes) {
    return InvalidArgument("chat template: the inputs have " + std::to_string(input_bytes) +
                           " bytes, at most " + std::to_string(limits.input_bytes) +
                           " are accepted");
  }
  return Guarded([&]() -> Result<std::string> {
    jinja::Evaluator evaluator({limits.output_bytes, limits.steps, limits.depth});
    evaluator.now = inputs.now_seconds;
    const auto extra = WEIR_TRY(ParseInput(inputs.extra_json, "extra", Json::value_t::object));
    if (extra.is_dict()) {
      for (const auto& [key, value] : extra.dict().items) evaluator.Define(key.string(), value);
    }
    const auto array = Json::value_t::array;
    const auto messages = WEIR_TRY(ParseInput(inputs.messages_json, "messages", array));
    if (!messages.is_list()) return InvalidArgument("messages is not a JSON array");
    evaluator.Define("messages", messages);
    evaluator.Define("tools", WEIR_TRY(ParseInput(inputs.tools_json, "tools", array)));
    evaluator.Define("documents", WEIR_TRY(ParseInput(inputs.documents_json, "documents", array)));
    evaluator.Define("add_generation_prompt", inputs.add_generation_prompt);
    for (const auto& [name, token] :
         {std::pair("bos_token", &inputs.bos_token), std::pair("eos_token", &inputs.eos_token)}) {
      if (FindInvalidUtf8(*token) != token->size()) {
        return InvalidArgument(std::string(name) + " is not valid UTF-8");
      }
      evaluator.Define(name, jinja::Value(*token));
    }
    return evaluator.Run(impl_->block);
  });
}

}  // namespace weir
