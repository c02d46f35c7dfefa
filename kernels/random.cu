/* Random weights: normal numbers by their place alone.

Math    dst[r][c] = scale * (2*sum of the eight 16-bit lanes of Philox(i, i >> 32, stream, tag; seed, 0) - 8*65535),
        i = first + r*cols + c
Shapes  dst (rows,cols) bf16, its rows pitch elements apart                                  Limits  cols % 8 == 0
Numeric a whole number times a float32, rounded once to bf16: the bits of internal/random
Bound   integer arithmetic, about a hundred instructions a number
Oracle  internal/random */
#include "dropout.cuh"
#include "status.h"

constexpr int random_threads = 256;
constexpr uint32_t normal_stream = 0x4e4f524d;  // random.NormalStream

QK_DEVICE float random_normal(uint64_t i, uint32_t stream, uint32_t seed, float scale) {
  const uint4 w = philox(make_uint4((uint32_t)i, (uint32_t)(i >> 32), stream, normal_stream), make_uint2(seed, 0));
  const uint32_t sum = (w.x & 0xffff) + (w.x >> 16) + (w.y & 0xffff) + (w.y >> 16) + (w.z & 0xffff) + (w.z >> 16) + (w.w & 0xffff) + (w.w >> 16);
  return (float)(2 * (int)sum - 8 * 0xffff) * scale;
}

__global__ void __launch_bounds__(random_threads)
random_kernel(bf16 *dst, int64_t pitch, uint64_t first, int32_t cols, uint32_t seed, uint32_t stream, float scale) {
  const int64_t row = blockIdx.x;
  for (int c = 8 * threadIdx.x; c < cols; c += 8 * random_threads) {
    const uint64_t i = first + (uint64_t)(row * cols + c);
    uint32_t pair[4];
#pragma unroll
    for (int p = 0; p < 4; p++)
      pair[p] = pack_bf16(random_normal(i + 2 * p, stream, seed, scale), random_normal(i + 2 * p + 1, stream, seed, scale));
    *(uint4 *)(dst + row * pitch + c) = make_uint4(pair[0], pair[1], pair[2], pair[3]);
  }
}

extern "C" qk_status qk_random_normal(qk_ptr dst, int64_t pitch, int64_t first, int32_t rows, int32_t cols, uint32_t seed,
                                      uint32_t stream, float scale, qk_stream s) {
  if (rows < 1 || cols < 8 || cols % 8)
    return qk_fail(QK_BAD_ARGUMENT, "qk_random_normal: %d rows of %d columns; there must be rows, and columns divisible by 8", rows, cols);
  random_kernel<<<rows, random_threads, 0, (cudaStream_t)s>>>((bf16 *)dst, pitch, (uint64_t)first, cols, seed, stream, scale);
  return qk_launched("qk_random_normal", cudaGetLastError());
}
