/* Products of a few tokens with a large matrix: decoding. See matvec.cu. */
#pragma once

#include "linear.cuh"

constexpr int matvec_max_tokens = 8;

/* As qk_linear_fwd, for M of at most matvec_max_tokens. B as (N,K). */
qk_status matvec_linear(const linear_problem &p, cudaStream_t stream);

/* The same with a weight in NF4, in place of p.b. */
qk_status matvec_nf4(const linear_problem &p, const qk_nf4_weight &w, cudaStream_t stream);

/* logits (n,V) float32 = rows of xn (T,C) * W', W (V,C), n of at most matvec_max_tokens. */
qk_status matvec_logits(const char *name, float *logits, const bf16 *xn, const int32_t *rows, const bf16 *w, int n, int V, int C,
                        cudaStream_t stream);
