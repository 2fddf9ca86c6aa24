// A chat template, then messages: input is "<template>\0<messages JSON>". What parses is rendered
// under small limits; the output is bounded and valid UTF-8.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "engine/text/chat_template.h"
#include "engine/text/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t cut = std::min(input.find('\0'), input.size());
  weir::ChatTemplateLimits limits;
  limits.output_bytes = 1 << 16;
  limits.steps = 100'000;
  const auto parsed = weir::ChatTemplate::Parse(input.substr(0, cut), limits);
  if (!parsed.ok()) return 0;
  weir::ChatInputs inputs;
  inputs.messages_json =
      cut < input.size()
          ? std::string(input.substr(cut + 1))
          : R"([{"role":"system","content":"s"},{"role":"user","content":"h\u00e9 <b>"},)"
            R"({"role":"assistant","content":null,"tool_calls":[{"id":"1","function":)"
            R"({"name":"f","arguments":{"a":[1,2.5,true,null]}}}]}])";
  inputs.tools_json = R"([{"type":"function","function":{"name":"f","parameters":{}}}])";
  inputs.add_generation_prompt = true;
  inputs.bos_token = "<s>";
  inputs.eos_token = "</s>";
  inputs.now_seconds = 1718452800;
  const auto text = parsed->Render(inputs);
  if (!text.ok()) return 0;
  if (text->size() > limits.output_bytes) std::abort();
  if (weir::FindInvalidUtf8(*text) != text->size()) std::abort();
  return 0;
}
