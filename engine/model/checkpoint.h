// One model on disk (or made up), whatever the container.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/model/byte_source.h"
#include "engine/model/checkpoint_names.h"
#include "engine/model/model_config.h"
#include "engine/model/tensor_file.h"
#include "engine/model/text_files.h"
#include "vmm/status.h"

namespace weir {

// How the rows of a stored tensor relate to the rows the model wants.
enum class RowTransform : uint8_t {
  kNone,
  // llama.cpp's converter of the llama architecture interleaves the two rope halves of each head of
  // q and k (weights and biases); weir, like Hugging Face, keeps the halves apart.
  kUnpermuteRope,
};

// Where a made-up tensor comes from; see FillDummyRows.
struct DummyTensor {
  uint64_t seed = 0;
  uint64_t tensor_id = 0;
  float scale = 0.0f;  // 0: every element is 1
};

// Represents one tensor of a model: where its bytes are and how to read them as the model's rows.
// A one-dimensional tensor is one row. A plain value; valid as long as its Checkpoint.
struct TensorSource {
  TensorInfo info;  // of a made-up tensor: name, kF32 and shape only
  RowTransform transform = RowTransform::kNone;
  uint32_t rope_head_dim = 0;  // of kUnpermuteRope
  std::optional<DummyTensor> dummy;

  uint64_t rows() const { return info.shape.size() < 2 ? 1 : info.shape[0]; }
  uint64_t cols() const { return info.shape.empty() ? 1 : info.shape.back(); }
};

// The stored row (of a one-dimensional tensor: element) that holds row |row| of the model.
uint64_t StoredRow(const TensorSource& source, uint64_t row);

enum class CheckpointFormat : uint8_t { kSafetensors, kGguf, kDummy };

// Represents one model, opened: its configuration, and a checked source for each tensor it needs.
// Immutable; holds its files open; reading is thread-safe. Cheap to move, not copied.
class Checkpoint {
 public:
  // |path|: a directory with config.json and model.safetensors (or its index and shards), a .gguf
  // file, or a directory with exactly one .gguf file and no config.json. Reads headers only. Fails
  // if a tensor the configuration asks for is missing or has another shape, naming it.
  static Result<Checkpoint> Open(const std::string& path);
  // A model of |config| (validated here) with made-up weights, the same for the same |seed|.
  static Result<Checkpoint> Dummy(ModelConfig config, uint64_t seed, ModelTextFiles text = {});

  Checkpoint(Checkpoint&&) noexcept = default;
  Checkpoint& operator=(Checkpoint&&) noexcept = default;

  const ModelConfig& config() const { return config_; }
  CheckpointFormat format() const { return format_; }
  const ModelTextFiles& text_files() const { return text_files_; }
  // By TensorInfo::file_index; empty for a dummy.
  const std::vector<std::string>& files() const { return paths_; }
  // Bytes of all tensors the model needs, as stored; 0 for a dummy.
  uint64_t stored_bytes() const { return stored_bytes_; }

  // Whether the files that hold tensors are still those that were opened, as they were; the error
  // names the first that is not. A dummy has none.
  Status CheckUnchanged() const;

  // kNotFound if the model has no such part (a bias it does not use, a layer out of range);
  // anything HasRole says is there. kLmHead of a tied model is the embedding. |layer|: ignored for
  // model roles.
  Result<TensorSource> Find(TensorRole role, int layer = 0) const;

  // Rows [first_row, first_row + rows) in the model's order, as stored: |out| holds rows times
  // RowBytes(dtype, cols). kInvalidArgument for a made-up tensor, which has no stored form.
  Status ReadRows(const TensorSource& source, uint64_t first_row, uint64_t rows,
                  std::span<std::byte> out) const;
  // The same as floats, [rows, cols]; works for made-up tensors too.
  Status ReadRowsAsFloat(const TensorSource& source, uint64_t first_row, uint64_t rows,
                         std::span<float> out) const;

 private:
  Checkpoint() = default;
  static Result<Checkpoint> OpenAny(const std::string& path);
  static Result<Checkpoint> OpenDirectory(const std::string& path);
  static Result<Checkpoint> OpenGguf(const std::string& path);
  size_t SlotOf(TensorRole role, uint32_t layer) const;
  Status AddSafetensors(const SafetensorsFile& file);
  Status AddGguf(const GgufFile& file);
  Status AddDummy(uint64_t seed);
  Status Add(TensorRole role, uint32_t layer, TensorSource source);

  ModelConfig config_;
  CheckpointFormat format_ = CheckpointFormat::kDummy;
  ModelTextFiles text_files_;
  std::vector<std::shared_ptr<FileSource>> files_;
  std::vector<std::string> paths_;
  std::vector<std::optional<TensorSource>> sources_;  // by SlotOf
  uint64_t stored_bytes_ = 0;
};

}  // namespace weir
