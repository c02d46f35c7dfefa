/* bitsandbytes' NF4 (Dettmers et al., QLoRA, 2023): 16 quantiles of the normal distribution in blocks of 64 that share an
absmax, which with double quantisation is itself 8 bits in blocks of 256 around the mean of all.

Math    code = nearest(x/absmax);  x = code*absmax, absmax = nested_code*nested + offset
Shapes  src, dst (n) bf16; codes (n/2) u8, the even element in the high nibble; absmax (n/64) u8 or f32; nested f32 one for
        256 blocks; offset f32 (1)                                                 Limits  n may exceed 2^31
Numeric bit for bit what bitsandbytes stores when it quantises on the processor: each operation rounds as there, and the mean
        adds in the order of torch's vectorised sum. Products are not fused with sums.
Bound   memory: 2.5 bytes an element either way
Form    A half warp a block of 64, four elements a lane. The mean's lowest level, runs of 2^power numbers, is summed in
        parallel; its 32 chains then add up the runs.
Oracle  model/cpu/nf4.go */
#include "mma.cuh"
#include "status.h"

constexpr int nf4_block = 64, nested_block = 256, nf4_threads = 256;

__constant__ const float nf4_code[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
    -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
};

/* bitsandbytes' dynamic map for the 8-bit absmax: seven decades of growing precision, either sign, made as there from
torch.linspace(0.1, 1, items + 1), which steps from the nearer end. */
struct nested_map {
  float code[256];
  static constexpr float boundary(int i, int items) {
    const double from = 0.1f, to = 1, step = (float)(to - from) / (float)items;
    return i < (items + 1) / 2 ? (float)(from + step * i) : (float)(to - step * (items - i));
  }
  constexpr nested_map() : code() {
    const float power[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1};
    int n = 0;
    for (int decade = 0; decade < 7; decade++)
      for (int i = 0, items = 1 << decade; i < items; i++) {
        const float x = power[decade] * ((boundary(i, items) + boundary(i + 1, items)) / 2);
        code[n++] = x, code[n++] = -x;
      }
    code[n++] = 0, code[n++] = 1;
    for (int i = 1; i < 256; i++)  // by insertion: once, by the compiler
      for (int j = i; j > 0 && code[j - 1] > code[j]; j--) {
        const float x = code[j];
        code[j] = code[j - 1], code[j - 1] = x;
      }
  }
};
__constant__ const nested_map nested_codes = {};
static_assert(nested_map().code[255] == 1 && nested_map().code[127] == 0, "127 negative codes, 0, 128 positive ones");

/* The code nearest to x; a tie takes the lower one. */
QK_DEVICE uint32_t nf4_nearest(float x) {
  uint32_t code = 0;
#pragma unroll
  for (int i = 0; i < 15; i++) code += x > __fmul_rn(__fadd_rn(nf4_code[i], nf4_code[i + 1]), 0.5f);
  return code;
}

/* The entry of the map nearest to x in [-1,1]. As in bitsandbytes on the processor, x is first rounded to one of 65536
levels, so near the middle of two entries it may be the other one. */
QK_DEVICE uint8_t nested_nearest(float x) {
  const float level = floorf(__fadd_rn(__fmul_rn(__fmul_rn(__fadd_rn(x, 1.f), 0.5f), 65535.f), 0.5f));
  x = __fadd_rn(__fmul_rn(level, (float)(2.0 / 65535)), -1.f);
  int right = 0;  // the first entry not below x, or 256
  for (int step = 256; step; step /= 2)
    if (right + step <= 256 && nested_codes.code[right + step - 1] < x) right += step;
  if (right == 0) return 0;
  if (right == 256 || nested_codes.code[right] - x >= x - nested_codes.code[right - 1]) right--;
  return (uint8_t)right;
}

/* ---- Quantise: codes and the absmax of each block, in float32. */

__global__ void __launch_bounds__(nf4_threads) nf4_quant_kernel(uint8_t *codes, float *absmax, const bf16 *src, int64_t n) {
  const int64_t first = ((int64_t)blockIdx.x * nf4_threads + threadIdx.x) * 4, block = first / nf4_block;
  float x[4];
  if (first + 4 <= n) {
    const uint2 v = __ldg((const uint2 *)(src + first));
    const float2 a = unpack_bf16(v.x), b = unpack_bf16(v.y);
    x[0] = a.x, x[1] = a.y, x[2] = b.x, x[3] = b.y;
  } else {
    for (int i = 0; i < 4; i++) x[i] = first + i < n ? __bfloat162float(src[first + i]) : 0.f;
  }
  float top = fmaxf(fmaxf(fabsf(x[0]), fabsf(x[1])), fmaxf(fabsf(x[2]), fabsf(x[3])));
  for (int o = 8; o; o /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));  // within the half warp
  if (first >= n) return;
  const float divisor = fmaxf(top, 1e-38f), inverse = __fdiv_rn(1.f, divisor);
  if (first % nf4_block == 0) absmax[block] = n - first < nf4_block ? divisor : top;  // a short block stores what it divides by
  uint32_t c[4];
#pragma unroll
  for (int i = 0; i < 4; i++) c[i] = nf4_nearest(__fmul_rn(x[i], inverse));
  codes[first / 2] = (uint8_t)(c[0] << 4 | c[1]);
  if (first + 2 < n) codes[first / 2 + 1] = (uint8_t)(c[2] << 4 | c[3]);
}

/* ---- The mean of all absmax, as torch sums a float32 vector on one thread (SumKernel.cpp of ATen, AVX2): rows of 8 lanes (of 1 for
fewer than 8 numbers), 4 rows in turn: chains of their own, each a cascade whose level moves up every 2^power numbers. */

struct mean_shape {
  int64_t n, rows, length;  // rows of all lanes; numbers in a chain
  int lanes, power;
  int64_t runs;  // whole runs of 2^power numbers in a chain
  __host__ __device__ explicit mean_shape(int64_t n) : n(n), lanes(n < 8 ? 1 : 8) {
    rows = n / lanes, length = rows / 4;
    int bits = 0;
    for (int64_t m = (length > 1 ? length : 1) - 1; m; m >>= 1) bits++;
    power = bits / 4 > 4 ? bits / 4 : 4;
    runs = length >> power;
  }
  __host__ __device__ int chains() const { return 4 * lanes; }
  /* Number i of chain (lane, way). */
  __host__ __device__ int64_t at(int chain, int64_t i) const { return (i * 4 + chain % 4) * lanes + chain / 4; }
};

/* Sums of runs: sums[chain * runs + run]. */
__global__ void __launch_bounds__(nf4_threads) mean_runs_kernel(float *sums, const float *x, const mean_shape shape) {
  const int64_t e = (int64_t)blockIdx.x * nf4_threads + threadIdx.x;
  if (e >= shape.runs * shape.chains()) return;
  const int chain = e % shape.chains();  // chains fastest: neighbours read neighbours
  const int64_t run = e / shape.chains();
  float sum = 0;
  for (int i = 0; i < 1 << shape.power; i++) sum += x[shape.at(chain, (run << shape.power) + i)];
  sums[chain * shape.runs + run] = sum;
}

/* One warp, a thread a chain. */
__global__ void __launch_bounds__(32) mean_kernel(float *mean, const float *sums, const float *x, const mean_shape shape) {
  __shared__ float chains[32];
  const int chain = threadIdx.x;
  if (chain < shape.chains()) {
    const int64_t mask = (1 << shape.power) - 1;
    float level[4] = {};  // level[0] holds the run at hand
    for (int64_t run = 0; run < shape.runs; run++) {
      level[0] += sums[chain * shape.runs + run];
      const int64_t i = (run + 1) << shape.power;
      level[1] += level[0], level[0] = 0;
      if (i & mask << shape.power) continue;
      level[2] += level[1], level[1] = 0;
      if (i & mask << 2 * shape.power) continue;
      level[3] += level[2], level[2] = 0;
    }
    for (int64_t i = shape.runs << shape.power; i < shape.length; i++) level[0] += x[shape.at(chain, i)];
    chains[chain] = level[0] + level[1] + level[2] + level[3];
  }
  __syncthreads();
  if (threadIdx.x) return;
  float total = 0;
  if (shape.lanes > 1)
    for (int64_t i = shape.rows * shape.lanes; i < shape.n; i++) total += x[i];
  for (int lane = 0; lane < shape.lanes; lane++) {
    float sum = chains[4 * lane];
    for (int64_t row = shape.length * 4; row < shape.rows; row++) sum += x[row * shape.lanes + lane];
    sum = sum + chains[4 * lane + 1] + chains[4 * lane + 2] + chains[4 * lane + 3];
    total = shape.lanes > 1 ? total + sum : sum;
  }
  *mean = __fdiv_rn(total, (float)shape.n);
}

/* Block of 256 absmax: their own absmax, and their codes. */
__global__ void __launch_bounds__(nested_block)
    nested_quant_kernel(uint8_t *codes, float *nested, const float *absmax, const float *offset, int64_t blocks) {
  __shared__ float shared[nested_block / 32];
  const int64_t i = (int64_t)blockIdx.x * nested_block + threadIdx.x;
  const float x = i < blocks ? absmax[i] - *offset : 0.f;
  float top = fabsf(x);
  for (int o = 16; o; o /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = top;
  __syncthreads();
  for (int w = 0; w < nested_block / 32; w++) top = fmaxf(top, shared[w]);
  if (threadIdx.x == 0) nested[blockIdx.x] = top;
  if (i < blocks) codes[i] = top == 0 ? 0 : nested_nearest(__fdiv_rn(x, top));
}

/* ---- Dequantise: eight elements a thread. */

__global__ void __launch_bounds__(nf4_threads)
    nf4_dequant_kernel(bf16 *dst, const uint8_t *codes, const void *absmax, const float *nested, const float *offset, int64_t n) {
  __shared__ float code[16];
  if (threadIdx.x < 16) code[threadIdx.x] = nf4_code[threadIdx.x];
  __syncthreads();
  const int64_t first = ((int64_t)blockIdx.x * nf4_threads + threadIdx.x) * 8, block = first / nf4_block;
  if (first >= n) return;
  const float scale = nested ? __fadd_rn(__fmul_rn(nested_codes.code[((const uint8_t *)absmax)[block]], __ldg(nested + block / nested_block)), __ldg(offset))
                             : ((const float *)absmax)[block];
  float x[8];
  if (first + 8 <= n) {
    const uint32_t v = __ldg((const uint32_t *)(codes + first / 2));
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = code[v >> (i / 2 * 8 + (i % 2 ? 0 : 4)) & 15] * scale;
    *(uint4 *)(dst + first) = pack8(x);
    return;
  }
  for (int64_t i = first; i < n; i++) dst[i] = __float2bfloat16(code[codes[i / 2] >> (i % 2 ? 0 : 4) & 15] * scale);
}

static int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t nf4_blocks(int64_t n) { return ceil_divide(n, nf4_block); }

extern "C" {

/* Absmax in float32, and the runs' sums. */
int64_t qk_nf4_quant_work(int64_t n) { return (nf4_blocks(n) + nf4_blocks(n) / 16 + 64) * (int64_t)sizeof(float); }

qk_status qk_nf4_quant(qk_ptr codes, qk_ptr absmax, qk_ptr nested, qk_ptr offset, qk_ptr src, int64_t n, qk_ptr work,
                       int64_t work_bytes, qk_stream s) {
  const char *name = "qk_nf4_quant";
  if (n < 1) return qk_fail(QK_BAD_ARGUMENT, "%s: %lld elements", name, (long long)n);
  if (!nested != !offset) return qk_fail(QK_BAD_ARGUMENT, "%s: nested and offset go together", name);
  if (nested && work_bytes < qk_nf4_quant_work(n)) return qk_fail(QK_BAD_ARGUMENT, "%s: %lld bytes of work; at least %lld", name, (long long)work_bytes, (long long)qk_nf4_quant_work(n));
  const auto stream = (cudaStream_t)s;
  const int64_t blocks = nf4_blocks(n);
  float *values = (float *)(nested ? work : absmax), *sums = values + blocks;
  nf4_quant_kernel<<<(unsigned)ceil_divide(n, 4 * nf4_threads), nf4_threads, 0, stream>>>((uint8_t *)codes, values, (const bf16 *)src, n);
  if (nested) {
    const mean_shape shape(blocks);
    if (shape.runs)
      mean_runs_kernel<<<(unsigned)ceil_divide(shape.runs * shape.chains(), nf4_threads), nf4_threads, 0, stream>>>(sums, values, shape);
    mean_kernel<<<1, 32, 0, stream>>>((float *)offset, sums, values, shape);
    nested_quant_kernel<<<(unsigned)ceil_divide(blocks, nested_block), nested_block, 0, stream>>>((uint8_t *)absmax, (float *)nested, values, (const float *)offset, blocks);
  }
  return qk_launched(name, cudaGetLastError());
}

qk_status qk_nf4_dequant(qk_ptr dst, qk_ptr codes, qk_ptr absmax, qk_ptr nested, qk_ptr offset, int64_t n, qk_stream s) {
  if (n < 1) return qk_fail(QK_BAD_ARGUMENT, "qk_nf4_dequant: %lld elements", (long long)n);
  if (!nested != !offset) return qk_fail(QK_BAD_ARGUMENT, "qk_nf4_dequant: nested and offset go together");
  nf4_dequant_kernel<<<(unsigned)ceil_divide(n, 8 * nf4_threads), nf4_threads, 0, (cudaStream_t)s>>>((bf16 *)dst, (const uint8_t *)codes, (const void *)absmax, (const float *)nested, (const float *)offset, n);
  return qk_launched("qk_nf4_dequant", cudaGetLastError());
}

}  // extern "C"
