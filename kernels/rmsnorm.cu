/* RMSNorm (Zhang and Sennrich, 2019), forward and backward, with the LoRA products of what it writes.

Math    rho = (sum_c x^2/C + eps)^-1/2;  xn = x*rho*w;  u = s*dropout(xn)*A'
        g = w*(dxn + sum mask*(du*A)), n = x*rho;  dx = dres + rho*(g - n*mean(g*n));  du_out = s*dx*B
Shapes  x, xn, dxn, dres, dx (T,C), u, du (T,Rt) bf16; w (C) f32 or bf16; rho (T) f32    Limits  C % 8 == 0
Numeric f32 sums: a lane's columns in order, then lanes, then warps. u and du_out are those of the rounded xn and dx.
        A token's result does not depend on the tokens beside it.
Bound   memory: forward 4*C bytes a token, backward 8*C
Form    Blocks of 16 tokens by the whole row, the rows of an mma.sync, so that A is read T/16 times from L2 and not T times.
        Forward: the tile stays in shared memory from the sum to the product (columns that have no room are read again,
        from L2). Backward: two walks over the tile; the second reads x and dxn from L2 and makes g again.
Oracle  model/cpu/rmsnorm.go */
#include "lora.cuh"

/* Eight of w's columns as floats. */
QK_DEVICE void load_w(float (&f)[8], const float *w, int c) {
  const float4 a = __ldg((const float4 *)(w + c)), b = __ldg((const float4 *)(w + c) + 1);
  f[0] = a.x, f[1] = a.y, f[2] = a.z, f[3] = a.w, f[4] = b.x, f[5] = b.y, f[6] = b.z, f[7] = b.w;
}
QK_DEVICE void load_w(float (&f)[8], const bf16 *w, int c) { unpack8(f, load16(w + c)); }

/* Sums of the tile's rows i and i + 8 over the block, in order of the warps; all threads get those of their own rows. */
template <int Warps> QK_DEVICE void row_sums(float (&sum)[2], float (*shared)[lora_tokens]) {
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
    for (int w = 0; w < Warps; w++) sum[h] += shared[w][lane / 4 + 8 * h];
  }
}

/* ---- Forward. A warp walks chunks of 32 columns: lane 4i + q holds columns 8q.. of tokens i and i + 8. */

constexpr int forward_warps = 16, forward_threads = forward_warps * 32;
constexpr int forward_columns = forward_warps * 32;          // of one step of the block
constexpr int forward_bytes = 2 * forward_threads * 16;      // of shared memory for the tile's part of a step
constexpr int forward_reserve = forward_warps * 16 * 17 * 4;  // of shared memory for the sums

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
QK_DEVICE uint4 normalise(const uint4 &v, float rho, const float (&w)[8]) {
  float f[8];
  unpack8(f, v);
#pragma unroll
  for (int j = 0; j < 8; j++) f[j] = f[j] * rho * w[j];
  return pack8(f);
}

/* u of module m from the xn in the tile. */
QK_DEVICE void norm_low(const norm_forward &p, const norm_tile &tile, const qk_lora &l, int m, uint2 key,
                        const dropout_token (&token)[2], float *shared) {
  const qk_module &mod = l.m[m];
  const int lane = threadIdx.x % 32;
  const bf16 *a = (const bf16 *)l.pack_a + (int64_t)mod.col * l.in;
  float acc[lora_rank_tiles][4] = {};
#pragma unroll 2
  for (int step = 0; step < tile.steps(); step++) {
    const int c = tile.column(step);
    uint4 v0 = tile.load(step, 0, p.xn), v1 = tile.load(step, 1, p.xn);
    if (mod.threshold) {
      v0 = masked(v0, dropout_mask(key, c / 8, token[0], mod.stream, mod.threshold));
      v1 = masked(v1, dropout_mask(key, c / 8, token[1], mod.stream, mod.threshold));
    }
    down_multiply(acc, a, mod.rank, p.C, c, v0, v1, lane);
  }
  down_store<forward_warps>(p.u, l.rank, mod.col, mod.rank, acc, mod.scale * dropout_scale(mod.threshold), shared,
                            blockIdx.x * lora_tokens, p.T);
}

template <class W>
__global__ void __launch_bounds__(forward_threads, 1)
    rmsnorm_fwd_kernel(const __grid_constant__ norm_forward p, const __grid_constant__ qk_lora l) {
  __shared__ __align__(16) float sums[forward_warps][lora_tokens], tiles[forward_warps * 256];
  extern __shared__ __align__(16) uint8_t memory[];
  const norm_tile tile(p, memory);
  const W *w = (const W *)p.w;

  tile.fetch();
  float sum[2] = {};
#pragma unroll 2
  for (int step = 0; step < tile.steps(); step++)
#pragma unroll
    for (int h = 0; h < 2; h++) sum[h] += square_sum(tile.load(step, h, p.x));
  row_sums<forward_warps>(sum, sums);
  float rho[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    rho[h] = 1.f / sqrtf(sum[h] / p.C + p.eps);
    if (p.rho && threadIdx.x / 32 == 0 && threadIdx.x % 4 == 0 && tile.t[h] < p.T) p.rho[tile.t[h]] = rho[h];
  }
#pragma unroll 2
  for (int step = 0; step < tile.steps(); step++) {
    float f[8] = {};
    if (tile.column(step) < p.C) load_w(f, w, tile.column(step));
#pragma unroll
    for (int h = 0; h < 2; h++) tile.store(step, h, normalise(tile.load(step, h, p.x), rho[h], f));
  }

  if (l.n == 0) return;
  const uint2 key = p.batch.key();
  const dropout_token token[2] = {dropout_token_of(p.batch, tile.t[0], p.T), dropout_token_of(p.batch, tile.t[1], p.T)};
  for (int m = 0; m < l.n; m++) norm_low(p, tile, l, m, key, token, tiles);
}

static qk_status norm_check(const char *name, int C, int w_type, const qk_lora *l) {
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
  int device = 0, room = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return qk_launched(name, error);
  const int steps = (C + forward_columns - 1) / forward_columns, fit = (room - forward_reserve) / forward_bytes;
  p.kept = steps < fit ? steps : fit;
  const qk_lora none = {};
  const auto kernel = w_type == QK_F32 ? rmsnorm_fwd_kernel<float> : rmsnorm_fwd_kernel<bf16>;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, fit * forward_bytes);
  if (error != cudaSuccess) return qk_launched(name, error);
  kernel<<<lora_tiles(b->T), forward_threads, p.kept * forward_bytes, (cudaStream_t)s>>>(p, l ? *l : none);
  return qk_launched(name, cudaGetLastError());
}

/* ---- Backward. A warp walks chunks of 64 columns: the lane holds columns 16q.. of tokens i and i + 8, as in
back_multiply. */

constexpr int backward_warps = 8;

struct norm_backward {
  bf16 *dx, *du_out;
  const bf16 *dres, *dxn, *du, *x;  // dres may be dx
  const float *rho;
  const void *w;
  dropout_batch batch;
  int T, C;
};

/* Part k of the lane's share of a chunk: eight columns from c of token t[k / 2]. */
struct norm_part {
  int t, c;
  bool inside;
  int64_t at;
  QK_DEVICE_MEMBER norm_part(int base, const int (&t)[2], int k, int lane, int T, int C)
      : t(t[k / 2]), c(base + 16 * (lane % 4) + 8 * (k % 2)), inside(this->t < T && c < C), at((int64_t)this->t * C + c) {}
};

template <class W>
__global__ void __launch_bounds__(backward_warps * 32, 1)
    rmsnorm_bwd_kernel(const norm_backward p, const __grid_constant__ qk_lora in, const __grid_constant__ qk_lora out) {
  __shared__ __align__(16) back_tile tile;
  __shared__ __align__(16) float sums[backward_warps][lora_tokens], tiles[backward_warps * 256];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.x * lora_tokens;
  const int t[2] = {first + lane / 4, first + lane / 4 + 8};
  const W *w = (const W *)p.w;
  float rho[2];
  uint2 key = {};
  dropout_token tokens[2] = {};
#pragma unroll
  for (int h = 0; h < 2; h++) rho[h] = t[h] < p.T ? __ldg(p.rho + t[h]) : 0.f;
  if (in.n) {
    key = p.batch.key();
    tokens[0] = dropout_token_of(p.batch, t[0], p.T), tokens[1] = dropout_token_of(p.batch, t[1], p.T);
    back_load(tile, p.du, in, first, p.T);
    __syncthreads();
  }

  float dot[2] = {};  // sum of g*x
  for (int base = warp * 64; base < p.C; base += backward_warps * 64) {
    float sum[8][4] = {};
    if (in.n) back_multiply(sum, tile, in, base, key, tokens, lane);
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const norm_part e(base, t, k, lane, p.T, p.C);
      if (!e.inside) continue;
      float d[8], x[8], scale[8];
      unpack8(d, load16(p.dxn + e.at)), unpack8(x, load16(p.x + e.at)), load_w(scale, w, e.c);
#pragma unroll
      for (int j = 0; j < 8; j++) dot[k / 2] = fmaf((d[j] + sum[j][k]) * scale[j], x[j], dot[k / 2]);
    }
  }
  row_sums<backward_warps>(dot, sums);
  float pull[2];  // of n towards zero: mean(g*n)*rho, for n = x*rho
#pragma unroll
  for (int h = 0; h < 2; h++) pull[h] = dot[h] * rho[h] / p.C * rho[h];

  const qk_module &mod = out.m[0];
  float acc[lora_rank_tiles][4] = {};
  for (int base = warp * 64; base < p.C; base += backward_warps * 64) {
    float sum[8][4] = {};
    uint4 dx[4];
    if (in.n) back_multiply(sum, tile, in, base, key, tokens, lane);
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const norm_part e(base, t, k, lane, p.T, p.C);
      dx[k] = make_uint4(0, 0, 0, 0);
      if (!e.inside) continue;
      float d[8], x[8], scale[8], y[8] = {};
      unpack8(d, load16(p.dxn + e.at)), unpack8(x, load16(p.x + e.at)), load_w(scale, w, e.c);
      if (p.dres) unpack8(y, *(const uint4 *)(p.dres + e.at));
#pragma unroll
      for (int j = 0; j < 8; j++) y[j] += rho[k / 2] * ((d[j] + sum[j][k]) * scale[j] - x[j] * pull[k / 2]);
      dx[k] = pack8(y);
      *(uint4 *)(p.dx + e.at) = dx[k];
    }
    if (out.n) {
      const int c = base + 16 * (lane % 4);
      down_multiply(acc, (const bf16 *)out.pack_bt, mod.rank, p.C, c, dx[0], dx[2], lane);
      down_multiply(acc, (const bf16 *)out.pack_bt, mod.rank, p.C, c + 8, dx[1], dx[3], lane);
    }
  }
  if (out.n) down_store<backward_warps>(p.du_out, out.rank, mod.col, mod.rank, acc, mod.scale, tiles, first, p.T);
}

extern "C" qk_status qk_rmsnorm_bwd(qk_ptr dx, qk_ptr du_out, qk_ptr dres, qk_ptr dxn, qk_ptr du, qk_ptr x, qk_ptr rho,
                                    qk_ptr w, int32_t w_type, const qk_lora *in, const qk_lora *out, const qk_batch *b,
                                    int32_t C, qk_stream s) {
  const char *name = "qk_rmsnorm_bwd";
  if (const qk_status status = norm_check(name, C, w_type, in)) return status;
  if (const qk_status status = lora_check(name, out)) return status;
  if (in && in->in != C) return qk_fail(QK_BAD_ARGUMENT, "%s: a LoRA that reads %d columns of %d", name, in->in, C);
  if (out && (out->n != 1 || out->kind != QK_PLAIN || out->m[0].rows != C || !out->pack_bt))
    return qk_fail(QK_BAD_ARGUMENT, "%s: out should be one module that writes all of the %d columns, with pack_bt", name, C);
  const norm_backward p = {(bf16 *)dx, (bf16 *)du_out, (const bf16 *)dres, (const bf16 *)dxn, (const bf16 *)du, (const bf16 *)x,
                           (const float *)rho, (const void *)w, dropout_batch(b), b->T, C};
  const qk_lora none = {};
  const auto kernel = w_type == QK_F32 ? rmsnorm_bwd_kernel<float> : rmsnorm_bwd_kernel<bf16>;
  kernel<<<lora_tiles(b->T), backward_warps * 32, 0, (cudaStream_t)s>>>(p, in ? *in : none, out ? *out : none);
  return qk_launched(name, cudaGetLastError());
}
