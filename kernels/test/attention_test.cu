/* Attention on a card: forward and backward of each variant against float64 by FlashAttention's rule (the largest error at
most twice that of the same arithmetic with bf16 operands), repeatability, then times. Usage: attention_test, all cases;
attention_test small, for compute-sanitizer; attention_test results.json, all cases and the times. */
#include "harness.h"

#include <string>

#include "../attention_work.cuh"

struct shape {
  const char *name;
  std::vector<int> seg_start;
  int H, Hk, D;
  bool rope;
  int T() const { return seg_start.back(); }
  int S() const { return (int)seg_start.size() - 1; }
  size_t qkv() const { return (size_t)T() * (H + 2 * Hk) * D; }
  size_t o() const { return (size_t)T() * H * D; }
};

struct tensors {
  bf16 *qkv, *o, *d_o, *dqkv;
  float *lse, *cos, *sin;
  int32_t *seg_start, *pos;
  void *plan, *work;
  int64_t plan_bytes, work_bytes;
};

enum { POSITIONS = 8192 };
__global__ void fill_angles(float *cos, float *sin, int32_t *pos, int T, int D) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < POSITIONS * D / 2; i += gridDim.x * blockDim.x)
    sincosf(hash(i) * 1e-9f, sin + i, cos + i);
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < T; i += gridDim.x * blockDim.x) pos[i] = hash(i) % POSITIONS;
}

static qk_device card;
static std::vector<int> variants = {1};  // and 2 on a Hopper card

static tensors make(arena &memory, const shape &s) {
  memory.used = 0;
  tensors t = {};
  t.qkv = memory.normal<bf16>(s.qkv(), 1, 1);
  t.d_o = memory.normal<bf16>(s.o(), 1, 2);
  t.o = (bf16 *)memory.take(s.o() * 2);
  t.dqkv = (bf16 *)memory.take(s.qkv() * 2);
  t.lse = (float *)memory.take((size_t)s.H * s.T() * 4);
  t.seg_start = (int32_t *)memory.take(s.seg_start.size() * 4);
  CHECK_CUDA(cudaMemcpy(t.seg_start, s.seg_start.data(), s.seg_start.size() * 4, cudaMemcpyHostToDevice));
  t.pos = (int32_t *)memory.take(s.T() * 4);
  t.cos = (float *)memory.take(POSITIONS * s.D / 2 * 4), t.sin = (float *)memory.take(POSITIONS * s.D / 2 * 4);
  fill_angles<<<256, 256>>>(t.cos, t.sin, t.pos, s.T(), s.D);
  t.plan_bytes = qk_attention_plan_bytes(s.T(), s.S(), {s.H, s.Hk, s.D});
  t.plan = memory.take(t.plan_bytes);
  t.work_bytes = qk_attention_bwd_work(s.T(), s.S(), {s.H, s.Hk, s.D}, card.multiprocessors);
  t.work = memory.take(t.work_bytes);
  CHECK_CUDA(cudaDeviceSynchronize());
  return t;
}

static attention_problem problem_of(const shape &s, const tensors &t) {
  attention_problem p = {};
  p.name = "attention_test";
  p.o = t.o, p.lse = t.lse, p.qkv = t.qkv, p.dqkv = t.dqkv, p.d_o = t.d_o;
  if (s.rope) p.rope = {t.cos, t.sin, t.pos, s.D};
  p.seg_start = t.seg_start, p.T = s.T(), p.S = s.S(), p.H = s.H, p.Hk = s.Hk, p.D = s.D;
  return p;
}

static qk_status forward(const shape &s, const tensors &t, int variant) {
  qk_batch batch = {};
  batch.seg_start = (qk_ptr)t.seg_start, batch.T = s.T(), batch.S = s.S();
  return qk_attention_fwd((qk_ptr)t.o, (qk_ptr)t.lse, 0, (qk_ptr)t.qkv, {s.H, s.Hk, s.D}, nullptr, &batch, 0, variant);
}
static qk_status backward(const shape &s, const tensors &t, int variant) {
  qk_batch batch = {};
  batch.seg_start = (qk_ptr)t.seg_start, batch.pos = (qk_ptr)t.pos, batch.T = s.T(), batch.S = s.S();
  const qk_status status = qk_attention_plan((qk_ptr)t.plan, t.plan_bytes, {s.H, s.Hk, s.D}, &batch, 0);
  return status ? status : qk_attention_bwd((qk_ptr)t.dqkv, 0, (qk_ptr)t.d_o, 0, (qk_ptr)t.o, (qk_ptr)t.lse, (qk_ptr)t.qkv, s.rope ? (qk_ptr)t.cos : 0,
                          s.rope ? (qk_ptr)t.sin : 0, {s.H, s.Hk, s.D}, nullptr, nullptr, &batch, (qk_ptr)t.plan, (qk_ptr)t.work, t.work_bytes, 0, variant);
}

/* ---- The reference in float64; Rounded: with P, dS and the results rounded to bf16, as any bf16 kernel must. */

template <bool Rounded> __device__ double as_operand(double x) { return Rounded ? (double)__bfloat162float(__float2bfloat16((float)x)) : x; }

__device__ double block_sum(double x) {
  __shared__ double all[4];
  for (int o = 16; o; o /= 2) x += __shfl_xor_sync(~0u, x, o);
  __syncthreads();
  if (threadIdx.x % 32 == 0) all[threadIdx.x / 32] = x;
  __syncthreads();
  return all[0] + all[1] + all[2] + all[3];
}

struct reference {
  double *p, *ds, *o, *lse, *dqkv;  // (H,T,T), (H,T,T), (T,H*D), (H,T), (T,(H+2Hk)*D)
};

__device__ int segment_begin(const attention_problem &a, int row) {
  int s = 0;
  while (a.seg_start[s + 1] <= row) s++;
  return a.seg_start[s];
}

/* A block of 128 threads a query and head. */
template <bool Rounded> __global__ void reference_rows(attention_problem a, reference r) {
  const int row = blockIdx.x, h = blockIdx.y, kv = h / (a.H / a.Hk), begin = segment_begin(a, row), D = a.D;
  const int pitch = (a.H + 2 * a.Hk) * D;
  const double scale = 1 / sqrt((double)D);
  const bf16 *q = a.qkv + (size_t)row * pitch + h * D, *g = a.d_o + ((size_t)row * a.H + h) * D;
  double *p = r.p + ((size_t)h * a.T + row) * a.T, *ds = r.ds + ((size_t)h * a.T + row) * a.T;
  double sum = 0;  // exponentials of N(0,1) scores need no maximum in float64
  for (int j = begin + threadIdx.x; j <= row; j += blockDim.x) {
    const bf16 *k = a.qkv + (size_t)j * pitch + (a.H + kv) * D, *v = k + a.Hk * D;
    double s = 0, dp = 0;
    for (int d = 0; d < D; d++) {
      s += (double)__bfloat162float(q[d]) * __bfloat162float(k[d]);
      dp += (double)__bfloat162float(g[d]) * __bfloat162float(v[d]);
    }
    p[j] = exp(s * scale), ds[j] = dp;
    sum += p[j];
  }
  sum = block_sum(sum);
  __syncthreads();
  double o = 0;
  const int d = threadIdx.x;
  if (d < D)
    for (int j = begin; j <= row; j++)
      o += as_operand<Rounded>(p[j] / sum) * __bfloat162float(a.qkv[(size_t)j * pitch + (a.H + a.Hk + kv) * D + d]);
  o = as_operand<Rounded>(o);
  const double delta = block_sum(d < D ? o * __bfloat162float(g[d]) : 0);
  for (int j = begin + threadIdx.x; j <= row; j += blockDim.x) {
    p[j] /= sum;
    ds[j] = as_operand<Rounded>(p[j] * (ds[j] - delta));
    p[j] = as_operand<Rounded>(p[j]);
  }
  __syncthreads();
  if (d < D) {
    double dq = 0;
    for (int j = begin; j <= row; j++) dq += ds[j] * __bfloat162float(a.qkv[(size_t)j * pitch + (a.H + kv) * D + d]);
    r.o[((size_t)row * a.H + h) * D + d] = o;
    r.dqkv[(size_t)row * pitch + h * D + d] = dq * scale;
    if (d == 0) r.lse[(size_t)h * a.T + row] = log(sum);
  }
}

/* A block of D threads a key and kv head. */
__global__ void reference_columns(attention_problem a, reference r) {
  const int key = blockIdx.x, kv = blockIdx.y, d = threadIdx.x, D = a.D, pitch = (a.H + 2 * a.Hk) * D, group = a.H / a.Hk;
  int end = key;
  const int begin = segment_begin(a, key);
  while (end < a.T && segment_begin(a, end) == begin) end++;
  double dk = 0, dv = 0;
  for (int h = kv * group; h < (kv + 1) * group; h++)
    for (int row = key; row < end; row++) {
      const size_t at = ((size_t)h * a.T + row) * a.T + key;
      dk += r.ds[at] * __bfloat162float(a.qkv[(size_t)row * pitch + h * D + d]);
      dv += r.p[at] * __bfloat162float(a.d_o[((size_t)row * a.H + h) * D + d]);
    }
  r.dqkv[(size_t)key * pitch + (a.H + kv) * D + d] = dk / sqrt((double)D);
  r.dqkv[(size_t)key * pitch + (a.H + a.Hk + kv) * D + d] = dv;
}

template <bool Rounded> __global__ void reference_finish(attention_problem a, reference r) {
  const int row = blockIdx.x, D = a.D, pitch = (a.H + 2 * a.Hk) * D;
  for (int c = threadIdx.x * 2; c < pitch; c += blockDim.x * 2) {
    double *x = r.dqkv + (size_t)row * pitch + c;
    if (a.rope.cos && c < (a.H + a.Hk) * D) {
      const size_t at = (size_t)a.rope.pos[row] * (D / 2) + c % D / 2;
      const double co = a.rope.cos[at], si = a.rope.sin[at], x0 = x[0];
      x[0] = x0 * co + x[1] * si, x[1] = x[1] * co - x0 * si;
    }
    x[0] = as_operand<Rounded>(x[0]), x[1] = as_operand<Rounded>(x[1]);
  }
}

template <bool Rounded> static reference make_reference(arena &memory, const attention_problem &a, reference r, size_t o, size_t qkv) {
  r.o = (double *)memory.take(o * 8), r.lse = (double *)memory.take((size_t)a.H * a.T * 8), r.dqkv = (double *)memory.take(qkv * 8);
  reference_rows<Rounded><<<dim3(a.T, a.H), 128>>>(a, r);
  reference_columns<<<dim3(a.T, a.Hk), a.D>>>(a, r);
  reference_finish<Rounded><<<a.T, 256>>>(a, r);
  CHECK_CUDA(cudaGetLastError());
  return r;
}

template <class A> static std::vector<double> to_host(const A *device, size_t n) {
  std::vector<A> raw(n);
  CHECK_CUDA(cudaMemcpy(raw.data(), device, n * sizeof(A), cudaMemcpyDeviceToHost));
  return std::vector<double>(raw.begin(), raw.end());
}
template <> std::vector<double> to_host(const bf16 *device, size_t n) {
  std::vector<uint16_t> raw(n);
  CHECK_CUDA(cudaMemcpy(raw.data(), device, n * 2, cudaMemcpyDeviceToHost));
  std::vector<double> out(n);
  for (size_t i = 0; i < n; i++) {
    const uint32_t bits = (uint32_t)raw[i] << 16;
    float f;
    memcpy(&f, &bits, 4);
    out[i] = f;
  }
  return out;
}

/* The rule over columns [from, to) of rows of pitch. */
static void judge(const std::string &what, const std::vector<double> &got, const std::vector<double> &exact,
                  const std::vector<double> &rounded, size_t pitch, size_t from, size_t to) {
  double error = 0, allowed = 0, diff = 0, norm = 0;
  for (size_t i = 0; i < got.size(); i++) {
    if (i % pitch < from || i % pitch >= to) continue;
    const double e = fabs(got[i] - exact[i]);
    error = e <= error ? error : e;  // takes a NaN, and keeps it
    if (error != error) break;
    allowed = std::max(allowed, fabs(rounded[i] - exact[i]));
    diff += e * e, norm += exact[i] * exact[i];
  }
  char line[256];
  snprintf(line, sizeof line, "%s: max error %.2e, of bf16 %.2e, relative %.1e", what.c_str(), error, allowed, norm > 0 ? sqrt(diff / norm) : 0.);
  expect(error <= 2 * allowed + 1e-4, line);
}

static void check_variant(const shape &s, const tensors &t, const reference &exact, const reference &rounded, bf16 *o2, bf16 *dqkv2, int variant) {
  for (int run = 0; run < 2; run++) {
    CHECK_CUDA(cudaMemset(t.o, 0xff, s.o() * 2 + 256)), CHECK_CUDA(cudaMemset(t.dqkv, 0xff, s.qkv() * 2 + 256));
    CHECK_CUDA(cudaMemset(t.lse, 0xff, (size_t)s.H * s.T() * 4));
    CHECK_CUDA(cudaMemset(t.plan, 0xff, t.plan_bytes)), CHECK_CUDA(cudaMemset(t.work, 0xff, t.work_bytes + 256));
    qk_status status = forward(s, t, variant);
    CHECK_CUDA(cudaDeviceSynchronize());
    if (!status) status = backward(s, t, variant);
    CHECK_CUDA(cudaDeviceSynchronize());
    if (status) return expect(false, qk_last_error());
    if (run == 0) CHECK_CUDA(cudaMemcpy(o2, t.o, s.o() * 2, cudaMemcpyDeviceToDevice)), CHECK_CUDA(cudaMemcpy(dqkv2, t.dqkv, s.qkv() * 2, cudaMemcpyDeviceToDevice));
  }
  const size_t pitch = (s.H + 2 * s.Hk) * s.D, k = s.H * s.D, v = k + s.Hk * s.D, width = s.H * s.D;
  char line[256];
  snprintf(line, sizeof line, "%s T %d S %d %d/%d heads D %d%s variant %d", s.name, s.T(), s.S(), s.H, s.Hk, s.D, s.rope ? " rope" : "", variant);
  const std::string name = line;
  judge(name + " o", to_host(t.o, s.o()), to_host(exact.o, s.o()), to_host(rounded.o, s.o()), width, 0, width);
  const auto lse = to_host(exact.lse, (size_t)s.H * s.T());
  judge(name + " lse", to_host(t.lse, lse.size()), lse, lse, 1, 0, 1);
  const auto got = to_host(t.dqkv, s.qkv()), want = to_host(exact.dqkv, s.qkv()), bf = to_host(rounded.dqkv, s.qkv());
  judge(name + " dq", got, want, bf, pitch, 0, k);
  judge(name + " dk", got, want, bf, pitch, k, v);
  judge(name + " dv", got, want, bf, pitch, v, pitch);
  uint16_t guard[3];
  CHECK_CUDA(cudaMemcpy(guard, t.o + s.o(), 2, cudaMemcpyDeviceToHost)), CHECK_CUDA(cudaMemcpy(guard + 1, t.dqkv + s.qkv(), 2, cudaMemcpyDeviceToHost));
  CHECK_CUDA(cudaMemcpy(guard + 2, (char *)t.work + t.work_bytes, 2, cudaMemcpyDeviceToHost));
  const unsigned long long a = compare(t.o, o2, s.o()).unequal, b = compare(t.dqkv, dqkv2, s.qkv()).unequal;
  snprintf(line, sizeof line, "%s repeated: %llu and %llu unequal; guards %x %x %x", name.c_str(), a, b, guard[0], guard[1], guard[2]);
  expect(!a && !b && (guard[0] & guard[1] & guard[2]) == 0xffff, line);
  fflush(stdout);
}

static void check(arena &memory, const shape &s) {
  const tensors t = make(memory, s);
  const attention_problem p = problem_of(s, t);
  const size_t scores = (size_t)s.H * s.T() * s.T();
  reference r = {};
  r.p = (double *)memory.take(scores * 8), r.ds = (double *)memory.take(scores * 8);
  const reference rounded = make_reference<true>(memory, p, r, s.o(), s.qkv());
  const reference exact = make_reference<false>(memory, p, r, s.o(), s.qkv());
  bf16 *o2 = (bf16 *)memory.take(s.o() * 2), *dqkv2 = (bf16 *)memory.take(s.qkv() * 2);
  for (int variant : variants) check_variant(s, t, exact, rounded, o2, dqkv2, variant);
}

/* Bits alone, where a reference would not fit: many repeats of a large shape. */
static void check_repeats(arena &memory, const shape &s, int variant, int repeats) {
  const tensors t = make(memory, s);
  bf16 *o2 = (bf16 *)memory.take(s.o() * 2), *dqkv2 = (bf16 *)memory.take(s.qkv() * 2);
  unsigned long long unequal = 0;
  for (int i = 0; i < repeats; i++) {
    if (forward(s, t, variant) || backward(s, t, variant)) return expect(false, qk_last_error());
    if (i == 0) CHECK_CUDA(cudaMemcpy(o2, t.o, s.o() * 2, cudaMemcpyDeviceToDevice)), CHECK_CUDA(cudaMemcpy(dqkv2, t.dqkv, s.qkv() * 2, cudaMemcpyDeviceToDevice));
    unequal += compare(t.o, o2, s.o()).unequal + compare(t.dqkv, dqkv2, s.qkv()).unequal;
  }
  char line[128];
  snprintf(line, sizeof line, "%s variant %d %d repeats: %llu values unequal", s.name, variant, repeats, unequal);
  expect(!unequal, line);
}

/* Forward and backward of each variant, and the backward's parts alone. */
static void measure(FILE *json, arena &memory, const shape &s) {
  const tensors t = make(memory, s);
  const attention_problem p = problem_of(s, t);
  const attention_work plan((char *)t.plan, (char *)t.work, p.T, p.S, p.H, p.Hk, p.D, card.multiprocessors);
  const qk_batch none = {};
  const attention_lora add = {(bf16 *)p.d_o, nullptr, {}, dropout_batch(&none)};
  double flops = 0;
  for (int i = 0; i < s.S(); i++) flops += 2. * s.H * s.D * pow(s.seg_start[i + 1] - s.seg_start[i], 2);
  struct row {
    const char *name;
    double flops;
    work run;
  };
  std::vector<row> rows = {{"sm80 fwd", flops, [&](int) { forward(s, t, 1); }}, {"sm80 back", 2.5 * flops, [&](int) { backward(s, t, 1); }}};
  if (card.hopper()) {
    rows.insert(rows.begin(), {{"fwd", flops, [&](int) { forward(s, t, 2); }}, {"back", 2.5 * flops, [&](int) { backward(s, t, 2); }},
                               {"plan", 0, [&](int) { attention_bwd_plan(p, plan, card, 0); }},
                               {"back delta", 0, [&](int) { attention_bwd_delta(p, plan, add, 0); }},
                               {"back products", 2.5 * flops, [&](int) { attention_bwd_sm90(p, plan, card, 0); }},
                               {"back sum", 0, [&](int) { attention_bwd_sum(p, plan, card, 0); }}});
  }
  std::vector<work> works;
  for (const row &r : rows) works.push_back(r.run);
  const std::vector<double> us = interleaved(works, std::max(1, (int)(4e9 / flops)), 31);
  const std::vector<sustained_time> sustained = sustained_times(works, us, {0, 1});
  for (size_t i = 0; i < rows.size(); i++) {
    const double f = rows[i].flops;
    printf("%-12s T %5d S %3d D %3d %-13s %8.1f us %6.1f TF", s.name, s.T(), s.S(), s.D, rows[i].name, us[i], f / us[i] / 1e6);
    if (json) fprintf(json, "{\"op\":\"attention\",\"name\":\"%s\",\"kernel\":\"%s\",\"T\":%d,\"S\":%d,\"H\":%d,\"Hk\":%d,\"D\":%d,\"us\":%.1f,\"tflops\":%.1f",
                      s.name, rows[i].name, s.T(), s.S(), s.H, s.Hk, s.D, us[i], f / us[i] / 1e6);
    if (i < sustained.size() && sustained[i].us) {
      const sustained_time &a = sustained[i];
      printf(" | alone %8.1f us %6.1f TF %4u MHz %3.0f W", a.us, f / a.us / 1e6, a.card.mhz, a.card.milliwatts / 1e3);
      if (json) fprintf(json, ",\"alone_us\":%.1f,\"alone_tflops\":%.1f,\"mhz\":%u,\"watts\":%.0f", a.us, f / a.us / 1e6, a.card.mhz, a.card.milliwatts / 1e3);
    }
    printf("\n");
    if (json) fprintf(json, "}\n");
  }
  CHECK_CUDA(cudaGetLastError());
  fflush(stdout);
}

/* Lengths 1 to 40 of 60 samples. */
static std::vector<int> many_segments() {
  std::vector<int> all = {0};
  for (int i = 0; i < 60; i++) all.push_back(all.back() + 1 + hash(i) % 40);
  return all;
}

int main(int argc, char **argv) {
  const bool small = argc > 1 && !strcmp(argv[1], "small");
  if (qk_current_device(&card, "attention_test")) printf("%s\n", qk_last_error()), exit(1);
  if (card.hopper()) variants.push_back(2);
  arena memory(small ? (size_t)256 << 20 : (size_t)12 << 30);
  check(memory, {"one token", {0, 1}, 2, 1, 128, false});
  check(memory, {"short", {0, 40, 41, 230}, 4, 2, 64, true});
  check(memory, {"short", {0, 129, 130, 200}, 3, 1, 128, true});
  if (small) return printf("%d failures\n", failures), failures > 0;
  check(memory, {"ragged", {0, 300, 301, 700}, 28, 4, 128, true});
  check(memory, {"ragged", {0, 300, 301, 700}, 14, 2, 64, true});
  check(memory, {"many", many_segments(), 12, 2, 128, true});
  check(memory, {"many", many_segments(), 12, 2, 64, true});
  check(memory, {"segments", {0, 300, 1000, 1001, 2000}, 28, 4, 128, false});
  check(memory, {"whole", {0, 2048}, 28, 4, 128, true});
  check(memory, {"whole", {0, 1536}, 9, 3, 64, false});
  for (int variant : variants) check_repeats(memory, {"whole 4096", {0, 4096}, 28, 4, 128, true}, variant, 50);
  FILE *json = argc > 1 ? fopen(argv[1], "w") : nullptr;
  if (argc > 1) {
    if (!json) printf("cannot write %s\n", argv[1]), exit(1);
    std::vector<int> sixteen;
    for (int i = 0; i <= 16; i++) sixteen.push_back(128 * i);
    for (int T : {1024, 2048, 4096, 8192}) measure(json, memory, {"one segment", {0, T}, 28, 4, 128, true});
    measure(json, memory, {"16 segments", sixteen, 28, 4, 128, true});
    measure(json, memory, {"ragged", {0, 300, 1000, 1001, 2048}, 28, 4, 128, true});
    measure(json, memory, {"0.5B heads", {0, 2048}, 14, 2, 64, true});
    fclose(json);
  }
  printf("%d failures\n", failures);
  return failures > 0;
}
