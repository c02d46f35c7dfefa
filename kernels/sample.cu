/* The next token from logits, by the stages of transformers.

Math    limit; repetition penalty (Keskar et al., CTRL, 2019); temperature; top-k; top-p; softmax; the first id, in ascending
        order, at which the sum of probabilities exceeds the uniform number. Temperature 0: the largest logit, of equals
        the lowest id.
Shapes  logits (n,V) f32, next (n) int32                                                          Limits  V < 2^31
Numeric logits f32, probabilities float64, sums in a fixed tree: a draw differs from the CPU's where the uniform number is
        within float64 rounding of a border
Bound   latency of one block a row; walks over the row in L2: none greedy, 6 with top-k, and 36 more with top-p over what is left
Form    Many blocks take a row through limit, penalty and temperature to scratch memory, and find the largest of their runs; one
        block goes on with it. The k-th largest is found by 8 bits of its ordered key at a time (integer histogram), what
        survives is packed together in order of ids, and from then on only that is walked: the border of top-p by bisection of
        the key, the draw by a scan.
Oracle  model/cpu/sample.go */
#include <math.h>

#include "dropout.cuh"
#include "status.h"

constexpr int sample_threads = 1024, sample_warps = sample_threads / 32;

constexpr int sample_run = 4096;  // ids that a block prepares
__host__ __device__ inline int sample_runs(int V) { return (V + sample_run - 1) / sample_run; }

/* A row's scratch: logits and ids of the survivors, their probabilities as top-p sums them, and the rank of each run's largest. */
struct sample_row {
  uint64_t *best;
  float *logit;
  int32_t *id;
  float *prob;
};
__host__ __device__ inline int64_t sample_row_bytes(int V) { return ((int64_t)V * 12 + sample_runs(V) * 8 + 255) / 256 * 256; }

struct sample_problem {
  int32_t *next;
  const float *logits;
  const int32_t *context, *context_len;
  const uint32_t *sequence;
  int context_cap, V;
  bool penalised;
  float penalty, temperature, rest;  // rest: 1 - top_p; temperature 0: greedy
  int top_k, limit;                  // top_k 0: off; limit: V for none
  bool top_p;
  uint32_t seed, step;
  uint8_t *work;
  QK_DEVICE_MEMBER sample_row row(int64_t i) const {
    uint64_t *best = (uint64_t *)(work + i * sample_row_bytes(V));
    float *logit = (float *)(best + sample_runs(V));
    return {best, logit, (int32_t *)logit + V, logit + 2 * (int64_t)V};
  }
};

/* What the block shares. */
struct sample_shared {
  double sums[sample_warps];
  int counts[sample_warps], ties[sample_warps];
  uint32_t histogram[256];
  uint32_t prefix;
  int left;
};

/* Larger floats have larger keys; and back. */
QK_DEVICE uint32_t sample_key(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
QK_DEVICE float sample_value(uint32_t key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

/* Sum over the block, to all threads. */
QK_DEVICE double sample_sum(double v, sample_shared &s) {
  for (int o = 16; o; o /= 2) v += __shfl_xor_sync(~0u, v, o);
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.sums[threadIdx.x / 32] = v;
  __syncthreads();
  v = s.sums[0];
  for (int w = 1; w < sample_warps; w++) v += s.sums[w];
  return v;
}

/* What orders logits by size, those of one size by id, the lowest above: the key, then the complement of the id. A NaN is above all. */
QK_DEVICE uint64_t sample_rank(float x, int id) {
  return (uint64_t)(isnan(x) ? ~0u : sample_key(x + 0.f)) << 32 | (uint32_t)~id;  // -0 equals 0
}

/* The largest over the block, to all threads. */
QK_DEVICE uint64_t sample_largest(uint64_t best, sample_shared &s) {
  for (int o = 16; o; o /= 2) {
    const uint64_t other = __shfl_xor_sync(~0u, best, o);
    if (other > best) best = other;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.sums[threadIdx.x / 32] = __longlong_as_double(best);
  __syncthreads();
  for (int w = 0; w < sample_warps; w++) {
    const uint64_t other = __double_as_longlong(s.sums[w]);
    if (other > best) best = other;
  }
  return best;
}

/* limit, penalty and temperature into a run of ids of the scratch row, and the largest of them. A penalty reads the logit as given, so
that an id that comes more than once in the context is made less likely once. Block (run, row). */
__global__ void __launch_bounds__(sample_threads) sample_prepare_kernel(const __grid_constant__ sample_problem p) {
  take_turn();
  __shared__ sample_shared s;
  __shared__ float run[sample_run];
  const int64_t row = blockIdx.y;
  const int first = blockIdx.x * sample_run, n = min(sample_run, p.V - first);
  const float *logits = p.logits + row * p.V;
  for (int i = threadIdx.x; i < n; i += sample_threads) run[i] = first + i < p.limit ? logits[first + i] : -INFINITY;
  __syncthreads();
  if (p.penalised) {
    const int32_t *context = p.context + row * p.context_cap;
    const int ids = __ldg(p.context_len + row);
    for (int i = threadIdx.x; i < ids; i += sample_threads) {
      const int id = __ldg(context + i);
      if (id < first || id >= first + n || id >= p.limit) continue;
      const float x = logits[id];
      run[id - first] = x < 0 ? x * p.penalty : x / p.penalty;
    }
    __syncthreads();
  }
  const sample_row r = p.row(row);
  uint64_t best = 0;
  for (int i = threadIdx.x; i < n; i += sample_threads) {
    float x = run[i];
    if (p.temperature != 0) r.logit[first + i] = x /= p.temperature;
    const uint64_t own = sample_rank(x, first + i);
    if (own > best) best = own;
  }
  best = sample_largest(best, s);
  if (threadIdx.x == 0) r.best[blockIdx.x] = best;
}

/* Key of the k-th largest of n logits. */
QK_DEVICE uint32_t sample_kth(const float *logit, int n, int k, sample_shared &s) {
  if (threadIdx.x == 0) s.prefix = 0, s.left = k;
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (threadIdx.x < 256) s.histogram[threadIdx.x] = 0;
    __syncthreads();
    const uint32_t prefix = s.prefix;
    for (int i = threadIdx.x; i < n; i += sample_threads) {
      const uint32_t key = sample_key(logit[i] + 0.f);
      if (shift == 24 || key >> (shift + 8) == prefix) atomicAdd(&s.histogram[key >> shift & 255], 1u);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = 255, left = s.left;
      while (digit > 0 && (int)s.histogram[digit] < left) left -= s.histogram[digit--];
      s.prefix = prefix << 8 | digit, s.left = left;
    }
    __syncthreads();
  }
  return s.prefix;
}

/* Packs those with a key above border, and of those on it all but the first `skipped`, together in order, and returns their
number. from_row: ids are the places themselves. */
QK_DEVICE int sample_pack(const sample_row &r, int n, uint32_t border, int skipped, bool from_row, sample_shared &s) {
  const int warp = threadIdx.x / 32;
  const uint32_t below = (1u << threadIdx.x % 32) - 1;
  int kept = 0, ties = 0;
  for (int base = 0; base < n; base += sample_threads) {
    const int i = base + threadIdx.x;
    const float x = i < n ? r.logit[i] : -INFINITY;
    const int id = from_row || i >= n ? i : r.id[i];
    const uint32_t key = sample_key(x + 0.f);
    const bool possible = i < n && x > -INFINITY, tie = possible && key == border;
    const uint32_t tied = __ballot_sync(~0u, tie);
    __syncthreads();  // all have read their place, and the counts of the turn before
    if (threadIdx.x % 32 == 0) s.ties[warp] = __popc(tied);
    __syncthreads();
    int rank = ties + __popc(tied & below);
    for (int w = 0; w < sample_warps; w++) {
      if (w < warp) rank += s.ties[w];
      ties += s.ties[w];
    }
    const bool keep = possible && (key > border || (tie && rank >= skipped));
    const uint32_t keeps = __ballot_sync(~0u, keep);
    if (threadIdx.x % 32 == 0) s.counts[warp] = __popc(keeps);
    __syncthreads();
    int place = kept + __popc(keeps & below);
    for (int w = 0; w < sample_warps; w++) {
      if (w < warp) place += s.counts[w];
      kept += s.counts[w];
    }
    if (keep) r.logit[place] = x, r.id[place] = id;
  }
  __syncthreads();
  return kept;
}

/* Drops the least likely of n while their probabilities add up to rest or less, all but the most likely one; of equals the
lower ids first. */
QK_DEVICE int sample_top_p(const sample_row &r, int n, float top, float rest, sample_shared &s) {
  double sum = 0;
  for (int i = threadIdx.x; i < n; i += sample_threads) sum += exp((double)r.logit[i] - (double)top);
  sum = sample_sum(sum, s);
  for (int i = threadIdx.x; i < n; i += sample_threads) r.prob[i] = (float)(exp((double)r.logit[i] - (double)top) / sum);
  __syncthreads();
  // The smallest key up to which the probabilities add up to more than rest.
  uint32_t lo = 0, hi = sample_key(top + 0.f);
  while (lo < hi) {
    const uint32_t mid = lo + (hi - lo) / 2;
    double mass = 0;
    for (int i = threadIdx.x; i < n; i += sample_threads)
      if (sample_key(r.logit[i] + 0.f) <= mid) mass += r.prob[i];
    mass = sample_sum(mass, s);
    if ((float)mass > rest)
      hi = mid;
    else
      lo = mid + 1;
  }
  double mass = 0, count = 0, one = 0;
  for (int i = threadIdx.x; i < n; i += sample_threads) {
    const uint32_t key = sample_key(r.logit[i] + 0.f);
    if (key < lo) mass += r.prob[i];
    if (key == lo) count += 1, one = r.prob[i];
  }
  mass = sample_sum(mass, s);
  const int ties = (int)sample_sum(count, s);
  one = sample_sum(one * count, s) / ties;
  // The most of the ties that may go.
  int least = 0, most = lo == sample_key(top + 0.f) ? ties - 1 : ties;
  while (least < most) {
    const int mid = (least + most + 1) / 2;
    if ((float)(mass + mid * one) > rest)
      most = mid - 1;
    else
      least = mid;
  }
  return sample_pack(r, n, lo, least, false, s);
}

/* The id at which the sum of probabilities of n survivors exceeds u; the last possible one where rounding keeps it below. */
QK_DEVICE int sample_draw(const sample_row &r, int n, float top, double u, sample_shared &s) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  double sum = 0;
  for (int i = threadIdx.x; i < n; i += sample_threads) sum += exp((double)r.logit[i] - (double)top);
  sum = sample_sum(sum, s);
  double before = 0;
  int found = 0x7fffffff, last = -1;
  for (int base = 0; base < n; base += sample_threads) {
    const int i = base + threadIdx.x;
    const double own = i < n ? exp((double)r.logit[i] - (double)top) / sum : 0;
    double scan = own;
    for (int o = 1; o < 32; o *= 2) {
      const double other = __shfl_up_sync(~0u, scan, o);
      if (lane >= o) scan += other;
    }
    __syncthreads();
    if (lane == 31) s.sums[warp] = scan;
    __syncthreads();
    for (int w = 0; w < sample_warps; w++) {
      if (w == warp) scan += before;
      before += s.sums[w];
    }
    if (own > 0) {
      last = i;
      if (u < scan && found == 0x7fffffff) found = i;
    }
  }
  for (int o = 16; o; o /= 2) {
    found = min(found, __shfl_xor_sync(~0u, found, o));
    last = max(last, __shfl_xor_sync(~0u, last, o));
  }
  if (lane == 0) s.counts[warp] = found, s.ties[warp] = last;
  __syncthreads();
  for (int w = 0; w < sample_warps; w++) found = min(found, s.counts[w]), last = max(last, s.ties[w]);
  return r.id[found < n ? found : last];
}

__global__ void __launch_bounds__(sample_threads, 1) sample_kernel(const __grid_constant__ sample_problem p) {
  take_turn();
  __shared__ sample_shared s;
  const int64_t row = blockIdx.x;
  const sample_row r = p.row(row);
  uint64_t best = 0;
  for (int i = threadIdx.x; i < sample_runs(p.V); i += sample_threads)
    if (r.best[i] > best) best = r.best[i];
  best = sample_largest(best, s);
  const float top = sample_value((uint32_t)(best >> 32));
  if (!isfinite(top) || p.temperature == 0) {
    if (threadIdx.x == 0) p.next[row] = isfinite(top) ? (int)~(uint32_t)best : -1;
    return;
  }
  const uint32_t border = p.top_k ? sample_kth(r.logit, p.V, p.top_k, s) : 0;
  int n = sample_pack(r, p.V, border, 0, true, s);
  if (p.top_p) n = sample_top_p(r, n, top, p.rest, s);
  const uint4 w = philox(make_uint4(p.step, __ldg(p.sequence + row), 0, 0x53414d50u), make_uint2(p.seed, 0));
  const double u = (double)((uint64_t)w.x << 21 | w.y >> 11) / 9007199254740992.0;
  const int id = sample_draw(r, n, top, u, s);
  if (threadIdx.x == 0) p.next[row] = id;
}

extern "C" {

int64_t qk_sample_work(int32_t n, int32_t V) { return n * sample_row_bytes(V); }

qk_status qk_sample(qk_ptr next, qk_ptr logits, qk_ptr context, qk_ptr context_len, qk_ptr sequence, const qk_sampling *a, int32_t n,
                    int32_t V, int32_t context_cap, qk_ptr work, int64_t work_bytes, qk_stream s) {
  const char *name = "qk_sample";
  if (n < 1 || V < 1) return qk_fail(QK_BAD_ARGUMENT, "%s: %d rows of %d logits", name, n, V);
  if (work_bytes < qk_sample_work(n, V)) return qk_fail(QK_BAD_ARGUMENT, "%s: %lld bytes of work; at least %lld", name, (long long)work_bytes, (long long)qk_sample_work(n, V));
  sample_problem p = {(int32_t *)next, (const float *)logits, (const int32_t *)context, (const int32_t *)context_len, (const uint32_t *)sequence, context_cap, V};
  p.penalised = a->repetition_penalty != 0 && a->repetition_penalty != 1;
  p.penalty = (float)a->repetition_penalty, p.temperature = (float)a->temperature, p.rest = (float)(1 - a->top_p);
  p.top_k = a->top_k < V ? a->top_k : 0, p.top_p = a->top_p != 0 && a->top_p != 1;
  p.limit = a->limit ? a->limit : V, p.seed = a->seed, p.step = a->step, p.work = (uint8_t *)work;
  if (p.penalised && (!context || !context_len)) return qk_fail(QK_BAD_ARGUMENT, "%s: the repetition penalty needs the ids so far", name);
  if (p.temperature != 0 && !sequence) return qk_fail(QK_BAD_ARGUMENT, "%s: a draw needs the sequence numbers", name);
  const auto stream = (cudaStream_t)s;
  const qk_status status = qk_launch(name, sample_prepare_kernel, dim3(sample_runs(V), n), sample_threads, stream, p);
  return status ? status : qk_launch(name, sample_kernel, n, sample_threads, stream, p);
}

}  // extern "C"
