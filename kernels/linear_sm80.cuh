/* Matrix product by mma.sync, for every card from sm_80 on, with LoRA, bias, residual and rope inside.

Math    C = A * B + bias + U * L' + residual; rope on the first columns. GEMM letters: forward M = T, N = out, K = in,
        B = W' (W lies (N,K), K innermost); backward dx = dy * W: M = T, N = in, K = out, B = W (N innermost).
Shapes  linear.cuh                              Limits  K, N % 8 == 0; any R
Numeric f32 sums in k order, the LoRA columns last; one rounding at the end: bitwise repeatable
Bound   tensor cores; 183 to 281 TFLOP/s on an H100, 0.25 to 0.40 of cuBLAS with wgmma there
Form    One tile of 128 x 128 a block of 4 warps, 64 x 64 each. k blocks of 32 come by cp.async through a ring of 3
        stages; ldmatrix reads them, the 16-byte units of a row exclusive-ored so that its 8 rows meet 8 different
        banks. LoRA is a K tail: after K, the ring carries blocks of U and L, zero beyond R. The residual tile is
        fetched into the ring's memory behind the last product, and C leaves through it in rows of 256 bytes.
Oracle  model/cpu/linear.go */
#pragma once

#include "linear.cuh"
#include "mma.cuh"
#include "tiles.h"

struct linear_sm80_layout {
  static constexpr int rows = linear_sm80_rows, columns = linear_sm80_columns, k = linear_sm80_k,
                       stages = linear_sm80_stages, threads = 128;
  static constexpr int a_bytes = rows * k * 2, b_bytes = columns * k * 2, stage_bytes = a_bytes + b_bytes;
  static constexpr int bytes = stages * stage_bytes;
  static_assert(bytes >= rows * columns * 2, "C leaves through the ring");
  static_assert(bytes <= 99 * 1024, "a block of a GeForce card has 99 KB of shared memory");
};

/* Places of the 16-byte unit `unit` of a row in a tile. Rows of 64 bytes (K innermost): two of them fill the 32 banks, so
every second row turns the units on. Rows of 256 bytes: each row does. */
QK_DEVICE uint32_t narrow_place(int row, int unit) { return row * 64 + ((unit ^ (row >> 1 & 3)) << 4); }
QK_DEVICE uint32_t wide_place(int row, int unit) { return row * 256 + ((unit ^ (row & 7)) << 4); }

/* Starts the copy of a (128, 32) tile, K innermost, at (row, k) of a matrix (rows, columns); zero outside it. */
QK_DEVICE void linear_sm80_load_narrow(uint32_t dst, const bf16 *src, int row, int k, int rows, int columns) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int unit = threadIdx.x + i * linear_sm80_layout::threads, r = unit / 4, u = unit % 4;
    const bool inside = row + r < rows && k + 8 * u < columns;
    copy_async(dst + narrow_place(r, u), inside ? src + (int64_t)(row + r) * columns + k + 8 * u : src, inside ? 16 : 0);
  }
}

/* Starts the copy of a (32, 128) tile, N innermost, at (k, column) of a matrix (rows, columns); zero outside it. */
QK_DEVICE void linear_sm80_load_wide(uint32_t dst, const bf16 *src, int k, int column, int rows, int columns) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int unit = threadIdx.x + i * linear_sm80_layout::threads, r = unit / 16, u = unit % 16;
    const bool inside = k + r < rows && column + 8 * u < columns;
    copy_async(dst + wide_place(r, u), inside ? src + (int64_t)(k + r) * columns + column + 8 * u : src, inside ? 16 : 0);
  }
}

/* Starts the copies of k block i; blocks past K are those of U and L. */
template <bool BNInner>
QK_DEVICE void linear_sm80_load(const linear_problem &p, uint8_t *stage, int i, int k_blocks, int row, int column) {
  typedef linear_sm80_layout L;
  const uint32_t a = shared_address(stage), b = a + L::a_bytes;
  if (i < k_blocks) {
    linear_sm80_load_narrow(a, p.a, row, i * L::k, p.M, p.K);
    if (BNInner)
      linear_sm80_load_wide(b, p.b, i * L::k, column, p.K, p.N);
    else
      linear_sm80_load_narrow(b, p.b, column, i * L::k, p.N, p.K);
  } else {
    linear_sm80_load_narrow(a, p.u, row, (i - k_blocks) * L::k, p.M, p.R);
    linear_sm80_load_narrow(b, p.lora_b, column, (i - k_blocks) * L::k, p.N, p.R);
  }
}

/* A warp's 64 x 64 part of one k block. BWide: B lies N innermost. */
template <bool BWide>
QK_DEVICE void linear_sm80_multiply(float (&d)[4][8][4], uint32_t stage, int warp_row, int warp_column, int lane) {
  const uint32_t b_tile = stage + linear_sm80_layout::a_bytes;
#pragma unroll
  for (int step = 0; step < linear_sm80_layout::k / 16; step++) {
    uint32_t a[4][4], b[4][4];  // b: columns 16*j, k 0-7 and 8-15 of the first 8 columns, then of the second 8
#pragma unroll
    for (int i = 0; i < 4; i++)
      load_matrices(a[i], stage + narrow_place(warp_row + 16 * i + (lane & 15), 2 * step + (lane >> 4)));
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (BWide)
        load_matrices_transposed(b[j], b_tile + wide_place(16 * step + (lane & 15), (warp_column + 16 * j) / 8 + (lane >> 4)));
      else
        load_matrices(b[j], b_tile + narrow_place(warp_column + 16 * j + (lane & 7) + (lane >> 4) * 8,
                                                  2 * step + (lane >> 3 & 1)));
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 8; j++) mma_k16(d[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
  }
}

/* Adds bias, residual and rope to the accumulators and leaves C, rounded, in the tile's memory. */
QK_DEVICE void linear_sm80_finish(const linear_problem &p, uint8_t *tile, float (&d)[4][8][4], int row, int column,
                                  int warp_row, int warp_column, int lane) {
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = warp_row + 16 * i + 8 * half + lane / 4;
      const int position = p.rope_columns && row + r < p.M ? __ldg(p.rope.pos + row + r) : 0;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const int c = warp_column + 8 * j + 2 * (lane & 3);
        float x = d[i][j][2 * half], y = d[i][j][2 * half + 1];
        uint32_t *place = (uint32_t *)(tile + wide_place(r, c / 8) + c % 8 * 2);
        if (p.bias && column + c < p.N) x += __ldg(p.bias + column + c), y += __ldg(p.bias + column + c + 1);
        if (p.residual) {
          const float2 v = unpack_bf16(*place);
          x += v.x, y += v.y;
        }
        if (column + c < p.rope_columns) rope_rotate(p.rope, position, column + c, x, y);
        *place = pack_bf16(x, y);
      }
    }
}

template <bool BNInner>
__global__ void __launch_bounds__(linear_sm80_layout::threads, 2)
    linear_sm80_kernel(const __grid_constant__ linear_problem p, int k_blocks, int blocks) {
  take_turn();
  typedef linear_sm80_layout L;
  extern __shared__ __align__(1024) uint8_t memory[];
  const int row = blockIdx.x * L::rows, column = blockIdx.y * L::columns;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp % 2 * 64, warp_column = warp / 2 * 64;
  float d[4][8][4] = {};

#pragma unroll
  for (int i = 0; i < L::stages - 1; i++) {
    if (i < blocks) linear_sm80_load<BNInner>(p, memory + i * L::stage_bytes, i, k_blocks, row, column);
    copy_commit();
  }
  for (int i = 0; i < blocks; i++) {
    copy_wait<L::stages - 2>();
    __syncthreads();  // block i is there for all, and all are done with block i - 1, whose stage is filled next
    const int next = i + L::stages - 1;
    if (next < blocks)
      linear_sm80_load<BNInner>(p, memory + next % L::stages * L::stage_bytes, next, k_blocks, row, column);
    copy_commit();
    const uint32_t stage = shared_address(memory) + i % L::stages * L::stage_bytes;
    if (BNInner)
      linear_sm80_multiply<true>(d, stage, warp_row, warp_column, lane);
    else
      linear_sm80_multiply<false>(d, stage, warp_row, warp_column, lane);
  }
  copy_wait<0>();
  __syncthreads();

  // Row r of C is 256 bytes at wide_place(r, ...); 16 threads move one.
  if (p.residual) {
    for (int r = threadIdx.x / 16; r < L::rows; r += L::threads / 16) {
      const int c = column + threadIdx.x % 16 * 8;
      const bool inside = row + r < p.M && c < p.N;
      copy_async(shared_address(memory) + wide_place(r, threadIdx.x % 16),
                 inside ? p.residual + (int64_t)(row + r) * p.N + c : p.residual, inside ? 16 : 0);
    }
    copy_commit();
    copy_wait<0>();
    __syncthreads();
  }
  linear_sm80_finish(p, memory, d, row, column, warp_row, warp_column, lane);
  __syncthreads();
  for (int r = threadIdx.x / 16; r < L::rows; r += L::threads / 16) {
    const int c = column + threadIdx.x % 16 * 8;
    if (row + r < p.M && c < p.N)
      *(uint4 *)(p.c + (int64_t)(row + r) * p.N + c) = *(const uint4 *)(memory + wide_place(r, threadIdx.x % 16));
  }
}

qk_status linear_sm80(const linear_problem &p, cudaStream_t stream) {
  typedef linear_sm80_layout L;
  const auto kernel = p.b_n_inner ? linear_sm80_kernel<true> : linear_sm80_kernel<false>;
  const int k_blocks = ceil_div(p.K, L::k), blocks = k_blocks + ceil_div(p.R, L::k);
  const dim3 grid(ceil_div(p.M, L::rows), ceil_div(p.N, L::columns));  // rows fastest: neighbours share columns of B
  return qk_launch(p.name, kernel, grid, 1, L::threads, L::bytes, stream, p, k_blocks, blocks);
}
