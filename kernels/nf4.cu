/* bitsandbytes' NF4 (Dettmers et al., QLoRA, 2023): 16 quantiles of the normal distribution in blocks of 64 that share an
absmax, which with double quantisation is itself 8 bits in blocks of 256 around the mean of all.

Math    code = nearest(x/absmax);  x = code*absmax, absmax = nested_code*nested + offset
Shapes  src, dst (n) bf16; codes (n/2) u8, the even element in the high nibble; absmax (n/64) u8 or f32; nested f32 one for
        256 blocks; offset f32 (1)                                                 Limits  n may exceed 2^31
Numeric bit for bit what bitsandbytes stores when it quantises on the processor: each operation rounds as there, and the mean
        adds in the order of torch's vectorised sum. Products are not fused with sums.
Bound   memory: 2.5 bytes an element either way
Form    Quantise: a half warp a block of 64, four elements a lane. The mean's lowest level, runs of 2^power numbers, is summed
        in parallel; its 32 chains then add up the runs. Dequantise a weight: its parts are stored apart, each in the order of
        its checkpoint, and rows are read from where they are and written to where the products want them.
Tried   (H100, a step of 7B at 2048 tokens, 118.5 ms; 108.7 in bf16) The next weight made by the blocks of a product that have no
        tile left in its last round: 159 ms, as 256 threads a multiprocessor have too little on its way
Oracle  model/cpu/nf4.go */
#include "mma.cuh"
#include "nf4.cuh"
#include "status.h"

constexpr int nf4_threads = 256;

/* The code nearest to x; a tie takes the lower one. */
QK_DEVICE uint32_t nf4_nearest(float x) {
  uint32_t code = 0;
#pragma unroll
  for (int i = 0; i < 15; i++) code += x > __fmul_rn(__fadd_rn(nf4_code(i), nf4_code(i + 1)), 0.5f);
  return code;
}

/* The entry of the map nearest to x in [-1,1]. As in bitsandbytes on the processor, x is first rounded to one of 65536
levels, so near the middle of two entries it may be the other one. */
QK_DEVICE uint8_t nested_nearest(float x) {
  const float level = floorf(__fadd_rn(__fmul_rn(__fmul_rn(__fadd_rn(x, 1.f), 0.5f), 65535.f), 0.5f));
  x = __fadd_rn(__fmul_rn(level, (float)(2.0 / 65535)), -1.f);
  int right = 0;  // the first entry not below x, or 256
  for (int step = 256; step; step /= 2)
    if (right + step <= 256 && nested_table.code[right + step - 1] < x) right += step;
  if (right == 0) return 0;
  if (right == 256 || nested_table.code[right] - x >= x - nested_table.code[right - 1]) right--;
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

__global__ void __launch_bounds__(nf4_threads) nf4_dequant_kernel(bf16 *dst, const qk_nf4_part p, int64_t n) {
  __shared__ nf4_tables tables;
  tables.fill();
  __syncthreads();
  const int64_t first = ((int64_t)blockIdx.x * nf4_threads + threadIdx.x) * 8;
  if (first >= n) return;
  const float absmax = tables.absmax(p, first / nf4_block);
  const uint8_t *codes = (const uint8_t *)p.codes;
  if (first + 8 <= n) {
    *(uint4 *)(dst + first) = tables.eight(__ldg((const uint32_t *)(codes + first / 2)), absmax);
    return;
  }
  for (int64_t i = first; i < n; i++) dst[i] = __float2bfloat16(tables.code[codes[i / 2] >> (i % 2 ? 0 : 4) & 15] * absmax);
}

/* A whole weight, row by row of its own order: persistent blocks, a thread four times eight elements at a time, so that four loads are
in flight, and those of the next time beside them. W is never written beside a kernel that reads it: the first are asked for before
the turn. Units are counted over all rows: fewer than 2^31 of them. */
constexpr int weight_units = 4, weight_blocks = 4;  // blocks a multiprocessor

struct weight_unit {
  uint32_t codes;
  nf4_absmax absmax;
  int part;
  QK_DEVICE_MEMBER void load(const qk_nf4_weight &w, uint32_t unit, uint32_t per_row) {
    const uint32_t row = unit / per_row;
    const nf4_row at = nf4_row_of(w, row);
    const int64_t own = (int64_t)at.row * per_row + (unit - row * per_row);
    part = at.part;
    codes = __ldg((const uint32_t *)w.part[part].codes + own);
    absmax.load(w.part[part], own / (nf4_block / 8));
  }
};

__global__ void __launch_bounds__(nf4_threads, weight_blocks)
    nf4_dequant_weight_kernel(uint4 *dst, const __grid_constant__ qk_nf4_weight w, uint32_t units) {
  __shared__ nf4_tables tables;
  const uint32_t per_row = w.cols / 8, hop = gridDim.x * (weight_units * nf4_threads);
  uint32_t first = blockIdx.x * (weight_units * nf4_threads) + threadIdx.x;
  tables.fill();
  weight_unit next[weight_units];
  const auto load = [&](int i, uint32_t from) {
    const uint32_t unit = from + i * nf4_threads;
    if (unit < units) next[i].load(w, unit, per_row);
  };
#pragma unroll
  for (int i = 0; i < weight_units; i++) load(i, first);
  __syncthreads();
  take_turn();
  for (; first < units; first += hop) {
    weight_unit unit[weight_units];
#pragma unroll
    for (int i = 0; i < weight_units; i++) {
      unit[i] = next[i];
      load(i, first + hop);
    }
#pragma unroll
    for (int i = 0; i < weight_units; i++) {
      const qk_nf4_part &p = w.part[unit[i].part];
      if (first + i * nf4_threads < units) dst[first + i * nf4_threads] = tables.eight(unit[i].codes, tables.absmax(p, unit[i].absmax, nf4_offset(p)));
    }
  }
}

static int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

qk_status nf4_check(const char *name, const qk_nf4_weight *w) {
  if (!w || w->n < 1 || w->n > QK_MAX_MODULES) return qk_fail(QK_BAD_ARGUMENT, "%s: a weight of %d parts; 1 to %d", name, w ? w->n : 0, QK_MAX_MODULES);
  if (w->cols < nf4_block || w->cols % nf4_block) return qk_fail(QK_BAD_ARGUMENT, "%s: %d columns; NF4 takes multiples of %d", name, w->cols, nf4_block);
  for (int i = 0; i < w->n; i++) {
    const qk_nf4_part &p = w->part[i];
    if (p.rows < 8 || p.rows % 8) return qk_fail(QK_BAD_ARGUMENT, "%s: part %d has %d rows; they must be divisible by 8", name, i, p.rows);
    if (!p.nested != !p.offset) return qk_fail(QK_BAD_ARGUMENT, "%s: part %d: nested and offset go together", name, i);
    if (p.codes % 16) return qk_fail(QK_BAD_ARGUMENT, "%s: part %d: codes at %p are not aligned to 16 bytes", name, i, (void *)p.codes);
  }
  if (w->kind == QK_QKV && (w->n != 3 || w->h.D < 2 || w->h.D % 2)) return qk_fail(QK_BAD_ARGUMENT, "%s: q, k and v of heads of %d in %d parts", name, w->h.D, w->n);
  return QK_OK;
}

extern "C" {

qk_status qk_nf4_quant(qk_ptr codes, qk_ptr absmax, qk_ptr src, int64_t n, qk_stream s) {
  if (n < 1) return qk_fail(QK_BAD_ARGUMENT, "qk_nf4_quant: %lld elements", (long long)n);
  nf4_quant_kernel<<<(unsigned)ceil_divide(n, 4 * nf4_threads), nf4_threads, 0, (cudaStream_t)s>>>((uint8_t *)codes, (float *)absmax, (const bf16 *)src, n);
  return qk_launched("qk_nf4_quant", cudaGetLastError());
}

/* The runs' sums. */
int64_t qk_nf4_absmax_work(int64_t blocks) { return (blocks / 16 + 64) * (int64_t)sizeof(float); }

qk_status qk_nf4_absmax(qk_ptr absmax8, qk_ptr nested, qk_ptr offset, qk_ptr absmax, int64_t blocks, qk_ptr work, int64_t work_bytes, qk_stream s) {
  const char *name = "qk_nf4_absmax";
  if (blocks < 1) return qk_fail(QK_BAD_ARGUMENT, "%s: %lld blocks", name, (long long)blocks);
  if (work_bytes < qk_nf4_absmax_work(blocks)) return qk_fail(QK_BAD_ARGUMENT, "%s: %lld bytes of work; at least %lld", name, (long long)work_bytes, (long long)qk_nf4_absmax_work(blocks));
  const auto stream = (cudaStream_t)s;
  const auto values = (const float *)absmax;
  float *sums = (float *)work;
  const mean_shape shape(blocks);
  if (shape.runs)
    mean_runs_kernel<<<(unsigned)ceil_divide(shape.runs * shape.chains(), nf4_threads), nf4_threads, 0, stream>>>(sums, values, shape);
  mean_kernel<<<1, 32, 0, stream>>>((float *)offset, sums, values, shape);
  nested_quant_kernel<<<(unsigned)ceil_divide(blocks, nested_block), nested_block, 0, stream>>>((uint8_t *)absmax8, (float *)nested, values, (const float *)offset, blocks);
  return qk_launched(name, cudaGetLastError());
}

qk_status qk_nf4_dequant(qk_ptr dst, qk_ptr codes, qk_ptr absmax, qk_ptr nested, qk_ptr offset, int64_t n, qk_stream s) {
  if (n < 1) return qk_fail(QK_BAD_ARGUMENT, "qk_nf4_dequant: %lld elements", (long long)n);
  if (!nested != !offset) return qk_fail(QK_BAD_ARGUMENT, "qk_nf4_dequant: nested and offset go together");
  const qk_nf4_part p = {codes, absmax, nested, offset, 0};
  nf4_dequant_kernel<<<(unsigned)ceil_divide(n, 8 * nf4_threads), nf4_threads, 0, (cudaStream_t)s>>>((bf16 *)dst, p, n);
  return qk_launched("qk_nf4_dequant", cudaGetLastError());
}

qk_status qk_nf4_dequant_weight(qk_ptr dst, const qk_nf4_weight *w, qk_stream s) {
  const char *name = "qk_nf4_dequant_weight";
  if (const qk_status status = nf4_check(name, w)) return status;
  int64_t rows = 0;
  for (int i = 0; i < w->n; i++) rows += w->part[i].rows;
  const int64_t units = rows * (w->cols / 8);
  if (units > INT32_MAX) return qk_fail(QK_BAD_ARGUMENT, "%s: a weight of %lld elements", name, (long long)units * 8);
  qk_device device;
  if (const qk_status status = qk_current_device(&device, name)) return status;
  const int64_t all = ceil_divide(units, weight_units * nf4_threads), most = device.multiprocessors * weight_blocks;
  return qk_launch(name, nf4_dequant_weight_kernel, (unsigned)(all < most ? all : most), nf4_threads, (cudaStream_t)s, (uint4 *)dst, *w, (uint32_t)units);
}

}  // extern "C"
