/* The head: loss of the label rows with its gradient, logits, and the divergence of two models.

Math    nll = log sum exp(logits) - (1-eps) * logit(target) - eps * mean(logits), eps the label smoothing
        hit = target has the largest logit, of equals the lowest id
        dlogits = loss_scale * (softmax(logits) - (1-eps) * onehot(target) - eps/V);  dxn = dlogits * W on label rows, zero on others
        kl = sum p*(exp(d) - 1 - d), d = ln q - ln p: no term is negative, and where p is near q they are of second order
Shapes  xn, dxn (T,C), W (V,C) bf16; nll, hit, kl (N) f32; logits (N,V) f32     Limits  C % 8 == 0; V % 8 == 0 with dxn
Numeric nll and hit from f32 statistics of the f32 sums; dlogits from logits in float16, rounded to bf16, in whose place
        they go. The mean, too, is of the logits in float16, whose roundings cancel. Rows do not depend on each other.
Bound   tensor cores: two products of N x V x C; the softmax moves 4 bytes a logit
Form    By chunks of label rows, head_chunk at most and as the scratch memory allows. A chunk: product with statistics
        (head_sm90.cuh, head_product.cuh), a block a row for softmax, the product of dlogits with W (qk_linear_bwd), rows put
        back. Logits alone and the divergence take the product for all cards.
Oracle  model/cpu/headloss.go */
#include "head_sm90.cuh"
#include "matvec.cuh"
#include "status.h"

constexpr int head_chunk = 1024;  // rows: fewer starve the product of dlogits with W
constexpr int head_row_threads = 512, head_row_warps = head_row_threads / 32;

static int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

/* Rows of the next chunk of those left, chunks of like size: at most what fits and head_chunk, in whole tiles but for the
last. */
static int chunk_rows(int left, int64_t fit) {
  const int most = (int)(fit < head_chunk ? fit : head_chunk);
  if (left <= most) return left;
  const int chunks = (left + most - 1) / most, even = ((left + chunks - 1) / chunks + head_tile - 1) / head_tile * head_tile;
  return even < most ? even : most;
}

/* Sum or maximum over the block, to all threads; fixed order. shared: head_row_warps. */
template <class T, class Op> QK_DEVICE T block_reduce(T v, T *shared, Op op) {
  for (int o = 16; o; o /= 2) v = op(v, __shfl_xor_sync(~0u, v, o));
  __syncthreads();  // shared is free
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  v = shared[0];
  for (int w = 1; w < head_row_warps; w++) v = op(v, shared[w]);
  return v;
}
struct add_op {
  template <class T> QK_DEVICE_MEMBER T operator()(T a, T b) const { return a + b; }
};
struct max_op {
  QK_DEVICE_MEMBER float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct min_op {
  QK_DEVICE_MEMBER int operator()(int a, int b) const { return min(a, b); }
};

/* What the gradients of a row's logits are made from: loss_scale, loss_scale * eps/V, that of the target's logit without the
latter, log sum exp. */
struct head_row {
  float scale, each, own, log_sum;
  int target;
};
/* The gradients of eight logits, from that of `column` on. */
QK_DEVICE uint4 head_gradients(const uint4 &logits, const head_row &r, int column) {
  const __half2 *h = (const __half2 *)&logits;
  uint32_t out[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float2 l = __half22float2(h[j]);
    float d[2] = {l.x, l.y};
#pragma unroll
    for (int e = 0; e < 2; e++)
      d[e] = (column + 2 * j + e == r.target ? r.own : r.scale * __expf(d[e] - r.log_sum)) - r.each;
    out[j] = pack_bf16(d[0], d[1]);
  }
  return make_uint4(out[0], out[1], out[2], out[3]);
}
QK_DEVICE float head_sum(const uint4 &logits) {
  const __half2 *h = (const __half2 *)&logits;
  float sum = 0;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float2 l = __half22float2(h[j]);
    sum += l.x + l.y;
  }
  return sum;
}

/* A block a row: nll and hit from the parts' statistics, and with smoothed labels from the logits, which are zero beyond V;
then, with a gradient, dlogits in their place. */
__global__ void __launch_bounds__(head_row_threads)
    head_softmax_kernel(float *nll, float *hit, const head_problem p, const int32_t *header, bool gradient) {
  take_turn();
  __shared__ float shared[head_row_warps];
  __shared__ int shared_at[head_row_warps];
  const int64_t row = blockIdx.x;
  const int parts = p.parts, target = __ldg(p.targets + row);
  const head_stat *stats = p.stats + row * parts;
  float top = -INFINITY;
  for (int i = threadIdx.x; i < parts; i += head_row_threads) top = fmaxf(top, stats[i].top);
  top = block_reduce(top, shared, max_op());
  float sum = 0;
  int at = 0x7fffffff;
  for (int i = threadIdx.x; i < parts; i += head_row_threads) {
    const head_stat s = stats[i];
    if (s.at == 0x7fffffff) continue;  // all of it beyond V
    sum += s.sum * __expf(s.top - top);
    if (s.top == top) at = min(at, s.at);
  }
  sum = block_reduce(sum, shared, add_op());
  at = block_reduce(at, shared_at, min_op());
  const float own = p.target_logit[row], log_sum = top + logf(sum), smoothing = __int_as_float(__ldg(header + 7));
  if (threadIdx.x == 0) nll[row] = logf(sum) - (own - top), hit[row] = at == target;
  uint4 *logits = (uint4 *)((__half *)p.logits + row * p.ld);
  if (smoothing > 0) {
    float total = 0;
    for (int i = threadIdx.x; i < p.ld / 8; i += head_row_threads) total += head_sum(logits[i]);
    total = block_reduce(total, shared, add_op());
    if (threadIdx.x == 0) nll[row] = logf(sum) - (1.f - smoothing) * (own - top) - smoothing * (total / p.V - top);
  }
  if (!gradient) return;

  const float scale = __int_as_float(__ldg(header + 5));
  const head_row r = {scale, scale * smoothing / p.V, scale * (__expf(own - log_sum) - (1.f - smoothing)), log_sum, target};
  for (int i = threadIdx.x; i < p.ld / 8; i += head_row_threads) logits[i] = head_gradients(logits[i], r, 8 * i);
}

/* dxn[rows[i]] = dx[i], and the way there: x[i] = xn[rows[i]]; a block a row. */
__global__ void __launch_bounds__(256) head_scatter_kernel(uint4 *dxn, const uint4 *dx, const int32_t *rows, int units) {
  take_turn();
  const int64_t from = blockIdx.x, to = __ldg(rows + from);
  for (int i = threadIdx.x; i < units; i += 256) dxn[to * units + i] = dx[from * units + i];
}
__global__ void __launch_bounds__(256) head_gather_kernel(uint4 *x, const uint4 *xn, const int32_t *rows, int units) {
  take_turn();
  const int64_t to = blockIdx.x, from = __ldg(rows + to);
  for (int i = threadIdx.x; i < units; i += 256) x[to * units + i] = __ldg(xn + from * units + i);
}

/* The product of a chunk with its statistics: on Hopper from a gathered copy of the rows, in x. */
template <head_output Output>
static qk_status head_forward(const char *name, head_problem p, bf16 *x, const qk_device &device, bool sm90, cudaStream_t stream) {
  if (!sm90) return head_product<Output>(name, p, stream);
  if (const qk_status status = qk_launch(name, head_gather_kernel, p.n, 256, stream, (uint4 *)x, (const uint4 *)p.xn, p.rows, p.C / 8)) return status;
  p.xn = x;
  return head_sm90<Output>(name, p, device, stream);
}

/* A block a row: kl of logits p and q (n,V). */
__global__ void __launch_bounds__(head_row_threads) kl_kernel(float *kl, const float *p, const float *q, int V) {
  take_turn();
  __shared__ float shared[head_row_warps];
  __shared__ double shared_sum[head_row_warps];
  const int64_t row = blockIdx.x;
  p += row * V, q += row * V;
  float top_p = -INFINITY, top_q = -INFINITY;
  for (int i = threadIdx.x; i < V; i += head_row_threads) top_p = fmaxf(top_p, p[i]), top_q = fmaxf(top_q, q[i]);
  top_p = block_reduce(top_p, shared, max_op()), top_q = block_reduce(top_q, shared, max_op());
  double sum_p = 0, sum_q = 0;
  for (int i = threadIdx.x; i < V; i += head_row_threads) sum_p += expf(p[i] - top_p), sum_q += expf(q[i] - top_q);
  sum_p = block_reduce(sum_p, shared_sum, add_op()), sum_q = block_reduce(sum_q, shared_sum, add_op());
  const float log_p = (float)log(sum_p), gap = (float)(log(sum_q) - log(sum_p));
  double sum = 0;
  for (int i = threadIdx.x; i < V; i += head_row_threads) {
    const float own = p[i] - top_p - log_p, d = (q[i] - top_q) - (p[i] - top_p) - gap;
    sum += expf(own) * (expm1f(d) - d);
  }
  sum = block_reduce(sum, shared_sum, add_op());
  if (threadIdx.x == 0) kl[row] = (float)sum;
}

static qk_status head_check(const char *name, int C, int V) {
  if (C < 8 || C % 8) return qk_fail(QK_BAD_ARGUMENT, "%s: %d columns; they must be divisible by 8", name, C);
  if (V < 1) return qk_fail(QK_BAD_ARGUMENT, "%s: a vocabulary of %d", name, V);
  return QK_OK;
}

/* Whether Hopper's product is the one to run. */
static qk_status head_variant(bool *sm90, int32_t variant, const qk_device &device, const char *name) {
  const bool has = QK_HAS_SM90 && device.hopper();
  if (variant < 0 || variant > 2) return qk_fail(QK_NO_VARIANT, "%s: there is no variant %d", name, variant);
  if (variant == 2 && !has) return qk_fail(QK_NO_VARIANT, "%s: the sm_90a kernels are not built in, or this card (capability %d.%d) does not run them", name, device.major, device.minor);
  *sm90 = has && variant != 1;
  return QK_OK;
}

/* The scratch memory of a chunk of so many rows. */
struct head_work {
  int64_t ld, stats, target, dx, bytes;  // offsets; logits come first
  head_work(int64_t rows, int C, int V)
      : ld(((int64_t)V + 7) / 8 * 8), stats(aligned(rows * ld * 2)),
        target(stats + aligned(rows * head_parts(V) * (int64_t)sizeof(head_stat))), dx(target + aligned(rows * 4)),
        bytes(dx + aligned(rows * C * 2)) {}
};

extern "C" {

int64_t qk_head_loss_work(int32_t N, int32_t C, int32_t V) { return head_work(N < head_chunk ? N : head_chunk, C, V).bytes; }

qk_status qk_head_loss(qk_ptr dxn, qk_ptr nll, qk_ptr hit, qk_ptr xn, qk_ptr head, const qk_batch *b, int32_t C, int32_t V,
                       qk_ptr work, int64_t work_bytes, qk_stream s, int32_t variant) {
  const char *name = "qk_head_loss";
  if (const qk_status status = head_check(name, C, V)) return status;
  if (dxn && V % 8) return qk_fail(QK_BAD_ARGUMENT, "%s: a vocabulary of %d; its gradient takes one divisible by 8", name, V);
  const auto stream = (cudaStream_t)s;
  qk_device device;
  qk_status status = qk_current_device(&device, name);
  bool sm90 = false;
  if (!status) status = head_variant(&sm90, variant, device, name);
  if (status) return status;
  if (dxn) {
    const cudaError_t error = cudaMemsetAsync((void *)dxn, 0, (size_t)b->T * C * 2, stream);
    if (error != cudaSuccess) return qk_launched(name, error);
  }
  int64_t fit = b->N < head_chunk ? b->N : head_chunk;
  while (fit > 0 && head_work(fit, C, V).bytes > work_bytes) fit--;
  if (b->N && !fit) return qk_fail(QK_BAD_ARGUMENT, "%s: %lld bytes of work; a row takes %lld", name, (long long)work_bytes, (long long)head_work(1, C, V).bytes);

  for (int done = 0, n; done < b->N; done += n) {
    n = chunk_rows(b->N - done, fit);
    const head_work place(n, C, V);
    const qk_ptr dx = work + place.dx;
    const int32_t *rows = (const int32_t *)b->rows + done;
    const head_problem p = {(const bf16 *)xn, (const bf16 *)head, rows, n, C, V, (void *)work, place.ld,
                            (head_stat *)(work + place.stats), sm90 ? (V + head_sm90_part - 1) / head_sm90_part : head_parts(V),
                            (float *)(work + place.target), (const int32_t *)b->targets + done};
    status = dxn || b->smoothing > 0 ? head_forward<LOGITS_F16>(name, p, (bf16 *)dx, device, sm90, stream) : head_forward<STATS_ALONE>(name, p, (bf16 *)dx, device, sm90, stream);
    if (!status) status = qk_launch(name, head_softmax_kernel, n, head_row_threads, stream, (float *)nll + done, (float *)hit + done, p, (const int32_t *)b->header, dxn != 0);
    if (!status && dxn) status = qk_linear_bwd(dx, work, head, n, V, C, s, variant);
    if (!status && dxn) status = qk_launch(name, head_scatter_kernel, n, 256, stream, (uint4 *)dxn, (const uint4 *)dx, rows, C / 8);
    if (status) return status;
  }
  return QK_OK;
}

qk_status qk_logits(qk_ptr logits, qk_ptr xn, qk_ptr head, const qk_batch *b, int32_t C, int32_t V, qk_stream s) {
  const char *name = "qk_logits";
  if (const qk_status status = head_check(name, C, V)) return status;
  if (b->N == 0) return QK_OK;
  const auto stream = (cudaStream_t)s;
  const auto rows = (const int32_t *)b->rows;
  if (b->N <= matvec_max_tokens)
    return matvec_logits(name, (float *)logits, (const bf16 *)xn, rows, (const bf16 *)head, b->N, V, C, stream);
  return head_product<LOGITS_F32>(name, {(const bf16 *)xn, (const bf16 *)head, rows, b->N, C, V, (void *)logits, V}, stream);
}

int64_t qk_kl_work(int32_t N, int32_t V) { return 2 * (int64_t)(N < head_chunk ? N : head_chunk) * V * (int64_t)sizeof(float); }

qk_status qk_kl(qk_ptr kl, qk_ptr base, qk_ptr tuned, qk_ptr head, const qk_batch *b, int32_t C, int32_t V, qk_ptr work,
                int64_t work_bytes, qk_stream s) {
  const char *name = "qk_kl";
  if (const qk_status status = head_check(name, C, V)) return status;
  const auto stream = (cudaStream_t)s;
  const int64_t fit = work_bytes / (2 * (int64_t)V * (int64_t)sizeof(float));
  if (b->N && fit < 1) return qk_fail(QK_BAD_ARGUMENT, "%s: %lld bytes of work; a row takes %lld", name, (long long)work_bytes, (long long)qk_kl_work(1, V));
  for (int done = 0, n; done < b->N; done += n) {
    n = chunk_rows(b->N - done, fit);
    float *p = (float *)work, *q = p + (int64_t)n * V;
    head_problem product = {(const bf16 *)base, (const bf16 *)head, (const int32_t *)b->rows + done, n, C, V, p, V};
    qk_status status = head_product<LOGITS_F32>(name, product, stream);
    product.xn = (const bf16 *)tuned, product.logits = q;
    if (!status) status = head_product<LOGITS_F32>(name, product, stream);
    if (!status) status = qk_launch(name, kl_kernel, n, head_row_threads, stream, (float *)kl + done, p, q, V);
    if (status) return status;
  }
  return QK_OK;
}

}  // extern "C"
