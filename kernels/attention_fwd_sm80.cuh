/* Attention forward by mma.sync, for every card from sm_80 on.

Math    P = softmax(Q K' / sqrt(D)) causal within a segment; O = P V; lse = log sum exp(Q K' / sqrt(D))
Shapes  attention.cuh                           Limits  D 64 or 128
Numeric scores and sums f32, P rounded to bf16 for the second product; keys in order, always
Bound   tensor cores
Form    A block an item: a tile of 128 queries of one head, 8 warps of 16 queries, dearest first (FlashAttention-2 with the
        order of a persistent kernel). K and V come by tiles of 64 keys, the next behind the products of this one, two
        stages of each: 96 KB. Keys run upwards, so that every query sees one of the first tile and no maximum is -infinity.
Oracle  model/cpu/attention.go */
#pragma once

#include "attention_sm80.cuh"

template <int D> struct attention_fwd_sm80_layout {
  static constexpr int keys = 64, stages = 2;
  static constexpr int q_bytes = attention_rows * D * 2, tile_bytes = keys * D * 2;
  static constexpr int q_at = 0, k_at = q_bytes, v_at = k_at + stages * tile_bytes, bytes = v_at + stages * tile_bytes;
  static_assert(bytes <= 99 * 1024 - 16, "a block of a GeForce card has 99 KB of shared memory");
};

template <int D>
__global__ void __launch_bounds__(attention_sm80_threads, 1) attention_fwd_sm80_kernel(const __grid_constant__ attention_problem p) {
  take_turn();
  typedef attention_fwd_sm80_layout<D> L;
  extern __shared__ __align__(1024) uint8_t memory[];
  __shared__ uint32_t packed;
  const uint32_t base = shared_address(memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, wanted = blockIdx.x / p.H, head = blockIdx.x % p.H;
  if (warp == 0) {
    const int tiles = attention_walk_tiles(p.seg_start, p.S, lane, wanted, [=](int i, attention_tile t) {
      if (i == wanted) packed = t.packed();
    });
    if (lane == 0 && tiles <= wanted) packed = ~0u;
  }
  __syncthreads();
  if (packed == ~0u) return;
  const attention_tile t = attention_unpack(packed);
  const int begin = __ldg(p.seg_start + t.segment), end = __ldg(p.seg_start + t.segment + 1);
  const int first = t.level * attention_rows, row = begin + first;  // in the segment, in the batch
  const int key_tiles = (min(first + attention_rows, end - begin) + L::keys - 1) / L::keys;
  const int64_t pitch = (p.H + 2 * p.Hk) * D;
  const bf16 *q = p.qkv + head * D, *k = p.qkv + (p.H + head / (p.H / p.Hk)) * D, *v = k + p.Hk * D;

  attention_copy_rows<D, attention_rows>(base + L::q_at, q, pitch, row, end);
  attention_copy_rows<D, L::keys>(base + L::k_at, k, pitch, begin, end);
  attention_copy_rows<D, L::keys>(base + L::v_at, v, pitch, begin, end);
  copy_commit();

  const float scale = rsqrtf(D), scale_log2 = scale * attention_log2e;
  const int own = first + warp * 16;  // this warp's first query, in the segment
  attention_softmax softmax;
  float s[L::keys / 2], o[D / 2];
#pragma unroll
  for (int i = 0; i < D / 2; i++) o[i] = 0;
  for (int n = 0; n < key_tiles; n++) {
    const int key = n * L::keys;
    copy_wait<0>();
    __syncthreads();  // tile n is there for all, and all are done with tile n - 1, whose stage is filled next
    if (n + 1 < key_tiles) {
      const int next = (n + 1) % L::stages * L::tile_bytes;
      attention_copy_rows<D, L::keys>(base + L::k_at + next, k, pitch, begin + key + L::keys, end);
      attention_copy_rows<D, L::keys>(base + L::v_at + next, v, pitch, begin + key + L::keys, end);
      copy_commit();
    }
    if (key > own + 15) continue;  // behind all of this warp's queries
    const int stage = n % L::stages * L::tile_bytes;
    attention_scores_sm80<D, L::keys>(s, base + L::q_at, warp * 16, base + L::k_at + stage, lane);
    if (key + L::keys - 1 > own) attention_mask(s, own + lane / 4, key, lane);
    const float2 shrink = softmax.update(s, scale_log2);
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
      o[4 * j] *= shrink.x, o[4 * j + 1] *= shrink.x;
      o[4 * j + 2] *= shrink.y, o[4 * j + 3] *= shrink.y;
    }
    attention_values_sm80<D, L::keys>(o, s, base + L::v_at + stage, lane);
  }

  const float sum0 = quad_sum(softmax.sum0), sum1 = quad_sum(softmax.sum1);
  const int token = begin + own + lane / 4;
  if (p.lse && lane % 4 == 0) {
    float *lse = p.lse + (int64_t)head * p.T;
    if (token < end) lse[token] = softmax.max0 * scale + __logf(sum0);
    if (token + 8 < end) lse[token + 8] = softmax.max1 * scale + __logf(sum1);
  }
  const float inverse0 = 1 / sum0, inverse1 = 1 / sum1;
#pragma unroll
  for (int j = 0; j < D / 8; j++) {
    o[4 * j] *= inverse0, o[4 * j + 1] *= inverse0;
    o[4 * j + 2] *= inverse1, o[4 * j + 3] *= inverse1;
  }
  attention_store_rows_sm80<D>(o, memory + L::q_at, warp * 16, p.o + head * D, (int64_t)p.H * D, begin + own, end, lane);
}

template <int D> static qk_status attention_fwd_sm80_launch(const attention_problem &p, cudaStream_t stream) {
  typedef attention_fwd_sm80_layout<D> L;
  const unsigned tiles = p.T / attention_rows + p.S;  // at most
  return qk_launch(p.name, attention_fwd_sm80_kernel<D>, tiles * p.H, 1, attention_sm80_threads, L::bytes, stream, p);
}

qk_status attention_fwd_sm80(const attention_problem &p, cudaStream_t stream) {
  return p.D == 64 ? attention_fwd_sm80_launch<64>(p, stream) : attention_fwd_sm80_launch<128>(p, stream);
}
