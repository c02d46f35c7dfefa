/* SwiGLU (Shazeer, 2020), forward and backward, with the LoRA products of its operands.

Math    act = silu(gate)*up;  u = s*dropout(act)*A'
        d = dact + mask*(du_down*A_down);  dup = d*silu(gate);  dgate = d*up*sig*(1 + gate*(1 - sig))
        du_gu = s*(dgate*B_gate, dup*B_up);  dA_down += du_down'*dropout(act);  dB_gate += dgate'*u_gate;  dB_up alike
Shapes  act, dact (T,F), gateup (T,2F, layout.cuh), u, du (T,Rt) bf16                    Limits  F % 8 == 0
Numeric float32; act is rounded before anything is made of it, dgate and dup before du and dB. exp by ex2.approx and
        division by rcp.approx: well below a bf16 rounding. Token sums as in lora_grad.cu, others in an order that no
        other token changes; up to few_tokens tokens in another order than above.
Bound   memory: forward 6*F bytes a token; backward 18*F, of which 8*F would be saved by one pass over the tile
Form    Forward: blocks of 16 tokens by the whole row, as in rmsnorm.cu; few tokens: elements alone over many blocks, then u.
        Backward in three: dA_down, with act made again; the rows (dgate, dup in place, du); dB_gate and dB_up.
Oracle  model/cpu/swiglu.go */
#include "lora_grad.cuh"
#include "swiglu.cuh"

/* ---- Forward */

constexpr int swiglu_warps = 16, swiglu_few_tokens = 8;

struct swiglu_forward {
  bf16 *act, *u;
  const bf16 *gateup;
  dropout_batch batch;
  int T, F;
};

__global__ void __launch_bounds__(swiglu_warps * 32, 1)
    swiglu_fwd_kernel(const __grid_constant__ swiglu_forward p, const __grid_constant__ qk_lora l) {
  __shared__ __align__(16) float tiles[swiglu_warps * 256];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.x * lora_tokens;
  const int t[2] = {first + lane / 4, first + lane / 4 + 8};
  const qk_module &mod = l.m[0];
  const bool drop = l.n && mod.threshold;
  uint2 key = {};
  dropout_token token[2] = {};
  if (drop) key = p.batch.key(), token[0] = dropout_token_of(p.batch, t[0], p.T), token[1] = dropout_token_of(p.batch, t[1], p.T);

  float acc[lora_rank_tiles][4] = {};
#pragma unroll 2
  for (int base = warp * 32; base < p.F; base += swiglu_warps * 32) {
    const int c = base + 8 * (lane % 4);
    uint4 v[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const bool inside = c < p.F && t[h] < p.T;
      const bf16 *row = p.gateup + (int64_t)t[h] * 2 * p.F;
      v[h] = swiglu8(load16(row + gate_column(c, p.F), inside), load16(row + up_column(c, p.F), inside));
      if (inside) *(uint4 *)(p.act + (int64_t)t[h] * p.F + c) = v[h];
    }
    if (l.n == 0) continue;
    if (drop)
#pragma unroll
      for (int h = 0; h < 2; h++) v[h] = masked(v[h], dropout_mask(key, c / 8, token[h], mod.stream, mod.threshold));
    down_multiply(acc, (const bf16 *)l.pack_a, mod.rank, p.F, c, v[0], v[1], lane);
  }
  if (l.n)
    down_store<swiglu_warps>(p.u, l.rank, mod.col, mod.rank, acc, mod.scale * dropout_scale(mod.threshold), tiles, first, p.T);
}

/* act alone: block (run of columns, token). */
constexpr int swiglu_few_threads = 128;

__global__ void __launch_bounds__(swiglu_few_threads) swiglu_few_kernel(const __grid_constant__ swiglu_forward p) {
  const int c = 8 * (blockIdx.x * swiglu_few_threads + threadIdx.x);
  if (c >= p.F) return;
  const int64_t t = blockIdx.y;
  const bf16 *row = p.gateup + t * 2 * p.F;
  *(uint4 *)(p.act + t * p.F + c) = swiglu8(load16(row + gate_column(c, p.F)), load16(row + up_column(c, p.F)));
}

/* Modules that read act: down has one. */
static qk_status swiglu_check(const char *name, int F, const qk_lora *down) {
  if (F < 8 || F % 8) return qk_fail(QK_BAD_ARGUMENT, "%s: %d columns; they must be divisible by 8", name, F);
  if (const qk_status status = lora_check(name, down)) return status;
  if (down && (down->n != 1 || down->in != F)) return qk_fail(QK_BAD_ARGUMENT, "%s: the LoRA of down should be one module that reads %d columns", name, F);
  return QK_OK;
}

extern "C" qk_status qk_swiglu_fwd(qk_ptr act, qk_ptr u, qk_ptr gateup, const qk_lora *l, const qk_batch *b, int32_t F, qk_stream s) {
  const char *name = "qk_swiglu_fwd";
  if (const qk_status status = swiglu_check(name, F, l)) return status;
  const swiglu_forward p = {(bf16 *)act, (bf16 *)u, (const bf16 *)gateup, dropout_batch(b), b->T, F};
  const auto stream = (cudaStream_t)s;
  if (b->T <= swiglu_few_tokens) {
    const int blocks = (F / 8 + swiglu_few_threads - 1) / swiglu_few_threads;
    swiglu_few_kernel<<<dim3(blocks, b->T), swiglu_few_threads, 0, stream>>>(p);
    const qk_status status = qk_launched(name, cudaGetLastError());
    return status || !l ? status : lora_down(name, p.u, p.act, l, b, stream);
  }
  const qk_lora none = {};
  swiglu_fwd_kernel<<<lora_tiles(b->T), swiglu_warps * 32, 0, stream>>>(p, l ? *l : none);
  return qk_launched(name, cudaGetLastError());
}

/* ---- Backward: the rows. A warp walks chunks of 64 columns, as in back_multiply: the lane holds columns 16q.. of tokens i
and i + 8. */

constexpr int swiglu_back_warps = 8;

struct swiglu_backward {
  bf16 *gateup, *du_gu;
  const bf16 *dact, *du_down;
  dropout_batch batch;
  int T, F;
};

__global__ void __launch_bounds__(swiglu_back_warps * 32, 1)
    swiglu_bwd_kernel(const __grid_constant__ swiglu_backward p, const __grid_constant__ qk_lora down,
                      const __grid_constant__ qk_lora gu) {
  __shared__ __align__(16) back_tile tile;
  __shared__ __align__(16) float tiles[swiglu_back_warps * 256];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.x * lora_tokens;
  const int t[2] = {first + lane / 4, first + lane / 4 + 8};
  uint2 key = {};
  dropout_token tokens[2] = {};
  if (down.n) {
    key = p.batch.key();
    tokens[0] = dropout_token_of(p.batch, t[0], p.T), tokens[1] = dropout_token_of(p.batch, t[1], p.T);
    back_load(tile, p.du_down, down, first, p.T);
    __syncthreads();
  }

  float acc[2][lora_rank_tiles][4] = {};  // of gu's modules
  for (int base = warp * 64; base < p.F; base += swiglu_back_warps * 64) {
    uint4 dgate[4], dup[4];
    float sum[8][4] = {};
    if (down.n) back_multiply(sum, tile, down, base, key, tokens, lane);
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const int c = base + 16 * (lane % 4) + 8 * (k % 2);
      dgate[k] = dup[k] = make_uint4(0, 0, 0, 0);
      if (c >= p.F || t[k / 2] >= p.T) continue;
      bf16 *row = p.gateup + (int64_t)t[k / 2] * 2 * p.F;
      uint4 *gate = (uint4 *)(row + gate_column(c, p.F)), *up = (uint4 *)(row + up_column(c, p.F));
      float d[8];
      unpack8(d, load16(p.dact + (int64_t)t[k / 2] * p.F + c));
#pragma unroll
      for (int j = 0; j < 8; j++) d[j] += sum[j][k];
      dgate[k] = *gate, dup[k] = *up;
      swiglu8_back(dgate[k], dup[k], d);
      *gate = dgate[k], *up = dup[k];
    }
#pragma unroll
    for (int m = 0; m < 2; m++) {
      if (m >= gu.n) break;
      const bf16 *bt = (const bf16 *)gu.pack_bt + bt_offset(gu, m);
      const bool gate = gu.m[m].row == 0;
#pragma unroll
      for (int g = 0; g < 2; g++)
        down_multiply(acc[m], bt, gu.m[m].rank, p.F, base + 16 * (lane % 4) + 8 * g, gate ? dgate[g] : dup[g],
                      gate ? dgate[2 + g] : dup[2 + g], lane);
    }
  }
#pragma unroll
  for (int m = 0; m < 2; m++)
    if (m < gu.n)
      down_store<swiglu_back_warps>(p.du_gu, gu.rank, gu.m[m].col, gu.m[m].rank, acc[m], gu.m[m].scale, tiles, first, p.T);
}

extern "C" {

int64_t qk_swiglu_bwd_work(int32_t T, int32_t F, int32_t rank_down, int32_t rank_gu) {
  const int64_t a = qk_lora_grad_work(T, F, rank_down), b = qk_lora_grad_work(T, 2 * (int64_t)F, rank_gu);
  return a > b ? a : b;
}

qk_status qk_swiglu_bwd(qk_ptr gateup, qk_ptr du_gu, qk_ptr dact, qk_ptr du_down, qk_ptr u_gu, const qk_lora *down,
                        const qk_lora *gu, const qk_batch *b, int32_t F, qk_ptr work, int64_t work_bytes, qk_stream s) {
  const char *name = "qk_swiglu_bwd";
  if (const qk_status status = swiglu_check(name, F, down)) return status;
  if (const qk_status status = lora_check(name, gu)) return status;
  if (gu && (gu->kind != QK_GATE_UP || gu->n > 2 || gu->out != 2 * F || !gu->pack_bt))
    return qk_fail(QK_BAD_ARGUMENT, "%s: the LoRA of gate and up should write %d columns, with pack_bt", name, 2 * F);
  const auto stream = (cudaStream_t)s;
  if (down) {
    const qk_grad_job job = {down, SIDE_A, gateup, du_down};
    if (const qk_status status = lora_grad(name, SOURCE_ACT, &job, 1, b, work, work_bytes, stream)) return status;
  }
  const qk_lora none = {};
  const swiglu_backward p = {(bf16 *)gateup, (bf16 *)du_gu, (const bf16 *)dact, (const bf16 *)du_down, dropout_batch(b), b->T, F};
  swiglu_bwd_kernel<<<lora_tiles(b->T), swiglu_back_warps * 32, 0, stream>>>(p, down ? *down : none, gu ? *gu : none);
  if (const qk_status status = qk_launched(name, cudaGetLastError())) return status;
  if (!gu) return QK_OK;
  const qk_grad_job job = {gu, SIDE_B, gateup, u_gu};
  return lora_grad(name, SOURCE_PLAIN, &job, 1, b, work, work_bytes, stream);
}

}  // extern "C"
