/* Embedding lookup, in training with NEFTune's noise (model/ops/noise.go).

Math    x[t] = table[ids[t]] + (2*lane - 65535) * unit, unit = alpha / (65536*sqrt(L*C)), lane a 16-bit lane of the Philox block
        of (seed, step; column / 8, position, sample), L the tokens of t's segment; alpha 0: no noise
Shapes  x (T,C), table (V,C) bf16, ids (T), seg_start (S+1) int32                    Limits  C % 8 == 0
Numeric a copy; with noise one f32 sum, rounded to bf16
Bound   memory, 4*C bytes a token; with noise 10 rounds of Philox for 8 columns, of the same order
Oracle  model/cpu/embed.go */
#include "dropout.cuh"
#include "status.h"

constexpr int embed_threads = 256;
constexpr uint32_t noise_stream = 0x4e454654;

/* The tokens of the segment that token t is in. */
QK_DEVICE int segment_length(const int32_t *seg_start, int S, int t) {
  int lo = 0, hi = S;  // seg_start[lo] <= t < seg_start[hi]
  while (hi - lo > 1) {
    const int mid = (lo + hi) / 2;
    if (__ldg(seg_start + mid) <= t)
      lo = mid;
    else
      hi = mid;
  }
  return __ldg(seg_start + hi) - __ldg(seg_start + lo);
}

/* Two bf16 with the noise of two lanes. */
QK_DEVICE uint32_t noisy(uint32_t v, uint32_t lanes, float unit) {
  const float2 f = unpack_bf16(v);
  return pack_bf16(fmaf((float)(2 * (int)(lanes & 0xffff) - 65535), unit, f.x), fmaf((float)(2 * (int)(lanes >> 16) - 65535), unit, f.y));
}

__global__ void __launch_bounds__(embed_threads)
    embed_kernel(uint4 *x, const uint4 *table, const int32_t *ids, const int32_t *seg_start, const dropout_batch b, int units) {
  take_turn();
  const int64_t t = blockIdx.x;
  const uint4 *row = table + (int64_t)__ldg(ids + t) * units;
  const float alpha = __int_as_float(__ldg(b.header + 6));
  if (alpha == 0) {
    for (int i = threadIdx.x; i < units; i += embed_threads) x[t * units + i] = __ldg(row + i);
    return;
  }
  __shared__ float shared_unit;
  if (threadIdx.x == 0)
    shared_unit = alpha / (65536.f * sqrtf((float)segment_length(seg_start, __ldg(b.header + 1), t) * (8.f * units)));
  __syncthreads();
  const float unit = shared_unit;
  const dropout_token token = {(uint32_t)__ldg(b.pos + t), (uint32_t)__ldg(b.sample + t)};
  for (int i = threadIdx.x; i < units; i += embed_threads) {
    const uint4 v = __ldg(row + i), w = philox(make_uint4(i, token.pos, token.sample, noise_stream), b.key());
    x[t * units + i] = make_uint4(noisy(v.x, w.x, unit), noisy(v.y, w.y, unit), noisy(v.z, w.z, unit), noisy(v.w, w.w, unit));
  }
}

extern "C" qk_status qk_embed(qk_ptr x, qk_ptr table, const qk_batch *b, int32_t C, qk_stream s) {
  if (C < 8 || C % 8) return qk_fail(QK_BAD_ARGUMENT, "qk_embed: %d columns; they must be divisible by 8", C);
  return qk_launch("qk_embed", embed_kernel, b->T, embed_threads, (cudaStream_t)s, (uint4 *)x, (const uint4 *)table, (const int32_t *)b->ids,
                   (const int32_t *)b->seg_start, dropout_batch(b), C / 8);
}
