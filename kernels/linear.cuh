/* One matrix product as linear.cu hands it to a variant. */
#pragma once

#include "common.cuh"
#include "status.h"

/* C (M,N) = A (M,K) * B + bias + U (M,R) * L' + residual, then rope on the first rope_columns columns. */
struct linear_problem {
  const char *name;    // of the launcher, for errors
  bf16 *c;             // (M,N)
  const bf16 *a;       // (M,K)
  const bf16 *b;       // (N,K), or (K,N) where b_n_inner
  bool b_n_inner;      // B's rows are K's: the backward reads the forward's weight untransposed
  const float *bias;   // (N) or null
  const bf16 *residual;  // (M,N) or null; may be c
  const bf16 *u;       // (M,R): s * dropout(x) * A' of LoRA; null where R is 0
  const bf16 *lora_b;  // (N,R): block-diagonal B of LoRA
  rope_table rope;
  int rope_columns;    // q and k, 0: no rope
  int M, N, K, R;
};

/* The variants: launch on the stream, or say why not. */
qk_status linear_sm80(const linear_problem &p, cudaStream_t stream);
qk_status linear_sm90(const linear_problem &p, const qk_device &device, cudaStream_t stream);
