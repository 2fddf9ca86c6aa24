// Fixtures and seeded random text for the tests of engine/text.
#pragma once

#include <fstream>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "engine/text/tokenizer.h"
#include "engine/text/utf8.h"

namespace weir {

inline const std::vector<std::string>& Families() {
  static const std::vector<std::string> names = {"gpt2",   "smollm", "llama3",  "qwen2",
                                                 "tekken", "llama2", "mistral", "metaspace"};
  return names;
}

inline std::string ReadFixture(const std::string& name) {
  std::ifstream file("tests/fixtures/text/" + name, std::ios::binary);
  EXPECT_TRUE(file.good()) << "missing tests/fixtures/text/" << name;
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

inline std::unique_ptr<Tokenizer> LoadFixture(const std::string& family) {
  auto tokenizer = Tokenizer::FromTokenizerJson(ReadFixture(family + ".json"), "");
  EXPECT_TRUE(tokenizer.ok()) << family << ": " << tokenizer.status().ToString();
  return tokenizer.ok() ? std::move(tokenizer).value() : nullptr;
}

inline std::vector<nlohmann::json> ReadCases(const std::string& family) {
  std::vector<nlohmann::json> cases;
  std::istringstream lines(ReadFixture(family + ".jsonl"));
  for (std::string line; std::getline(lines, line);) cases.push_back(nlohmann::json::parse(line));
  return cases;
}

// Valid UTF-8 of up to |max_characters| characters from all planes, with runs of one character.
inline std::string RandomText(std::mt19937_64* random, size_t max_characters) {
  const auto below = [&](uint64_t n) { return (*random)() % n; };
  std::string text;
  for (size_t left = below(max_characters + 1); left > 0; --left) {
    char32_t c = 0;
    switch (below(6)) {
      case 0:
      case 1: c = static_cast<char32_t>(below(128)); break;
      case 2: c = static_cast<char32_t>(below(0x800)); break;
      case 3: c = static_cast<char32_t>(below(0xD800)); break;
      case 4: c = static_cast<char32_t>(0xE000 + below(0x110000 - 0xE000)); break;
      default: c = U" \n\t\r'.1a\u00e9\u4e2d\u0301"[below(11)]; break;
    }
    for (size_t n = below(20) == 0 ? below(60) : 1; n > 0; --n) AppendCodePoint(c, &text);
  }
  return text;
}

}  // namespace weir
