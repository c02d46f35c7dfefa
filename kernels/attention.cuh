/* Causal attention within segments, as attention.cu hands it to a variant; and what its kernels share: the tiles of a
packed row, and the softmax over accumulator fragments.

A tile is 128 rows of one segment, counted from its start: tile (segment, level) begins level * 128 rows in, and attends
to level + 1 tiles of keys. Its padded place, seg_start/128 + segment + level, is unique and runs on with the level, so
that arrays by padded row need no table: there are at most T/128 + S places. */
#pragma once

#include <limits.h>

#include "common.cuh"
#include "status.h"

struct attention_problem {
  const char *name;  // of the launcher, for errors
  bf16 *o;           // (T,H*D)
  float *lse;        // (H,T) log-sum-exp of the scaled scores, or null
  const bf16 *qkv;   // (T,(H+2Hk)*D)
  bf16 *dqkv;        // backward: the gradient before rope
  const bf16 *d_o;   // backward: (T,H*D)
  rope_table rope;   // backward; cos null: no rope
  const int32_t *seg_start;  // (S+1)
  int T, S, H, Hk, D;
};
struct attention_work;

/* The variants: launch on the stream, or say why not. A backward stands between attention_bwd_plan and attention_bwd_sum. */
qk_status attention_fwd_sm80(const attention_problem &p, cudaStream_t stream);
qk_status attention_fwd_sm90(const attention_problem &p, const qk_device &device, cudaStream_t stream);
qk_status attention_bwd_sm80(const attention_problem &p, const attention_work &work, const qk_device &device, cudaStream_t stream);
qk_status attention_bwd_sm90(const attention_problem &p, const attention_work &work, const qk_device &device, cudaStream_t stream);

constexpr int attention_rows = 128;

struct attention_tile {
  int segment, level;
  __device__ uint32_t packed() const { return (uint32_t)segment << 16 | level; }
};
QK_DEVICE attention_tile attention_unpack(uint32_t packed) { return {(int)(packed >> 16), (int)(packed & 0xffff)}; }
/* Limits of the packing. */
constexpr int attention_max_segments = 1 << 16, attention_max_tokens = attention_rows << 16;

QK_DEVICE int attention_levels(const int32_t *seg_start, int segment) {
  return (__ldg(seg_start + segment + 1) - __ldg(seg_start + segment) + attention_rows - 1) / attention_rows;
}
QK_DEVICE int attention_place(const int32_t *seg_start, attention_tile t) {
  return __ldg(seg_start + t.segment) / attention_rows + t.segment + t.level;
}

/* One warp goes through all tiles, those with the most keys first (29 % of the forward's time at T = 2048): visit(number of
the tile, tile) by the lane that found it, until one is numbered `limit`. Returns how many there were. */
template <class Visit>
QK_DEVICE int attention_walk_tiles(const int32_t *seg_start, int S, int lane, int limit, Visit visit) {
  int levels = 0, count = 0;
  for (int s = lane; s < S; s += 32) levels = max(levels, attention_levels(seg_start, s));
  levels = __reduce_max_sync(~0u, levels);
  for (int level = levels - 1; level >= 0; level--)
    for (int first = 0; first < S && count <= limit; first += 32) {
      const int s = first + lane;
      const bool has = s < S && attention_levels(seg_start, s) > level;
      const uint32_t those = __ballot_sync(~0u, has);
      if (has) visit(count + __popc(those & ((1u << lane) - 1)), attention_tile{s, level});
      count += __popc(those);
    }
  return count;
}
/* Lists them all; every warp that does makes the same list. */
QK_DEVICE int attention_list_tiles(uint32_t *list, const int32_t *seg_start, int S, int lane) {
  return attention_walk_tiles(seg_start, S, lane, INT_MAX, [list](int i, attention_tile t) { list[i] = t.packed(); });
}

/* Item number `turn` of this block when blocks take the sorted items to and fro: 0 1 2 2 1 0 0 1 2. Within 3 % of handing
the next item to whichever block is free, and known to every thread without a word. */
QK_DEVICE int attention_item(int turn) {
  return turn * gridDim.x + (turn % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
}

QK_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
constexpr float attention_log2e = 1.4426950408889634f;

/* ---- Accumulator fragments, of mma.sync and of wgmma alike: a thread holds columns 8j + 2*(lane%4) + {0,1} of two rows 8
apart, d[4j], d[4j+1] of the upper and d[4j+2], d[4j+3] of the lower. The four lanes of a quad hold a row. */

QK_DEVICE float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
QK_DEVICE float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

/* Running maximum, sum of exponentials, of the two rows a thread holds. */
struct attention_softmax {
  float max0 = -INFINITY, max1 = -INFINITY, sum0 = 0, sum1 = 0;

  /* Scores become exponentials against the new maximum; returns by how much what was summed before must shrink. The first
  keys a row is given must hold one that it sees. */
  template <int N> QK_DEVICE_MEMBER float2 update(float (&s)[N], float scale_log2) {
    float m0 = max0, m1 = max1;
#pragma unroll
    for (int j = 0; j < N / 4; j++) {
      m0 = fmaxf(m0, fmaxf(s[4 * j], s[4 * j + 1]));
      m1 = fmaxf(m1, fmaxf(s[4 * j + 2], s[4 * j + 3]));
    }
    m0 = quad_max(m0), m1 = quad_max(m1);
    const float2 shrink = {exp2_fast((max0 - m0) * scale_log2), exp2_fast((max1 - m1) * scale_log2)};
    max0 = m0, max1 = m1;
    const float b0 = m0 * scale_log2, b1 = m1 * scale_log2;
    float t0 = 0, t1 = 0;
#pragma unroll
    for (int j = 0; j < N / 4; j++) {
      s[4 * j] = exp2_fast(fmaf(s[4 * j], scale_log2, -b0));
      s[4 * j + 1] = exp2_fast(fmaf(s[4 * j + 1], scale_log2, -b0));
      s[4 * j + 2] = exp2_fast(fmaf(s[4 * j + 2], scale_log2, -b1));
      s[4 * j + 3] = exp2_fast(fmaf(s[4 * j + 3], scale_log2, -b1));
      t0 += s[4 * j] + s[4 * j + 1], t1 += s[4 * j + 2] + s[4 * j + 3];
    }
    sum0 = sum0 * shrink.x + t0, sum1 = sum1 * shrink.y + t1;
    return shrink;
  }
};

/* Scores of queries row and row + 8 with keys that begin at `first`, both counted from the same token: a query sees keys
up to itself. */
template <int N> QK_DEVICE void attention_mask(float (&s)[N], int row, int first, int lane) {
#pragma unroll
  for (int j = 0; j < N / 4; j++) {
    const int key = first + j * 8 + lane % 4 * 2;
    if (key > row) s[4 * j] = -INFINITY;
    if (key + 1 > row) s[4 * j + 1] = -INFINITY;
    if (key > row + 8) s[4 * j + 2] = -INFINITY;
    if (key + 1 > row + 8) s[4 * j + 3] = -INFINITY;
  }
}
/* The same of transposed scores: keys key and key + 8, queries from `first` on. */
template <int N> QK_DEVICE void attention_mask_transposed(float (&s)[N], int key, int first, int lane) {
#pragma unroll
  for (int j = 0; j < N / 4; j++) {
    const int query = first + j * 8 + lane % 4 * 2;
    if (query < key) s[4 * j] = -INFINITY;
    if (query + 1 < key) s[4 * j + 1] = -INFINITY;
    if (query < key + 8) s[4 * j + 2] = -INFINITY;
    if (query + 1 < key + 8) s[4 * j + 3] = -INFINITY;
  }
}

/* Turns rows row and row + 8 of a head's gradient back by their tokens' angles; nothing where there is no rope. */
template <int N> QK_DEVICE void attention_rope_back(float (&d)[N], const rope_table &r, int row, int end, int lane) {
  if (!r.cos) return;
  const int upper = row < end ? __ldg(r.pos + row) : 0, lower = row + 8 < end ? __ldg(r.pos + row + 8) : 0;
#pragma unroll
  for (int j = 0; j < N / 4; j++) {
    rope_rotate_back(r, upper, 8 * j + lane % 4 * 2, d[4 * j], d[4 * j + 1]);
    rope_rotate_back(r, lower, 8 * j + lane % 4 * 2, d[4 * j + 2], d[4 * j + 3]);
  }
}
