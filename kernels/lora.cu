/* LoRA: the bf16 packs of its factors, and the low-rank products for ops that do not make them themselves.

Math    pack_a = A, pack_b = B, pack_bt = B', rounded, in the weight's row order
        down: u = s * dropout(x) * A';  up: du = s * dy * B
Shapes  x (T,in), dy (T,out), u, du (T,Rt) bf16; a (R,in), b (rows,R) f32        Limits  lora_check
Numeric f32 sums: a warp's columns in order, then the warps in order; one rounding. A token's result does not depend on
        the tokens beside it. Few tokens in inference take another kernel, which sums in another order.
Bound   memory: x once a module (down), dy once (up)
Form    Blocks of 16 tokens by the whole row, so that A is read T/16 times from L2 and not T times; mma.sync on fragments
        loaded straight from memory (mma.cuh). For few tokens a block an element of u, as only many blocks fill the card,
        which asks for A before its turn.
Oracle  model/cpu/lora.go */
#include <string.h>

#include "lora.cuh"

qk_status lora_check(const char *name, const qk_lora *l) {
  if (!l) return QK_OK;
  if (l->n < 1 || l->n > QK_MAX_MODULES) return qk_fail(QK_BAD_ARGUMENT, "%s: a LoRA of %d modules; 1 to %d", name, l->n, QK_MAX_MODULES);
  if (l->in % 8 || l->out % 8) return qk_fail(QK_BAD_ARGUMENT, "%s: a LoRA from %d to %d columns; both must be divisible by 8", name, l->in, l->out);
  int columns = 0;
  for (int i = 0; i < l->n; i++) {
    const qk_module &m = l->m[i];
    if (m.rank < 1 || m.rank > QK_MAX_RANK) return qk_fail(QK_BAD_ARGUMENT, "%s: module %d has rank %d; 1 to %d", name, i, m.rank, QK_MAX_RANK);
    if (m.col != columns) return qk_fail(QK_BAD_ARGUMENT, "%s: module %d begins at column %d of u, not at %d", name, i, m.col, columns);
    if (m.rows % 8 || m.row % 8 || m.row + m.rows > l->out) return qk_fail(QK_BAD_ARGUMENT, "%s: module %d has rows %d to %d of %d; multiples of 8 within them", name, i, m.row, m.row + m.rows, l->out);
    if (m.threshold > 65535) return qk_fail(QK_BAD_ARGUMENT, "%s: module %d has dropout threshold %u; at most 65535", name, i, m.threshold);
    columns += module_columns(m.rank);
  }
  if (columns != l->rank) return qk_fail(QK_BAD_ARGUMENT, "%s: the modules have %d columns of u, not %d", name, columns, l->rank);
  return QK_OK;
}

/* ---- Packs of many adapters at once. Block (run of elements, adapter): a thread an element of each pack in turn. */

constexpr int pack_most = 128, pack_threads = 256, pack_blocks = 64;  // adapters of a launch; blocks of an adapter

struct pack_problem {
  qk_lora l[pack_most];
};
static_assert(sizeof(pack_problem) <= 32764, "what a launch can take as arguments");

__global__ void __launch_bounds__(pack_threads) lora_pack_kernel(const __grid_constant__ pack_problem p) {
  take_turn();
  const qk_lora &l = p.l[blockIdx.y];
  const int first = blockIdx.x * pack_threads + threadIdx.x, step = gridDim.x * pack_threads;
  for (int e = first; e < l.out * l.rank; e += step) {
    const int column = e / l.rank, k = e % l.rank;
    int m = 0;
    while (m + 1 < l.n && k >= l.m[m + 1].col) m++;
    const qk_module &mod = l.m[m];
    const int c = part_place(l, mod, column), r = k - mod.col;
    ((bf16 *)l.pack_b)[e] = __float2bfloat16(c < 0 || r >= mod.rank ? 0.f : ((const float *)mod.b)[(int64_t)own_row(l, mod, c) * mod.rank + r]);
  }
  for (int m = 0; m < l.n; m++) {
    const qk_module &mod = l.m[m];
    const float *a = (const float *)mod.a, *b = (const float *)mod.b;
    bf16 *to = (bf16 *)l.pack_a + (int64_t)mod.col * l.in;
    for (int e = first; e < module_columns(mod.rank) * l.in; e += step) to[e] = __float2bfloat16(e < mod.rank * l.in ? a[e] : 0.f);
    if (!l.pack_bt) continue;
    to = (bf16 *)l.pack_bt + bt_offset(l, m);
    for (int e = first; e < mod.rank * mod.rows; e += step) {
      const int r = e / mod.rows, c = e % mod.rows;
      to[e] = __float2bfloat16(b[own_row(l, mod, c) * mod.rank + r]);
    }
  }
}

/* ---- down and up: one kernel, as B' stands where A does. */

enum down_side { DOWN, UP };

/* What module m of either side multiplies: a (rank, K), column c of the K being column at(c) of x. */
template <down_side Side> struct down_operand {
  const bf16 *a;
  int K;
  uint32_t threshold;
  QK_DEVICE_MEMBER down_operand(const qk_lora &l, int m)
      : a(Side == DOWN ? (const bf16 *)l.pack_a + (int64_t)l.m[m].col * l.in : (const bf16 *)l.pack_bt + bt_offset(l, m)),
        K(Side == DOWN ? l.in : l.m[m].rows), threshold(Side == DOWN ? l.m[m].threshold : 0) {}
  QK_DEVICE_MEMBER int64_t at(const qk_lora &l, int m, int c) const { return Side == DOWN ? c : part_column(l, l.m[m], c); }
};

constexpr int down_warps = 16;

/* Block (tile of tokens, module). Tiles: of 8 ranks. */
template <down_side Side, int Tiles>
__global__ void __launch_bounds__(down_warps * 32, Tiles <= 2 ? 2 : 1)
    lora_down_kernel(bf16 *u, const bf16 *x, const __grid_constant__ qk_lora l, dropout_batch batch, int T) {
  take_turn();
  __shared__ __align__(16) float shared[down_warps * 256];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.x * lora_tokens, m = blockIdx.y;
  const int t0 = first + lane / 4, t1 = t0 + 8;
  const down_operand<Side> operand(l, m);
  const int ld = Side == DOWN ? l.in : l.out;
  const bf16 *x0 = x + (int64_t)t0 * ld, *x1 = x + (int64_t)t1 * ld;
  dropout_token token0 = {}, token1 = {};
  uint2 key = {};
  if (operand.threshold) key = batch.key(), token0 = dropout_token_of(batch, t0, T), token1 = dropout_token_of(batch, t1, T);

  float acc[Tiles][4] = {};
#pragma unroll 4
  for (int base = warp * 32; base < operand.K; base += down_warps * 32) {
    const int c = base + 8 * (lane % 4);
    const bool inside = c < operand.K;
    const int64_t at = operand.at(l, m, inside ? c : 0);
    uint4 v0 = load16(x0 + at, inside && t0 < T), v1 = load16(x1 + at, inside && t1 < T);
    if (operand.threshold) {
      v0 = masked(v0, dropout_mask(key, c / 8, token0, l.m[m].stream, operand.threshold));
      v1 = masked(v1, dropout_mask(key, c / 8, token1, l.m[m].stream, operand.threshold));
    }
    down_multiply(acc, operand.a, l.m[m].rank, operand.K, c, v0, v1, lane);
  }
  down_store<down_warps>(u, l.rank, l.m[m].col, l.m[m].rank, acc, l.m[m].scale * dropout_scale(operand.threshold), shared,
                         first, T);
}

/* down of few tokens: block (token, column of u). */
constexpr int few_threads = 256;

__global__ void __launch_bounds__(few_threads)
    lora_down_few_kernel(bf16 *u, const bf16 *x, const __grid_constant__ qk_lora l, dropout_batch batch) {
  __shared__ float shared[few_threads / 32];
  const int t = blockIdx.x, column = blockIdx.y;
  const bf16 *a = (const bf16 *)l.pack_a + (int64_t)column * l.in;
  for (int e = 64 * threadIdx.x; e < l.in; e += 64 * few_threads) prefetch_line(a + e);
  take_turn();
  int m = 0;
  while (m + 1 < l.n && column >= l.m[m + 1].col) m++;
  const qk_module &mod = l.m[m];
  if (column - mod.col >= mod.rank) {
    if (threadIdx.x == 0) u[(int64_t)t * l.rank + column] = __float2bfloat16(0.f);
    return;
  }
  const bf16 *row = x + (int64_t)t * l.in;
  dropout_token token = {};
  uint2 key = {};
  if (mod.threshold) key = batch.key(), token = dropout_token_of(batch, t, t + 1);

  float sum = 0;
#pragma unroll 5
  for (int c = 8 * threadIdx.x; c < l.in; c += 8 * few_threads) {
    uint4 v = load16(row + c);
    if (mod.threshold) v = masked(v, dropout_mask(key, c / 8, token, mod.stream, mod.threshold));
    float f[8], w[8];
    unpack8(f, v), unpack8(w, load16(a + c));
#pragma unroll
    for (int j = 0; j < 8; j++) sum = fmaf(f[j], w[j], sum);
  }
  for (int o = 16; o; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x) return;
  for (int w = 1; w < few_threads / 32; w++) sum += shared[w];
  u[(int64_t)t * l.rank + column] = __float2bfloat16(sum * mod.scale * dropout_scale(mod.threshold));
}

template <down_side Side>
static qk_status run_down(const char *name, bf16 *u, const bf16 *x, const qk_lora *l, const qk_batch *b, cudaStream_t stream) {
  const int tiles = lora_rank_tiles(l);
  const auto kernel = tiles == 1 ? lora_down_kernel<Side, 1> : tiles == 2 ? lora_down_kernel<Side, 2> : lora_down_kernel<Side, 8>;
  return qk_launch(name, kernel, dim3(lora_tiles(b->T), l->n), down_warps * 32, stream, u, x, *l, dropout_batch(b), b->T);
}

qk_status lora_down(const char *name, bf16 *u, const bf16 *x, const qk_lora *l, const qk_batch *b, cudaStream_t stream) {
  if (const qk_status status = lora_check(name, l)) return status;
  if (lora_few(l, b)) return qk_launch(name, lora_down_few_kernel, dim3(b->T, l->rank), few_threads, stream, u, x, *l, dropout_batch(b));
  return run_down<DOWN>(name, u, x, l, b, stream);
}
qk_status lora_up(const char *name, bf16 *du, const bf16 *dy, const qk_lora *l, const qk_batch *b, cudaStream_t stream) {
  if (const qk_status status = lora_check(name, l)) return status;
  if (!l->pack_bt) return qk_fail(QK_BAD_ARGUMENT, "%s: du needs pack_bt", name);
  return run_down<UP>(name, du, dy, l, b, stream);
}

extern "C" qk_status qk_lora_pack(const qk_lora *l, int32_t n, qk_stream s) {
  const char *name = "qk_lora_pack";
  static thread_local pack_problem p;
  for (int i = 0; i < n; i++) {
    if (const qk_status status = lora_check(name, l + i)) return status;
    if (l[i].kind == QK_QKV && (l[i].h.D < 2 || l[i].h.D % 2)) return qk_fail(QK_BAD_ARGUMENT, "%s: heads of %d", name, l[i].h.D);
    const int64_t most = (int64_t)(l[i].in > l[i].out ? l[i].in : l[i].out) * l[i].rank;
    if (most > INT32_MAX) return qk_fail(QK_BAD_ARGUMENT, "%s: a pack of %lld numbers; at most 2^31", name, (long long)most);
  }
  for (int first = 0; first < n; first += pack_most) {
    const int count = n - first < pack_most ? n - first : pack_most;
    memcpy(p.l, l + first, count * sizeof(qk_lora));
    if (const qk_status status = qk_launch(name, lora_pack_kernel, dim3(pack_blocks, count), pack_threads, (cudaStream_t)s, p)) return status;
  }
  return QK_OK;
}
