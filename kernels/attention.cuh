/* Causal attention within segments, as attention.cu hands it to a variant; and what its kernels share: the tiles of a
packed row, and the softmax over accumulator fragments.

A tile is 128 rows of one segment, counted from its start: tile (segment, level) begins level * 128 rows in, and attends
to level + 1 tiles of keys. Its padded place, seg_start/128 + segment + level, is unique and runs on with the level, so
that arrays by padded row need no table: there are at most T/128 + S places. */
#pragma once

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
  void *work;        // backward: attention_bwd_bytes
  int64_t work_bytes;
};

/* The variants: launch on the stream, or say why not. */
qk_status attention_fwd_sm90(const attention_problem &p, const qk_device &device, cudaStream_t stream);
qk_status attention_bwd_sm90(const attention_problem &p, const qk_device &device, cudaStream_t stream);
/* Scratch of a backward of at most so many tokens and segments. */
int64_t attention_bwd_bytes(int T, int S, int H, int Hk, int D, int multiprocessors);

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

/* One warp lists all tiles, those with the most keys first (29 % of the forward's time at T = 2048), and returns their
number; every warp that does makes the same list. */
QK_DEVICE int attention_list_tiles(uint32_t *list, const int32_t *seg_start, int S, int lane) {
  int levels = 0, count = 0;
  for (int s = lane; s < S; s += 32) levels = max(levels, attention_levels(seg_start, s));
  levels = __reduce_max_sync(~0u, levels);
  for (int level = levels - 1; level >= 0; level--)
    for (int first = 0; first < S; first += 32) {
      const int s = first + lane;
      const bool has = s < S && attention_levels(seg_start, s) > level;
      const uint32_t those = __ballot_sync(~0u, has);
      if (has) list[count + __popc(those & ((1u << lane) - 1))] = attention_tile{s, level}.packed();
      count += __popc(those);
    }
  return count;
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
