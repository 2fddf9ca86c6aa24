// KV blocks between tenants on a GPU, whose steps run behind one another.
#include <cstdio>
#include <fstream>

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include "tests/support/cuda_devices.h"
#include "tests/support/tenant_world.h"

namespace weir {
namespace {

TEST(CudaScrub, ATenantFindsEveryByteOfAnothersBlocksZero) {
  if (testing::CudaDevices() == 0) GTEST_SKIP() << "no CUDA device";
  const std::string config = ::testing::TempDir() + "/weir_cuda_scrub_config.json";
  std::ofstream(config) << R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 1024,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "tie_word_embeddings": false, "torch_dtype": "bfloat16", "bos_token_id": 1})";
  for (const bool scrub : {true, false}) {
    testing::TenantWorld::Options options;
    options.engine.model = config;
    options.engine.dummy_weights = true;
    options.engine.device = DeviceKind::kCuda;
    options.engine.max_num_seqs = 16;
    options.engine.max_num_batched_tokens = 256;
    options.engine.max_model_len = 1024;
    options.scrub = scrub;
    options.kv_blocks = 512;
    options.settle = [] { (void)cudaDeviceSynchronize(); };
    testing::TenantWorld world(options);
    Status status = world.Build();
    ASSERT_TRUE(status.ok()) << status.ToString();
    status = world.FillKv(1);
    ASSERT_TRUE(status.ok()) << status.ToString();
    EXPECT_EQ(world.core().stats().scrubbed_blocks, 0U) << "there has been one tenant";
    status = world.StampCanary();
    ASSERT_TRUE(status.ok()) << status.ToString();
    const uint64_t blocks = world.blocks_looked_at();
    const uint64_t not_zero = world.bytes_not_zero();
    const uint64_t like_canary = world.canary_bytes();
    status = world.FillKv(2);
    ASSERT_TRUE(status.ok()) << status.ToString();
    EXPECT_EQ(world.blocks_looked_at(), 2 * blocks);
    if (scrub) {
      EXPECT_EQ(world.canary_bytes(), like_canary);
      EXPECT_EQ(world.bytes_not_zero(), not_zero);
      EXPECT_EQ(world.core().stats().scrubbed_blocks, blocks);
      std::printf("%lu blocks of %lu bytes zeroed in %.1f us, waits included\n", blocks,
                  world.block_bytes(), world.scrub_seconds() * 1e6);
    } else {
      EXPECT_EQ(world.canary_bytes() - like_canary, blocks * world.block_bytes())
          << "the test sees nothing";
    }
  }
}

}  // namespace
}  // namespace weir
