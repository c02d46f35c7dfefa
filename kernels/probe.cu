/* Probes: what a card does at most of one thing, for the roofs that `qlora bench` holds kernels to.

Math    copy: dst = src.  read: every 16 bytes of src once.  products: D (rows,256) += A (rows,16) * B (16,256) again and
        again, D in registers, A and B random bf16 in registers (sm80) or shared memory (sm90), where no memory limits them
Shapes  src, dst of bytes % 16 == 0; products: src at least 48 KB of bf16, out as api.h has it
Numeric out holds sums, so that nothing is left out; their values mean nothing, and they are finite
Bound   by construction: memory, memory, the tensor cores and the card's power. Operands change from instruction to
        instruction, as in a product: multiplying the same registers again would cost less power, and raise the clock
Form    copy and read: 16 bytes a thread and turn, four turns in flight. sm80: 8 warps a block, two blocks a
        multiprocessor, 16 independent accumulators a warp. sm90: two warpgroups a block of 64 x 256 accumulators,
        as in linear_sm90.cuh
Oracle  none: TestCardProbes holds the copy to its source, and the rates below the datasheet's */
#include "mma.cuh"
#include "status.h"
#include "wgmma.cuh"

constexpr int probe_threads = 256, probe_turns = 4;
static_assert(QK_PROBE_OUT >= 2 * probe_threads * 4, "a float a thread, of two blocks a multiprocessor");

__global__ void __launch_bounds__(probe_threads) probe_copy_kernel(uint4 *dst, const uint4 *src, int64_t n) {
  const int64_t first = (int64_t)blockIdx.x * (probe_threads * probe_turns) + threadIdx.x;
  uint4 v[probe_turns];
#pragma unroll
  for (int i = 0; i < probe_turns; i++)
    if (first + i * probe_threads < n) v[i] = __ldcs(src + first + i * probe_threads);
#pragma unroll
  for (int i = 0; i < probe_turns; i++)
    if (first + i * probe_threads < n) __stcs(dst + first + i * probe_threads, v[i]);
}

/* out: a word a warp. */
__global__ void __launch_bounds__(probe_threads) probe_read_kernel(uint32_t *out, const uint4 *src, int64_t n) {
  const int64_t stride = (int64_t)gridDim.x * probe_threads;
  uint32_t sum = 0;
  int64_t i = (int64_t)blockIdx.x * probe_threads + threadIdx.x;
  for (; i + (probe_turns - 1) * stride < n; i += probe_turns * stride) {
    uint4 v[probe_turns];
#pragma unroll
    for (int j = 0; j < probe_turns; j++) v[j] = __ldcs(src + i + j * stride);
#pragma unroll
    for (int j = 0; j < probe_turns; j++) sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  for (; i < n; i += stride) {
    const uint4 v = __ldcs(src + i);
    sum ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  sum = __reduce_xor_sync(0xffffffff, sum);
  if (threadIdx.x % 32 == 0) out[(blockIdx.x * probe_threads + threadIdx.x) / 32] = sum;
}

static qk_status probe_bytes(const char *launcher, int64_t bytes) {
  if (bytes < 16 || bytes % 16) return qk_fail(QK_BAD_ARGUMENT, "%s: %lld bytes; there must be some, and a multiple of 16", launcher, (long long)bytes);
  return QK_OK;
}

extern "C" qk_status qk_probe_copy(qk_ptr dst, qk_ptr src, int64_t bytes, qk_stream s) {
  if (qk_status status = probe_bytes("qk_probe_copy", bytes)) return status;
  const int64_t n = bytes / 16, each = probe_threads * probe_turns;
  probe_copy_kernel<<<(unsigned)((n + each - 1) / each), probe_threads, 0, (cudaStream_t)s>>>((uint4 *)dst, (const uint4 *)src, n);
  return qk_launched("qk_probe_copy", cudaGetLastError());
}

constexpr int probe_read_blocks = 16;  // a multiprocessor: two rounds of what fits

extern "C" qk_status qk_probe_read(qk_ptr out, qk_ptr src, int64_t bytes, qk_stream s) {
  qk_device device;
  qk_status status = probe_bytes("qk_probe_read", bytes);
  if (!status) status = qk_current_device(&device, "qk_probe_read");
  if (status) return status;
  probe_read_kernel<<<device.multiprocessors * probe_read_blocks, probe_threads, 0, (cudaStream_t)s>>>((uint32_t *)out, (const uint4 *)src, bytes / 16);
  return qk_launched("qk_probe_read", cudaGetLastError());
}

/* ---- products ---- */

constexpr int probe_operands = 4;                                // A and B fragments of a warp: 16 products a turn
constexpr double probe_sm80_flops = 16. * 2 * 16 * 8 * 16;       // of a warp and turn
constexpr int probe_sm80_blocks = 2;                             // a multiprocessor

__global__ void __launch_bounds__(probe_threads) probe_products_sm80_kernel(float *out, const uint4 *src, int turns) {
  const uint4 *own = src + threadIdx.x * 6;
  uint32_t a[probe_operands][4], b[probe_operands][2];
#pragma unroll
  for (int i = 0; i < probe_operands; i++) {
    const uint4 v = __ldg(own + i);
    a[i][0] = v.x, a[i][1] = v.y, a[i][2] = v.z, a[i][3] = v.w;
  }
#pragma unroll
  for (int i = 0; i < probe_operands / 2; i++) {
    const uint4 v = __ldg(own + probe_operands + i);
    b[2 * i][0] = v.x, b[2 * i][1] = v.y, b[2 * i + 1][0] = v.z, b[2 * i + 1][1] = v.w;
  }
  float d[probe_operands][probe_operands][4] = {};
  for (int t = 0; t < turns; t++)
#pragma unroll
    for (int i = 0; i < probe_operands; i++)
#pragma unroll
      for (int j = 0; j < probe_operands; j++) mma_k16(d[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[j][0], b[j][1]);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < probe_operands; i++)
#pragma unroll
    for (int j = 0; j < probe_operands; j++)
#pragma unroll
      for (int k = 0; k < 4; k++) sum += d[i][j][k];
  out[blockIdx.x * probe_threads + threadIdx.x] = sum;
}

constexpr int probe_a_bytes = 2 * 64 * 64 * 2, probe_b_bytes = 256 * 64 * 2;  // (64,64) of each warpgroup, (256,64) of both
constexpr int probe_sm90_groups = 4;                                         // of four k16 steps, a turn
constexpr double probe_sm90_flops = probe_sm90_groups * 4. * 2 * 64 * 256 * 16;  // of a warpgroup and turn

__global__ void __launch_bounds__(probe_threads, 1) probe_products_sm90_kernel(float *out, const uint4 *src, int turns) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) uint8_t memory[];
  for (int i = threadIdx.x; i < (probe_a_bytes + probe_b_bytes) / 16; i += probe_threads) ((uint4 *)memory)[i] = __ldg(src + i);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // wgmma reads past the threads' own view
  __syncthreads();
  const uint32_t base = shared_address(memory);
  const uint64_t a = descriptor(base + threadIdx.x / 128 * (probe_a_bytes / 2), 16, 1024, swizzle_128);
  const uint64_t b = descriptor(base + probe_a_bytes, 16, 1024, swizzle_128);
  float d[128];
  for (int t = 0; t < turns; t++) {
#pragma unroll
    for (int g = 0; g < probe_sm90_groups; g++) {
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < 4; j++) wgmma<256>::ss<0>(d, a + 2 * j, b + 2 * ((j + g) & 3), t + g + j > 0);
      wgmma_commit();
    }
    wgmma_wait<1>();
  }
  wgmma_wait<0>();
  settle(d);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 128; i++) sum += d[i];
  out[blockIdx.x * probe_threads + threadIdx.x] = sum;
#endif
}

extern "C" qk_status qk_probe_products(qk_ptr out, qk_ptr src, double least_flops, double *flops, qk_stream s, int32_t variant) {
  qk_device device;
  if (qk_status status = qk_current_device(&device, "qk_probe_products")) return status;
  const bool sm90 = variant == 2 || (variant == 0 && QK_HAS_SM90 && device.hopper());
  if (variant < 0 || variant > 2 || (sm90 && !(QK_HAS_SM90 && device.hopper())))
    return qk_fail(QK_NO_VARIANT, "qk_probe_products: there is no variant %d here", variant);
  const int blocks = device.multiprocessors * (sm90 ? 1 : probe_sm80_blocks);
  const double turn = blocks * (sm90 ? 2 * probe_sm90_flops : probe_threads / 32 * probe_sm80_flops);
  const double turns = ceil(least_flops / turn);
  if (!(turns >= 1 && turns < 1e9)) return qk_fail(QK_BAD_ARGUMENT, "qk_probe_products: %g FLOPs cannot be done", least_flops);
  *flops = turns * turn;
  if (!sm90) {
    probe_products_sm80_kernel<<<blocks, probe_threads, 0, (cudaStream_t)s>>>((float *)out, (const uint4 *)src, (int)turns);
    return qk_launched("qk_probe_products", cudaGetLastError());
  }
  constexpr int bytes = probe_a_bytes + probe_b_bytes;
  const cudaError_t error = cudaFuncSetAttribute(probe_products_sm90_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return qk_launched("qk_probe_products", error);
  probe_products_sm90_kernel<<<blocks, probe_threads, bytes, (cudaStream_t)s>>>((float *)out, (const uint4 *)src, (int)turns);
  return qk_launched("qk_probe_products", cudaGetLastError());
}
