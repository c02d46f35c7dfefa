/* Decoding with a cache of keys and values.

Math    store: cache[sample][pos] = k, v;  o = softmax(q*K'/sqrt(D))*V over positions 0..pos of the token's sequence
Shapes  qkv (T,(H+2Hk)*D), cache k, v (sequences, cap, Hk*D), o (T,H*D) bf16      Limits  D 64 or 128, H % Hk == 0
Numeric f32 scores and sums; probabilities are rounded to bf16 for their product with V. Keys are cut in splits that depend
        on cap alone, a split's steps go to its warps in turn, and the partial results are merged in order: a token's
        result does not depend on the others.
Bound   memory: the sequence's keys and values once for up to 16 query heads that share them
Form    Block (split, kv head, token): 4 warps, 16 keys a step, both products by mma.sync (query heads are rows) on fragments
        loaded straight from the cache (mma.cuh), which is asked for before the turn. A second kernel merges the splits; u of
        o's reader follows by lora_down.
Oracle  model/cpu/decode.go */
#include "lora.cuh"

/* ---- The cache. */

__global__ void __launch_bounds__(128)
    store_kv_kernel(uint4 *k, uint4 *v, const uint4 *qkv, const int32_t *sample, const int32_t *pos, int q_units, int kv_units, int cap) {
  take_turn();
  const int64_t t = blockIdx.x, place = ((int64_t)__ldg(sample + t) * cap + __ldg(pos + t)) * kv_units;
  const uint4 *from = qkv + t * (q_units + 2 * kv_units) + q_units;
  for (int i = threadIdx.x; i < kv_units; i += 128) {
    k[place + i] = __ldg(from + i);
    v[place + i] = __ldg(from + kv_units + i);
  }
}

/* ---- Attention. */

constexpr int decode_warps = 4, decode_step = 16, decode_max_splits = 128, decode_least = 128, decode_heads = 16;

struct decode_problem {
  bf16 *o;
  const bf16 *qkv, *k, *v;
  const int32_t *sample, *pos;
  float *work;  // of each (token, head, split): D sums, the largest score in units of log 2, the sum of exp2
  qk_heads h;
  int cap, splits, split_keys;
  float scale;  // of scores, into units of log 2
};

/* A warp's state: o of 16 heads unnormalised, fragment n columns 8 * (2q + e) + n % 8 + 64 * (n / 8); m and l of rows i,
i + 8. */
template <int D> struct decode_state {
  float o[D / 8][4], m[2], l[2];
};

/* 16 keys from key on, those up to last. */
template <int D>
QK_DEVICE void decode_keys(decode_state<D> &s, const uint4 (&q)[D / 32][2], const bf16 *k, const bf16 *v, int64_t ld, int key, int last,
                           float scale, int lane) {
  const int i = lane / 4, quad = lane % 4;
  uint4 kf[2][D / 32], vf[D / 64][4];
#pragma unroll
  for (int n = 0; n < 2; n++)
#pragma unroll
    for (int c = 0; c < D / 32; c++) {
      const int j = key + 8 * n + i;
      kf[n][c] = load16(k + j * ld + 32 * c + 8 * quad, j <= last);
    }
#pragma unroll
  for (int c = 0; c < D / 64; c++)
#pragma unroll
    for (int r = 0; r < 4; r++) {
      const int j = key + 2 * quad + r % 2 + r / 2 * 8;
      vf[c][r] = load16(v + j * ld + 64 * c + 8 * i, j <= last);
    }
  float p[2][4] = {};  // rows i, i + 8; keys 8n + 2 * quad, + 1
#pragma unroll
  for (int n = 0; n < 2; n++)
#pragma unroll
    for (int c = 0; c < D / 32; c++) {
      mma_k16(p[n], q[c][0].x, q[c][1].x, q[c][0].y, q[c][1].y, kf[n][c].x, kf[n][c].y);
      mma_k16(p[n], q[c][0].z, q[c][1].z, q[c][0].w, q[c][1].w, kf[n][c].z, kf[n][c].w);
    }
  float factor[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float top = s.m[h];
#pragma unroll
    for (int e = 0; e < 4; e++) {
      float &x = p[e / 2][2 * h + e % 2];
      x = key + 8 * (e / 2) + 2 * quad + e % 2 <= last ? x * scale : -INFINITY;
      top = fmaxf(top, x);
    }
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    factor[h] = exp2f(s.m[h] - top);  // key <= last, so that top is finite; 0 at the first step
    s.m[h] = top, s.l[h] *= factor[h];
#pragma unroll
    for (int e = 0; e < 4; e++) {
      float &x = p[e / 2][2 * h + e % 2];
      x = exp2f(x - top);
      s.l[h] += x;  // the lane's own keys; lanes are summed at the end
    }
  }
  const uint32_t a0 = pack_bf16(p[0][0], p[0][1]), a1 = pack_bf16(p[0][2], p[0][3]), a2 = pack_bf16(p[1][0], p[1][1]),
                 a3 = pack_bf16(p[1][2], p[1][3]);
#pragma unroll
  for (int n = 0; n < D / 8; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) s.o[n][e] *= factor[e / 2];
    mma_k16(s.o[n], a0, a1, a2, a3, pair_of(vf[n / 8][0], vf[n / 8][1], n % 8), pair_of(vf[n / 8][2], vf[n / 8][3], n % 8));
  }
}

/* Merges the warps' states, in order, and writes the block's to work. Thread (row, columns) of the block. */
template <int D>
QK_DEVICE void decode_merge(const decode_problem &p, decode_state<D> &s, float (*o)[decode_heads][D + 4], float (*ml)[decode_heads][2],
                            int64_t first, int heads) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, i = lane / 4, quad = lane % 4;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    s.l[h] += __shfl_xor_sync(~0u, s.l[h], 1);
    s.l[h] += __shfl_xor_sync(~0u, s.l[h], 2);
    if (quad == 0) ml[warp][i + 8 * h][0] = s.m[h], ml[warp][i + 8 * h][1] = s.l[h];
  }
#pragma unroll
  for (int n = 0; n < D / 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) o[warp][i + 8 * (e / 2)][64 * (n / 8) + 8 * (2 * quad + e % 2) + n % 8] = s.o[n][e];
  __syncthreads();
  for (int c = threadIdx.x; c < heads * D; c += decode_warps * 32) {
    const int row = c / D, d = c % D;
    float top = -INFINITY, sum = 0, l = 0;
    for (int w = 0; w < decode_warps; w++) top = fmaxf(top, ml[w][row][0]);
    for (int w = 0; w < decode_warps; w++) {
      const float f = exp2f(ml[w][row][0] - top);  // 0 for a warp without keys
      sum = fmaf(f, o[w][row][d], sum), l = fmaf(f, ml[w][row][1], l);
    }
    float *to = p.work + (first + (int64_t)row * p.splits) * (D + 2);
    to[d] = sum;
    if (d == 0) to[D] = top, to[D + 1] = l;
  }
}

/* Block (split, group of at most 16 query heads of a kv head, token). */
template <int D>
__global__ void __launch_bounds__(decode_warps * 32, 3) decode_attention_kernel(const decode_problem p) {
  __shared__ float o[decode_warps][decode_heads][D + 4], ml[decode_warps][decode_heads][2];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, i = lane / 4;
  const int64_t t = blockIdx.z;
  const int last = __ldg(p.pos + t), first = blockIdx.x * p.split_keys, group = p.h.H / p.h.Hk;
  const int runs = (group + decode_heads - 1) / decode_heads, hk = blockIdx.y / runs, head0 = hk * group + blockIdx.y % runs * decode_heads;
  const int heads = min(decode_heads, hk * group + group - head0), end = min(last, first + p.split_keys - 1);
  const int64_t wide = (int64_t)(p.h.H + 2 * p.h.Hk) * D, ld = (int64_t)p.h.Hk * D, at = (int64_t)__ldg(p.sample + t) * p.cap * ld + hk * D;
  constexpr int lines = D / 64;  // of a key
  for (int l = threadIdx.x; l < (end - first + 1) * lines; l += decode_warps * 32) {
    const int64_t line = at + (first + l / lines) * ld + l % lines * 64;
    prefetch_line(p.k + line), prefetch_line(p.v + line);
  }
  take_turn();
  if (first > last) return;  // the merge does not read this split

  uint4 q[D / 32][2];
#pragma unroll
  for (int c = 0; c < D / 32; c++)
#pragma unroll
    for (int h = 0; h < 2; h++)
      q[c][h] = load16(p.qkv + t * wide + (int64_t)(head0 + i + 8 * h) * D + 32 * c + 8 * (lane % 4), i + 8 * h < heads);
  decode_state<D> s = {};
  s.m[0] = s.m[1] = -INFINITY;
  for (int key = first + warp * decode_step; key <= end; key += decode_warps * decode_step)
    decode_keys<D>(s, q, p.k + at, p.v + at, ld, key, end, p.scale, lane);
  decode_merge<D>(p, s, o, ml, (t * p.h.H + head0) * p.splits + blockIdx.x, heads);
}

/* Block (head, token), a thread a column. */
template <int D> __global__ void __launch_bounds__(D) decode_merge_kernel(const decode_problem p) {
  take_turn();
  const int64_t t = blockIdx.y, head = blockIdx.x;
  const int splits = __ldg(p.pos + t) / p.split_keys + 1, d = threadIdx.x;
  const float *from = p.work + (t * p.h.H + head) * p.splits * (D + 2);
  float top = -INFINITY, sum = 0, l = 0;
  for (int s = 0; s < splits; s++) top = fmaxf(top, from[(int64_t)s * (D + 2) + D]);
  for (int s = 0; s < splits; s++) {
    const float *part = from + (int64_t)s * (D + 2);
    const float f = exp2f(part[D] - top);
    sum = fmaf(f, part[d], sum), l = fmaf(f, part[D + 1], l);
  }
  p.o[(t * p.h.H + head) * D + d] = __float2bfloat16(sum / l);
}

/* Keys of a split: at least decode_least, and as many as keep to decode_max_splits. */
static int split_keys(int cap) {
  const int even = (cap + decode_max_splits - 1) / decode_max_splits, whole = (even + 63) / 64 * 64;
  return whole > decode_least ? whole : decode_least;
}

template <int D> static qk_status run_decode(const char *name, const decode_problem &p, int T, cudaStream_t stream) {
  const int group = p.h.H / p.h.Hk, runs = (group + decode_heads - 1) / decode_heads;
  const qk_status status = qk_launch(name, decode_attention_kernel<D>, dim3(p.splits, p.h.Hk * runs, T), decode_warps * 32, stream, p);
  return status ? status : qk_launch(name, decode_merge_kernel<D>, dim3(p.h.H, T), D, stream, p);
}

static qk_status decode_check(const char *name, qk_heads h, int cap) {
  if (h.D != 64 && h.D != 128) return qk_fail(QK_BAD_ARGUMENT, "%s: heads of %d; 64 or 128", name, h.D);
  if (h.Hk < 1 || h.H < 1 || h.H % h.Hk) return qk_fail(QK_BAD_ARGUMENT, "%s: %d query heads for %d key heads", name, h.H, h.Hk);
  if (cap < 1) return qk_fail(QK_BAD_ARGUMENT, "%s: a cache of %d positions", name, cap);
  return QK_OK;
}

extern "C" {

qk_status qk_store_kv(qk_ptr k, qk_ptr v, qk_ptr qkv, qk_heads h, int32_t cap, const qk_batch *b, qk_stream s) {
  if (h.D % 8) return qk_fail(QK_BAD_ARGUMENT, "qk_store_kv: heads of %d; they must be divisible by 8", h.D);
  return qk_launch("qk_store_kv", store_kv_kernel, b->T, 128, (cudaStream_t)s, (uint4 *)k, (uint4 *)v, (const uint4 *)qkv,
                   (const int32_t *)b->sample, (const int32_t *)b->pos, h.H * h.D / 8, h.Hk * h.D / 8, cap);
}

int64_t qk_decode_attention_work(int32_t T, qk_heads h, int32_t cap) {
  const int64_t keys = split_keys(cap), splits = (cap + keys - 1) / keys;
  return T * splits * h.H * (h.D + 2) * (int64_t)sizeof(float);
}

qk_status qk_decode_attention(qk_ptr o, qk_ptr u, qk_ptr qkv, qk_ptr k, qk_ptr v, qk_heads h, int32_t cap, const qk_lora *l,
                              const qk_batch *b, qk_ptr work, int64_t work_bytes, qk_stream s) {
  const char *name = "qk_decode_attention";
  if (const qk_status status = decode_check(name, h, cap)) return status;
  const int64_t one = qk_decode_attention_work(1, h, cap);
  if (work_bytes < one) return qk_fail(QK_BAD_ARGUMENT, "%s: %lld bytes of work; at least %lld", name, (long long)work_bytes, (long long)one);
  const auto stream = (cudaStream_t)s;
  const int64_t fit = work_bytes / one < 65535 ? work_bytes / one : 65535, wide = (int64_t)(h.H + 2 * h.Hk) * h.D;
  for (int first = 0; first < b->T; first += (int)fit) {
    const int T = b->T - first < fit ? b->T - first : (int)fit;
    decode_problem p = {(bf16 *)o + (int64_t)first * h.H * h.D, (const bf16 *)qkv + first * wide, (const bf16 *)k, (const bf16 *)v,
                        (const int32_t *)b->sample + first, (const int32_t *)b->pos + first, (float *)work, h, cap};
    p.split_keys = split_keys(cap), p.splits = (cap + p.split_keys - 1) / p.split_keys;
    p.scale = 1.4426950408889634f / sqrtf((float)h.D);
    if (const qk_status status = h.D == 128 ? run_decode<128>(name, p, T, stream) : run_decode<64>(name, p, T, stream)) return status;
  }
  return l ? lora_down(name, (bf16 *)u, (const bf16 *)o, l, b, stream) : QK_OK;
}

}  // extern "C"
