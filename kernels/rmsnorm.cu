/* RMSNorm (Zhang and Sennrich, 2019), forward, with u of the modules that read it. The backward is in rmsnorm_bwd.cu.

Math    rho = (sum_c x^2/C + eps)^-1/2;  xn = x*rho*w;  u = s*dropout(xn)*A'
Shapes  x, xn (T,C), u (T,Rt) bf16; w (C) f32 or bf16; rho (T) f32                       Limits  C % 8 == 0
Numeric f32 sums: a lane's columns in order, then lanes, then warps. u is that of the rounded xn. A token's result does not
        depend on the tokens beside it.
Bound   memory: 4*C bytes a token
Form    Blocks of 16 tokens by the whole row, the rows of an mma.sync, so that A is read T/16 times from L2 and not T times.
        The tile stays in shared memory from the sum to the product (columns that have no room are read again, from L2), and
        w beside it. In decoding a block of few threads a token, and u by lora.cu.
Oracle  model/cpu/rmsnorm.go */
#include "rmsnorm.cuh"

/* A warp walks chunks of 32 columns: lane 4i + q holds columns 8q.. of tokens i and i + 8. */

constexpr int forward_warps = 16, forward_threads = forward_warps * 32;
constexpr int forward_columns = forward_warps * 32;          // of one step of the block
constexpr int forward_bytes = 2 * forward_threads * 16;      // of shared memory for the tile's part of a step
constexpr int forward_reserve = forward_warps * 16 * 17 * 4;  // of shared memory for the sums

/* Sums of the tile's rows i and i + 8 over the block, in order of the warps; all threads get those of their own rows. */
QK_DEVICE void row_sums(float (&sum)[2], float (*shared)[lora_tokens]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
    sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
    if (lane % 4 == 0) shared[warp][lane / 4 + 8 * h] = sum[h];
  }
  __syncthreads();
#pragma unroll
  for (int h = 0; h < 2; h++) {
    sum[h] = 0;
    for (int w = 0; w < forward_warps; w++) sum[h] += shared[w][lane / 4 + 8 * h];
  }
}

struct norm_forward {
  bf16 *xn;
  float *rho;
  bf16 *u;
  const bf16 *x;
  const void *w;
  float eps;
  dropout_batch batch;
  int T, C, kept;  // kept: steps whose part of the tile has room in shared memory
};

/* w in shared memory, fetched by all threads of a block before its turn: a weight that no kernel writes. */
QK_DEVICE void fetch_w(uint8_t *shared, const void *w, int bytes) {
  for (int e = 16 * threadIdx.x; e < bytes; e += 16 * forward_threads) copy_async(shared_address(shared + e), (const uint8_t *)w + e, 16);
}
QK_DEVICE void shared_w(float (&f)[8], const float *w) {
#pragma unroll
  for (int j = 0; j < 8; j++) f[j] = w[j];
}
QK_DEVICE void shared_w(float (&f)[8], const bf16 *w) { unpack8(f, *(const uint4 *)w); }

/* The lane's share of a tile of x, later of xn: eight columns of tokens t[0] and t[1] in each step. A thread reads what it
wrote itself, so nothing synchronises. */
struct norm_tile {
  const norm_forward &p;
  uint4 *shared;
  int t[2];
  QK_DEVICE_MEMBER norm_tile(const norm_forward &p, void *shared)
      : p(p), shared((uint4 *)shared + threadIdx.x), t{(int)blockIdx.x * lora_tokens + (int)threadIdx.x % 32 / 4, 0} {
    t[1] = t[0] + 8;
  }
  QK_DEVICE_MEMBER int steps() const { return (p.C + forward_columns - 1) / forward_columns; }
  QK_DEVICE_MEMBER int column(int step) const { return step * forward_columns + threadIdx.x / 32 * 32 + threadIdx.x % 4 * 8; }
  QK_DEVICE_MEMBER bool inside(int step, int h) const { return t[h] < p.T && column(step) < p.C; }
  QK_DEVICE_MEMBER int64_t at(int step, int h) const { return (int64_t)t[h] * p.C + column(step); }
  QK_DEVICE_MEMBER uint4 *place(int step, int h) const { return shared + (step * 2 + h) * forward_threads; }

  QK_DEVICE_MEMBER void fetch() const {
    for (int step = 0; step < min(steps(), p.kept); step++)
#pragma unroll
      for (int h = 0; h < 2; h++)
        copy_async(shared_address(place(step, h)), inside(step, h) ? p.x + at(step, h) : p.x, inside(step, h) ? 16 : 0);
    copy_commit();
    copy_wait<0>();
  }
  /* from: x, or xn once it is written. */
  QK_DEVICE_MEMBER uint4 load(int step, int h, const bf16 *from) const {
    if (step < p.kept) return *place(step, h);
    return inside(step, h) ? *(const uint4 *)(from + at(step, h)) : make_uint4(0, 0, 0, 0);
  }
  QK_DEVICE_MEMBER void store(int step, int h, const uint4 &v) const {
    if (step < p.kept) *place(step, h) = v;
    if (inside(step, h)) *(uint4 *)(p.xn + at(step, h)) = v;
  }
};

QK_DEVICE float square_sum(const uint4 &v) {
  float f[8], sum = 0;
  unpack8(f, v);
#pragma unroll
  for (int j = 0; j < 8; j++) sum = fmaf(f[j], f[j], sum);
  return sum;
}
/* A of the modules from m0 on, as a lane multiplies with it in one step. */
template <int Tiles, int Modules> struct norm_factors {
  uint4 a[Modules][Tiles];
  QK_DEVICE_MEMBER void load(const norm_tile &tile, const qk_lora &l, int m0, int step) {
#pragma unroll
    for (int i = 0; i < Modules; i++)
      if (m0 + i < l.n)
        down_load(a[i], (const bf16 *)l.pack_a + (int64_t)l.m[m0 + i].col * l.in, l.m[m0 + i].rank, tile.p.C, tile.column(step), threadIdx.x % 32);
  }
};

/* Walks the tile for the modules from m0 on: xn, at the first walk, and their products with A, whose part for the first step
is there and that for the next on its way. */
template <class W, int Tiles, int Modules>
QK_DEVICE void norm_walk(const norm_forward &p, const norm_tile &tile, const W *weights, const qk_lora &l, int m0, norm_factors<Tiles, Modules> &factors,
                         const float (&rho)[2], uint2 key, const dropout_token (&token)[2], float *shared) {
  float acc[Modules][Tiles][4] = {};
  for (int step = 0; step < tile.steps(); step++) {
    const int c = tile.column(step);
    uint4 v[2];
    float w[8] = {};
    if (m0 == 0 && c < p.C) shared_w(w, weights + c);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      v[h] = tile.load(step, h, m0 ? p.xn : p.x);
      if (m0) continue;
      v[h] = normalise(v[h], rho[h], w);
      tile.store(step, h, v[h]);
    }
#pragma unroll
    for (int i = 0; i < Modules; i++) {
      if (m0 + i >= l.n) break;
      const qk_module &mod = l.m[m0 + i];
      uint4 kept[2] = {v[0], v[1]};
      if (mod.threshold)
#pragma unroll
        for (int h = 0; h < 2; h++) kept[h] = masked(v[h], dropout_mask(key, c / 8, token[h], mod.stream, mod.threshold));
      down_multiply(acc[i], factors.a[i], mod.rank, kept[0], kept[1]);
    }
    factors.load(tile, l, m0, step + 1);
  }
#pragma unroll
  for (int i = 0; i < Modules; i++) {
    if (m0 + i >= l.n) break;
    const qk_module &mod = l.m[m0 + i];
    down_store<forward_warps>(p.u, l.rank, mod.col, mod.rank, acc[i], mod.scale * dropout_scale(mod.threshold), shared,
                              blockIdx.x * lora_tokens, p.T);
  }
}

/* Tiles: of 8 ranks, those of the largest module. The sums of three small modules fit beside each other in registers. */
template <class W, int Tiles>
__global__ void __launch_bounds__(forward_threads, 1)
    rmsnorm_fwd_kernel(const __grid_constant__ norm_forward p, const __grid_constant__ qk_lora l) {
  constexpr int modules = Tiles <= 2 ? QK_MAX_MODULES : 1;
  __shared__ __align__(16) float sums[forward_warps][lora_tokens], tiles[forward_warps * 256];
  extern __shared__ __align__(16) uint8_t memory[];  // w, the tile
  const norm_tile tile(p, memory + p.C * sizeof(W));
  fetch_w(memory, p.w, p.C * sizeof(W));
  take_turn();

  norm_factors<Tiles, modules> factors;
  factors.load(tile, l, 0, 0);
  tile.fetch();
  float sum[2] = {};
#pragma unroll 2
  for (int step = 0; step < tile.steps(); step++)
#pragma unroll
    for (int h = 0; h < 2; h++) sum[h] += square_sum(tile.load(step, h, p.x));
  row_sums(sum, sums);
  float rho[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    rho[h] = 1.f / sqrtf(sum[h] / p.C + p.eps);
    if (p.rho && threadIdx.x / 32 == 0 && threadIdx.x % 4 == 0 && tile.t[h] < p.T) p.rho[tile.t[h]] = rho[h];
  }
  uint2 key = {};
  dropout_token token[2] = {};
  if (l.n) {
    key = p.batch.key();
    token[0] = dropout_token_of(p.batch, tile.t[0], p.T), token[1] = dropout_token_of(p.batch, tile.t[1], p.T);
  }
  for (int m = 0; m == 0 || m < l.n; m += modules) {
    if (m) factors.load(tile, l, m, 0);
    norm_walk(p, tile, (const W *)memory, l, m, factors, rho, key, token, tiles);
  }
}

/* ---- A token a block, without u: by as many threads as the kernel above has for a token, each with the same columns, so that
the sums have the same order and the bits do not tell which kernel made them. */

constexpr int few_threads = forward_warps * 4, few_run = 4;  // steps whose w is on its way together

template <class W> __global__ void __launch_bounds__(few_threads) rmsnorm_few_kernel(const __grid_constant__ norm_forward p) {
  extern __shared__ __align__(16) uint8_t memory[];  // x of the token: a thread's own steps
  __shared__ float sums[forward_warps];
  const W *w = (const W *)p.w;
  for (int c = 32 * threadIdx.x; c < p.C; c += 32 * few_threads) prefetch_line(w + c);
  take_turn();
  const bf16 *x = p.x + (int64_t)blockIdx.x * p.C;
  bf16 *xn = p.xn + (int64_t)blockIdx.x * p.C;
  uint4 *own = (uint4 *)memory + threadIdx.x;
  const int first = threadIdx.x / 4 * 32 + threadIdx.x % 4 * 8, steps = (p.C - first + forward_columns - 1) / forward_columns;
  for (int s = 0; s < steps; s++) copy_async(shared_address(own + s * few_threads), x + first + s * forward_columns, 16);
  copy_commit();
  copy_wait<0>();

  float sum = 0;
#pragma unroll 4
  for (int s = 0; s < steps; s++) sum += square_sum(own[s * few_threads]);
  sum += __shfl_xor_sync(~0u, sum, 1);
  sum += __shfl_xor_sync(~0u, sum, 2);
  if (threadIdx.x % 4 == 0) sums[threadIdx.x / 4] = sum;
  __syncthreads();
  sum = 0;
#pragma unroll
  for (int i = 0; i < forward_warps; i++) sum += sums[i];
  const float rho = 1.f / sqrtf(sum / p.C + p.eps);
  if (p.rho && threadIdx.x == 0) p.rho[blockIdx.x] = rho;

  for (int s0 = 0; s0 < steps; s0 += few_run) {
    float f[few_run][8] = {};
#pragma unroll
    for (int i = 0; i < few_run; i++)
      if (s0 + i < steps) load_w(f[i], w, first + (s0 + i) * forward_columns);
#pragma unroll
    for (int i = 0; i < few_run; i++)
      if (s0 + i < steps) *(uint4 *)(xn + first + (s0 + i) * forward_columns) = normalise(own[(s0 + i) * few_threads], rho, f[i]);
  }
}

template <class W> static auto norm_fwd_kernel(const qk_lora *l) {
  const int tiles = lora_rank_tiles(l);
  return tiles == 1 ? rmsnorm_fwd_kernel<W, 1> : tiles == 2 ? rmsnorm_fwd_kernel<W, 2> : rmsnorm_fwd_kernel<W, 8>;
}

qk_status norm_check(const char *name, int C, int w_type, const qk_lora *l) {
  if (C < 8 || C % 8) return qk_fail(QK_BAD_ARGUMENT, "%s: %d columns; they must be divisible by 8", name, C);
  if (w_type != QK_F32 && w_type != QK_BF16) return qk_fail(QK_BAD_ARGUMENT, "%s: w of type %d; float32 or bfloat16", name, w_type);
  return lora_check(name, l);
}

extern "C" qk_status qk_rmsnorm_fwd(qk_ptr xn, qk_ptr rho, qk_ptr u, qk_ptr x, qk_ptr w, int32_t w_type, float eps,
                                    const qk_lora *l, const qk_batch *b, int32_t C, qk_stream s) {
  const char *name = "qk_rmsnorm_fwd";
  if (const qk_status status = norm_check(name, C, w_type, l)) return status;
  if (l && l->in != C) return qk_fail(QK_BAD_ARGUMENT, "%s: a LoRA that reads %d columns of %d", name, l->in, C);
  norm_forward p = {(bf16 *)xn, (float *)rho, (bf16 *)u, (const bf16 *)x, (const void *)w, eps, dropout_batch(b), b->T, C};
  const auto stream = (cudaStream_t)s;
  const int steps = (C + forward_columns - 1) / forward_columns;
  if (lora_few(l, b)) {
    const auto few = w_type == QK_F32 ? rmsnorm_few_kernel<float> : rmsnorm_few_kernel<bf16>;
    const qk_status status = qk_launch(name, few, b->T, 1, few_threads, steps * few_threads * 16, stream, p);
    return status || !l ? status : lora_down(name, p.u, p.xn, l, b, stream);
  }
  qk_device device;
  if (const qk_status status = qk_current_device(&device, name)) return status;
  const int w_bytes = C * (w_type == QK_F32 ? 4 : 2);
  const int fit = (device.shared - forward_reserve - w_bytes) / forward_bytes;
  if (fit < 0) return qk_fail(QK_BAD_ARGUMENT, "%s: %d columns; w does not fit in shared memory", name, C);
  p.kept = steps < fit ? steps : fit;
  const qk_lora none = {};
  const auto kernel = w_type == QK_F32 ? norm_fwd_kernel<float>(l) : norm_fwd_kernel<bf16>(l);
  return qk_launch(name, kernel, lora_tiles(b->T), 1, forward_threads, w_bytes + p.kept * forward_bytes, stream, p, l ? *l : none);
}
