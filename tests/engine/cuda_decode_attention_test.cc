// The choice between attention kernels, as far as it needs no GPU.
#include "engine/cuda_decode_attention.h"

#include <gtest/gtest.h>

namespace weir {
namespace {

constexpr cuda::AttentionShape kNoKernel{64, 2, 128};  // 32 query heads a kv head

TEST(CudaDecodeAttention, NeverChoosesNothingAndAsksForNothing) {
  auto choice = CudaDecodeAttention::Create(kNoKernel, DecodeAttentionUse::kNever);
  ASSERT_TRUE(choice.ok()) << choice.status().ToString();
  ASSERT_TRUE(choice->Import("attention 64 2 128 8 own\n").ok());
  EXPECT_TRUE(choice->Choose(8, {}).ok());
  EXPECT_FALSE(choice->UsesOwn(8));
  EXPECT_EQ(choice->Export(), "attention 64 2 128 8 own\n");  // of another engine
}

TEST(CudaDecodeAttention, AlwaysRefusesAShapeWithoutAKernel) {
  const auto choice = CudaDecodeAttention::Create(kNoKernel, DecodeAttentionUse::kAlways);
  ASSERT_FALSE(choice.ok());
  EXPECT_NE(choice.status().ToString().find("1 to 8 times kv_heads"), std::string::npos);
}

TEST(CudaDecodeAttention, TimedLeavesAShapeWithoutAKernelToFlashInfer) {
  auto choice = CudaDecodeAttention::Create(kNoKernel, DecodeAttentionUse::kTimed);
  ASSERT_TRUE(choice.ok()) << choice.status().ToString();
  EXPECT_TRUE(choice->Choose(8, {}).ok());
  EXPECT_FALSE(choice->UsesOwn(8));
  EXPECT_EQ(choice->Export(), "attention 64 2 128 8 flashinfer\n");
}

TEST(CudaDecodeAttention, ImportsWhatItExportedAndRefusesTheRest) {
  auto choice = CudaDecodeAttention::Create(kNoKernel, DecodeAttentionUse::kTimed);
  ASSERT_TRUE(choice.ok());
  const std::string text =
      "attention 32 8 128 8 own\nattention 64 2 128 1 own\n"
      "attention 64 2 128 64 flashinfer\n";
  ASSERT_TRUE(choice->Import(text).ok());
  EXPECT_EQ(choice->Export(), text);
  // An imported choice is not timed again, and one that cannot be is an error.
  EXPECT_TRUE(choice->Choose(64, {}).ok());
  EXPECT_FALSE(choice->UsesOwn(8));  // that was another shape
  EXPECT_FALSE(choice->Choose(1, {}).ok());
  for (const char* wrong :
       {"attention 64 2 own\n", "attention 64 2 128 8 fa2\n", "attention 64 2 128 8\n",
        "attention 64 2 128 8 own 3\n", "product 64 2 128 8 own\n"}) {
    EXPECT_FALSE(choice->Import(wrong).ok()) << wrong;
  }
}

}  // namespace
}  // namespace weir
