#include "engine/cuda_inputs.h"

#include <algorithm>
#include <map>

#include "engine/prefetch.h"
#include "kernels/cuda/exchange_header.h"
#include "kernels/cuda/gates.h"

namespace weir {
namespace {

void PrefetchOf(const StepSequence& s) {
  Prefetch(s.blocks.data(), s.blocks.size_bytes());
  if (s.sample.params != nullptr) Prefetch(s.sample.params, sizeof(SamplingParams));
}

}  // namespace

Result<PinnedBuffer> PinnedBuffer::Create(uint64_t bytes) {
  PinnedBuffer buffer;
  void* data = nullptr;
  if (const cudaError_t error = cudaMallocHost(&data, std::max<uint64_t>(bytes, 1));
      error != cudaSuccess) {
    return NoMemory("pinning " + std::to_string(bytes) +
                    " bytes of host memory: " + cudaGetErrorString(error));
  }
  buffer.data_ = static_cast<std::byte*>(data);
  return buffer;
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) (void)cudaFreeHost(data_);
}

Result<CudaInputs> CudaInputs::Create(const CudaLayout& layout) {
  CudaInputs inputs;
  inputs.in_ = &layout.in;
  inputs.block_ = WEIR_TRY(PinnedBuffer::Create(layout.in.bytes));
  inputs.edits_ = WEIR_TRY(PinnedBuffer::Create(layout.max_edits * sizeof(cuda::LogitEdit)));
  return inputs;
}

void CudaInputs::AddTables(const CudaInputLayout::Tables& tables, uint32_t index,
                           const StepSequence& s, std::vector<int32_t>* contexts, uint64_t* pages,
                           uint64_t first_page) {
  auto* q_indptr = block_.At<int32_t>(tables.q_indptr);
  auto* page_indptr = block_.At<int32_t>(tables.page_indptr);
  if (index == 0) q_indptr[0] = page_indptr[0] = 0;
  std::copy(s.blocks.begin(), s.blocks.end(), block_.At<int32_t>(in_->pages) + *pages);
  *pages += s.blocks.size();
  q_indptr[index + 1] = q_indptr[index] + static_cast<int32_t>(s.rows);
  page_indptr[index + 1] = static_cast<int32_t>(*pages - first_page);
  block_.At<int32_t>(tables.last_page_len)[index] =
      static_cast<int32_t>((s.context - 1) % cuda::kBlockTokens + 1);
  contexts->push_back(static_cast<int32_t>(s.context));
}

// What Sampler::Process does to a row, as edits.
Status CudaInputs::AddSample(const StepSequence& s, uint32_t row, CudaStepShape* shape,
                             const CudaLayout& layout) {
  cuda::SampleRow& out = block_.At<cuda::SampleRow>(in_->samples)[row];
  out = {};
  out.active = s.sample.params != nullptr ? 1 : 0;
  if (out.active == 0) return OkStatus();
  const SamplingParams& p = *s.sample.params;
  out.temperature = p.temperature;
  out.top_p = p.top_p;
  out.min_p = p.min_p;
  out.top_k = p.top_k;
  out.logprobs = p.logprobs;
  if (!p.greedy()) out.uniform = SamplingUniform(p.seed, s.sample.key, s.sample.position);
  shape->wants_top_logprobs |= p.logprobs > 0;
  out.edits_begin = out.edits_end = static_cast<int32_t>(shape->edits);
  const bool short_of_minimum = s.sample.output_tokens < p.min_tokens;
  if (p.logit_bias.empty() && !short_of_minimum && !p.has_penalties()) return OkStatus();

  std::map<int32_t, cuda::LogitEdit> edits;
  const auto edit = [&edits](int32_t token) -> cuda::LogitEdit& {
    cuda::LogitEdit& e = edits[token];
    e.token = token;
    return e;
  };
  for (const auto& [token, bias] : p.logit_bias) edit(token).bias = bias;
  if (short_of_minimum) {
    for (const int32_t token : s.sample.eos_tokens) edit(token).masked = 1;
    for (const int32_t token : p.stop_token_ids) edit(token).masked = 1;
  }
  if (p.has_penalties()) {
    for (const TokenHistory::Entry& entry : s.sample.history->entries()) {
      cuda::LogitEdit& e = edit(entry.token);
      e.repetition = static_cast<float>(p.repetition_penalty);
      if (entry.output_count == 0) continue;
      e.frequency =
          static_cast<float>(p.frequency_penalty) * static_cast<float>(entry.output_count);
      e.presence = static_cast<float>(p.presence_penalty);
    }
  }
  if (shape->edits + edits.size() > layout.max_edits) {
    return NoMemory("the penalties and biases of this batch touch more than " +
                    std::to_string(layout.max_edits) + " logits");
  }
  for (const auto& [token, e] : edits) edits_.At<cuda::LogitEdit>(0)[shape->edits++] = e;
  out.edits_end = static_cast<int32_t>(shape->edits);
  return OkStatus();
}

Result<CudaStepShape> CudaInputs::Fill(uint64_t step, const StepBatch& batch,
                                       const DeviceGates& gates, const CudaLayout& layout) {
  CudaStepShape shape;
  decode_contexts_.clear();
  prefill_contexts_.clear();
  *block_.At<cuda::GateHeader>(in_->gate_header) = {.pass_base = gates.pass_base,
                                                    .timeout_ns = gates.timeout_ns};
  std::copy(gates.chunk_of_gate.begin(), gates.chunk_of_gate.end(),
            block_.At<int32_t>(in_->chunk_of_gate));
  shape.armed = std::any_of(gates.chunk_of_gate.begin(), gates.chunk_of_gate.end(),
                            [](int32_t chunk) { return chunk >= 0; });

  auto* tokens = block_.At<int32_t>(in_->tokens);
  auto* positions = block_.At<int32_t>(in_->positions);
  auto* slots = block_.At<int32_t>(in_->slots);
  auto* logit_rows = block_.At<int32_t>(in_->logit_rows);
  uint32_t decodes = 0;
  bool all_sample = true;
  for (const StepSequence& s : batch.sequences) {
    decodes += s.rows == 1 ? 1 : 0;
    all_sample = all_sample && s.wants_logits;
  }
  const auto n = static_cast<uint32_t>(batch.sequences.size());
  if (decodes == n && all_sample) {
    shape.bucket = *std::lower_bound(layout.decode_buckets.begin(), layout.decode_buckets.end(), n);
  }

  uint32_t decode_row = 0;
  uint32_t prefill_row = decodes;
  uint64_t pages = 0;
  // Two passes, so that the pages of each kind lie together.
  for (uint32_t i = 0; i < n; ++i) {
    if (i + kPrefetchAhead < n) PrefetchOf(batch.sequences[i + kPrefetchAhead]);
    const StepSequence& s = batch.sequences[i];
    const bool decode = s.rows == 1;
    uint32_t& row = decode ? decode_row : prefill_row;
    for (uint32_t r = s.first_row; r < s.first_row + s.rows; ++r, ++row) {
      const auto position = static_cast<uint32_t>(batch.positions[r]);
      tokens[row] = batch.tokens[r];
      positions[row] = batch.positions[r];
      slots[row] =
          static_cast<int32_t>(s.blocks[position / cuda::kBlockTokens] * cuda::kBlockTokens +
                               position % cuda::kBlockTokens);
    }
    if (decode) {
      AddTables(in_->decode, shape.decode_sequences++, s, &decode_contexts_, &pages, 0);
    }
    if (s.wants_logits) {
      logit_rows[shape.logit_rows] = static_cast<int32_t>(row - 1);
      WEIR_TRY(AddSample(s, shape.logit_rows, &shape, layout));
      ++shape.logit_rows;
    }
  }
  shape.decode_pages = pages;
  for (const StepSequence& s : batch.sequences) {
    if (s.rows == 1) continue;
    AddTables(in_->prefill, shape.prefill_sequences++, s, &prefill_contexts_, &pages,
              shape.decode_pages);
    shape.prefill_rows += s.rows;
  }
  // Padding: rows that store nothing, sequences without pages.
  for (uint32_t i = n; i < shape.bucket; ++i) {
    tokens[i] = positions[i] = 0;
    slots[i] = -1;
    logit_rows[i] = static_cast<int32_t>(i);
    block_.At<cuda::SampleRow>(in_->samples)[i] = {.active = 0};
    block_.At<int32_t>(in_->decode.q_indptr)[i + 1] = static_cast<int32_t>(i + 1);
    block_.At<int32_t>(in_->decode.page_indptr)[i + 1] =
        block_.At<int32_t>(in_->decode.page_indptr)[i];
    block_.At<int32_t>(in_->decode.last_page_len)[i] = 0;
    decode_contexts_.push_back(0);
  }
  AddressTo(step, shape, pages, layout.out);
  return shape;
}

void CudaInputs::AddressTo(uint64_t step, const CudaStepShape& shape, uint64_t pages,
                           const CudaOutputLayout& out) {
  cuda::ExchangeHeader header{.step = step};
  header.result_bytes = static_cast<uint32_t>(shape.wants_top_logprobs ? out.bytes
                                              : shape.armed            ? out.top_tokens
                                                                       : out.gate_records);
  const auto add = [&](uint64_t begin, uint64_t end) {
    header.range[header.ranges++] = {static_cast<uint32_t>(begin),
                                     static_cast<uint32_t>(AlignUp(end, 16))};
  };
  add(in_->gate_header, in_->tokens);
  for (const uint64_t rows : {in_->tokens, in_->positions, in_->slots}) {
    add(rows, rows + shape.rows() * 4);
  }
  add(in_->logit_rows, in_->pages + pages * 4);
  *block_.At<cuda::ExchangeHeader>(in_->exchange) = header;
}

cuda::AttentionBatch CudaInputs::decode(const CudaStepShape& shape,
                                        const CudaLayout& layout) const {
  return {.q_indptr_host = block_.At<int32_t>(layout.in.decode.q_indptr),
          .page_indptr_host = block_.At<int32_t>(layout.in.decode.page_indptr),
          .context_host = decode_contexts_.data(),
          .sequences = static_cast<int32_t>(shape.decode_rows())};
}

cuda::AttentionBatch CudaInputs::prefill(const CudaStepShape& shape,
                                         const CudaLayout& layout) const {
  return {.q_indptr_host = block_.At<int32_t>(layout.in.prefill.q_indptr),
          .page_indptr_host = block_.At<int32_t>(layout.in.prefill.page_indptr),
          .context_host = prefill_contexts_.data(),
          .sequences = static_cast<int32_t>(shape.prefill_sequences)};
}

}  // namespace weir
