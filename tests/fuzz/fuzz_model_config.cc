// Any bytes as config.json, or, split at the first zero byte, as config.json and
// generation_config.json. What is accepted must be valid and give finite rope frequencies.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "engine/model/model_config.h"
#include "vmm/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = input.find('\0');
  const std::string_view generation =
      zero == std::string_view::npos ? std::string_view() : input.substr(zero + 1);
  const auto config = weir::ParseModelConfig(input.substr(0, zero), generation);
  if (!config.ok()) {
    WEIR_CHECK(!config.status().message().empty(), "an error explains itself");
    return 0;
  }
  WEIR_CHECK(weir::ValidateModelConfig(*config).ok(), "an accepted configuration is valid");
  for (const float f : weir::RopeInverseFrequencies(*config)) {
    WEIR_CHECK(std::isfinite(f), "rope frequencies are finite");
  }
  WEIR_CHECK(std::isfinite(weir::RopeAttentionScale(*config)), "the attention scale is finite");
  return 0;
}
