#include "kernels/cpu/isa.h"

#include <gtest/gtest.h>

namespace weir::cpu {
namespace {

TEST(IsaTest, ScalarIsAlwaysSupportedAndSlowest) {
  ASSERT_FALSE(SupportedIsas().empty());
  EXPECT_EQ(SupportedIsas().front(), Isa::kScalar);
}

TEST(IsaTest, EverySupportedIsaCanBeChosenAndNoOther) {
  const Isa before = ActiveIsa();
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kNeon}) {
    bool supported = false;
    for (const Isa s : SupportedIsas()) supported = supported || s == isa;
    const Isa unchanged = ActiveIsa();
    EXPECT_EQ(SetActiveIsa(isa), supported) << IsaName(isa);
    EXPECT_EQ(ActiveIsa(), supported ? isa : unchanged);
  }
  EXPECT_TRUE(SetActiveIsa(before));
}

}  // namespace
}  // namespace weir::cpu
