#include "engine/weight_loader.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "engine/model/convert.h"
#include "engine/staged_upload.h"
#include "kernels/cpu/compressed_weights.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/thread_pool.h"

namespace weir {
namespace {

constexpr uint64_t kPieceBytes = 4 * kMiB;

// One tensor on its way: into rows of a matrix, or elements of a vector.
struct Part {
  TensorRole role;
  int layer = 0;
  uint64_t row = 0;  // first row (of a vector: element) of the target it fills
};

// Heads in the target lie |stride| apart, in the tensor |head_dim|. Equal: nothing to do.
struct HeadPadding {
  uint64_t head_dim = 1;
  uint64_t stride = 1;
  uint64_t Padded(uint64_t i) const { return i / head_dim * stride + i % head_dim; }
  bool none() const { return head_dim == stride; }
};

enum class TargetKind : uint8_t { kMatrix, kBias, kNorm };

// One target in the weight region: a matrix of |rows| x |cols|, or a vector of |rows|.
struct Target {
  TargetKind kind = TargetKind::kMatrix;
  uint64_t offset = 0;
  uint64_t rows = 0;
  uint64_t cols = 1;
  std::vector<Part> parts;
  HeadPadding row_heads;
  HeadPadding col_heads;
  bool compressed = false;
};

std::vector<Target> TargetsOf(const ModelConfig& c, const WeightMap& map) {
  std::vector<Target> targets;
  const auto add = [&targets](TargetKind kind, uint64_t offset, uint64_t rows, uint64_t cols,
                              std::vector<Part> parts) -> Target* {
    if (offset == LayerOffsets::kAbsent) return nullptr;
    targets.push_back({kind, offset, rows, cols, std::move(parts), {}, {}, false});
    return &targets.back();
  };
  using enum TargetKind;
  const uint64_t hidden = c.hidden_size;
  const uint64_t q = uint64_t{c.num_heads} * map.head_stride;
  const uint64_t kv = uint64_t{c.num_kv_heads} * map.head_stride;
  const uint64_t ffn = c.intermediate_size;
  const HeadPadding heads{c.head_dim, map.head_stride};
  add(kMatrix, map.embedding, c.vocab_size, hidden, {{TensorRole::kEmbedding}});
  if (!c.tie_word_embeddings) {
    add(kMatrix, map.lm_head, c.vocab_size, hidden, {{TensorRole::kLmHead}});
  }
  add(kNorm, map.final_norm, hidden, 1, {{TensorRole::kFinalNorm}});
  for (int l = 0; l < static_cast<int>(c.num_layers); ++l) {
    const LayerOffsets& w = map.layers[static_cast<size_t>(l)];
    add(kNorm, w.attn_norm, hidden, 1, {{TensorRole::kAttnNorm, l}});
    add(kNorm, w.mlp_norm, hidden, 1, {{TensorRole::kMlpNorm, l}});
    add(kNorm, w.q_norm, c.head_dim, 1, {{TensorRole::kQNorm, l}});
    add(kNorm, w.k_norm, c.head_dim, 1, {{TensorRole::kKNorm, l}});
    if (Target* t = add(kBias, w.qkv_bias, q + 2 * kv, 1,
                        {{TensorRole::kQBias, l, 0},
                         {TensorRole::kKBias, l, q},
                         {TensorRole::kVBias, l, q + kv}})) {
      t->row_heads = heads;
    }
    add(kBias, w.o_bias, hidden, 1, {{TensorRole::kOBias, l}});
    add(kBias, w.gate_up_bias, 2 * ffn, 1,
        {{TensorRole::kGateBias, l, 0}, {TensorRole::kUpBias, l, ffn}});
    add(kBias, w.down_bias, hidden, 1, {{TensorRole::kDownBias, l}});
    add(kMatrix, w.qkv, q + 2 * kv, hidden,
        {{TensorRole::kQ, l, 0}, {TensorRole::kK, l, q}, {TensorRole::kV, l, q + kv}})
        ->row_heads = heads;
    add(kMatrix, w.o, hidden, q, {{TensorRole::kO, l}})->col_heads = heads;
    add(kMatrix, w.gate_up, 2 * ffn, hidden, {{TensorRole::kGate, l, 0}, {TensorRole::kUp, l, ffn}})
        ->compressed = map.compressed;
    add(kMatrix, w.down, hidden, ffn, {{TensorRole::kDown, l}});
  }
  return targets;
}

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const WeightMap& map, WeightPager& pager,
         const MakeMatrixFn& make)
      : checkpoint_(checkpoint), map_(map), pager_(pager), make_(make) {}

  Status Open(Driver* stage_on, WeightLoadReport* report) {
    for (const std::string& path : checkpoint_.files()) {
      files_.push_back(WEIR_TRY(UploadFile::Open(path)));
    }
    ring_ = WEIR_TRY(FileRing::Create({}));
    report->io_mode = ring_->mode();
    report->io_mode_reason = ring_->mode_reason();
    if (stage_on == nullptr || files_.empty()) return OkStatus();
    auto upload = StagedUpload::Create(*stage_on, pager_, {});
    if (upload.ok()) {
      upload_ = std::move(*upload);
      report->staged = true;
    } else {
      report->staging_reason = upload.status().ToString();
    }
    return OkStatus();
  }

  Status LoadTarget(const Target& target, const std::function<void(uint64_t)>& advance) {
    if (make_ && target.kind == TargetKind::kMatrix) return MakeTarget(target);
    if (upload_ && WEIR_TRY(UploadTarget(target, advance))) return OkStatus();
    stored_.assign(AssembledBytes(target), std::byte{0});
    for (const Part& part : target.parts) {
      const TensorSource source = WEIR_TRY(checkpoint_.Find(part.role, part.layer));
      Status status = source.dummy ? LoadDummy(source, part, target)
                                   : LoadStored(source, part, target, advance);
      if (!status.ok()) return status.WithContext("tensor " + source.info.name);
    }
    if (target.compressed) WEIR_TRY(Compress(target));
    const std::vector<std::byte>& bytes = target.compressed ? compressed_ : stored_;
    return upload_ ? upload_->PutBytes(bytes, target.offset) : pager_.Write(target.offset, bytes);
  }

  bool Touches(const Target& target, std::span<const WeightRange> ranges) const {
    const uint64_t end = target.offset + StoredBytes(target);
    return std::any_of(ranges.begin(), ranges.end(), [&](const WeightRange& range) {
      return range.offset < end && target.offset < range.offset + range.bytes;
    });
  }

  // Everything is where it belongs.
  Status Finish() { return upload_ ? upload_->Finish() : OkStatus(); }

  uint64_t bytes_read() const { return bytes_read_; }

 private:
  // In the region.
  uint64_t StoredBytes(const Target& target) const {
    return target.compressed ? map_.GateUpBytes(target.rows, target.cols) : AssembledBytes(target);
  }

  // Before it is compressed.
  uint64_t AssembledBytes(const Target& target) const {
    switch (target.kind) {
      case TargetKind::kMatrix: return map_.MatrixBytes(target.rows, target.cols);
      case TargetKind::kBias: return map_.BiasBytes(target.rows);
      case TargetKind::kNorm: break;
    }
    return target.rows * sizeof(float);
  }

  // A made-up matrix, made where it is used.
  Status MakeTarget(const Target& target) {
    MadeMatrix matrix{.offset = target.offset,
                      .rows = target.rows,
                      .cols = target.cols,
                      .compressed = target.compressed,
                      .parts = {}};
    for (const Part& part : target.parts) {
      const TensorSource source = WEIR_TRY(checkpoint_.Find(part.role, part.layer));
      WEIR_CHECK(source.dummy.has_value(), "a made-up checkpoint is made up throughout");
      matrix.parts.push_back({.first_row = part.row, .tensor = *source.dummy});
    }
    return make_(matrix);
  }

  // |stored_| into |compressed_|, on all cores.
  Status Compress(const Target& target) {
    compressed_.resize(StoredBytes(target));
    const auto rows = static_cast<int64_t>(target.rows);
    const auto cols = static_cast<int64_t>(target.cols);
    std::vector<std::optional<cpu::CompressFailure>> failures(
        static_cast<size_t>(compressed::Tiles(rows)));
    if (!pool_) pool_.emplace(static_cast<int>(std::thread::hardware_concurrency()));
    pool_->ParallelFor(static_cast<int>(failures.size()), [&](int tile) {
      failures[static_cast<size_t>(tile)] =
          cpu::CompressTiles(reinterpret_cast<const uint16_t*>(stored_.data()), rows, cols, tile, 1,
                             reinterpret_cast<uint8_t*>(compressed_.data()));
    });
    for (const auto& failure : failures) {
      if (!failure) continue;
      return Unsupported("compress_weights: gate and up of layer " +
                         std::to_string(target.parts[0].layer) +
                         " cannot be compressed: of the 128 x 64 weights from row " +
                         std::to_string(failure->tile * compressed::kRows) + " and column " +
                         std::to_string(failure->column_block * compressed::kCols) + " on " +
                         std::to_string(failure->patches) +
                         " have other exponents than the eight most frequent pairs; at most " +
                         std::to_string(compressed::kMostPatches) + " may. Start without it");
    }
    return OkStatus();
  }

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

  // Whether the file has the very bytes that the region wants.
  bool IsStoredForm(const TensorSource& source, const Target& target) const {
    return map_.format == WeightFormat::kCuda && target.kind == TargetKind::kMatrix &&
           source.info.dtype == DType::kBF16 && source.transform == RowTransform::kNone &&
           target.row_heads.none() && target.col_heads.none();
  }

  // False when the region wants other bytes than the files have.
  Result<bool> UploadTarget(const Target& target, const std::function<void(uint64_t)>& advance) {
    std::vector<TensorSource> sources;
    uint64_t rows = 0;
    for (const Part& part : target.parts) {
      sources.push_back(WEIR_TRY(checkpoint_.Find(part.role, part.layer)));
      if (sources.back().dummy || !IsStoredForm(sources.back(), target)) return false;
      rows += sources.back().rows();
    }
    if (target.compressed || StoredBytes(target) != rows * target.cols * 2) return false;
    for (size_t i = 0; i < sources.size(); ++i) {
      const TensorSource& source = sources[i];
      const uint64_t bytes = source.rows() * source.cols() * 2;
      Status put = upload_->PutFile(files_[source.info.file_index], source.info.offset, bytes,
                                    target.offset + target.parts[i].row * target.cols * 2);
      if (!put.ok()) return put.WithContext("tensor " + source.info.name);
      bytes_read_ += bytes;
      advance(bytes);
    }
    return true;
  }

  Status ReadInPlace(const TensorSource& source, const Part& part, const Target& target,
                     const std::function<void(uint64_t)>& advance) {
    const uint64_t bytes = source.rows() * source.cols() * 2;
    const std::span<std::byte> to = std::span(stored_).subspan(part.row * target.cols * 2, bytes);
    std::vector<FileRequest> requests(CeilDiv(bytes, kPieceBytes));
    Status failed;
    for (size_t i = 0; i < requests.size() && failed.ok(); ++i) {
      const uint64_t at = i * kPieceBytes;
      requests[i].fd = files_[source.info.file_index].buffered();
      requests[i].offset = source.info.offset + at;
      requests[i].buffer = to.subspan(at, std::min(kPieceBytes, bytes - at));
      failed = ring_->Submit(&requests[i]);
    }
    Status waited = ring_->Wait(nullptr);
    if (failed.ok()) failed = std::move(waited);
    for (const FileRequest& r : requests) {
      if (failed.ok()) failed = r.status;
    }
    bytes_read_ += bytes;
    advance(bytes);
    return failed;
  }

  // Reads in the order of the file; two buffers, so that one is filled while the other is
  // converted.
  Status LoadStored(const TensorSource& source, const Part& part, const Target& target,
                    const std::function<void(uint64_t)>& advance) {
    const auto row_bytes = RowBytes(source.info.dtype, source.cols());
    WEIR_CHECK(row_bytes.has_value(), "the checkpoint validated its shapes");
    if (IsStoredForm(source, target)) return ReadInPlace(source, part, target, advance);
    const uint64_t per_piece = RowsPerPiece(*row_bytes, source.rows());
    std::array<FileRequest, 2> requests;
    const auto submit = [&](uint64_t row, size_t which) {
      const uint64_t n = std::min(per_piece, source.rows() - row);
      buffers_[which].resize(n * *row_bytes);
      requests[which] = FileRequest{};
      requests[which].fd = files_[source.info.file_index].buffered();
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

  // |floats_| holds stored rows [row, row + n) of |source|: put them where the back-end wants them.
  void Place(const TensorSource& source, const Part& part, const Target& target, uint64_t row,
             uint64_t n) {
    if (target.kind != TargetKind::kMatrix) {
      PlaceVector(source, part, target);
      return;
    }
    auto* stored = reinterpret_cast<uint16_t*>(stored_.data());
    const bool as_stored = source.transform == RowTransform::kNone;
    if (map_.format == WeightFormat::kCpu && as_stored) {
      cpu::PackRows(floats_.data(), static_cast<int64_t>(part.row + row), static_cast<int64_t>(n),
                    static_cast<int64_t>(target.rows), static_cast<int64_t>(target.cols), stored);
      return;
    }
    const std::vector<uint64_t>* model_row = as_stored ? nullptr : &ModelRows(source);
    for (uint64_t i = 0; i < n; ++i) {
      const uint64_t of_model = as_stored ? row + i : (*model_row)[row + i];
      const float* values = floats_.data() + i * source.cols();
      const uint64_t to = part.row + target.row_heads.Padded(of_model);
      if (map_.format == WeightFormat::kCpu) {
        cpu::PackRows(values, static_cast<int64_t>(to), 1, static_cast<int64_t>(target.rows),
                      static_cast<int64_t>(target.cols), stored);
      } else {
        uint16_t* out = stored + to * target.cols;
        for (uint64_t c = 0; c < source.cols(); ++c) {
          out[target.col_heads.Padded(c)] = FloatToBf16Rne(values[c]);
        }
      }
    }
  }

  void PlaceVector(const TensorSource& source, const Part& part, const Target& target) {
    const bool as_floats = target.kind == TargetKind::kNorm || map_.format == WeightFormat::kCpu;
    for (uint64_t i = 0; i < floats_.size(); ++i) {
      const uint64_t from = source.transform == RowTransform::kNone ? i : StoredRow(source, i);
      const uint64_t to = part.row + target.row_heads.Padded(i);
      if (as_floats) {
        reinterpret_cast<float*>(stored_.data())[to] = floats_[from];
      } else {
        reinterpret_cast<uint16_t*>(stored_.data())[to] = FloatToBf16Rne(floats_[from]);
      }
    }
  }

  // The inverse of StoredRow: which row of the model each stored row is.
  const std::vector<uint64_t>& ModelRows(const TensorSource& source) {
    model_rows_.resize(source.rows());
    for (uint64_t r = 0; r < source.rows(); ++r) model_rows_[StoredRow(source, r)] = r;
    return model_rows_;
  }

  const Checkpoint& checkpoint_;
  const WeightMap& map_;
  WeightPager& pager_;
  const MakeMatrixFn& make_;
  std::vector<UploadFile> files_;
  std::unique_ptr<FileRing> ring_;
  std::unique_ptr<StagedUpload> upload_;  // after files_: its reads end first
  std::array<std::vector<std::byte>, 2> buffers_;
  std::vector<float> floats_;
  std::vector<std::byte> stored_;  // the target under way
  std::vector<std::byte> compressed_;
  std::optional<cpu::ThreadPool> pool_;  // made when something is compressed
  std::vector<uint64_t> model_rows_;
  uint64_t bytes_read_ = 0;
};

}  // namespace

Result<WeightLoadReport> LoadWeights(const Checkpoint& checkpoint, const WeightMap& map,
                                     WeightPager& pager,
                                     const std::function<void(uint64_t, uint64_t)>& progress,
                                     const MakeMatrixFn& make, Driver* stage_on) {
  const auto start = std::chrono::steady_clock::now();
  WeightLoadReport report;
  const MakeMatrixFn none;
  const bool made_up = checkpoint.format() == CheckpointFormat::kDummy;
  Loader loader(checkpoint, map, pager, made_up ? make : none);
  WEIR_TRY(loader.Open(stage_on, &report));
  uint64_t done = 0;
  const uint64_t total = checkpoint.stored_bytes();
  for (const Target& target : TargetsOf(checkpoint.config(), map)) {
    WEIR_TRY(loader.LoadTarget(target, [&](uint64_t bytes) {
      done += bytes;
      if (progress) progress(done, total);
    }));
  }
  WEIR_TRY(loader.Finish());
  WEIR_TRY(pager.Seal());
  report.bytes_read = loader.bytes_read();
  report.bytes_stored = map.layout.region_bytes;
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

Status ReloadWeights(const Checkpoint& checkpoint, const WeightMap& map, WeightPager& pager,
                     std::span<const WeightRange> ranges, const MakeMatrixFn& make,
                     Driver* stage_on) {
  WeightLoadReport unused;
  const MakeMatrixFn none;
  const bool made_up = checkpoint.format() == CheckpointFormat::kDummy;
  Loader loader(checkpoint, map, pager, made_up ? make : none);
  WEIR_TRY(loader.Open(stage_on, &unused));
  for (const Target& target : TargetsOf(checkpoint.config(), map)) {
    if (loader.Touches(target, ranges)) WEIR_TRY(loader.LoadTarget(target, [](uint64_t) {}));
  }
  return loader.Finish();
}

}  // namespace weir
