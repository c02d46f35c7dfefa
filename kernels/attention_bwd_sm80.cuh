/* Attention backward by mma.sync, for every card from sm_80 on: two kernels of products, deterministic by construction.

Math    P = exp2(S * log2(e)/sqrt(D) - lse2), S = Q K';  dP = dO V';  dS = P o (dP - delta)
        dQ = dS K / sqrt(D);  dK = dS' Q / sqrt(D);  dV = P' dO;  then the rotation of q and k taken back
Shapes  attention.cuh; dqkv (T,(H+2Hk)*D)       Limits  D 64 or 128
Numeric f32 sums in a fixed order, P and dS rounded to bf16 as operands
Bound   tensor cores
Form    8 warps a block, one persistent block a multiprocessor; the items are those of attention_bwd_plan.cuh. dQ: 16 of 128
        queries a warp, K and V by tiles of 32 keys (64 at D 64), two stages. dK, dV: 16 of 128 keys a warp, Q and dO by
        blocks of 32 queries, two stages, scores transposed so that P' and dS' are A fragments: 96 KB either way.
Oracle  model/cpu/attention.go */
#pragma once

#include "attention_bwd_plan.cuh"
#include "attention_sm80.cuh"

/* Two whole tiles, and two stages of two small ones with their statistics. */
template <int D> struct attention_bwd_sm80_layout {
  static constexpr int rows = 4096 / D, stages = 2;  // rows of a small tile
  static constexpr int whole_bytes = attention_rows * D * 2, small_bytes = rows * D * 2, statistics_bytes = rows * 4;
  static constexpr int whole_at = 0, ring_at = 2 * whole_bytes, stage_bytes = 2 * small_bytes;
  static constexpr int statistics_at = ring_at + stages * stage_bytes;
  static constexpr int bytes = statistics_at + stages * 2 * statistics_bytes;
  static_assert(bytes <= 99 * 1024, "a block of a GeForce card has 99 KB of shared memory");
};

template <int D>
__global__ void __launch_bounds__(attention_sm80_threads, 1)
    attention_dq_sm80_kernel(const __grid_constant__ attention_problem p, const __grid_constant__ attention_work work) {
  take_turn();
  typedef attention_bwd_sm80_layout<D> L;
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t base = shared_address(memory), q_tile = base, do_tile = base + L::whole_bytes, ring = base + L::ring_at;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t pitch = (p.H + 2 * p.Hk) * D;
  const float scale = rsqrtf(D), scale_log2 = scale * attention_log2e;
  const int items = work.counts->tiles * p.H;
  float s[L::rows / 2], dp[L::rows / 2], dq[D / 2];

  for (int turn = 0; attention_item(turn) < items; turn++) {
    const int item = attention_item(turn), head = item % p.H;
    const attention_tile t = attention_unpack(work.tiles[item / p.H]);
    const int begin = __ldg(p.seg_start + t.segment), end = __ldg(p.seg_start + t.segment + 1);
    const int first = t.level * attention_rows, own = first + warp * 16;  // in the segment
    const int key_tiles = (min(first + attention_rows, end - begin) + L::rows - 1) / L::rows;
    const bf16 *k = p.qkv + (p.H + head / (p.H / p.Hk)) * D, *v = k + p.Hk * D;
    __syncthreads();  // all are done with the item before
    attention_copy_rows<D, attention_rows>(q_tile, p.qkv + head * D, pitch, begin + first, end);
    attention_copy_rows<D, attention_rows>(do_tile, p.d_o + head * D, (int64_t)p.H * D, begin + first, end);
    attention_copy_rows<D, L::rows>(ring, k, pitch, begin, end);
    attention_copy_rows<D, L::rows>(ring + L::small_bytes, v, pitch, begin, end);
    copy_commit();
    const int64_t padded = (int64_t)head * work.padded_rows + attention_place(p.seg_start, t) * attention_rows + warp * 16 + lane / 4;
    const float lse0 = work.lse2[padded], lse1 = work.lse2[padded + 8];
    const float delta0 = work.delta[padded], delta1 = work.delta[padded + 8];
#pragma unroll
    for (int i = 0; i < D / 2; i++) dq[i] = 0;

    for (int n = 0; n < key_tiles; n++) {
      const int key = n * L::rows;
      copy_wait<0>();
      __syncthreads();  // tile n is there for all, and all are done with tile n - 1, whose stage is filled next
      if (n + 1 < key_tiles) {
        const uint32_t next = ring + (n + 1) % L::stages * L::stage_bytes;
        attention_copy_rows<D, L::rows>(next, k, pitch, begin + key + L::rows, end);
        attention_copy_rows<D, L::rows>(next + L::small_bytes, v, pitch, begin + key + L::rows, end);
        copy_commit();
      }
      if (key > own + 15) continue;  // behind all of this warp's queries
      const uint32_t keys = ring + n % L::stages * L::stage_bytes;
      attention_scores_sm80<D, L::rows>(s, q_tile, warp * 16, keys, lane);
      attention_scores_sm80<D, L::rows>(dp, do_tile, warp * 16, keys + L::small_bytes, lane);
      if (key + L::rows - 1 > own) attention_mask(s, own + lane / 4, key, lane);
#pragma unroll
      for (int j = 0; j < L::rows / 8; j++) {
        s[4 * j] = exp2_fast(fmaf(s[4 * j], scale_log2, -lse0)) * (dp[4 * j] - delta0);
        s[4 * j + 1] = exp2_fast(fmaf(s[4 * j + 1], scale_log2, -lse0)) * (dp[4 * j + 1] - delta0);
        s[4 * j + 2] = exp2_fast(fmaf(s[4 * j + 2], scale_log2, -lse1)) * (dp[4 * j + 2] - delta1);
        s[4 * j + 3] = exp2_fast(fmaf(s[4 * j + 3], scale_log2, -lse1)) * (dp[4 * j + 3] - delta1);
      }
      attention_values_sm80<D, L::rows>(dq, s, keys, lane);
    }
#pragma unroll
    for (int i = 0; i < D / 2; i++) dq[i] *= scale;
    attention_rope_back(dq, p.rope, begin + own + lane / 4, end, lane);
    attention_store_rows_sm80<D>(dq, memory, warp * 16, p.dqkv + head * D, pitch, begin + own, end, lane);
  }
}

/* Starts the copies of query block n of one head: Q, dO and their statistics. */
template <int D>
QK_DEVICE void attention_dkv_sm80_load(const attention_problem &p, const attention_work &work, uint32_t base, int stage,
                                       int head, int64_t place, int row, int end, int n) {
  typedef attention_bwd_sm80_layout<D> L;
  const uint32_t queries = base + L::ring_at + stage * L::stage_bytes;
  const uint32_t statistics = base + L::statistics_at + stage * 2 * L::statistics_bytes;
  attention_copy_rows<D, L::rows>(queries, p.qkv + head * D, (p.H + 2 * p.Hk) * D, row + n * L::rows, end);
  attention_copy_rows<D, L::rows>(queries + L::small_bytes, p.d_o + head * D, p.H * D, row + n * L::rows, end);
  const int64_t padded = (int64_t)head * work.padded_rows + place + n * L::rows;
  if (threadIdx.x < L::rows / 4) copy_async(statistics + threadIdx.x * 16, work.lse2 + padded + threadIdx.x * 4, 16);
  else if (threadIdx.x < L::rows / 2)
    copy_async(statistics + threadIdx.x * 16, work.delta + padded + (threadIdx.x - L::rows / 4) * 4, 16);
  copy_commit();
}

template <int D>
__global__ void __launch_bounds__(attention_sm80_threads, 1)
    attention_dkv_sm80_kernel(const __grid_constant__ attention_problem p, const __grid_constant__ attention_work work) {
  take_turn();
  typedef attention_bwd_sm80_layout<D> L;
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t base = shared_address(memory), k_tile = base, v_tile = base + L::whole_bytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t pitch = (p.H + 2 * p.Hk) * D;
  const float scale_log2 = rsqrtf(D) * attention_log2e;
  const int items = work.counts->dkv_items, local = warp * 16 + lane / 4;
  float s[L::rows / 2], dp[L::rows / 2], dk[D / 2], dv[D / 2];

  for (int turn = 0; attention_item(turn) < items; turn++) {
    const attention_dkv_item item = work.items[attention_item(turn)];
    const attention_tile t = attention_unpack(item.tile);
    const int row = __ldg(p.seg_start + t.segment) + t.level * attention_rows, end = __ldg(p.seg_start + t.segment + 1);
    const int64_t place = (int64_t)attention_place(p.seg_start, t) * attention_rows;
    const int blocks = (end - row + L::rows - 1) / L::rows;
    const bf16 *k = p.qkv + (p.H + item.head / (p.H / p.Hk)) * D, *v = k + p.Hk * D;
    __syncthreads();  // all are done with the item before
    attention_copy_rows<D, attention_rows>(k_tile, k, pitch, row, end);
    attention_copy_rows<D, attention_rows>(v_tile, v, pitch, row, end);
    attention_dkv_sm80_load<D>(p, work, base, 0, item.head, place, row, end, 0);
#pragma unroll
    for (int i = 0; i < D / 2; i++) dk[i] = dv[i] = 0;

    // Block `query` of a head; the stage after it gets the next block, or the first of the next head.
    for (int head = item.head, query = 0, stage = 0; head < item.head + item.heads; stage ^= 1) {
      const int block = query, next = query + 1 < blocks ? query + 1 : 0, next_head = head + (next == 0);
      copy_wait<0>();
      __syncthreads();  // this block is there for all, and all are done with the one before, whose stage is filled next
      if (next_head < item.head + item.heads) attention_dkv_sm80_load<D>(p, work, base, stage ^ 1, next_head, place, row, end, next);
      query = next, head = next_head;
      const int first = block * L::rows;  // the block's first query, from the tile's first key on
      if (first + L::rows - 1 < warp * 16) continue;  // before all of this warp's keys
      const uint32_t queries = base + L::ring_at + stage * L::stage_bytes;
      const float *statistics = (const float *)(memory + L::statistics_at + stage * 2 * L::statistics_bytes) + lane % 4 * 2;
      attention_scores_sm80<D, L::rows>(s, k_tile, warp * 16, queries, lane);
      if (first < warp * 16 + 15) attention_mask_transposed(s, local, first, lane);
#pragma unroll
      for (int j = 0; j < L::rows / 8; j++) {
        const float2 lse = *(const float2 *)(statistics + 8 * j);
        s[4 * j] = exp2_fast(fmaf(s[4 * j], scale_log2, -lse.x));
        s[4 * j + 1] = exp2_fast(fmaf(s[4 * j + 1], scale_log2, -lse.y));
        s[4 * j + 2] = exp2_fast(fmaf(s[4 * j + 2], scale_log2, -lse.x));
        s[4 * j + 3] = exp2_fast(fmaf(s[4 * j + 3], scale_log2, -lse.y));
      }
      attention_values_sm80<D, L::rows>(dv, s, queries + L::small_bytes, lane);
      attention_scores_sm80<D, L::rows>(dp, v_tile, warp * 16, queries + L::small_bytes, lane);
#pragma unroll
      for (int j = 0; j < L::rows / 8; j++) {
        const float2 delta = *(const float2 *)(statistics + L::rows + 8 * j);
        s[4 * j] *= dp[4 * j] - delta.x, s[4 * j + 1] *= dp[4 * j + 1] - delta.y;
        s[4 * j + 2] *= dp[4 * j + 2] - delta.x, s[4 * j + 3] *= dp[4 * j + 3] - delta.y;
      }
      attention_values_sm80<D, L::rows>(dk, s, queries, lane);
    }
    attention_dkv_store<D>(dk, dv, p, work, item, row + local, end, local, lane);
  }
}

template <int D>
static qk_status attention_bwd_sm80_launch(const attention_problem &p, const attention_work &work, const qk_device &device, cudaStream_t stream) {
  typedef attention_bwd_sm80_layout<D> L;
  const auto dkv = attention_dkv_sm80_kernel<D>, dq = attention_dq_sm80_kernel<D>;
  for (const auto kernel : {dkv, dq}) {
    const int items = work.max_tiles * p.H, blocks = items < device.multiprocessors ? items : device.multiprocessors;  // at most
    if (const qk_status status = qk_launch(p.name, kernel, blocks, 1, attention_sm80_threads, L::bytes, stream, p, work)) return status;
  }
  return QK_OK;
}

qk_status attention_bwd_sm80(const attention_problem &p, const attention_work &work, const qk_device &device, cudaStream_t stream) {
  return p.D == 64 ? attention_bwd_sm80_launch<64>(p, work, device, stream) : attention_bwd_sm80_launch<128>(p, work, device, stream);
}
