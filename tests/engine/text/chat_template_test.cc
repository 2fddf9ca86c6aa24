#include "engine/text/chat_template.h"

#include <cstdlib>
#include <ctime>

#include "tests/engine/text/text_test_util.h"

namespace weir {
namespace {

using Json = nlohmann::ordered_json;

std::string RenderOk(std::string_view source, const ChatInputs& inputs = {}) {
  const auto parsed = ChatTemplate::Parse(source);
  EXPECT_TRUE(parsed.ok()) << parsed.status().ToString();
  if (!parsed.ok()) return {};
  const auto text = parsed->Render(inputs);
  EXPECT_TRUE(text.ok()) << text.status().ToString();
  return text.ok() ? *text : std::string();
}

// The message of the error that parsing or rendering |source| gives.
std::string ErrorOf(std::string_view source, const ChatTemplateLimits& limits = {},
                    const ChatInputs& inputs = {}) {
  const auto parsed = ChatTemplate::Parse(source, limits);
  if (!parsed.ok()) {
    EXPECT_EQ(parsed.status().code(), StatusCode::kInvalidArgument);
    return parsed.status().message();
  }
  const auto text = parsed->Render(inputs);
  EXPECT_FALSE(text.ok()) << "rendered: " << text.value().substr(0, 200);
  return text.status().message();
}

TEST(ChatTemplate, RendersRealStyleTemplatesLikeJinja2) {
  setenv("TZ", "UTC", 1);
  tzset();
  const Json doc = Json::parse(ReadFixture("templates.json"));
  ASSERT_GE(doc["outputs"].size(), 20u);
  ASSERT_GE(doc["contexts"].size(), 30u);
  for (const auto& [name, outputs] : doc["outputs"].items()) {
    const auto parsed = ChatTemplate::Parse(ReadFixture("templates/" + name));
    ASSERT_TRUE(parsed.ok()) << name << ": " << parsed.status().ToString();
    for (size_t i = 0; i < outputs.size(); ++i) {
      const Json& context = doc["contexts"][i];
      ChatInputs inputs;
      inputs.messages_json = context["messages"].dump();
      if (!context["tools"].is_null()) inputs.tools_json = context["tools"].dump();
      inputs.add_generation_prompt = context["add_generation_prompt"].get<bool>();
      inputs.bos_token = context["bos_token"].get<std::string>();
      inputs.eos_token = context["eos_token"].get<std::string>();
      inputs.extra_json = context["extra"].dump();
      inputs.now_seconds = doc["now"].get<int64_t>();
      const auto text = parsed->Render(inputs);
      if (outputs[i].is_null()) {
        EXPECT_FALSE(text.ok()) << name << ", context " << i << " should fail but gave: " << *text;
      } else {
        ASSERT_TRUE(text.ok()) << name << ", context " << i << ": " << text.status().ToString();
        EXPECT_EQ(*text, outputs[i].get<std::string>()) << name << ", context " << i;
      }
    }
  }
}

TEST(ChatTemplate, ErrorsNameTheLine) {
  EXPECT_NE(ErrorOf("a\nb\n{% if %}").find("line 3"), std::string::npos);
  EXPECT_NE(ErrorOf("\n\n{{ nothing.at.all }}").find("line 3"), std::string::npos);
  EXPECT_NE(ErrorOf("x\n{{ raise_exception('no ' ~ 'way') }}").find("line 2: no way"),
            std::string::npos);
  EXPECT_NE(ErrorOf("{% for x in [1] %}\n{{ x | martian }}{% endfor %}").find("martian"),
            std::string::npos);
}

TEST(ChatTemplate, RejectsWhatIsNotInTheSubset) {
  for (const char* source : {"{% include 'x' %}",
                             "{% extends 'x' %}",
                             "{% import 'x' as y %}",
                             "{% block a %}{% endblock %}",
                             "{% for x in y recursive %}{% endfor %}",
                             "{% endif %}",
                             "{% if x %}",
                             "{{ x",
                             "{{ }}",
                             "{% %}",
                             "{# open",
                             "{% raw %} open",
                             "{{ 'open }}",
                             "{{ (1 }}",
                             "{{ 1 + }}",
                             "{{ [1 2] }}",
                             "{{ a b }}",
                             "{% set 1 = 2 %}",
                             "{% set true = 2 %}",
                             "{% break %}",
                             "{% macro m(a=1, b) %}{% endmacro %}",
                             "{{ f(*a) }}",
                             "{{ x[1:2:3:4] }}",
                             "{{ x[] }}",
                             "{{ 99999999999999999999 }}",
                             "{{ ? }}",
                             "\xff"}) {
    EXPECT_FALSE(ChatTemplate::Parse(source).ok()) << source;
  }
}

TEST(ChatTemplate, IsASandbox) {
  // The classic ways out of a Jinja sandbox find nothing to hold on to.
  for (const char* source :
       {"{{ ''.__class__.__mro__ }}", "{{ messages.__init__.__globals__ }}",
        "{{ range.__globals__.x }}", "{{ [].append(1) }}", "{{ {}.update({'a': 1}) }}",
        "{{ self.x.y }}", "{{ cycler.__init__ }}", "{% set messages.x = 1 %}",
        "{{ open('/etc/passwd') }}", "{{ ''.format(1) }}"}) {
    ErrorOf(source);
  }
  EXPECT_EQ(RenderOk("{{ ''.__class__ }}"), "");
}

TEST(ChatTemplate, EveryRunIsBounded) {
  ChatTemplateLimits limits;
  limits.steps = 1'000'000;
  limits.output_bytes = 1'000'000;
  for (const char* source :
       {"{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}{{ 'x' * 1000 }}{% endfor %}", "{{ 'x' * 100000000000 }}",
        "{{ range(1000000000) }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set ns = namespace(s='ab') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% "
        "endfor %}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(64) %}{% set ns.l = [ns.l, ns.l] %}{% "
        "endfor %}{{ ns.l }}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(9999) %}{% set ns.l = [ns.l] %}{% endfor "
        "%}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(64) %}{% set ns.l = ns.l + ns.l %}{% "
        "endfor %}",
        "{% set ns = namespace(s='aa') %}{% for i in range(40) %}{% set ns.s = ns.s | replace('a', "
        "'aa') %}{% endfor %}",
        "{{ 2 ** 64 }}", "{{ 9223372036854775 * 99999 }}", "{{ 1 // 0 }}", "{{ 1 % 0 }}",
        "{{ 1 / 0 }}"}) {
    ErrorOf(source, limits);
  }
  // Cycles through a namespace neither leak nor recurse.
  EXPECT_EQ(
      RenderOk("{% set ns = namespace() %}{% set ns.me = [ns] %}{{ ns.me[0].me is defined }}"),
      "True");
}

TEST(ChatTemplate, DeepNestingIsAnErrorNotAStackOverflow) {
  const auto repeat = [](std::string_view text, size_t times) {
    std::string all;
    for (size_t i = 0; i < times; ++i) all += text;
    return all;
  };
  constexpr size_t kMany = 50'000;
  EXPECT_FALSE(
      ChatTemplate::Parse("{{ " + repeat("(", kMany) + "1" + repeat(")", kMany) + " }}").ok());
  EXPECT_FALSE(ChatTemplate::Parse("{{ " + repeat("[", kMany) + repeat("]", kMany) + " }}").ok());
  EXPECT_FALSE(ChatTemplate::Parse("{{ " + repeat("not ", kMany) + "1 }}").ok());
  EXPECT_FALSE(ChatTemplate::Parse("{{ " + repeat("- ", kMany) + "1 }}").ok());
  EXPECT_FALSE(ChatTemplate::Parse("{{ 1" + repeat(" + 1", kMany) + " }}").ok());
  EXPECT_FALSE(ChatTemplate::Parse("{{ x" + repeat(".a", kMany) + " }}").ok());
  EXPECT_FALSE(ChatTemplate::Parse("{{ x" + repeat("|e", kMany) + " }}").ok());
  EXPECT_FALSE(ChatTemplate::Parse("{{ 1" + repeat(" if 1 else 1", kMany) + " }}").ok());
  EXPECT_FALSE(ChatTemplate::Parse(repeat("{% if 1 %}", kMany)).ok());
  EXPECT_TRUE(ChatTemplate::Parse("{{ 'a'" + repeat(" ~ 'a'", 10'000) + " }}").ok());
  ChatInputs inputs;
  inputs.messages_json = repeat("[", kMany) + repeat("]", kMany);
  EXPECT_NE(ErrorOf("x", {}, inputs).find("nests"), std::string::npos);
}

TEST(ChatTemplate, BadInputsAreErrors) {
  ChatInputs inputs;
  for (const char* messages : {"", "{", "{}", "1", "\"x\"", "null", "[\"\\ud800\"]", "[\xff]"}) {
    inputs.messages_json = messages;
    ErrorOf("{{ messages }}", {}, inputs);
  }
  inputs = {};
  inputs.tools_json = "{}";
  ErrorOf("x", {}, inputs);
  inputs = {};
  inputs.extra_json = "[]";
  ErrorOf("x", {}, inputs);
  inputs = {};
  inputs.bos_token = "\xff";
  ErrorOf("x", {}, inputs);
  inputs = {};
  inputs.messages_json = std::string(size_t{17} << 20, ' ');
  ErrorOf("x", {}, inputs);
}

TEST(ChatTemplate, ExtraVariablesCannotReplaceTheConversation) {
  ChatInputs inputs;
  inputs.messages_json = R"(["real"])";
  inputs.extra_json = R"({"messages": ["fake"], "add_generation_prompt": true, "x": 1})";
  EXPECT_EQ(RenderOk("{{ messages[0] }} {{ add_generation_prompt }} {{ x }}", inputs),
            "real False 1");
}

}  // namespace
}  // namespace weir
