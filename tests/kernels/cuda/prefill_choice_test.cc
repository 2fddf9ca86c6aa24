#include "kernels/cuda/prefill_choice.h"

#include <vector>

#include <gtest/gtest.h>

namespace weir::cuda {
namespace {

struct Prompt {
  int32_t rows, context;
};

// Of 32 query heads on 132 multiprocessors.
bool Fa2(const std::vector<Prompt>& prompts) {
  std::vector<int32_t> q_indptr = {0}, context;
  for (const Prompt& p : prompts) {
    q_indptr.push_back(q_indptr.back() + p.rows);
    context.push_back(p.context);
  }
  return Fa2AttendsSooner(32, 128, q_indptr.data(), context.data(),
                          static_cast<int32_t>(prompts.size()), 132);
}

TEST(PrefillChoice, IsFa2ForFewRowsBehindALongContext) {
  EXPECT_TRUE(Fa2({{64, 4096}}));
  EXPECT_TRUE(Fa2({{64, 2112}}));   // measured: 24 us, FA3 35
  EXPECT_TRUE(Fa2({{128, 4224}}));  // 48, FA3 67
  EXPECT_TRUE(Fa2({{64, 4096}, {64, 2048}}));
  EXPECT_TRUE(Fa2({{128, 32768}}));
}

TEST(PrefillChoice, IsFa3WhereItsTilesFillTheGpu) {
  EXPECT_FALSE(Fa2({{2048, 2048}}));
  EXPECT_FALSE(Fa2({{192, 2240}}));  // measured: 47 us, FA3 39
  EXPECT_FALSE(Fa2({{384, 2432}}));  // 100, FA3 42
  EXPECT_FALSE(Fa2({{128, 4096}, {128, 4096}, {128, 4096}, {128, 4096}}));
}

TEST(PrefillChoice, IsFa3ForShortContexts) {
  EXPECT_FALSE(Fa2({{64, 64}}));
  EXPECT_FALSE(Fa2({{200, 200}}));
  EXPECT_FALSE(Fa2({}));
}

}  // namespace
}  // namespace weir::cuda
