#include "engine/cli/config.h"

#include <fstream>
#include <sstream>
#include <utility>

#include <toml++/toml.h>
#include <unistd.h>

#include "engine/cli/size_text.h"
#include "policy/registry.h"

namespace weir::cli {
namespace {

std::string Quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (u < 0x20 || u == 0x7F) {
      constexpr std::string_view kHex = "0123456789ABCDEF";
      out += std::string("\\u00") + kHex[u >> 4U] + kHex[u & 15U];
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string TomlValue(const OptionInfo& option, const std::string& text) {
  switch (option.type) {
    case OptionType::kSwitch:
    case OptionType::kCount: return text;
    case OptionType::kReal:
      return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
    case OptionType::kText:
    case OptionType::kSize:
    case OptionType::kChoice: break;
  }
  return Quoted(text);
}

std::vector<std::string> KeysOf(std::string_view section) {
  std::vector<std::string> keys;
  for (const OptionInfo& o : OptionTable()) {
    if (o.section == section) keys.push_back(o.key);
  }
  return keys;
}

std::string TomlTypeName(const toml::node& node) {
  if (node.is_string()) return "text";
  if (node.is_integer()) return "a whole number";
  if (node.is_floating_point()) return "a number";
  if (node.is_boolean()) return "true or false";
  if (node.is_array()) return "an array";
  if (node.is_table()) return "a table";
  return "a date or time";
}

// The value as the text a flag would have, if its TOML type fits the option.
std::optional<std::string> TextOf(const toml::node& node, const OptionInfo& option) {
  const bool number_as_text = option.type == OptionType::kSize ||
                              option.type == OptionType::kCount ||
                              option.type == OptionType::kReal || option.key == "seed";
  if (option.type == OptionType::kSwitch) {
    if (const auto v = node.value_exact<bool>()) return *v ? "true" : "false";
    return std::nullopt;
  }
  if (number_as_text && node.is_integer()) return std::to_string(*node.value_exact<int64_t>());
  if (option.type == OptionType::kReal && node.is_floating_point()) {
    return RealText(*node.value_exact<double>());
  }
  const bool takes_text = option.type == OptionType::kText || option.type == OptionType::kChoice ||
                          option.type == OptionType::kSize;
  if (takes_text && node.is_string()) return *node.value_exact<std::string>();
  return std::nullopt;
}

struct Parsed {
  toml::table table;
  Status error;
};

// toml++ throws; nothing else here may see that.
Parsed ParseToml(std::string_view text, const std::string& path) {
  try {
    return {toml::parse(text, path), {}};
  } catch (const toml::parse_error& e) {
    return {{},
            InvalidArgument(path + ":" + std::to_string(e.source().begin.line) + ": " +
                            OneLine(e.description(), 200))};
  } catch (const std::exception& e) {
    return {{}, InvalidArgument(path + ": " + OneLine(e.what(), 200))};
  }
}

}  // namespace

Status Config::Set(const OptionInfo& option, std::string_view text, std::string source) {
  const Status status = option.set(settings_, text);
  if (!status.ok()) return status.WithContext(source + ": " + option.name());
  sources_[option.name()] = std::move(source);
  return OkStatus();
}

Status Config::SetDefault(std::string_view name, std::string_view text, std::string_view source) {
  const size_t dot = name.find('.');
  const OptionInfo* option = FindOption(name.substr(0, dot), name.substr(dot + 1));
  WEIR_CHECK(option != nullptr, "a default of an option that exists");
  default_sources_[option->name()] = std::string(source);
  return option->set(settings_, text);
}

Status Config::ApplyFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  if (!in || !(text << in.rdbuf())) {
    return IoError("cannot read the configuration file " + OneLine(path, 300));
  }
  return ApplyToml(std::move(text).str(), path);
}

Status Config::ApplyToml(std::string_view text, const std::string& path) {
  Parsed parsed = ParseToml(text, path);
  if (!parsed.error.ok()) return parsed.error;
  const auto at = [&](const toml::node& node) {
    return path + ":" + std::to_string(node.source().begin.line);
  };
  for (const auto& [section_key, node] : parsed.table) {
    const std::string section(section_key.str());
    const std::vector<std::string> keys = KeysOf(section);
    const std::string place = path + ":" + std::to_string(section_key.source().begin.line);
    if (keys.empty()) {
      return InvalidArgument(place + ": " +
                             UnknownNameMessage("section", OneLine(section, 60), Sections()));
    }
    const toml::table* table = node.as_table();
    if (table == nullptr) {
      return InvalidArgument(place + ": \"" + section + "\" is a section: write [" + section + "]");
    }
    for (const auto& [key, value] : *table) {
      const OptionInfo* option = FindOption(section, key.str());
      if (option == nullptr) {
        return InvalidArgument(
            path + ":" + std::to_string(key.source().begin.line) + ": " +
            UnknownNameMessage("key in [" + section + "]", OneLine(key.str(), 60), keys));
      }
      const std::optional<std::string> as_text = TextOf(value, *option);
      if (!as_text) {
        return InvalidArgument(at(value) + ": " + option->name() + " is " + TomlTypeName(value) +
                               "; accepted: " + option->accepted);
      }
      WEIR_TRY(Set(*option, *as_text, at(value)));
    }
  }
  return OkStatus();
}

Status Config::ApplyEnvironment(const std::map<std::string, std::string>& environment) {
  for (const auto& [name, value] : environment) {
    if (name == kApiKeyVariable) continue;  // a secret: read where it is used, never shown
    std::vector<std::string> known;
    const OptionInfo* found = nullptr;
    for (const OptionInfo& o : OptionTable()) {
      const std::string variable = o.environment();
      if (variable == name) found = &o;
      const std::string prefix = variable.substr(0, 5 + o.section.size() + 1);
      if (name.starts_with(prefix)) known.push_back(variable);
    }
    if (found != nullptr) {
      WEIR_TRY(Set(*found, value, "environment " + name));
    } else if (!known.empty()) {
      return InvalidArgument(UnknownNameMessage("environment variable", OneLine(name, 60), known));
    }
  }
  return OkStatus();
}

Status Config::ApplyFlag(const OptionInfo& option, std::string_view text) {
  return Set(option, text, "flag " + option.flag);
}

std::string Config::SourceOf(const OptionInfo& option) const {
  if (const auto it = sources_.find(option.name()); it != sources_.end()) return it->second;
  if (const auto it = default_sources_.find(option.name()); it != default_sources_.end()) {
    return it->second;
  }
  return "default";
}

bool Config::IsDefault(const OptionInfo& option) const {
  return !sources_.contains(option.name());
}

std::string Config::ToToml() const {
  std::string out;
  for (const std::string& section : Sections()) {
    out += (out.empty() ? "[" : "\n[") + section + "]\n";
    for (const OptionInfo& o : OptionTable()) {
      if (o.section != section) continue;
      std::string line = o.key + " = " + TomlValue(o, o.get(settings_));
      line.resize(std::max<size_t>(line.size() + 1, 40), ' ');
      out += line + " # " + OneLine(SourceOf(o), 300) + "\n";
    }
  }
  return out;
}

std::map<std::string, std::string> ProcessEnvironment() {
  std::map<std::string, std::string> out;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    const size_t equals = text.find('=');
    if (equals != std::string_view::npos && text.starts_with("WEIR_")) {
      out.emplace(text.substr(0, equals), text.substr(equals + 1));
    }
  }
  return out;
}

}  // namespace weir::cli
