#include <bit>
#include <cstdlib>

#include "engine/model/json.h"
#include "engine/model/model_config.h"
#include "tests/engine/model/model_file_builder.h"

namespace weir {
namespace {

int64_t UlpDistance(float a, float b) {
  return std::llabs(int64_t{std::bit_cast<int32_t>(a)} - int64_t{std::bit_cast<int32_t>(b)});
}

TEST(Rope, InverseFrequenciesEqualTransformers) {
  const auto golden = ParseJson(ReadFixture("rope.json"));
  ASSERT_TRUE(golden.ok()) << golden.status().ToString();
  ASSERT_GE(golden->size(), 10u);
  int64_t worst = 0;
  for (const nlohmann::json& entry : *golden) {
    SCOPED_TRACE(entry["name"].get<std::string>());
    const auto config = ParseModelConfig(entry["config"].dump());
    ASSERT_TRUE(config.ok()) << config.status().ToString();
    const std::vector<float> got = RopeInverseFrequencies(*config);
    const nlohmann::json& want = entry["inverse_frequency_bits"];
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      const int64_t ulps = UlpDistance(got[i], std::bit_cast<float>(want[i].get<uint32_t>()));
      worst = std::max(worst, ulps);
      // Two: torch's vectorised pow is within one ulp of glibc's, a division follows.
      EXPECT_LE(ulps, 2) << "frequency " << i;
    }
    EXPECT_FLOAT_EQ(RopeAttentionScale(*config), entry["attention_factor"].get<float>());
  }
  RecordProperty("worst_ulps", static_cast<int>(worst));
}

TEST(Rope, DivisorsOfGgufFilesDivide) {
  ModelConfig config;
  config.head_dim = 8;
  const std::vector<float> plain = RopeInverseFrequencies(config);
  config.rope.divisors = {1.0f, 2.0f, 4.0f, 8.0f};
  const std::vector<float> divided = RopeInverseFrequencies(config);
  ASSERT_EQ(divided.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_FLOAT_EQ(divided[i], plain[i] / config.rope.divisors[i]);
  }
}

}  // namespace
}  // namespace weir
