/* The product of label rows with the head, whose results are wanted in more than bf16: logits in float32, or in float16 with
float32 statistics of each row.

Math    logits = x * W', x the rows of xn that predict a label
Shapes  xn (T,C), W (V,C) bf16; rows (n) int32; logits (n,V) f32, or (n,ld) f16         Limits  C % 8 == 0
Numeric f32 sums in k order. float16 keeps a logit to 2^-11 of itself where bf16 keeps 2^-8, so that a probability made
        from it is good to bf16; clamped at 65504. Statistics are of the unrounded sums.
Bound   tensor cores
Form    Tiles of 128 x 128 a block of 4 warps, 64 x 64 each; k blocks of 32 by cp.async through a ring of 3 stages, the
        16-byte units of a row exclusive-ored, as in linear_sm80.cuh. Rows of x are gathered by the copies themselves. Rows
        of tiles run fastest, so that neighbours share W.
Oracle  model/cpu/headloss.go */
#pragma once

#include <cuda_fp16.h>

#include "mma.cuh"
#include "status.h"

constexpr int head_tile = 128, head_k = 32, head_stages = 3, head_threads = 128;
constexpr int head_operand_bytes = head_tile * head_k * 2, head_stage_bytes = 2 * head_operand_bytes;
constexpr int head_part = 64;  // columns of a statistic: a warp's

/* Of the logits of a row in one part: the largest and the lowest column that has it, and the sum of exp(logit - largest). */
struct head_stat {
  float top, sum;
  int32_t at;
};

enum head_output { LOGITS_F32, LOGITS_F16, STATS_ALONE };

struct head_problem {
  const bf16 *xn, *w;
  const int32_t *rows;  // of xn, (n)
  int n, C, V;
  void *logits;          // float (n,V), or half (n,ld)
  int64_t ld;            // V rounded up to 8
  head_stat *stats;      // (n, parts)
  int parts;             // of a row's statistics
  float *target_logit;   // (n)
  const int32_t *targets;
};

__host__ __device__ constexpr int head_parts(int V) { return (V + head_tile - 1) / head_tile * (head_tile / head_part); }

QK_DEVICE uint32_t head_place(int row, int unit) { return row * 64 + ((unit ^ (row >> 1 & 3)) << 4); }

/* Starts the copies of k block i of both operands; zero outside. gathered: the thread's four rows of xn, null beyond n. */
QK_DEVICE void head_load(const head_problem &p, uint8_t *stage, int i, const bf16 *const (&gathered)[4], int column) {
  const int r = threadIdx.x / 4, u = threadIdx.x % 4, k = i * head_k + 8 * u;
  const uint32_t a = shared_address(stage), b = a + head_operand_bytes;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const int row = r + 32 * j;
    const bool in_a = gathered[j] && k < p.C, in_b = column + row < p.V && k < p.C;
    copy_async(a + head_place(row, u), in_a ? gathered[j] + k : p.xn, in_a ? 16 : 0);
    copy_async(b + head_place(row, u), in_b ? p.w + (int64_t)(column + row) * p.C + k : p.w, in_b ? 16 : 0);
  }
}

/* A warp's 64 x 64 part of one k block. */
QK_DEVICE void head_multiply(float (&d)[4][8][4], uint32_t stage, int warp_row, int warp_column, int lane) {
#pragma unroll
  for (int step = 0; step < head_k / 16; step++) {
    uint32_t a[4][4], b[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++)
      load_matrices(a[i], stage + head_place(warp_row + 16 * i + (lane & 15), 2 * step + (lane >> 4)));
#pragma unroll
    for (int j = 0; j < 4; j++)
      load_matrices(b[j], stage + head_operand_bytes +
                              head_place(warp_column + 16 * j + (lane & 7) + (lane >> 4) * 8, 2 * step + (lane >> 3 & 1)));
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 8; j++)
        mma_k16(d[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
  }
}

/* The statistics of one row of a warp's part: v are the lane's 16 columns column + 8 * (j / 2) + j % 2. All lanes of the
row's four call it. */
QK_DEVICE void head_row_stats(const head_problem &p, const float (&v)[16], int row, int column, int lane) {
  head_stat s = {-INFINITY, 0.f, 0x7fffffff};
#pragma unroll
  for (int j = 0; j < 16; j++) {
    const int c = column + 8 * (j / 2) + j % 2;
    if (c < p.V && (v[j] > s.top || s.at == 0x7fffffff)) s.top = v[j], s.at = c;
  }
#pragma unroll
  for (int o = 1; o <= 2; o *= 2) {
    const float top = __shfl_xor_sync(~0u, s.top, o);
    const int at = __shfl_xor_sync(~0u, s.at, o);
    if (top > s.top || (top == s.top && at < s.at)) s.top = top, s.at = at;
  }
#pragma unroll
  for (int j = 0; j < 16; j++)
    if (column + 8 * (j / 2) + j % 2 < p.V) s.sum += __expf(v[j] - s.top);
  s.sum += __shfl_xor_sync(~0u, s.sum, 1);
  s.sum += __shfl_xor_sync(~0u, s.sum, 2);
  if (row >= p.n) return;
  if (lane % 4 == 0) p.stats[(int64_t)row * p.parts + column / head_part] = s;
  const int target = __ldg(p.targets + row);
#pragma unroll
  for (int j = 0; j < 16; j++)
    if (column + 8 * (j / 2) + j % 2 == target) p.target_logit[row] = v[j];
}

/* Stores the same 16 logits. Beyond V, where float16 rows are padded, the product is zero: W was read as zeros there. */
template <head_output Output>
QK_DEVICE void head_store(const head_problem &p, const float (&v)[16], int64_t row, int column) {
#pragma unroll
  for (int j = 0; j < 16; j += 2) {
    const int c = column + 4 * j;
    if (Output == LOGITS_F32) {
      float *place = (float *)p.logits + row * p.V + c;
      if (c < p.V) place[0] = v[j];
      if (c + 1 < p.V) place[1] = v[j + 1];
    } else if (c < p.ld) {
      *(__half2 *)((__half *)p.logits + row * p.ld + c) =
          __floats2half2_rn(fminf(fmaxf(v[j], -65504.f), 65504.f), fminf(fmaxf(v[j + 1], -65504.f), 65504.f));
    }
  }
}

template <head_output Output>
__global__ void __launch_bounds__(head_threads, 2) head_product_kernel(const __grid_constant__ head_problem p) {
  take_turn();
  __shared__ __align__(128) uint8_t memory[head_stages * head_stage_bytes];
  const int row = blockIdx.x * head_tile, column = blockIdx.y * head_tile;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warp_row = warp % 2 * 64, warp_column = warp / 2 * 64;
  const bf16 *gathered[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const int r = row + threadIdx.x / 4 + 32 * j;
    gathered[j] = r < p.n ? p.xn + (int64_t)__ldg(p.rows + r) * p.C : nullptr;
  }

  float d[4][8][4] = {};
  const int blocks = (p.C + head_k - 1) / head_k;
#pragma unroll
  for (int i = 0; i < head_stages - 1; i++) {
    if (i < blocks) head_load(p, memory + i * head_stage_bytes, i, gathered, column);
    copy_commit();
  }
  for (int i = 0; i < blocks; i++) {
    copy_wait<head_stages - 2>();
    __syncthreads();  // block i is there for all, and all are done with block i - 1, whose stage is filled next
    const int next = i + head_stages - 1;
    if (next < blocks) head_load(p, memory + next % head_stages * head_stage_bytes, next, gathered, column);
    copy_commit();
    head_multiply(d, shared_address(memory) + i % head_stages * head_stage_bytes, warp_row, warp_column, lane);
  }

#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int r = row + warp_row + 16 * i + 8 * h + lane / 4, first = column + warp_column + 2 * (lane % 4);
      float v[16];
#pragma unroll
      for (int j = 0; j < 16; j++) v[j] = d[i][j / 2][2 * h + j % 2];
      if (Output != LOGITS_F32) head_row_stats(p, v, r, first, lane);
      if (Output != STATS_ALONE && r < p.n) head_store<Output>(p, v, r, first);
    }
}

template <head_output Output> static qk_status head_product(const char *name, const head_problem &p, cudaStream_t stream) {
  const dim3 grid((p.n + head_tile - 1) / head_tile, (p.V + head_tile - 1) / head_tile);
  return qk_launch(name, head_product_kernel<Output>, grid, head_threads, stream, p);
}
