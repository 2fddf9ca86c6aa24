// Choices as text, and back.
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <iterator>
#include <sstream>

#include "kernels/cuda/gemm_state.h"

namespace weir::cuda {
namespace {

constexpr size_t kAlgorithmWords = sizeof(cublasLtMatmulAlgo_t::data) / sizeof(uint64_t);

}  // namespace

std::string GemmPlanner::Header() const {
  return "products 6, cublaslt " + std::to_string(lt_->api->cublasLtGetVersion()) + " " + lt_->gpu;
}

std::string GemmPlanner::Export() const {
  std::string text = Header() + "\n";
  for (const auto& [key, bucket] : buckets_) {
    const auto& [kind, m] = key;
    if (!bucket->chosen) continue;
    text += std::to_string(m) + " " + std::to_string(kind.n) + " " + std::to_string(kind.k) + " " +
            std::to_string(kind.bias) + " " + std::to_string(static_cast<int>(kind.output)) + " " +
            std::to_string(static_cast<int>(kind.type)) + " " + std::to_string(kind.compressed) +
            " " + std::to_string(kind.y_stride);
    // Our own kernel is a cluster size and zeros, which no algorithm of cuBLASLt is.
    cublasLtMatmulAlgo_t algorithm = bucket->algorithm;
    if (bucket->cluster > 0) algorithm.data[0] = static_cast<uint64_t>(bucket->cluster);
    for (const uint64_t word : algorithm.data) {
      char hex[20];
      std::snprintf(hex, sizeof(hex), " %016" PRIx64, word);
      text += hex;
    }
    text += "\n";
  }
  return text;
}

LaunchStatus GemmPlanner::Import(const std::string& text) {
  std::istringstream lines(text);
  std::string line;
  if (!std::getline(lines, line) || line != Header()) {
    return LaunchStatus::Invalid("gemm: the algorithms are of \"" + line.substr(0, 120) +
                                 "\", this is \"" + Header() + "\"");
  }
  std::map<Key, std::unique_ptr<Bucket>> read;
  while (std::getline(lines, line)) {
    std::istringstream in(line);
    GemmKind kind;
    int64_t m = 0;
    int bias = -1, output = -1, type = -1, compressed = -1;
    auto bucket = std::make_unique<Bucket>();
    in >> m >> kind.n >> kind.k >> bias >> output >> type >> compressed >> kind.y_stride >>
        std::hex;
    for (size_t i = 0; i < kAlgorithmWords; ++i) in >> bucket->algorithm.data[i];
    std::string rest;
    if (in.fail() || in >> rest || bias < 0 || bias > 1 || output < 0 || output > 1 || type < 0 ||
        type > 1 || compressed < 0 || compressed > 1 || kind.y_stride < 0) {
      return LaunchStatus::Invalid("gemm: not a line of exported algorithms: " +
                                   line.substr(0, 120));
    }
    kind.bias = bias == 1;
    kind.output = static_cast<GemmOutput>(output);
    kind.type = static_cast<GemmOutputType>(type);
    kind.compressed = compressed == 1;
    bucket->chosen = true;
    if (std::all_of(std::begin(bucket->algorithm.data) + 1, std::end(bucket->algorithm.data),
                    [](uint64_t word) { return word == 0; })) {
      bucket->cluster = static_cast<int>(std::min<uint64_t>(
          bucket->algorithm.data[0], static_cast<uint64_t>(kMaxSkinnyCluster) + 1));
      bucket->algorithm = {};
      if (bucket->cluster == 0) {
        return LaunchStatus::Invalid("gemm: an algorithm of zeros: " + line.substr(0, 120));
      }
    }
    read[{kind, m}] = std::move(bucket);
  }
  for (auto& [key, bucket] : read) {
    if (!buckets_.contains(key)) buckets_[key] = std::move(bucket);
  }
  return {};
}

}  // namespace weir::cuda
