/* RMSNorm (Zhang and Sennrich, 2019), backward, with the LoRA products on both sides of it.

Math    g = w*(dxn + sum mask*(du*A)), n = x*rho;  dx = dres + rho*(g - n*mean(g*n));  du_out = s*dx*B
        mean(g*n) without a walk over A: sum_c xn*mask*(du*A) = sum_r du*u/s, for u = s*dropout(xn)*A' is what the forward kept
Shapes  x, dxn, dres, dx (T,C), u, du (T,Rt) bf16; w (C) f32 or bf16; rho (T) f32        Limits  C % 8 == 0
Numeric f32 sums: a lane's columns in order, then lanes. du_out is that of the rounded dx. A token's result does not depend
        on the tokens beside it.
Bound   memory: 8*C bytes a token
Form    Blocks of 16 tokens by the whole row, 8 warps. First a warp takes the rows of two tokens for their means; then, as rows of
        an mma.sync, the tile in chunks of 64 columns, which reads x and dxn from L2. A is read T/16 times, not T times.
Tried   (H100, T = 2048, C = 3584) both walks in chunks, the first with A and masks as well, by 8 warps: 55 us
Oracle  model/cpu/rmsnorm.go */
#include "rmsnorm.cuh"

constexpr int norm_bwd_warps = 8;

struct norm_backward {
  bf16 *dx, *du_out;
  const bf16 *dres, *dxn, *du, *u, *x;  // dres may be dx
  const float *rho;
  const void *w;
  dropout_batch batch;
  int T, C;
};

/* The pull of token t towards zero: dx = dres + rho*g - x*pull, pull = rho^2 * mean(g*n). For all lanes of a warp. */
template <class W> QK_DEVICE float norm_pull(const norm_backward &p, const qk_lora &in, int t, int lane) {
  const bf16 *dxn = p.dxn + (int64_t)t * p.C, *x = p.x + (int64_t)t * p.C;
  const float rho = __ldg(p.rho + t);
  float sum = 0;
#pragma unroll 4
  for (int c = 8 * lane; c < p.C; c += 256) {
    float d[8], v[8], w[8];
    unpack8(d, load16(dxn + c)), unpack8(v, load16(x + c)), load_w(w, (const W *)p.w, c);
#pragma unroll
    for (int j = 0; j < 8; j++) sum = fmaf(d[j] * w[j], v[j], sum);
  }
  float low = 0;
  for (int m = 0; m < in.n; m++) {
    const qk_module &mod = in.m[m];
    const int64_t at = (int64_t)t * in.rank + mod.col;
    float products = 0;
    for (int r = lane; r < mod.rank; r += 32) products = fmaf(__bfloat162float(p.du[at + r]), __bfloat162float(p.u[at + r]), products);
    if (mod.scale != 0) low += products / mod.scale;  // else u and du are zero
  }
  sum = sum * rho + low;
  for (int o = 16; o; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
  return sum * rho * rho / p.C;
}

template <class W, int Tiles>
__global__ void __launch_bounds__(norm_bwd_warps * 32, 1)
    rmsnorm_bwd_kernel(const __grid_constant__ norm_backward p, const __grid_constant__ qk_lora in, const __grid_constant__ qk_lora out) {
  take_turn();
  __shared__ __align__(16) bf16 tile[lora_tokens * back_stride];
  __shared__ __align__(16) float tiles[norm_bwd_warps * 256], pulls[lora_tokens];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.x * lora_tokens, q = lane % 4;
  const int t[2] = {first + lane / 4, first + lane / 4 + 8};
  const bool here[2] = {t[0] < p.T, t[1] < p.T};
  if (in.n) back_load(tile, back_stride, p.du, in, first, p.T, threadIdx.x, blockDim.x);
  for (int i = warp; i < lora_tokens; i += norm_bwd_warps) {
    const float own = first + i < p.T ? norm_pull<W>(p, in, first + i, lane) : 0.f;
    if (lane == 0) pulls[i] = own;
  }
  uint2 key = {};
  dropout_token tokens[2] = {};
  if (in.n) {
    key = p.batch.key();
    tokens[0] = dropout_token_of(p.batch, t[0], p.T), tokens[1] = dropout_token_of(p.batch, t[1], p.T);
  }
  __syncthreads();
  const float rho[2] = {here[0] ? __ldg(p.rho + t[0]) : 0.f, here[1] ? __ldg(p.rho + t[1]) : 0.f};
  const float pull[2] = {pulls[lane / 4], pulls[lane / 4 + 8]};

  // Part k of the lane's share of a chunk: eight columns of token k / 2, those of group k % 2. The next chunk's are on their way.
  const qk_module &mod = out.m[0];
  float acc[Tiles][4] = {};
  constexpr bool ahead = Tiles == 1;  // B' is asked for a chunk ahead as well
  uint4 d[4], x[4], res[4], b[2][Tiles];
  const auto load = [&](int base) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const int c = base + 32 * (k % 2) + 8 * q;
      const bool inside = here[k / 2] && c < p.C;
      const int64_t at = (int64_t)t[k / 2] * p.C + c;
      d[k] = load16(p.dxn + at, inside), x[k] = load16(p.x + at, inside);
      res[k] = inside && p.dres ? *(const uint4 *)(p.dres + at) : make_uint4(0, 0, 0, 0);
    }
    if (ahead && out.n)
#pragma unroll
      for (int g = 0; g < 2; g++) down_load(b[g], (const bf16 *)out.pack_bt, mod.rank, p.C, base + 32 * g + 8 * q, lane);
  };
  load(warp * 64);
  for (int base = warp * 64; base < p.C; base += norm_bwd_warps * 64) {
    float sum[8][4] = {};
    if (in.n) back_multiply(sum, tile, back_stride, in, base, key, tokens, lane);
    uint4 y[4];
#pragma unroll
    for (int g = 0; g < 2; g++) {
      const int c = base + 32 * g + 8 * q;
      float w[8] = {};
      if (c < p.C) load_w(w, (const W *)p.w, c);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int k = 2 * h + g;
        float f[8], v[8], to[8];
        unpack8(f, d[k]), unpack8(v, x[k]), unpack8(to, res[k]);
#pragma unroll
        for (int j = 0; j < 8; j++) to[j] += rho[h] * ((f[j] + sum[j][k]) * w[j]) - v[j] * pull[h];
        y[k] = pack8(to);
      }
    }
    if (out.n && ahead) down_multiply(acc, b[0], mod.rank, y[0], y[2]), down_multiply(acc, b[1], mod.rank, y[1], y[3]);
    load(base + norm_bwd_warps * 64);
#pragma unroll
    for (int g = 0; g < 2; g++) {
      const int c = base + 32 * g + 8 * q;
#pragma unroll
      for (int h = 0; h < 2; h++)
        if (here[h] && c < p.C) *(uint4 *)(p.dx + (int64_t)t[h] * p.C + c) = y[2 * h + g];
      if (out.n && !ahead) down_multiply(acc, (const bf16 *)out.pack_bt, mod.rank, p.C, c, y[g], y[2 + g], lane);
    }
  }
  if (out.n) down_store<norm_bwd_warps>(p.du_out, out.rank, mod.col, mod.rank, acc, mod.scale, tiles, first, p.T);
}

template <class W> static auto norm_bwd_kernel(const qk_lora *out) {
  const int tiles = lora_rank_tiles(out);
  return tiles == 1 ? rmsnorm_bwd_kernel<W, 1> : tiles == 2 ? rmsnorm_bwd_kernel<W, 2> : rmsnorm_bwd_kernel<W, 8>;
}

extern "C" qk_status qk_rmsnorm_bwd(qk_ptr dx, qk_ptr du_out, qk_ptr dres, qk_ptr dxn, qk_ptr du, qk_ptr u, qk_ptr x, qk_ptr rho,
                                    qk_ptr w, int32_t w_type, const qk_lora *in, const qk_lora *out, const qk_batch *b,
                                    int32_t C, qk_stream s) {
  const char *name = "qk_rmsnorm_bwd";
  if (const qk_status status = norm_check(name, C, w_type, in)) return status;
  if (const qk_status status = lora_check(name, out)) return status;
  if (in && in->in != C) return qk_fail(QK_BAD_ARGUMENT, "%s: a LoRA that reads %d columns of %d", name, in->in, C);
  if (out && (out->n != 1 || out->kind != QK_PLAIN || out->m[0].rows != C || !out->pack_bt))
    return qk_fail(QK_BAD_ARGUMENT, "%s: out should be one module that writes all of the %d columns, with pack_bt", name, C);
  const norm_backward p = {(bf16 *)dx, (bf16 *)du_out, (const bf16 *)dres, (const bf16 *)dxn, (const bf16 *)du, (const bf16 *)u, (const bf16 *)x,
                           (const float *)rho, (const void *)w, dropout_batch(b), b->T, C};
  const qk_lora none = {};
  const auto kernel = w_type == QK_F32 ? norm_bwd_kernel<float>(out) : norm_bwd_kernel<bf16>(out);
  return qk_launch(name, kernel, lora_tiles(b->T), norm_bwd_warps * 32, (cudaStream_t)s, p, in ? *in : none, out ? *out : none);
}
