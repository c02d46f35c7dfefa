/* Products of one to eight tokens with a weight: what decoding is made of.

Math    y = x * W' + bias + u * L' + residual, then rope;  or logits = x * W' in float32
Shapes  x (M,K), W (N,K), u (M,R), L (N,R), y, residual (M,N) bf16; bias (N) f32        Limits  M <= 8, K % 8 == 0, R % 8 == 0
Numeric f32 sums: a warp's columns in order, then the warps in order; one rounding. A token's result does not depend on
        the others.
Bound   memory: W once
Form    A block of 8 warps takes 16 rows of W, its warps in turn 32 columns: mma.sync with W's rows as rows and tokens as n,
        on fragments loaded straight from memory (mma.cuh), so that every byte of W is read once, 16 at a time, and no
        shared memory stands between. A warp multiplies with a run of steps while its part of W for the next is on its
        way, and asks for the first before the kernel's turn: no kernel that a product follows writes weights.
Oracle  model/cpu/linear.go, headloss.go */
#include "matvec.cuh"

constexpr int matvec_warps = 8;
constexpr int matvec_run = 2;  // steps

struct matvec_problem {
  linear_problem linear;  // c unused for logits
  float *logits;
  const int32_t *rows;  // of x; null: the tokens in order
};

/* A lane's part of W for a run of steps: of rows i and i + 8. */
struct matvec_part {
  uint4 a[matvec_run], b[matvec_run];
  QK_DEVICE_MEMBER void load(const bf16 *w0, const bf16 *w1, bool in0, bool in1, int k, int K) {
#pragma unroll
    for (int s = 0; s < matvec_run; s++, k += matvec_warps * 32) a[s] = load16(w0 + k, in0 && k < K), b[s] = load16(w1 + k, in1 && k < K);
  }
};

template <bool Logits>
__global__ void __launch_bounds__(matvec_warps * 32) matvec_kernel(const __grid_constant__ matvec_problem problem) {
  __shared__ matvec_sums<matvec_max_tokens> sums[matvec_warps];
  const linear_problem &p = problem.linear;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, i = lane / 4, q = lane % 4;
  const int64_t row = (int64_t)blockIdx.x * matvec_rows + i;
  const bf16 *w0 = p.b + row * p.K, *w1 = w0 + 8 * (int64_t)p.K;
  const bool in0 = row < p.N, in1 = row + 8 < p.N, in_x = i < p.M;
  matvec_part part, next;
  part.load(w0, w1, in0, in1, warp * 32 + 8 * q, p.K);
  take_turn();
  const bf16 *x = p.a + (int64_t)(Logits ? (in_x ? __ldg(problem.rows + i) : 0) : i) * p.K;

  float d[4] = {};
  constexpr int step = matvec_warps * 32;
  for (int base = warp * 32; base < p.K; base += matvec_run * step) {
    const int k = base + 8 * q;
    uint4 v[matvec_run];
#pragma unroll
    for (int s = 0; s < matvec_run; s++) v[s] = load16(x + k + s * step, in_x && k + s * step < p.K);
    next.load(w0, w1, in0, in1, k + matvec_run * step, p.K);
#pragma unroll
    for (int s = 0; s < matvec_run; s++) {
      mma_k16(d, part.a[s].x, part.b[s].x, part.a[s].y, part.b[s].y, v[s].x, v[s].y);
      mma_k16(d, part.a[s].z, part.b[s].z, part.a[s].w, part.b[s].w, v[s].z, v[s].w);
    }
    part = next;
  }
  sums[warp][2 * q][i] = d[0], sums[warp][2 * q + 1][i] = d[1];
  sums[warp][2 * q][i + 8] = d[2], sums[warp][2 * q + 1][i + 8] = d[3];
  __syncthreads();
  if (threadIdx.x >= matvec_max_tokens * matvec_rows) return;
  const float y = matvec_total<matvec_max_tokens>(sums, matvec_warps, threadIdx.x);
  const int token = threadIdx.x / matvec_rows, n = blockIdx.x * matvec_rows + threadIdx.x % matvec_rows;
  if (!Logits)
    matvec_write(p, token, n, p.N, y);
  else if (token < p.M && n < p.N)
    problem.logits[token * (int64_t)p.N + n] = y;
}

static unsigned matvec_blocks(int N) { return (unsigned)((N + matvec_rows - 1) / matvec_rows); }

static qk_status matvec_launch(const matvec_problem &p, cudaStream_t stream) {
  const auto kernel = p.logits ? matvec_kernel<true> : matvec_kernel<false>;
  return qk_launch(p.linear.name, kernel, matvec_blocks(p.linear.N), matvec_warps * 32, stream, p);
}

qk_status matvec_linear(const linear_problem &p, cudaStream_t stream) {
  if (p.M > matvec_max_tokens || p.b_n_inner) return qk_fail(QK_BAD_ARGUMENT, "%s: a matrix-vector product of %d tokens", p.name, p.M);
  return matvec_launch({p, nullptr, nullptr}, stream);
}

qk_status matvec_logits(const char *name, float *logits, const bf16 *xn, const int32_t *rows, const bf16 *w, int n, int V, int C,
                        cudaStream_t stream) {
  matvec_problem problem = {{}, logits, rows};
  problem.linear.name = name, problem.linear.a = xn, problem.linear.b = w;
  problem.linear.M = n, problem.linear.N = V, problem.linear.K = C;
  return matvec_launch(problem, stream);
}
