#include "engine/weight_loader.h"

#include <array>
#include <chrono>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

#include "engine/model/convert.h"
#include "kernels/cpu/gemm.h"

namespace weir {
namespace {

constexpr uint64_t kPieceBytes = 4 * kMiB;

// One tensor on its way: into rows of a packed matrix, or as floats.
struct Part {
  TensorRole role;
  int layer = 0;
  uint64_t row = 0;  // first row (of a vector: element) of the target it fills
};

// One target in the weight region: a packed matrix of |rows| x |cols|, or |rows| floats (cols 0).
struct Target {
  uint64_t offset = 0;
  uint64_t rows = 0;
  uint64_t cols = 0;
  std::vector<Part> parts;
};

std::vector<Target> TargetsOf(const ModelConfig& c, const CpuWeightMap& map) {
  std::vector<Target> targets;
  const auto add = [&targets](uint64_t offset, uint64_t rows, uint64_t cols,
                              std::vector<Part> parts) {
    if (offset != CpuLayerOffsets::kAbsent) {
      targets.push_back({offset, rows, cols, std::move(parts)});
    }
  };
  const uint64_t hidden = c.hidden_size;
  const uint64_t q = c.q_size();
  const uint64_t kv = c.kv_size();
  const uint64_t ffn = c.intermediate_size;
  add(map.embedding, c.vocab_size, hidden, {{TensorRole::kEmbedding}});
  if (!c.tie_word_embeddings) add(map.lm_head, c.vocab_size, hidden, {{TensorRole::kLmHead}});
  add(map.final_norm, hidden, 0, {{TensorRole::kFinalNorm}});
  for (int l = 0; l < static_cast<int>(c.num_layers); ++l) {
    const CpuLayerOffsets& w = map.layers[static_cast<size_t>(l)];
    add(w.attn_norm, hidden, 0, {{TensorRole::kAttnNorm, l}});
    add(w.mlp_norm, hidden, 0, {{TensorRole::kMlpNorm, l}});
    add(w.q_norm, c.head_dim, 0, {{TensorRole::kQNorm, l}});
    add(w.k_norm, c.head_dim, 0, {{TensorRole::kKNorm, l}});
    add(w.qkv_bias, q + 2 * kv, 0,
        {{TensorRole::kQBias, l, 0}, {TensorRole::kKBias, l, q}, {TensorRole::kVBias, l, q + kv}});
    add(w.o_bias, hidden, 0, {{TensorRole::kOBias, l}});
    add(w.gate_up_bias, 2 * ffn, 0, {{TensorRole::kGateBias, l, 0}, {TensorRole::kUpBias, l, ffn}});
    add(w.down_bias, hidden, 0, {{TensorRole::kDownBias, l}});
    add(w.qkv, q + 2 * kv, hidden,
        {{TensorRole::kQ, l, 0}, {TensorRole::kK, l, q}, {TensorRole::kV, l, q + kv}});
    add(w.o, hidden, q, {{TensorRole::kO, l}});
    add(w.gate_up, 2 * ffn, hidden, {{TensorRole::kGate, l, 0}, {TensorRole::kUp, l, ffn}});
    add(w.down, hidden, ffn, {{TensorRole::kDown, l}});
  }
  return targets;
}

class File {
 public:
  explicit File(const std::string& path) : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(File&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  File& operator=(File&&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, WeightPager& pager)
      : checkpoint_(checkpoint), pager_(pager) {}

  Status Open(WeightLoadReport* report) {
    for (const std::string& path : checkpoint_.files()) {
      files_.emplace_back(path);
      if (files_.back().fd() < 0) return IoError("cannot open " + path);
    }
    ring_ = WEIR_TRY(FileRing::Create({}));
    report->io_mode = ring_->mode();
    report->io_mode_reason = ring_->mode_reason();
    return OkStatus();
  }

  Status LoadTarget(const Target& target, const std::function<void(uint64_t)>& advance) {
    const bool matrix = target.cols > 0;
    packed_.assign(matrix ? cpu::PackedWeightBytes(static_cast<int64_t>(target.rows),
                                                   static_cast<int64_t>(target.cols))
                          : target.rows * sizeof(float),
                   std::byte{0});
    for (const Part& part : target.parts) {
      const TensorSource source = WEIR_TRY(checkpoint_.Find(part.role, part.layer));
      Status status = source.dummy ? LoadDummy(source, part, target)
                                   : LoadStored(source, part, target, advance);
      if (!status.ok()) return status.WithContext("tensor " + source.info.name);
    }
    return pager_.Write(target.offset, packed_);
  }

  uint64_t bytes_read() const { return bytes_read_; }

 private:
  static uint64_t RowsPerPiece(uint64_t row_bytes, uint64_t rows) {
    return std::min(rows, std::max<uint64_t>(1, kPieceBytes / std::max<uint64_t>(row_bytes, 1)));
  }

  Status LoadDummy(const TensorSource& source, const Part& part, const Target& target) {
    const uint64_t per_piece = RowsPerPiece(source.cols() * 4, source.rows());
    for (uint64_t row = 0; row < source.rows(); row += per_piece) {
      const uint64_t n = std::min(per_piece, source.rows() - row);
      floats_.resize(n * source.cols());
      WEIR_TRY(checkpoint_.ReadRowsAsFloat(source, row, n, floats_));
      Place(source, part, target, row, n);
    }
    return OkStatus();
  }

  // Reads in the order of the file; two buffers, so that one is filled while the other is
  // converted.
  Status LoadStored(const TensorSource& source, const Part& part, const Target& target,
                    const std::function<void(uint64_t)>& advance) {
    const auto row_bytes = RowBytes(source.info.dtype, source.cols());
    WEIR_CHECK(row_bytes.has_value(), "the checkpoint validated its shapes");
    const uint64_t per_piece = RowsPerPiece(*row_bytes, source.rows());
    std::array<FileRequest, 2> requests;
    const auto submit = [&](uint64_t row, size_t which) {
      const uint64_t n = std::min(per_piece, source.rows() - row);
      buffers_[which].resize(n * *row_bytes);
      requests[which] = FileRequest{};
      requests[which].fd = files_[source.info.file_index].fd();
      requests[which].offset = source.info.offset + row * *row_bytes;
      requests[which].buffer = buffers_[which];
      return ring_->Submit(&requests[which]);
    };
    WEIR_TRY(submit(0, 0));
    size_t which = 0;
    Status failed;
    for (uint64_t row = 0; row < source.rows(); row += per_piece, which ^= 1) {
      if (failed.ok() && row + per_piece < source.rows())
        failed = submit(row + per_piece, which ^ 1);
      Status waited = ring_->Wait(&requests[which]);
      if (failed.ok()) failed = waited.ok() ? requests[which].status : waited;
      if (!failed.ok()) break;
      const uint64_t n = std::min(per_piece, source.rows() - row);
      floats_.resize(n * source.cols());
      DequantizeRows(source.info.dtype, buffers_[which].data(), n, source.cols(), floats_.data());
      Place(source, part, target, row, n);
      bytes_read_ += n * *row_bytes;
      advance(n * *row_bytes);
    }
    // No request may outlive its buffer.
    Status rest = ring_->Wait(nullptr);
    return failed.ok() ? rest : failed;
  }

  // |floats_| holds stored rows [row, row + n) of |source|: put them where the model wants them.
  void Place(const TensorSource& source, const Part& part, const Target& target, uint64_t row,
             uint64_t n) {
    if (target.cols == 0) {
      PlaceVector(source, part);
      return;
    }
    auto* packed = reinterpret_cast<uint16_t*>(packed_.data());
    const auto rows = static_cast<int64_t>(target.rows);
    const auto cols = static_cast<int64_t>(target.cols);
    if (source.transform == RowTransform::kNone) {
      cpu::PackRows(floats_.data(), static_cast<int64_t>(part.row + row), static_cast<int64_t>(n),
                    rows, cols, packed);
      return;
    }
    const std::vector<uint64_t>& model_row = ModelRows(source);
    for (uint64_t i = 0; i < n; ++i) {
      cpu::PackRows(floats_.data() + i * target.cols,
                    static_cast<int64_t>(part.row + model_row[row + i]), 1, rows, cols, packed);
    }
  }

  void PlaceVector(const TensorSource& source, const Part& part) {
    auto* out = reinterpret_cast<float*>(packed_.data()) + part.row;
    if (source.transform == RowTransform::kNone) {
      std::copy(floats_.begin(), floats_.end(), out);
      return;
    }
    for (uint64_t i = 0; i < floats_.size(); ++i) out[i] = floats_[StoredRow(source, i)];
  }

  // The inverse of StoredRow: which row of the model each stored row is.
  const std::vector<uint64_t>& ModelRows(const TensorSource& source) {
    model_rows_.resize(source.rows());
    for (uint64_t r = 0; r < source.rows(); ++r) model_rows_[StoredRow(source, r)] = r;
    return model_rows_;
  }

  const Checkpoint& checkpoint_;
  WeightPager& pager_;
  std::vector<File> files_;
  std::unique_ptr<FileRing> ring_;
  std::array<std::vector<std::byte>, 2> buffers_;
  std::vector<float> floats_;
  std::vector<std::byte> packed_;
  std::vector<uint64_t> model_rows_;
  uint64_t bytes_read_ = 0;
};

}  // namespace

Result<WeightLoadReport> LoadWeights(const Checkpoint& checkpoint, const CpuWeightMap& map,
                                     WeightPager& pager,
                                     const std::function<void(uint64_t, uint64_t)>& progress) {
  const auto start = std::chrono::steady_clock::now();
  WeightLoadReport report;
  Loader loader(checkpoint, pager);
  WEIR_TRY(loader.Open(&report));
  uint64_t done = 0;
  const uint64_t total = checkpoint.stored_bytes();
  for (const Target& target : TargetsOf(checkpoint.config(), map)) {
    WEIR_TRY(loader.LoadTarget(target, [&](uint64_t bytes) {
      done += bytes;
      if (progress) progress(done, total);
    }));
  }
  WEIR_TRY(pager.Seal());
  report.bytes_read = loader.bytes_read();
  report.bytes_stored = map.layout.region_bytes;
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace weir
