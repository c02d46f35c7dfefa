/* The optimizer: norm of the gradients with the guard against what is not finite, and AdamW (Loshchilov and Hutter, 2019).

Math    norm[0] = sqrt(sum g^2), norm[1] = how many g are not finite
        g *= min(1, max_norm/(norm[0] + 1e-6));  m += (g - m)*(1 - b1);  v = b2*v + (1 - b2)*g^2
        p = p*(1 - lr*decay) - lr/(1 - b1^t) * m / (sqrt(v)/sqrt(1 - b2^t) + eps)
Shapes  all (n) f32                                                          Limits  n may exceed 2^31
Numeric squares in float64 over fixed pieces, added in index order. AdamW rounds after each operation, where torch and the
        CPU backend do: no product is fused with the sum it enters. Nothing is written where norm[0] is not finite.
Bound   memory: 4 bytes a gradient, 28 bytes a parameter
Oracle  model/cpu/adamw.go */
#include <math.h>

#include "common.cuh"
#include "status.h"

/* ---- Norm: a block takes pieces of norm_piece numbers, past norm_max_blocks of them more than one; then one block adds
what the blocks found. */

constexpr int norm_threads = 256, norm_piece = 1 << 14, norm_max_blocks = 1 << 16;

struct norm_partial {
  double squares, bad;
};

/* Sum over the block in a fixed tree; thread 0 has it. */
QK_DEVICE norm_partial norm_reduce(norm_partial v, norm_partial *shared) {
  for (int o = 16; o; o /= 2) {
    v.squares += __shfl_xor_sync(~0u, v.squares, o);
    v.bad += __shfl_xor_sync(~0u, v.bad, o);
  }
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < norm_threads / 32; w++) v.squares += shared[w].squares, v.bad += shared[w].bad;
  return v;
}

__global__ void __launch_bounds__(norm_threads) grad_norm_kernel(norm_partial *partials, const float *grads, int64_t n) {
  take_turn();
  __shared__ norm_partial shared[norm_threads / 32];
  norm_partial v = {};
  for (int64_t first = (int64_t)blockIdx.x * norm_piece; first < n; first += (int64_t)gridDim.x * norm_piece) {
#pragma unroll 4
    for (int i = threadIdx.x * 4; i < norm_piece; i += norm_threads * 4) {
      float g[4] = {};
      if (first + i + 3 < n) {
        const float4 f = __ldg((const float4 *)(grads + first + i));
        g[0] = f.x, g[1] = f.y, g[2] = f.z, g[3] = f.w;
      } else {
        for (int j = 0; j < 3; j++)
          if (first + i + j < n) g[j] = grads[first + i + j];
      }
#pragma unroll
      for (int j = 0; j < 4; j++) {
        v.squares = fma((double)g[j], (double)g[j], v.squares);
        v.bad += !isfinite(g[j]);
      }
    }
  }
  v = norm_reduce(v, shared);
  if (threadIdx.x == 0) partials[blockIdx.x] = v;
}

__global__ void __launch_bounds__(norm_threads) grad_norm_sum_kernel(float *norm, const norm_partial *partials, int64_t n) {
  take_turn();
  __shared__ norm_partial shared[norm_threads / 32];
  norm_partial v = {};
  for (int64_t i = threadIdx.x; i < n; i += norm_threads) v.squares += partials[i].squares, v.bad += partials[i].bad;
  v = norm_reduce(v, shared);
  if (threadIdx.x == 0) norm[0] = (float)sqrt(v.squares), norm[1] = (float)v.bad;
}

/* ---- AdamW. Groups of parameters with constants of their own, so many in a launch. */

constexpr int adamw_threads = 256, adamw_max_groups = 64;

struct adamw_group {
  int64_t end;               // first parameter after the group
  float keep, step, root;    // 1 - lr*decay, lr/(1 - b1^t), sqrt(1 - b2^t)
};
struct adamw_problem {
  float *params, *m, *v;
  const float *grads, *norm;
  float beta2, rest1, rest2, eps, max_norm;  // rest: 1 - beta
  int groups;
  int64_t begin;  // of the launch's first group
  adamw_group group[adamw_max_groups];
};

__global__ void __launch_bounds__(adamw_threads) adamw_kernel(const __grid_constant__ adamw_problem p) {
  take_turn();
  const float norm = __ldg(p.norm);
  if (!isfinite(norm)) return;
  const float clip = p.max_norm > 0 ? fminf(1.f, p.max_norm / __fadd_rn(norm, 1e-6f)) : 1.f;
  const int64_t end = p.group[p.groups - 1].end;
  int k = 0;
  for (int64_t i = p.begin + (int64_t)blockIdx.x * adamw_threads + threadIdx.x; i < end; i += (int64_t)gridDim.x * adamw_threads) {
    while (i >= p.group[k].end) k++;
    const adamw_group &group = p.group[k];
    const float g = __fmul_rn(__ldg(p.grads + i), clip);
    float m = p.m[i], v = p.v[i];
    m = __fadd_rn(m, __fmul_rn(__fsub_rn(g, m), p.rest1));
    v = __fadd_rn(__fmul_rn(v, p.beta2), __fmul_rn(__fmul_rn(p.rest2, g), g));
    const float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), group.root), p.eps);
    p.m[i] = m, p.v[i] = v;
    p.params[i] = __fsub_rn(__fmul_rn(p.params[i], group.keep), __fdiv_rn(__fmul_rn(group.step, m), denominator));
  }
}

static int64_t norm_blocks(int64_t n) {
  const int64_t pieces = (n + norm_piece - 1) / norm_piece;
  return pieces < norm_max_blocks ? pieces : norm_max_blocks;
}

extern "C" {

int64_t qk_grad_norm_work(int64_t n) { return norm_blocks(n) * (int64_t)sizeof(norm_partial); }

qk_status qk_grad_norm(qk_ptr norm, qk_ptr grads, int64_t n, qk_ptr work, int64_t work_bytes, qk_stream s) {
  if (n < 1) return qk_fail(QK_BAD_ARGUMENT, "qk_grad_norm: %lld gradients", (long long)n);
  if (grads % 16) return qk_fail(QK_BAD_ARGUMENT, "qk_grad_norm: gradients at %p are not aligned to 16 bytes", (void *)grads);
  if (work_bytes < qk_grad_norm_work(n)) return qk_fail(QK_BAD_ARGUMENT, "qk_grad_norm: %lld bytes of work; at least %lld", (long long)work_bytes, (long long)qk_grad_norm_work(n));
  const auto stream = (cudaStream_t)s;
  const auto partials = (norm_partial *)work;
  const qk_status status = qk_launch("qk_grad_norm", grad_norm_kernel, (unsigned)norm_blocks(n), norm_threads, stream, partials, (const float *)grads, n);
  return status ? status : qk_launch("qk_grad_norm", grad_norm_sum_kernel, 1, norm_threads, stream, (float *)norm, partials, norm_blocks(n));
}

qk_status qk_adamw(qk_ptr params, qk_ptr m, qk_ptr v, qk_ptr grads, qk_ptr norm, int64_t n, const qk_adamw_group *groups,
                   int32_t n_groups, int32_t step, double beta1, double beta2, double eps, double max_norm, qk_stream s) {
  adamw_problem p = {(float *)params, (float *)m, (float *)v, (const float *)grads, (const float *)norm, (float)beta2, (float)(1 - beta1),
                     (float)(1 - beta2), (float)eps, (float)max_norm};
  int64_t end = 0;
  for (int i = 0; i < n_groups; i++) end += groups[i].len;
  if (end != n || step < 1) return qk_fail(QK_BAD_ARGUMENT, "qk_adamw: step %d; groups of %lld parameters out of %lld", step, (long long)end, (long long)n);
  const double c1 = 1 - pow(beta1, step), c2 = 1 - pow(beta2, step);
  end = 0;
  for (int i = 0; i < n_groups; i++) {
    const qk_adamw_group &g = groups[i];
    if (p.groups == 0) p.begin = end;
    end += g.len;
    p.group[p.groups++] = {end, (float)(1 - g.lr * g.weight_decay), (float)(g.lr / c1), (float)sqrt(c2)};
    if (p.groups < adamw_max_groups && i + 1 < n_groups) continue;
    const int64_t blocks = (end - p.begin + adamw_threads - 1) / adamw_threads;
    const unsigned grid = (unsigned)(blocks < 1 << 20 ? blocks : 1 << 20);
    if (grid)
      if (const qk_status status = qk_launch("qk_adamw", adamw_kernel, grid, adamw_threads, (cudaStream_t)s, p)) return status;
    p.groups = 0;
  }
  return QK_OK;
}

}  // extern "C"
