/* The small products of a LoRA (model/ops: "LoRA in one picture") for kernels that hold a tile of 16 tokens, and the
launchers of those products alone.

down   u = s * dropout(x) * A'        also du = s * dy * B, where B' takes the place of A
back   dx += mask * (du * A)

In down a warp walks over x in chunks of 32 columns: lane 4i + q holds, of tokens i and i + 8, the eight columns from 8q,
which are eight k of the product and one block of dropout lanes. In back a chunk is 64 columns: the lane holds the eight from 8q
and the eight from 32 + 8q, two blocks of dropout lanes, so that the four lanes of a row touch whole 32-byte sectors. */
#pragma once

#include "dropout.cuh"
#include "layout.cuh"
#include "mma.cuh"
#include "status.h"

constexpr int lora_tokens = 16;  // of a tile

/* Launchers: what a fused op that does not yet make u, du itself calls after or before it. */

/* u (T,Rt) = s * dropout(x) * A', x (T,in). */
qk_status lora_down(const char *name, bf16 *u, const bf16 *x, const qk_lora *l, const qk_batch *b, cudaStream_t stream);
/* du (T,Rt) = s * dy * B, dy (T,out). */
qk_status lora_up(const char *name, bf16 *du, const bf16 *dy, const qk_lora *l, const qk_batch *b, cudaStream_t stream);
/* Whether the limits of api.h hold. l may be null. */
qk_status lora_check(const char *name, const qk_lora *l);

/* Decoding: few tokens take other kernels, which sum in another order. Not in training, where a row must give the same bits
alone as beside others: there l, which may be null, has its pack_bt. */
static inline bool lora_few(const qk_lora *l, const qk_batch *b) { return !(l && l->pack_bt) && b->T <= 8; }

/* Tiles of 8 ranks that kernels are compiled for, whose sums stay in registers: those of the largest module, 1, 2 or 8. */
static inline int lora_rank_tiles(const qk_lora *l) {
  int rank = 0;
  for (int i = 0; l && i < l->n; i++) rank = l->m[i].rank > rank ? l->m[i].rank : rank;
  return rank <= 8 ? 1 : rank <= 16 ? 2 : QK_MAX_RANK / 8;
}

/* Tile rows are launched one a block. */
static inline unsigned lora_tiles(int T) { return (T + lora_tokens - 1) / lora_tokens; }

/* ---- down */

/* What a lane multiplies with of the rows of a (rank,K): the eight columns from `column` (the lane's own, K and beyond: zeros) of
row 8n + i. To be asked for a chunk ahead: it comes from L2, and the product waits for it. */
template <int Tiles>
QK_DEVICE void down_load(uint4 (&w)[Tiles], const bf16 *a, int rank, int K, int column, int lane) {
#pragma unroll
  for (int n = 0; n < Tiles; n++) {
    const int r = 8 * n + lane / 4;
    w[n] = load16(a + (int64_t)r * K + column, r < rank && column < K);
  }
}
/* Adds the products of one chunk: v of token i and of token i + 8. */
template <int Tiles>
QK_DEVICE void down_multiply(float (&acc)[Tiles][4], const uint4 (&w)[Tiles], int rank, const uint4 &v0, const uint4 &v1) {
#pragma unroll
  for (int n = 0; n < Tiles; n++) {
    if (8 * n >= rank) break;
    mma_k16(acc[n], v0.x, v1.x, v0.y, v1.y, w[n].x, w[n].y);
    mma_k16(acc[n], v0.z, v1.z, v0.w, v1.w, w[n].z, w[n].w);
  }
}
/* Both, a tile of ranks after the other, for kernels of many ranks that have no registers to ask ahead. */
template <int Tiles>
QK_DEVICE void down_multiply(float (&acc)[Tiles][4], const bf16 *a, int rank, int K, int column, const uint4 &v0,
                             const uint4 &v1, int lane) {
#pragma unroll
  for (int n = 0; n < Tiles; n++) {
    if (8 * n >= rank) break;
    const int r = 8 * n + lane / 4;
    const uint4 w = load16(a + (int64_t)r * K + column, r < rank && column < K);
    mma_k16(acc[n], v0.x, v1.x, v0.y, v1.y, w.x, w.y);
    mma_k16(acc[n], v0.z, v1.z, v0.w, v1.w, w.z, w.w);
  }
}

/* Sums the tiles of the block's warps in order of the warps and writes a module's columns, from col on, of u (T,ld); those
beyond its rank are zeros, as down_load and down_multiply read zeros for them. shared: Warps * 256 floats. For all threads of the block, between whose uses of shared it synchronises. */
template <int Warps, int Tiles>
QK_DEVICE void down_store(bf16 *u, int ld, int col, int rank, const float (&acc)[Tiles][4], float scale, float *shared,
                          int first, int T) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, i = lane / 4, q = lane % 4;
#pragma unroll
  for (int n0 = 0; n0 < Tiles; n0 += 2) {
    if (8 * n0 >= rank) break;
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float *tile = shared + (warp * 2 + h) * 128;
      *(float2 *)(tile + i * 8 + 2 * q) = make_float2(acc[n0 + h][0], acc[n0 + h][1]);
      *(float2 *)(tile + (i + 8) * 8 + 2 * q) = make_float2(acc[n0 + h][2], acc[n0 + h][3]);
    }
    __syncthreads();
    for (int o = threadIdx.x; o < 256; o += Warps * 32) {
      const int t = first + o % 128 / 8, r = 8 * (n0 + o / 128) + o % 8;
      if (t >= T || r >= min(module_columns(rank), 8 * Tiles)) continue;
      float sum = 0;
#pragma unroll
      for (int w = 0; w < Warps; w++) sum += shared[w * 256 + o];
      u[(int64_t)t * ld + col + r] = __float2bfloat16(scale * sum);
    }
  }
}

/* ---- back */

/* du of a tile's tokens in shared memory, rows `stride` apart. The strides let the lanes of a fragment meet 32 banks. */
constexpr int back_stride = QK_MAX_MODULES * QK_MAX_RANK + 8, back_stride_one = QK_MAX_RANK + 8;  // of one module

/* Fills it, by so many threads; the caller synchronises. */
QK_DEVICE void back_load(bf16 *tile, int stride, const bf16 *du, const qk_lora &l, int first, int T, int thread, int threads) {
  const bf16 *from = du + (int64_t)first * l.rank;
  for (int e = thread; e < lora_tokens * l.rank / 8; e += threads) {
    const int t = e % lora_tokens, c = e / lora_tokens * 8;
    *(uint4 *)(tile + t * stride + c) = load16(from + t * l.rank + c, first + t < T);
  }
}

/* Adds mask * (du * A) of all modules at the 64 columns from base. sum[j][2h + g]: token i + 8h, column base + 32g + 8q + j;
both tokens' parts of the dropout counter are given. */
QK_DEVICE void back_multiply(float (&sum)[8][4], const bf16 *tile, int stride, const qk_lora &l, int base, uint2 key,
                             const dropout_token (&tokens)[2], int lane) {
  const int i = lane / 4, q = lane % 4;
  for (int m = 0; m < l.n; m++) {
    const qk_module &mod = l.m[m];
    const int c = base + 32 * (i % 2) + 8 * (i / 2);  // n of the product is the group of eight columns
    const bf16 *a = (const bf16 *)l.pack_a + (int64_t)mod.col * l.in + c;
    const bool inside = c < l.in;
    float acc[8][4] = {};
    for (int r0 = 0; r0 < mod.rank; r0 += 8) {
      const int r = r0 + 2 * q;
      const uint4 w0 = load16(a + (int64_t)r * l.in, inside && r < mod.rank);
      const uint4 w1 = load16(a + (int64_t)(r + 1) * l.in, inside && r + 1 < mod.rank);
      const uint32_t a0 = *(const uint32_t *)(tile + i * stride + mod.col + r), a1 = *(const uint32_t *)(tile + (i + 8) * stride + mod.col + r);
#pragma unroll
      for (int j = 0; j < 8; j++) mma_k8(acc[j], a0, a1, pair_of(w0, w1, j));
    }
    if (mod.threshold == 0) {
#pragma unroll
      for (int j = 0; j < 8; j++)
#pragma unroll
        for (int k = 0; k < 4; k++) sum[j][k] += acc[j][k];
      continue;
    }
    const float scale = dropout_scale(mod.threshold);
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const uint4 keep = dropout_mask(key, base / 8 + 4 * (k % 2) + q, tokens[k / 2], mod.stream, mod.threshold);
#pragma unroll
      for (int j = 0; j < 8; j++)
        if (word(keep, j / 2) >> (j % 2 * 16) & 1) sum[j][k] = fmaf(scale, acc[j][k], sum[j][k]);
    }
  }
}
