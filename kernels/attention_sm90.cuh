/* What the Hopper attention kernels share: scores of a tile, and rows of a result on their way out.
Tiles of Q, K, V, dO lie in shared memory as TMA puts them with a swizzle of 128 bytes: chunks of 64 columns behind each
other, each (rows, 128 bytes). The same K tile serves both operand orders. */
#pragma once

#include "attention.cuh"
#include "sm90.cuh"
#include "wgmma.cuh"

/* S (64,N) = A (64,D) * B (N,D)': issued and committed. ARows, BRows: rows of the tiles they lie in. */
template <int D, int N, int ARows, int BRows>
QK_DEVICE void attention_issue_scores(float (&s)[N / 2], uint64_t a, uint64_t b) {
#pragma unroll
  for (int j = 0; j < D / 16; j++)
    wgmma<N>::template ss<0>(s, a + j / 4 * (ARows * 128 >> 4) + j % 4 * 2, b + j / 4 * (BRows * 128 >> 4) + j % 4 * 2, j > 0);
  wgmma_commit();
}

/* Rounds a warpgroup's 64 rows of one head and writes those before end: by TMA through staging memory where all are,
else row by row. map has boxes of 64 rows; data and pitch name the same tensor. */
template <int D>
QK_DEVICE void attention_store_rows(const float (&d)[D / 2], const CUtensorMap &map, bf16 *data, int pitch, int head,
                                    int row, int end, uint32_t staging, int barrier, int warp, int lane) {
  if (row + 64 <= end) {
    const bool leader = warp == 0 && lane == 0;
    if (leader) tma_store_wait_read<0>();
    threads_sync(barrier, 128);
    const int r = warp * 16 + lane % 16;
#pragma unroll
    for (int j = 0; j < D / 16; j++) {
      const uint32_t unit = (2 * (j % 4) + lane / 16) ^ (r & 7);
      const float *v = d + 8 * j;
      store_matrices(staging + j / 4 * 8192 + r * 128 + unit * 16, pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]),
                     pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
    }
    fence_async();
    threads_sync(barrier, 128);
    if (leader) {
      tma_store(&map, staging, 0, row, head * (D / 64));
      tma_store_commit();
    }
  } else {
    row += warp * 16 + lane / 4;
    bf16 *place = data + (int64_t)row * pitch + head * D + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
      if (row < end) *(uint32_t *)(place + 8 * j) = pack_bf16(d[4 * j], d[4 * j + 1]);
      if (row + 8 < end) *(uint32_t *)(place + (int64_t)8 * pitch + 8 * j) = pack_bf16(d[4 * j + 2], d[4 * j + 3]);
    }
  }
}
