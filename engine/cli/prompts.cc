#include "engine/cli/prompts.h"

#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <optional>
#include <sstream>
#include <utility>

#include <nlohmann/json.hpp>

#include "engine/cli/size_text.h"
#include "policy/registry.h"

namespace weir::cli {
namespace {

using nlohmann::json;

// Where one line is, for messages.
struct Place {
  const std::string& path;
  size_t line;
  Status Error(const std::string& what) const {
    return InvalidArgument(path + ":" + std::to_string(line) + ": " + what);
  }
};

Result<std::string> TextMember(const json& object, const char* key, const Place& at) {
  const auto it = object.find(key);
  if (it == object.end()) return std::string();
  if (!it->is_string()) return at.Error("\"" + std::string(key) + "\" must be text");
  return it->get<std::string>();
}

Status CheckKeys(const json& object, const std::vector<std::string>& known, const Place& at) {
  for (const auto& [key, value] : object.items()) {
    bool found = false;
    for (const std::string& k : known) found = found || k == key;
    if (!found) return at.Error(UnknownNameMessage("key", OneLine(key, 60), known));
  }
  return OkStatus();
}

Result<PromptEntry> ParseRequest(const json& object,
                                 const std::map<std::string, std::string>& prefixes,
                                 const Place& at) {
  WEIR_TRY(CheckKeys(object, {"prefix", "system", "prompt", "max_tokens"}, at));
  PromptEntry entry;
  entry.line = at.line;
  entry.group = WEIR_TRY(TextMember(object, "prefix", at));
  entry.system = WEIR_TRY(TextMember(object, "system", at));
  entry.prompt = WEIR_TRY(TextMember(object, "prompt", at));
  if (entry.prompt.empty()) return at.Error("a request needs a \"prompt\" that is not empty");
  if (!entry.group.empty()) {
    if (!entry.system.empty()) return at.Error("give \"prefix\" or \"system\", not both");
    const auto it = prefixes.find(entry.group);
    if (it == prefixes.end()) {
      std::vector<std::string> names;
      for (const auto& [name, text] : prefixes) names.push_back(name);
      return at.Error(UnknownNameMessage("prefix", OneLine(entry.group, 60), names) +
                      " (define it on an earlier line)");
    }
    entry.system = it->second;
  }
  if (const auto it = object.find("max_tokens"); it != object.end()) {
    if (!it->is_number_unsigned() || *it == 0 ||
        it->get<uint64_t>() > std::numeric_limits<uint32_t>::max()) {
      return at.Error("\"max_tokens\" must be a whole number above 0");
    }
    entry.max_tokens = it->get<uint32_t>();
  }
  return entry;
}

}  // namespace

Result<std::vector<PromptEntry>> ParsePrompts(std::string_view text, const std::string& path) {
  std::vector<PromptEntry> entries;
  std::map<std::string, std::string> prefixes;
  size_t line_number = 0;
  for (size_t start = 0; start < text.size();) {
    size_t end = text.find('\n', start);
    if (end == std::string_view::npos) end = text.size();
    std::string_view line = text.substr(start, end - start);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    start = end + 1;
    const Place at{path, ++line_number};
    if (line.find_first_not_of(" \t") == std::string_view::npos) continue;
    const json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (object.is_discarded()) return at.Error("not valid JSON in UTF-8");
    if (!object.is_object()) return at.Error("each line must be an object");
    if (!object.contains("define")) {
      entries.push_back(WEIR_TRY(ParseRequest(object, prefixes, at)));
      continue;
    }
    WEIR_TRY(CheckKeys(object, {"define", "text"}, at));
    std::string name = WEIR_TRY(TextMember(object, "define", at));
    std::string shared = WEIR_TRY(TextMember(object, "text", at));
    if (name.empty() || shared.empty()) {
      return at.Error("a definition needs \"define\" (a name) and \"text\"");
    }
    if (!prefixes.emplace(name, std::move(shared)).second) {
      return at.Error("prefix \"" + OneLine(name, 60) + "\" is defined twice");
    }
  }
  if (entries.empty()) return InvalidArgument(path + ": no requests");
  return entries;
}

Result<std::vector<PromptEntry>> ReadPrompts(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  if (!in || !(text << in.rdbuf())) {
    return IoError("cannot read the prompts file " + OneLine(path, 300));
  }
  return ParsePrompts(std::move(text).str(), path);
}

std::string DefaultPromptsPath() {
  // An installed tree may have been moved: bin/weir finds share/weir/ beside itself.
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::filesystem::path beside =
      program.parent_path().parent_path() / "share/weir/prompts/default.jsonl";
  for (const std::filesystem::path& path : {std::filesystem::path(WEIR_DEFAULT_PROMPTS), beside}) {
    if (std::filesystem::exists(path, error)) return path.string();
  }
  return WEIR_INSTALLED_PROMPTS;
}

std::string MessagesJson(std::string_view system, std::string_view prompt) {
  json messages = json::array();
  if (!system.empty()) messages.push_back({{"role", "system"}, {"content", system}});
  messages.push_back({{"role", "user"}, {"content", prompt}});
  // Bytes that are not UTF-8 reach the template as they are not allowed to: as U+FFFD.
  return messages.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace weir::cli
