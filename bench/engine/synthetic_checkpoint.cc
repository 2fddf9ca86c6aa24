#include "bench/engine/synthetic_checkpoint.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "engine/model/byte_source.h"
#include "engine/model/checkpoint_names.h"
#include "vmm/types.h"

namespace weir {
namespace {

struct Tensor {
  std::string name;
  std::vector<uint64_t> shape;
  uint64_t bytes = 0;
};

// In the order in which checkpoints have them: layer by layer.
std::vector<Tensor> TensorsOf(const ModelConfig& config) {
  std::vector<Tensor> tensors;
  const auto add = [&](TensorRole role, uint32_t layer) {
    const bool tied = role == TensorRole::kLmHead && config.tie_word_embeddings;
    if (tied || !HasRole(config, role)) return;
    Tensor tensor{HfTensorName(role, layer), ShapeOfRole(config, role), 2};
    for (const uint64_t n : tensor.shape) tensor.bytes *= n;
    tensors.push_back(std::move(tensor));
  };
  for (uint32_t i = 0; i < kModelRoleCount; ++i) add(static_cast<TensorRole>(i), 0);
  for (uint32_t layer = 0; layer < config.num_layers; ++layer) {
    for (uint32_t i = kModelRoleCount; i < kTensorRoleCount; ++i) {
      add(static_cast<TensorRole>(i), layer);
    }
  }
  return tensors;
}

std::string HeaderOf(const std::vector<Tensor>& tensors) {
  nlohmann::json header;
  uint64_t at = 0;
  for (const Tensor& tensor : tensors) {
    header[tensor.name] = {
        {"dtype", "BF16"}, {"shape", tensor.shape}, {"data_offsets", {at, at + tensor.bytes}}};
    at += tensor.bytes;
  }
  std::string text = header.dump();
  text.resize(AlignUp(text.size() + 8, 4096) - 8, ' ');  // the data begins with a block
  return text;
}

// Small finite numbers in any order: no disk or file system can make them smaller.
void FillBf16(std::vector<uint64_t>* words, uint64_t* state) {
  for (uint64_t& word : *words) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    word = (*state & 0x80ff80ff80ff80ffULL) | 0x3c003c003c003c00ULL;
  }
}

Status WriteTensors(const std::vector<Tensor>& tensors, const std::string& path) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  const std::string header = HeaderOf(tensors);
  const uint64_t length = header.size();
  out.write(reinterpret_cast<const char*>(&length), sizeof length);
  out << header;
  uint64_t state = 0x9e3779b97f4a7c15ULL;
  std::vector<uint64_t> words(kMiB / sizeof(uint64_t));
  for (const Tensor& tensor : tensors) {
    for (uint64_t left = tensor.bytes; left > 0 && out;) {
      const uint64_t n = std::min<uint64_t>(left, kMiB);
      FillBf16(&words, &state);
      out.write(reinterpret_cast<const char*>(words.data()), static_cast<std::streamsize>(n));
      left -= n;
    }
  }
  out.close();
  if (!out) return IoError("cannot write " + path);
  return OkStatus();
}

}  // namespace

Result<Checkpoint> OpenSyntheticCheckpoint(const std::string& config_path, uint32_t layers,
                                           const std::string& directory) {
  nlohmann::json json = nlohmann::json::parse(WEIR_TRY(ReadTextFile(config_path, kMiB)));
  if (layers > 0) json["num_hidden_layers"] = layers;
  const std::string text = json.dump(2);
  const std::string config_file = directory + "/config.json";
  const std::string weights_file = directory + "/model.safetensors";
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) return IoError("cannot make " + directory + ": " + error.message());
  const Result<std::string> there = ReadTextFile(config_file, kMiB);
  if (!there.ok() || *there != text || !std::filesystem::exists(weights_file)) {
    const ModelConfig config = WEIR_TRY(ParseModelConfig(text));
    WEIR_TRY(WriteTensors(TensorsOf(config), weights_file));
    std::ofstream(config_file) << text;  // last: it says that the rest is there
  }
  return Checkpoint::Open(directory);
}

Status DropFromPageCache(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return IoError("cannot open " + path + ": " + std::strerror(errno));
  int error = ::fdatasync(fd) == 0 ? 0 : errno;
  if (error == 0) error = ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  ::close(fd);
  if (error != 0) return IoError("page cache of " + path + ": " + std::strerror(error));
  return OkStatus();
}

}  // namespace weir
