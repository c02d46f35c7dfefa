/* SwiGLU (Shazeer, 2020), forward, with u of the module that reads it. The backward is in swiglu_bwd.cu.

Math    act = silu(gate)*up;  u = s*dropout(act)*A'
Shapes  act (T,F), gateup (T,2F, layout.cuh), u (T,Rt) bf16                              Limits  F % 8 == 0
Numeric float32; act is rounded before u is made of it. exp by ex2.approx and division by rcp.approx: well below a bf16
        rounding. A token's results do not depend on the tokens beside it.
Bound   memory: 6*F bytes a token
Form    Blocks of 16 tokens by the whole row, as in rmsnorm.cu; few tokens in inference: elements alone over many blocks, then u.
Tried   (H100, T = 2048, F = 18944, rank 8) A asked for where it is multiplied with: 96 us, three quarters of it waiting for A
Oracle  model/cpu/swiglu.go */
#include "lora.cuh"
#include "swiglu.cuh"

/* Warps of a block that keeps the sums of so many tiles of 8 ranks in registers. */
template <int Tiles> constexpr int swiglu_warps = Tiles <= 2 ? 16 : 8;

struct swiglu_forward {
  bf16 *act, *u;
  const bf16 *gateup;
  dropout_batch batch;
  int T, F;
};

/* Tiles: of 8 ranks. */
template <int Tiles>
__global__ void __launch_bounds__(swiglu_warps<Tiles> * 32, 1)
    swiglu_fwd_kernel(const __grid_constant__ swiglu_forward p, const __grid_constant__ qk_lora l) {
  take_turn();
  constexpr int warps = swiglu_warps<Tiles>;
  __shared__ __align__(16) float tiles[warps * 256];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.x * lora_tokens;
  const int t[2] = {first + lane / 4, first + lane / 4 + 8};
  const qk_module &mod = l.m[0];
  const bool drop = l.n && mod.threshold;
  uint2 key = {};
  dropout_token token[2] = {};
  if (drop) key = p.batch.key(), token[0] = dropout_token_of(p.batch, t[0], p.T), token[1] = dropout_token_of(p.batch, t[1], p.T);

  constexpr bool ahead = Tiles <= 2;  // A is asked for a chunk ahead as well
  float acc[Tiles][4] = {};
  uint4 gate[2][2], up[2][2], a[2][Tiles];  // of this chunk or the next: column group, then token or tile of ranks
  const auto load = [&](int base, int g) {
    const int c = base + 32 * g + 8 * (lane % 4);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const bool inside = c < p.F && t[h] < p.T;
      const bf16 *row = p.gateup + (int64_t)t[h] * 2 * p.F;
      gate[g][h] = load16(row + gate_column(c, p.F), inside), up[g][h] = load16(row + up_column(c, p.F), inside);
    }
    if (ahead && l.n) down_load(a[g], (const bf16 *)l.pack_a, mod.rank, p.F, c, lane);
  };
  load(warp * 64, 0), load(warp * 64, 1);
  for (int base = warp * 64; base < p.F; base += warps * 64) {
#pragma unroll
    for (int g = 0; g < 2; g++) {
      const int c = base + 32 * g + 8 * (lane % 4);
      uint4 v[2], kept[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        kept[h] = v[h] = swiglu8(gate[g][h], up[g][h]);
        if (drop) kept[h] = masked(v[h], dropout_mask(key, c / 8, token[h], mod.stream, mod.threshold));
      }
      if (l.n && ahead) down_multiply(acc, a[g], mod.rank, kept[0], kept[1]);
      load(base + warps * 64, g);
#pragma unroll
      for (int h = 0; h < 2; h++)
        if (c < p.F && t[h] < p.T) *(uint4 *)(p.act + (int64_t)t[h] * p.F + c) = v[h];
      if (l.n && !ahead) down_multiply(acc, (const bf16 *)l.pack_a, mod.rank, p.F, c, kept[0], kept[1], lane);
    }
  }
  if (l.n)
    down_store<warps>(p.u, l.rank, mod.col, mod.rank, acc, mod.scale * dropout_scale(mod.threshold), tiles, first, p.T);
}

template <int Tiles> static qk_status swiglu_launch(const char *name, const swiglu_forward &p, const qk_lora &l, cudaStream_t stream) {
  return qk_launch(name, swiglu_fwd_kernel<Tiles>, lora_tiles(p.T), swiglu_warps<Tiles> * 32, stream, p, l);
}

/* act alone: block (run of columns, token). */
constexpr int swiglu_few_threads = 128;

__global__ void __launch_bounds__(swiglu_few_threads) swiglu_few_kernel(const __grid_constant__ swiglu_forward p) {
  take_turn();
  const int c = 8 * (blockIdx.x * swiglu_few_threads + threadIdx.x);
  if (c >= p.F) return;
  const int64_t t = blockIdx.y;
  const bf16 *row = p.gateup + t * 2 * p.F;
  *(uint4 *)(p.act + t * p.F + c) = swiglu8(load16(row + gate_column(c, p.F)), load16(row + up_column(c, p.F)));
}

qk_status swiglu_check(const char *name, int F, const qk_lora *down) {
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
  if (lora_few(l, b)) {
    const int blocks = (F / 8 + swiglu_few_threads - 1) / swiglu_few_threads;
    const qk_status status = qk_launch(name, swiglu_few_kernel, dim3(blocks, b->T), swiglu_few_threads, stream, p);
    return status || !l ? status : lora_down(name, p.u, p.act, l, b, stream);
  }
  const qk_lora none = {};
  switch (lora_rank_tiles(l)) {
    case 1: return swiglu_launch<1>(name, p, l ? *l : none, stream);
    case 2: return swiglu_launch<2>(name, p, l ? *l : none, stream);
    default: return swiglu_launch<8>(name, p, l ? *l : none, stream);
  }
}
