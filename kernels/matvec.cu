/* Products of one to eight tokens with a weight: what decoding is made of.

Math    y = x * W' + bias + u * L' + residual, then rope;  or logits = x * W' in float32
Shapes  x (M,K), W (N,K), u (M,R), L (N,R), y, residual (M,N) bf16; bias (N) f32        Limits  M <= 8, K % 8 == 0
Numeric f32 sums: a warp's columns in order, then the warps in order; one rounding. A token's result does not depend on
        the others.
Bound   memory: W once
Form    A block of 8 warps takes 16 rows of W, its warps in turn 32 columns: mma.sync with W's rows as rows and tokens as n,
        on fragments loaded straight from memory (mma.cuh), so that every byte of W is read once, 16 at a time, and no
        shared memory stands between. Four steps of 3 loads a lane are in flight.
Oracle  model/cpu/linear.go, headloss.go */
#include "matvec.cuh"
#include "mma.cuh"

constexpr int matvec_warps = 8, matvec_rows = 16;

struct matvec_problem {
  linear_problem linear;  // c unused for logits
  float *logits;
  const int32_t *rows;  // of x; null: the tokens in order
};

/* What is added to the sum of output (token, row). */
QK_DEVICE float matvec_rest(const linear_problem &p, int64_t token, int64_t row) {
  float y = p.bias ? __ldg(p.bias + row) : 0.f;
  for (int r = 0; r < p.R; r++)
    y = fmaf(__bfloat162float(p.u[token * p.R + r]), __bfloat162float(p.lora_b[row * p.R + r]), y);
  return p.residual ? y + __bfloat162float(p.residual[token * p.N + row]) : y;
}

template <bool Logits>
__global__ void __launch_bounds__(matvec_warps * 32) matvec_kernel(const __grid_constant__ matvec_problem problem) {
  take_turn();
  __shared__ float sums[matvec_warps][matvec_max_tokens][matvec_rows];
  const linear_problem &p = problem.linear;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, i = lane / 4, q = lane % 4;
  const int64_t row = (int64_t)blockIdx.x * matvec_rows + i;
  const bf16 *w0 = p.b + row * p.K, *w1 = w0 + 8 * (int64_t)p.K;
  const bool in0 = row < p.N, in1 = row + 8 < p.N, in_x = i < p.M;
  const bf16 *x = p.a + (int64_t)(Logits ? (in_x ? __ldg(problem.rows + i) : 0) : i) * p.K;

  float d[4] = {};
#pragma unroll 4
  for (int base = warp * 32; base < p.K; base += matvec_warps * 32) {
    const int k = base + 8 * q;
    const uint4 a = load16(w0 + k, in0 && k < p.K), b = load16(w1 + k, in1 && k < p.K), v = load16(x + k, in_x && k < p.K);
    mma_k16(d, a.x, b.x, a.y, b.y, v.x, v.y);
    mma_k16(d, a.z, b.z, a.w, b.w, v.z, v.w);
  }
  // Rows i and i + 8 of W, tokens 2q and 2q + 1.
  sums[warp][2 * q][i] = d[0], sums[warp][2 * q + 1][i] = d[1];
  sums[warp][2 * q][i + 8] = d[2], sums[warp][2 * q + 1][i + 8] = d[3];
  __syncthreads();

  if (threadIdx.x >= matvec_max_tokens * matvec_rows) return;  // whole warps leave
  const int token = threadIdx.x / matvec_rows, r = threadIdx.x % matvec_rows;
  const int64_t n = (int64_t)blockIdx.x * matvec_rows + r;
  const bool inside = token < p.M && n < p.N;
  float y = 0;
#pragma unroll
  for (int w = 0; w < matvec_warps; w++) y += sums[w][token][r];
  if (Logits) {
    if (inside) problem.logits[token * (int64_t)p.N + n] = y;
    return;
  }
  if (inside) y += matvec_rest(p, token, n);
  float even = __shfl_xor_sync(~0u, y, 1), odd = y;
  if (r % 2 == 0) odd = even, even = y;
  if (!inside) return;
  if (n < p.rope_columns) rope_rotate(p.rope, __ldg(p.rope.pos + token), (int)n & ~1, even, odd);
  p.c[token * (int64_t)p.N + n] = __float2bfloat16(r % 2 ? odd : even);
}

static unsigned matvec_blocks(int N) { return (unsigned)((N + matvec_rows - 1) / matvec_rows); }

qk_status matvec_linear(const linear_problem &p, cudaStream_t stream) {
  if (p.M > matvec_max_tokens || p.b_n_inner) return qk_fail(QK_BAD_ARGUMENT, "%s: a matrix-vector product of %d tokens", p.name, p.M);
  const matvec_problem problem = {p, nullptr, nullptr};
  return qk_launch(p.name, matvec_kernel<false>, matvec_blocks(p.N), matvec_warps * 32, stream, problem);
}

qk_status matvec_logits(const char *name, float *logits, const bf16 *xn, const int32_t *rows, const bf16 *w, int n, int V, int C,
                        cudaStream_t stream) {
  matvec_problem problem = {{}, logits, rows};
  problem.linear.name = name, problem.linear.a = xn, problem.linear.b = w;
  problem.linear.M = n, problem.linear.N = V, problem.linear.K = C;
  return qk_launch(name, matvec_kernel<true>, matvec_blocks(V), matvec_warps * 32, stream, problem);
}
