// A warp's part of decode_attention.h's kernel: it copies pages into its part of a ring in shared
// memory, some pages ahead of its products and across segments, and adds them up.
//
// The products take tokens (of K) and dimensions (of V) as rows and the query heads of the kv head,
// padded to eight, as columns, so that a group of four or eight wastes little:
//   scores[16 tokens, 8 heads] = K[16, dim] · Qᵀ      out[dim, 8 heads] += Vᵀ[dim, 16] · P[16, 8]
#pragma once

#include "kernels/cuda/decode_launch.cuh"
#include "kernels/cuda/warp_mma.cuh"

namespace weir::cuda::decode {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Represents the pages of a share that one warp computes, and asks for them in that order.
template <int kDim>
class Loader {
  using S = Shape<kDim>;

 public:
  __device__ Loader(const DecodeLaunch& p, const Shared<kDim>& s, const Share& share,
                    const Walk& walk)
      : p_(p),
        s_(s),
        walk_(walk),
        worker_(static_cast<int32_t>(share.rank * S::kWarps + threadIdx.x / 32)),
        workers_(static_cast<int32_t>(share.ranks * S::kWarps)),
        page_(walk.FirstPage(worker_, workers_)) {
    Look();
    Settle();
  }

  // Whether the next page is a sequence's last, which this step writes.
  __device__ bool AtLastPage() const {
    return at_ < now_.count && now_.page + at_ * workers_ == now_.pages - 1;
  }

  // Asks for the next page, if there is one, and commits.
  __device__ void Load(uint8_t* stage) {
    if (at_ < now_.count) {
      const int32_t block = __shfl_sync(~0u, now_.block, at_);
      const bool last = AtLastPage();
      Copy(stage, p_.k + block * p_.block_stride + now_.head * p_.head_stride,
           last ? s_.last_page_len[now_.sequence] : kBlockTokens);
      ++at_;
      Settle();
    }
    warp::CommitCopies();
  }

 private:
  // Up to 32 pages of a segment, whose blocks are known: lane i has that of page |page| +
  // i * workers. They are looked up a run ahead.
  struct Run {
    int32_t sequence = 0, head = 0, pages = 0, page = 0, count = 0;
    int32_t block = 0;
  };

  // Finds the run behind |next_|.
  __device__ void Look() {
    next_.count = 0;
    for (; !walk_.done(); walk_.Next(), page_ = walk_.FirstPage(worker_, workers_)) {
      const Segment& segment = walk_.segment();
      if (page_ < segment.end) {
        const int32_t count = min(32, (segment.end - page_ + workers_ - 1) / workers_);
        const auto lane = static_cast<int32_t>(threadIdx.x % 32);
        const int32_t first = s_.page_indptr[segment.sequence] + page_;
        next_ = {segment.sequence,
                 segment.head,
                 segment.pages,
                 page_,
                 count,
                 lane < count ? p_.blocks[first + lane * workers_] : 0};
        page_ += count * workers_;
        return;
      }
    }
  }

  __device__ void Settle() {
    if (at_ < now_.count) return;
    now_ = next_;
    at_ = 0;
    Look();
  }

  // The tile's row r has its 16-byte piece c at c ^ r % 8, so that eight rows' pieces of one column
  // lie in different banks.
  __device__ void Copy(uint8_t* stage, const Bf16* k, int32_t tokens) {
    constexpr int kPieces = kDim / 8;    // of a row
    constexpr int kRows = 32 / kPieces;  // that the warp copies at once
    const auto lane = static_cast<int32_t>(threadIdx.x % 32);
    const int32_t piece = lane % kPieces;
#pragma unroll
    for (int slab = 0; slab < 2; ++slab) {
#pragma unroll
      for (int row0 = 0; row0 < kBlockTokens; row0 += kRows) {
        const int32_t row = row0 + lane / kPieces;
        const Bf16* from = k + slab * p_.v_offset + row * p_.token_stride + piece * 8;
        warp::CopyAsync(stage + slab * S::kTileBytes + (row * kPieces + (piece ^ row % 8)) * 16,
                        from, row < tokens);
      }
    }
  }

  const DecodeLaunch& p_;
  const Shared<kDim>& s_;
  Walk walk_;
  const int32_t worker_, workers_;
  int32_t page_;  // of walk_'s segment, behind next_
  Run now_, next_;
  int32_t at_ = 0;  // in now_
};

// What a warp has of a segment. The lane has of its heads 2 (lane % 4) and one more; of the values
// what warp::Product says.
template <int kDim>
struct WarpPiece {
  float out[kDim / 16][4] = {};
  float max[2] = {kNothing, kNothing};  // the same in all lanes of the heads
  float sum[2] = {};                    // over the lane's own tokens
};

// Query heads as columns: of each 16 dimensions a product's b. Columns beyond the group are zero.
template <int kDim>
struct Queries {
  uint32_t b[kDim / 16][2];

  __device__ __forceinline__ void Load(const DecodeLaunch& p, const Segment& segment) {
    const auto lane = static_cast<int32_t>(threadIdx.x % 32);
    const int32_t head = lane / 4;
    const Bf16* q = p.q + segment.sequence * p.q_stride +
                    int64_t{segment.head * p.group + head} * kDim + 2 * (lane % 4);
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      b[i][0] = b[i][1] = 0;
      if (head >= p.group) continue;
      b[i][0] = *reinterpret_cast<const uint32_t*>(q + 16 * i);
      b[i][1] = *reinterpret_cast<const uint32_t*>(q + 16 * i + 8);
    }
  }
};

// Adds the first |tokens| tokens of a page.
template <int kDim>
__device__ __forceinline__ void AddPage(const uint8_t* stage, int32_t tokens, float scale,
                                        const Queries<kDim>& queries, WarpPiece<kDim>* piece) {
  constexpr int kPieces = kDim / 8;
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  float scores[2][4] = {};  // two sums, so that one product need not wait for the one before
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    const int32_t row = lane % 16;
    uint32_t a[4];
    warp::LoadMatrices(stage + (row * kPieces + ((2 * i + lane / 16) ^ row % 8)) * 16, a);
    warp::Product(scores[i % 2], a, queries.b[i][0], queries.b[i][1]);
  }
  // Score j is of token lane / 4 + 8 (j / 2) and head 2 (lane % 4) + j % 2.
  float s[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const bool seen = lane / 4 + 8 * (j / 2) < tokens;
    s[j] = seen ? (scores[0][j] + scores[1][j]) * scale : kNothing;
  }
  float old[2], shrink[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float most = fmaxf(s[h], s[h + 2]);
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
    }
    old[h] = piece->max[h];
    piece->max[h] = fmaxf(old[h], most);
    shrink[h] = warp::Exp2(old[h] - piece->max[h]);
    s[h] = warp::Exp2(s[h] - piece->max[h]);
    s[h + 2] = warp::Exp2(s[h + 2] - piece->max[h]);
    piece->sum[h] = piece->sum[h] * shrink[h] + (s[h] + s[h + 2]);
  }
  if (__any_sync(~0u, old[0] != piece->max[0] || old[1] != piece->max[1])) {
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) piece->out[i][j] *= shrink[j % 2];
    }
  }
  const uint32_t b0 = warp::Transposed(warp::PackPair(s[0], s[1]));
  const uint32_t b1 = warp::Transposed(warp::PackPair(s[2], s[3]));
  const uint8_t* values = stage + Shape<kDim>::kTileBytes;
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    const int32_t row = lane % 8 + lane / 16 * 8;
    uint32_t a[4];
    warp::LoadTransposed(values + (row * kPieces + ((2 * i + lane / 8 % 2) ^ row % 8)) * 16, a);
    warp::Product(piece->out[i], a, b0, b1);
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace weir::cuda::decode
