/* Products of a few tokens with a large matrix: decoding. See matvec.cu, and matvec_nf4.cu for weights in NF4. */
#pragma once

#include "linear.cuh"
#include "mma.cuh"

constexpr int matvec_max_tokens = 8;
constexpr int matvec_rows = 16;  // of W that blocks or teams of warps take at a time

/* As qk_linear_fwd, for M of at most matvec_max_tokens. B as (N,K). */
qk_status matvec_linear(const linear_problem &p, cudaStream_t stream);

/* The same with a weight in NF4, in place of p.b; K a multiple of 128, at least 896. */
qk_status matvec_nf4(const linear_problem &p, const qk_nf4_weight &w, cudaStream_t stream);

/* logits (n,V) float32 = rows of xn (T,C) * W', W (V,C), n of at most matvec_max_tokens. */
qk_status matvec_logits(const char *name, float *logits, const bf16 *xn, const int32_t *rows, const bf16 *w, int n, int V, int C,
                        cudaStream_t stream);

/* ---- The end of a product, for whole warps: thread t has token t / 16 and row t % 16. */

/* A warp's sums of rows of W with tokens. */
template <int Tokens> using matvec_sums = float[Tokens][matvec_rows];

template <int Tokens> QK_DEVICE float matvec_total(const matvec_sums<Tokens> *sums, int warps, int thread) {
  float y = 0;
#pragma unroll 4
  for (int w = 0; w < warps; w++) y += sums[w][thread / matvec_rows][thread % matvec_rows];
  return y;
}

/* What is added to the sum of output (token, n). */
QK_DEVICE float matvec_rest(const linear_problem &p, int64_t token, int64_t n) {
  float y = p.bias ? __ldg(p.bias + n) : 0.f;
#pragma unroll 2
  for (int r = 0; r < p.R; r += 8) {
    float u[8], l[8];
    unpack8(u, load16(p.u + token * p.R + r)), unpack8(l, load16(p.lora_b + n * p.R + r));
#pragma unroll
    for (int j = 0; j < 8; j++) y = fmaf(u[j], l[j], y);
  }
  return p.residual ? y + __bfloat162float(p.residual[token * p.N + n]) : y;
}

/* Writes output (token, n), the sum of whose product is y, where n is below end; a lane's neighbour has the other of its pair. */
QK_DEVICE void matvec_write(const linear_problem &p, int token, int n, int end, float y) {
  const bool inside = token < p.M && n < end;
  if (inside) y += matvec_rest(p, token, n);
  float even = __shfl_xor_sync(~0u, y, 1), odd = y;
  if (n % 2 == 0) odd = even, even = y;
  if (!inside) return;
  if (n < p.rope_columns) rope_rotate(p.rope, __ldg(p.rope.pos + token), n & ~1, even, odd);
  p.c[token * (int64_t)p.N + n] = __float2bfloat16(n % 2 ? odd : even);
}
