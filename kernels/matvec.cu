/* Products of one to eight tokens with a weight: what decoding is made of.

Math    y = x * W' + bias + u * L' + residual, then rope;  or logits = x * W' in float32
Shapes  x (M,K), W (N,K), u (M,R), L (N,R), y, residual (M,N) bf16; bias (N) f32        Limits  M <= 8, K % 8 == 0
Numeric f32 sums: a warp's columns in order, then the warps in order; one rounding. A token's result does not depend on
        the others.
Bound   memory: W once, in 16 bits or in NF4, whose values are those of nf4.cu
Form    A block of 8 warps takes 16 rows of W, its warps in turn 32 columns: mma.sync with W's rows as rows and tokens as n,
        on fragments loaded straight from memory (mma.cuh), so that every byte of W is read once, 16 at a time, and no
        shared memory stands between. A warp multiplies with a run of steps while its part of W for the next is on its
        way, and asks for the first before the kernel's turn: no kernel that a product follows writes weights. NF4: a
        step is a block of 64 columns, decoded through tables in shared memory; on a Hopper card the nearly nine
        instructions of an element are the bound, of which the decoding itself needs half.
Oracle  model/cpu/linear.go, headloss.go */
#include "matvec.cuh"
#include "mma.cuh"
#include "nf4.cuh"

constexpr int matvec_warps = 8, matvec_rows = 16;
constexpr int matvec_run = 2, matvec_nf4_run = 2;  // steps

struct matvec_problem {
  linear_problem linear;  // c unused for logits
  float *logits;
  const int32_t *rows;  // of x; null: the tokens in order
};

/* What is added to the sum of output (token, row). */
QK_DEVICE float matvec_rest(const linear_problem &p, int64_t token, int64_t row) {
  float y = p.bias ? __ldg(p.bias + row) : 0.f;
#pragma unroll 2
  for (int r = 0; r < p.R; r += 8) {
    float u[8], l[8];
    unpack8(u, load16(p.u + token * p.R + r)), unpack8(l, load16(p.lora_b + row * p.R + r));
#pragma unroll
    for (int j = 0; j < 8; j++) y = fmaf(u[j], l[j], y);
  }
  return p.residual ? y + __bfloat162float(p.residual[token * p.N + row]) : y;
}

/* Sums of the block's rows of W with the tokens: a lane's, of rows i and i + 8, tokens 2q and 2q + 1. */
typedef float matvec_sums[matvec_warps][matvec_max_tokens][matvec_rows];

/* Adds up the warps, and writes what belongs to them. */
template <bool Logits> QK_DEVICE void matvec_finish(const matvec_problem &problem, matvec_sums &sums, const float (&d)[4]) {
  const linear_problem &p = problem.linear;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, i = lane / 4, q = lane % 4;
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
  __shared__ matvec_sums sums;
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
  matvec_finish<Logits>(problem, sums, d);
}

/* A row of W in NF4. */
struct matvec_codes {
  const qk_nf4_part *part;
  const uint2 *codes;
  int64_t block;  // the row's first
  QK_DEVICE_MEMBER matvec_codes(const qk_nf4_weight &w, int64_t row) {
    const nf4_row at = nf4_row_of(w, (int)row);
    part = w.part + at.part;
    block = (int64_t)at.row * (w.cols / nf4_block);
    codes = (const uint2 *)part->codes + block * (nf4_block / 16);
  }
};

/* A lane's part of W for a run of steps, a step being a block of NF4, 16 columns a lane. */
struct matvec_nf4_part {
  uint2 c0[matvec_nf4_run], c1[matvec_nf4_run];
  nf4_absmax s0[matvec_nf4_run], s1[matvec_nf4_run];
  QK_DEVICE_MEMBER void load(const matvec_codes &r0, const matvec_codes &r1, int block, int blocks) {
#pragma unroll
    for (int s = 0; s < matvec_nf4_run; s++, block += matvec_warps) {
      const int at = min(block, blocks - 1);  // beyond the last, x is zeros
      c0[s] = __ldg(r0.codes + at * 4 + threadIdx.x % 4), c1[s] = __ldg(r1.codes + at * 4 + threadIdx.x % 4);
      s0[s].load(*r0.part, r0.block + at), s1[s].load(*r1.part, r1.block + at);
    }
  }
};

__global__ void __launch_bounds__(matvec_warps * 32)
    matvec_nf4_kernel(const __grid_constant__ matvec_problem problem, const __grid_constant__ qk_nf4_weight w) {
  __shared__ matvec_sums sums;
  __shared__ nf4_tables tables;
  const linear_problem &p = problem.linear;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, i = lane / 4, q = lane % 4, blocks = p.K / nf4_block;
  const int64_t row = (int64_t)blockIdx.x * matvec_rows + i;  // N is divisible by 8: rows beyond it are whole halves of the block
  const bool in1 = row + 8 < p.N, in_x = i < p.M;
  const matvec_codes r0(w, row), r1(w, in1 ? row + 8 : row);
  matvec_nf4_part part, next;
  part.load(r0, r1, warp, blocks);
  const float offset0 = nf4_offset(*r0.part), offset1 = nf4_offset(*r1.part);
  tables.fill();
  __syncthreads();
  take_turn();
  const bf16 *x = p.a + (int64_t)i * p.K + 16 * q;

  float d[4] = {};
  for (int block = warp; block < blocks; block += matvec_nf4_run * matvec_warps) {
    uint4 v[matvec_nf4_run][2];
#pragma unroll
    for (int s = 0; s < matvec_nf4_run; s++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int at = block + s * matvec_warps;
        v[s][h] = load16(x + at * nf4_block + 8 * h, in_x && at < blocks);
      }
    next.load(r0, r1, block + matvec_nf4_run * matvec_warps, blocks);
#pragma unroll
    for (int s = 0; s < matvec_nf4_run; s++) {
      const float s0 = tables.absmax(*r0.part, part.s0[s], offset0), s1 = tables.absmax(*r1.part, part.s1[s], offset1);
      const uint4 a0 = tables.eight(part.c0[s].x, s0), b0 = tables.eight(part.c1[s].x, s1);
      mma_k16(d, a0.x, b0.x, a0.y, b0.y, v[s][0].x, v[s][0].y);
      mma_k16(d, a0.z, b0.z, a0.w, b0.w, v[s][0].z, v[s][0].w);
      const uint4 a1 = tables.eight(part.c0[s].y, s0), b1 = tables.eight(part.c1[s].y, s1);
      mma_k16(d, a1.x, b1.x, a1.y, b1.y, v[s][1].x, v[s][1].y);
      mma_k16(d, a1.z, b1.z, a1.w, b1.w, v[s][1].z, v[s][1].w);
    }
    part = next;
  }
  matvec_finish<false>(problem, sums, d);
}

static unsigned matvec_blocks(int N) { return (unsigned)((N + matvec_rows - 1) / matvec_rows); }

qk_status matvec_linear(const linear_problem &p, cudaStream_t stream) {
  if (p.M > matvec_max_tokens || p.b_n_inner) return qk_fail(QK_BAD_ARGUMENT, "%s: a matrix-vector product of %d tokens", p.name, p.M);
  const matvec_problem problem = {p, nullptr, nullptr};
  return qk_launch(p.name, matvec_kernel<false>, matvec_blocks(p.N), matvec_warps * 32, stream, problem);
}

qk_status matvec_nf4(const linear_problem &p, const qk_nf4_weight &w, cudaStream_t stream) {
  if (p.M < 1 || p.M > matvec_max_tokens) return qk_fail(QK_BAD_ARGUMENT, "%s: a matrix-vector product of %d tokens; 1 to %d", p.name, p.M, matvec_max_tokens);
  const matvec_problem problem = {p, nullptr, nullptr};
  return qk_launch(p.name, matvec_nf4_kernel, matvec_blocks(p.N), matvec_warps * 32, stream, problem, w);
}

qk_status matvec_logits(const char *name, float *logits, const bf16 *xn, const int32_t *rows, const bf16 *w, int n, int V, int C,
                        cudaStream_t stream) {
  matvec_problem problem = {{}, logits, rows};
  problem.linear.name = name, problem.linear.a = xn, problem.linear.b = w;
  problem.linear.M = n, problem.linear.N = V, problem.linear.K = C;
  return qk_launch(name, matvec_kernel<true>, matvec_blocks(V), matvec_warps * 32, stream, problem);
}
