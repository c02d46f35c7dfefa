/* Dropout masks: a pure function of (seed, step, sample, position, module, column), as model/ops/dropout.go defines it, so
that forward and backward, any packing and any tiling agree and no mask is ever stored. One Philox4x32-10 block (Salmon
et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) gives the 16-bit lanes of eight neighbouring columns. */
#pragma once

#include "api.h"
#include "common.cuh"

QK_DEVICE uint4 philox(uint4 c, uint2 key) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = (uint64_t)c.x * 0xD2511F53u, p1 = (uint64_t)c.z * 0xCD9E8D57u;
    c = make_uint4((uint32_t)(p1 >> 32) ^ c.y ^ key.x, (uint32_t)p1, (uint32_t)(p0 >> 32) ^ c.w ^ key.y, (uint32_t)p0);
    key.x += 0x9E3779B9u, key.y += 0xBB67AE85u;
  }
  return c;
}

/* The batch's part in the counter. Seed and step are read from the header in device memory, so that a launch recorded
once serves every step. */
struct dropout_batch {
  const int32_t *header, *pos, *sample;
  explicit dropout_batch(const qk_batch *b)
      : header((const int32_t *)b->header), pos((const int32_t *)b->pos), sample((const int32_t *)b->sample) {}
  QK_DEVICE_MEMBER uint2 key() const { return make_uint2(__ldg(header + 3), __ldg(header + 4)); }
};

/* A token's part; zeros for a token beyond the last, whose mask nobody reads. */
struct dropout_token {
  uint32_t pos, sample;
};
QK_DEVICE dropout_token dropout_token_of(const dropout_batch &b, int t, int T) {
  return t < T ? dropout_token{(uint32_t)__ldg(b.pos + t), (uint32_t)__ldg(b.sample + t)} : dropout_token{0, 0};
}

/* The mask of columns 8 * group .. 8 * group + 7, laid over eight bf16: all ones where kept. */
QK_DEVICE uint4 dropout_mask(uint2 key, uint32_t group, dropout_token t, uint32_t stream, uint32_t threshold) {
  const uint4 w = philox(make_uint4(group, t.pos, t.sample, stream), key);
  const uint32_t both = threshold * 0x10001u;
  return make_uint4(__vcmpgeu2(w.x, both), __vcmpgeu2(w.y, both), __vcmpgeu2(w.z, both), __vcmpgeu2(w.w, both));
}
QK_DEVICE uint4 masked(const uint4 &v, const uint4 &m) { return make_uint4(v.x & m.x, v.y & m.y, v.z & m.z, v.w & m.w); }

/* What a kept value is multiplied by: kernels multiply the sum of kept values instead. */
__host__ __device__ inline float dropout_scale(uint32_t threshold) { return 65536.f / (float)(65536 - threshold); }
