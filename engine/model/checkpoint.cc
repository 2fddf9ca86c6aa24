#include "engine/model/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "engine/model/convert.h"
#include "engine/model/gguf_model.h"
#include "engine/model/no_throw.h"
#include "vmm/checked_math.h"

namespace weir {

namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxConfigBytes = 4u << 20;
constexpr uint64_t kReadChunkBytes = 4u << 20;

TensorRole RoleAt(uint32_t index) {
  return static_cast<TensorRole>(index);
}

// Calls |visit(role, layer)| for every part a decoder can have, in file-friendly order.
template <typename Visit>
Status ForEachPart(uint32_t layers, const Visit& visit) {
  for (uint32_t i = 0; i < kModelRoleCount; ++i) WEIR_TRY(visit(RoleAt(i), 0u));
  for (uint32_t layer = 0; layer < layers; ++layer) {
    for (uint32_t i = kModelRoleCount; i < kTensorRoleCount; ++i) {
      WEIR_TRY(visit(RoleAt(i), layer));
    }
  }
  return {};
}

bool IsRopeProjection(TensorRole role) {
  return role == TensorRole::kQ || role == TensorRole::kK || role == TensorRole::kQBias ||
         role == TensorRole::kKBias;
}

// A part the configuration does not mention but the file has: computing without it would be wrong.
Status Unmentioned(const std::string& name) {
  return InvalidArgument("tensor " + name +
                         " is in the file, but by its configuration the model does not use it");
}

bool Exists(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// The only .gguf file of a directory.
Result<std::string> SingleGguf(const std::string& directory) {
  std::error_code error;
  std::vector<std::string> found;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() == ".gguf") found.push_back(it->path().string());
  }
  if (error) return IoError("cannot list " + directory + ": " + error.message());
  if (found.size() == 1) return found[0];
  if (!found.empty()) {
    return InvalidArgument(directory + " holds " + std::to_string(found.size()) +
                           " .gguf files; name one of them");
  }
  return NotFound(directory + " holds neither config.json nor a .gguf file");
}

// The order of rows inside one head: stored row 2j + s is the model's row s * head_dim / 2 + j.
uint64_t StoredWithinHead(uint64_t row, uint64_t head_dim) {
  const uint64_t half = head_dim / 2;
  return row < half ? 2 * row : 2 * (row - half) + 1;
}

// Units (rows, or elements of a one-dimensional tensor) [first, first + count) of the model from a
// tensor stored interleaved; reads head by head.
Status ReadUnpermuted(const FileSource& file, const TensorSource& source, uint64_t unit_bytes,
                      uint64_t first, uint64_t count, std::byte* out) {
  const uint64_t head_dim = source.rope_head_dim;
  std::vector<std::byte> head(static_cast<size_t>(head_dim * unit_bytes));
  const uint64_t end = first + count;
  for (uint64_t head_begin = first / head_dim * head_dim; head_begin < end;
       head_begin += head_dim) {
    WEIR_TRY(file.ReadAt(source.info.offset + head_begin * unit_bytes, head));
    const uint64_t from = std::max(first, head_begin);
    const uint64_t to = std::min(end, head_begin + head_dim);
    for (uint64_t unit = from; unit < to; ++unit) {
      const uint64_t stored = StoredWithinHead(unit - head_begin, head_dim);
      std::copy_n(head.data() + stored * unit_bytes, unit_bytes, out);
      out += unit_bytes;
    }
  }
  return {};
}

}  // namespace

uint64_t StoredRow(const TensorSource& source, uint64_t row) {
  if (source.transform == RowTransform::kNone) return row;
  const uint64_t head_dim = source.rope_head_dim;
  return row / head_dim * head_dim + StoredWithinHead(row % head_dim, head_dim);
}

Status Checkpoint::CheckUnchanged() const {
  for (const auto& file : files_) WEIR_TRY(file->CheckUnchanged());
  return {};
}

size_t Checkpoint::SlotOf(TensorRole role, uint32_t layer) const {
  const auto index = static_cast<size_t>(role);
  if (!IsLayerRole(role)) return index;
  return index + size_t{layer} * (kTensorRoleCount - kModelRoleCount);
}

Status Checkpoint::Add(TensorRole role, uint32_t layer, TensorSource source) {
  const std::vector<uint64_t> expected = ShapeOfRole(config_, role);
  if (source.info.shape != expected) {
    return InvalidArgument("tensor " + source.info.name + " has shape " +
                           ShapeString(source.info.shape) + ", the configuration asks for " +
                           ShapeString(expected));
  }
  if (source.info.shape.size() == 1 && TraitsOf(source.info.dtype).block_elements != 1) {
    return Unsupported("tensor " + source.info.name + " is " +
                       std::string(DTypeName(source.info.dtype)) +
                       " (accepted for one-dimensional tensors: F32, F16, BF16)");
  }
  // Rows of whole blocks: a shape the container allowed as one run may still not be.
  if (!RowBytes(source.info.dtype, source.cols())) {
    return InvalidArgument("tensor " + source.info.name + " has rows that are not whole blocks");
  }
  stored_bytes_ += source.info.bytes;
  sources_[SlotOf(role, layer)] = std::move(source);
  return {};
}

Status Checkpoint::AddSafetensors(const SafetensorsFile& file) {
  // A checkpoint saved from the bare decoder lacks the "model." in front.
  constexpr std::string_view kPrefix = "model.";
  const std::string embedding = HfTensorName(TensorRole::kEmbedding, 0);
  const bool bare = !file.Contains(embedding) && file.Contains(embedding.substr(kPrefix.size()));
  return ForEachPart(config_.num_layers, [&](TensorRole role, uint32_t layer) -> Status {
    std::string name = HfTensorName(role, layer);
    if (bare && name.starts_with(kPrefix)) name.erase(0, kPrefix.size());
    if (role == TensorRole::kLmHead && config_.tie_word_embeddings) return {};
    if (!HasRole(config_, role)) return file.Contains(name) ? Unmentioned(name) : Status();
    const Result<const TensorInfo*> info = file.Find(name);
    if (!info.ok()) {
      return info.status().WithContext("shape " + ShapeString(ShapeOfRole(config_, role)) +
                                       " expected");
    }
    TensorSource source;
    source.info = **info;
    return Add(role, layer, std::move(source));
  });
}

Status Checkpoint::AddGguf(const GgufFile& file) {
  const bool permuted = config_.family == ModelFamily::kLlama;
  return ForEachPart(config_.num_layers, [&](TensorRole role, uint32_t layer) -> Status {
    const std::string name = GgufTensorName(role, layer);
    if (role == TensorRole::kLmHead && config_.tie_word_embeddings) return {};
    const TensorInfo* info = file.Find(name);
    if (!HasRole(config_, role)) return info != nullptr ? Unmentioned(name) : Status();
    if (info == nullptr) {
      return NotFound("tensor " + name + " of shape " + ShapeString(ShapeOfRole(config_, role)) +
                      " is not in the file");
    }
    TensorSource source;
    source.info = *info;
    if (permuted && IsRopeProjection(role)) {
      source.transform = RowTransform::kUnpermuteRope;
      source.rope_head_dim = config_.head_dim;
    }
    return Add(role, layer, std::move(source));
  });
}

Status Checkpoint::AddDummy(uint64_t seed) {
  return ForEachPart(config_.num_layers, [&](TensorRole role, uint32_t layer) -> Status {
    if (!HasRole(config_, role)) return {};
    if (role == TensorRole::kLmHead && config_.tie_word_embeddings) return {};
    TensorSource source;
    source.info.name = HfTensorName(role, layer);
    source.info.shape = ShapeOfRole(config_, role);
    source.dummy = DummyTensor{seed, uint64_t{layer} * 64 + static_cast<uint64_t>(role),
                               DummyScale(config_, role)};
    return Add(role, layer, std::move(source));
  });
}

Result<Checkpoint> Checkpoint::OpenDirectory(const std::string& path) {
  const fs::path root(path);
  if (!Exists(root / "config.json")) {
    const std::string gguf = WEIR_TRY(SingleGguf(path));
    return OpenGguf(gguf);
  }
  const std::string config_path = (root / "config.json").string();
  const std::string config_text = WEIR_TRY(ReadTextFile(config_path, kMaxConfigBytes));
  std::string generation_text;
  if (Exists(root / "generation_config.json")) {
    generation_text =
        WEIR_TRY(ReadTextFile((root / "generation_config.json").string(), kMaxConfigBytes));
  }
  Result<ModelConfig> config = ParseModelConfig(config_text, generation_text);
  if (!config.ok()) return config.status().WithContext(path);

  std::string weights = (root / "model.safetensors").string();
  if (!Exists(weights)) {
    weights = (root / "model.safetensors.index.json").string();
    if (!Exists(weights)) {
      return NotFound(path + " holds neither model.safetensors nor model.safetensors.index.json" +
                      (Exists(root / "pytorch_model.bin")
                           ? "; pytorch_model.bin is not read, convert it to safetensors"
                           : ""));
    }
  }
  const SafetensorsFile file = WEIR_TRY(SafetensorsFile::Open(weights));
  Checkpoint out;
  out.config_ = std::move(*config);
  out.format_ = CheckpointFormat::kSafetensors;
  out.files_ = file.files();
  out.text_files_ = WEIR_TRY(FindTextFiles(path));
  out.sources_.resize(out.SlotOf(TensorRole::kDownBias, out.config_.num_layers - 1) + 1);
  const Status added = out.AddSafetensors(file);
  if (!added.ok()) return added.WithContext(weights);
  for (const auto& opened : out.files_) out.paths_.push_back(opened->path());
  return out;
}

Result<Checkpoint> Checkpoint::OpenGguf(const std::string& path) {
  const GgufFile file = WEIR_TRY(GgufFile::Open(path));
  Result<ModelConfig> config = ConfigFromGguf(file, *file.file());
  if (!config.ok()) return config.status().WithContext(path);
  Result<ModelTextFiles> text = ReadGgufTextFiles(file);
  if (!text.ok()) return text.status().WithContext(path);
  Checkpoint out;
  out.config_ = std::move(*config);
  out.format_ = CheckpointFormat::kGguf;
  out.files_ = {file.file()};
  out.paths_ = {path};
  out.text_files_ = std::move(*text);
  out.sources_.resize(out.SlotOf(TensorRole::kDownBias, out.config_.num_layers - 1) + 1);
  const Status added = out.AddGguf(file);
  if (!added.ok()) return added.WithContext(path);
  return out;
}

Result<Checkpoint> Checkpoint::Open(const std::string& path) {
  return NoThrow([&] { return OpenAny(path); });
}

Result<Checkpoint> Checkpoint::OpenAny(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) return NotFound("no such model: " + path);
  if (error) return IoError("cannot look at " + path + ": " + error.message());
  if (fs::is_directory(status)) return OpenDirectory(path);
  if (path.ends_with(".gguf")) return OpenGguf(path);
  return InvalidArgument(path +
                         " is neither a model directory nor a .gguf file (for safetensors, name "
                         "the directory that holds config.json)");
}

Result<Checkpoint> Checkpoint::Dummy(ModelConfig config, uint64_t seed, ModelTextFiles text) {
  return NoThrow([&]() -> Result<Checkpoint> {
    WEIR_TRY(ValidateModelConfig(config));
    Checkpoint out;
    out.config_ = std::move(config);
    out.sources_.resize(out.SlotOf(TensorRole::kDownBias, out.config_.num_layers - 1) + 1);
    WEIR_TRY(out.AddDummy(seed));
    out.text_files_ = std::move(text);
    return out;
  });
}

Result<TensorSource> Checkpoint::Find(TensorRole role, int layer) const {
  if (IsLayerRole(role) && (layer < 0 || static_cast<uint32_t>(layer) >= config_.num_layers)) {
    return NotFound("layer " + std::to_string(layer) + " of a model with " +
                    std::to_string(config_.num_layers) + " layers");
  }
  const bool tied = role == TensorRole::kLmHead && config_.tie_word_embeddings;
  const auto& source = sources_[SlotOf(tied ? TensorRole::kEmbedding : role,
                                       IsLayerRole(role) ? static_cast<uint32_t>(layer) : 0u)];
  if (!source) return NotFound("the model has no " + HfTensorName(role, 0));
  return *source;
}

namespace {

Status CheckRange(const TensorSource& source, uint64_t first_row, uint64_t rows) {
  if (first_row <= source.rows() && rows <= source.rows() - first_row) return {};
  return InvalidArgument("rows [" + std::to_string(first_row) + ", +" + std::to_string(rows) +
                         ") of tensor " + source.info.name + " with " +
                         std::to_string(source.rows()) + " rows");
}

}  // namespace

Status Checkpoint::ReadRows(const TensorSource& source, uint64_t first_row, uint64_t rows,
                            std::span<std::byte> out) const {
  WEIR_TRY(CheckRange(source, first_row, rows));
  if (source.dummy || source.info.file_index >= files_.size()) {
    return InvalidArgument("tensor " + source.info.name + " is made up, it has no stored rows");
  }
  const uint64_t row_bytes = RowBytes(source.info.dtype, source.cols()).value_or(0);
  const auto bytes = CheckedMul(rows, row_bytes);
  if (!bytes || *bytes != out.size()) {
    return InvalidArgument("the buffer for rows of tensor " + source.info.name + " has " +
                           std::to_string(out.size()) + " bytes, " +
                           std::to_string(bytes.value_or(0)) + " are needed");
  }
  const FileSource& file = *files_[source.info.file_index];
  if (source.transform == RowTransform::kNone) {
    return file.ReadAt(source.info.offset + first_row * row_bytes, out);
  }
  if (rows == 0) return {};
  if (source.info.shape.size() < 2) {
    const uint64_t element_bytes = TraitsOf(source.info.dtype).block_bytes;
    return ReadUnpermuted(file, source, element_bytes, 0, source.cols(), out.data());
  }
  return ReadUnpermuted(file, source, row_bytes, first_row, rows, out.data());
}

Status Checkpoint::ReadRowsAsFloat(const TensorSource& source, uint64_t first_row, uint64_t rows,
                                   std::span<float> out) const {
  WEIR_TRY(CheckRange(source, first_row, rows));
  const auto elements = CheckedMul(rows, source.cols());
  if (!elements || *elements != out.size()) {
    return InvalidArgument("the buffer for rows of tensor " + source.info.name + " has " +
                           std::to_string(out.size()) + " elements, " +
                           std::to_string(elements.value_or(0)) + " are needed");
  }
  const auto cols = static_cast<size_t>(source.cols());
  if (source.dummy) {
    const DummyTensor& dummy = *source.dummy;
    if (dummy.scale == 0.0f) {
      std::fill(out.begin(), out.end(), 1.0f);
    } else {
      FillDummyRows(dummy.seed, dummy.tensor_id, first_row, static_cast<size_t>(rows), cols,
                    dummy.scale, out.data());
    }
    return {};
  }
  const uint64_t row_bytes = RowBytes(source.info.dtype, source.cols()).value_or(1);
  // Whole heads at a time, so that an interleaved tensor is not read twice.
  const uint64_t unit = std::max<uint64_t>(source.rope_head_dim, 1);
  const uint64_t chunk_rows = std::max<uint64_t>(kReadChunkBytes / row_bytes / unit, 1) * unit;
  std::vector<std::byte> stored;
  for (uint64_t done = 0; done < rows; done += chunk_rows) {
    const uint64_t n = std::min(chunk_rows, rows - done);
    stored.resize(static_cast<size_t>(n * row_bytes));
    WEIR_TRY(ReadRows(source, first_row + done, n, stored));
    DequantizeRows(source.info.dtype, stored.data(), static_cast<size_t>(n), cols,
                   out.data() + done * cols);
  }
  return {};
}

}  // namespace weir
