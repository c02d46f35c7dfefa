/* Embedding lookup.

Math    x[t] = table[ids[t]]
Shapes  x (T,C), table (V,C) bf16, ids (T) int32                                     Limits  C % 8 == 0
Numeric a copy
Bound   memory, 4*C bytes a token
Oracle  model/cpu/embed.go */
#include "common.cuh"
#include "status.h"

constexpr int embed_threads = 256;

__global__ void __launch_bounds__(embed_threads) embed_kernel(uint4 *x, const uint4 *table, const int32_t *ids, int units) {
  take_turn();
  const int64_t t = blockIdx.x;
  const uint4 *row = table + (int64_t)__ldg(ids + t) * units;
  for (int i = threadIdx.x; i < units; i += embed_threads) x[t * units + i] = __ldg(row + i);
}

extern "C" qk_status qk_embed(qk_ptr x, qk_ptr table, const qk_batch *b, int32_t C, qk_stream s) {
  if (C < 8 || C % 8) return qk_fail(QK_BAD_ARGUMENT, "qk_embed: %d columns; they must be divisible by 8", C);
  return qk_launch("qk_embed", embed_kernel, b->T, embed_threads, (cudaStream_t)s, (uint4 *)x, (const uint4 *)table, (const int32_t *)b->ids, C / 8);
}
