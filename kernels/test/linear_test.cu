/* The matrix products on a card: every tile of both variants against a float64 reference, then the ten products of a
Qwen2.5-7B step at T = 2048 against cuBLAS. Usage: linear_test, all cases; linear_test small, for compute-sanitizer; linear_test results.json,
all cases and the times. Exit 1 on any failure. */
#include "harness.h"

#include "../tiles.h"

struct problem {
  const char *name;
  bool back;
  int M, N, K, R;  // of the product: back means B (K,N)
  bool bias, residual, rope;
};

struct tensors {
  bf16 *a, *b, *c, *u, *l, *residual;
  float *bias, *cos, *sin;
  int32_t *pos;
};

enum { D = 128, POSITIONS = 4096 };
static const qk_heads heads_of(const problem &p) { return {p.N / D / 2, p.N / D - p.N / D / 2 - (p.N / D > 2), D}; }
static int rope_columns(const problem &p) { return p.rope ? (heads_of(p).H + heads_of(p).Hk) * D : 0; }

__global__ void fill_positions(int32_t *pos, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) pos[i] = hash(i) % POSITIONS;
}

static tensors make(arena &memory, const problem &p) {
  memory.used = 0;
  tensors t = {};
  t.a = memory.normal<bf16>((size_t)p.M * p.K, 1, 1);
  t.b = memory.normal<bf16>((size_t)p.N * p.K, .02f, 2);
  t.u = memory.normal<bf16>((size_t)p.M * p.R, 1, 3);
  t.l = memory.normal<bf16>((size_t)p.N * p.R, .3f, 4);
  t.bias = memory.normal<float>(p.N, 1, 5);
  t.cos = memory.normal<float>(POSITIONS * D / 2, 1, 7);
  t.sin = memory.normal<float>(POSITIONS * D / 2, 1, 8);
  t.pos = (int32_t *)memory.take(p.M * 4);
  fill_positions<<<1, 1024>>>(t.pos, p.M);
  t.residual = memory.normal<bf16>((size_t)p.M * p.N, 1, 6);
  return t;
}

static qk_status run(const problem &p, const tensors &t, bf16 *c, const bf16 *b, const bf16 *residual, int variant) {
  if (p.back) return qk_linear_bwd((qk_ptr)c, (qk_ptr)t.a, (qk_ptr)b, p.M, p.K, p.N, 0, variant);
  qk_lora lora = {};
  lora.rank = p.R, lora.pack_b = (qk_ptr)t.l;
  qk_batch batch = {};
  batch.pos = (qk_ptr)t.pos;
  return qk_linear_fwd((qk_ptr)c, (qk_ptr)t.a, (qk_ptr)b, p.bias ? (qk_ptr)t.bias : 0, p.R ? (qk_ptr)t.u : 0,
                       p.R ? &lora : nullptr, p.residual ? (qk_ptr)residual : 0, p.rope ? (qk_ptr)t.cos : 0,
                       p.rope ? (qk_ptr)t.sin : 0, heads_of(p), &batch, p.M, p.N, p.K, 0, variant);
}

/* ---- The reference: a warp an output, in float64. */

__device__ double dot(const problem &p, const tensors &t, int m, int n, int lane) {
  double s = 0;
  for (int k = lane; k < p.K; k += 32)
    s += (double)__bfloat162float(t.a[(size_t)m * p.K + k]) * __bfloat162float(p.back ? t.b[(size_t)k * p.N + n] : t.b[(size_t)n * p.K + k]);
  for (int r = lane; r < p.R; r += 32) s += (double)__bfloat162float(t.u[(size_t)m * p.R + r]) * __bfloat162float(t.l[(size_t)n * p.R + r]);
  for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
  if (p.bias) s += t.bias[n];
  if (p.residual) s += __bfloat162float(t.residual[(size_t)m * p.N + n]);
  return s;
}
struct errors {
  double xy, ss;
  unsigned long long wrong;
};
/* Outputs 0..count-1 when that is all of them, else the last 8 x 8 and a random sample. wrong: beyond bf16's rounding and
float32's summation error. */
__global__ void reference_kernel(problem p, tensors t, const bf16 *c, size_t count, int rope_columns, errors *e) {
  const size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) / 32, all = (size_t)p.M * p.N;
  const int lane = threadIdx.x % 32;
  if (i >= count) return;
  int m = i / p.N, n = i % p.N;
  if (count < all) m = i < 64 ? p.M - 1 - i % 8 : hash(2 * i) % p.M, n = i < 64 ? p.N - 1 - i / 8 : hash(2 * i + 1) % p.N;
  double y = dot(p, t, m, n, lane);
  if (n < rope_columns) {
    const double pair = dot(p, t, m, n ^ 1, lane);
    const size_t at = (size_t)t.pos[m] * (D / 2) + n % D / 2;
    y = y * t.cos[at] + (n % 2 ? pair : -pair) * t.sin[at];
  }
  if (lane) return;
  const double x = __bfloat162float(c[(size_t)m * p.N + n]);
  atomicAdd(&e->xy, x * y), atomicAdd(&e->ss, x * x + y * y);
  const double sum_error = 2e-6 * sqrt((double)p.K) + 1e-5;  // of sums of K terms of size 0.02 .. 1
  if (!(fabs(x - y) <= fabs(y) / 256 + (n < rope_columns ? 8 : 1) * sum_error)) atomicAdd(&e->wrong, 1);
}

static void check(arena &memory, const problem &p, int variant) {
  const tensors t = make(memory, p);
  const size_t n = (size_t)p.M * p.N, count = std::min(n, (size_t)1 << 16);
  bf16 *guarded = (bf16 *)memory.take((n + 256) * 2), *again = (bf16 *)memory.take(n * 2), *c = guarded + 128;
  CHECK_CUDA(cudaMemset(guarded, 0xff, (n + 256) * 2));
  qk_status status = run(p, t, c, t.b, t.residual, variant);
  // The second time in place: the residual is the output.
  CHECK_CUDA(cudaMemcpy(again, t.residual, n * 2, cudaMemcpyDeviceToDevice));
  if (!status) status = run(p, t, again, t.b, again, variant);
  char line[256];
  const char *why = status ? qk_last_error() : "";
  CHECK_CUDA(cudaDeviceSynchronize());

  static errors *device;
  errors e = {};
  if (!device) CHECK_CUDA(cudaMalloc(&device, sizeof e));
  CHECK_CUDA(cudaMemcpy(device, &e, sizeof e, cudaMemcpyHostToDevice));
  reference_kernel<<<(unsigned)(count / 8 + 1), 256>>>(p, t, c, count, rope_columns(p), device);
  CHECK_CUDA(cudaMemcpy(&e, device, sizeof e, cudaMemcpyDeviceToHost));
  const comparison repeat = compare(c, again, n);
  std::vector<uint16_t> guard(256);
  CHECK_CUDA(cudaMemcpy(guard.data(), guarded, 256, cudaMemcpyDeviceToHost));
  CHECK_CUDA(cudaMemcpy(guard.data() + 128, c + n, 256, cudaMemcpyDeviceToHost));
  const bool intact = std::all_of(guard.begin(), guard.end(), [](uint16_t v) { return v == 0xffff; });
  const double diff = 1 - 2 * e.xy / e.ss;
  snprintf(line, sizeof line, "%s %s (%d,%d,%d) R %d%s%s%s variant %d: diff %.1e wrong %llu bad %llu unequal %llu%s %s", p.name,
           p.back ? "back" : "fwd", p.M, p.N, p.K, p.R, p.bias ? " bias" : "", p.residual ? " residual" : "", p.rope ? " rope" : "", variant,
           diff, e.wrong, repeat.bad, repeat.unequal, intact ? "" : " WROTE OUTSIDE", why);
  expect(!status && diff < 1e-5 && !e.wrong && !repeat.bad && !repeat.unequal && intact, line);
}

static void check_edges(arena &memory, bool small) {
  const problem edges[] = {
      {"one", false, 1, 8, 8, 0, false, false, false},       {"one", true, 1, 8, 8, 0, false, false, false},
      {"odd", false, 77, 104, 40, 8, true, true, false},     {"odd", true, 77, 104, 40, 0, false, false, false},
      {"odd", false, 1000, 1096, 3608, 24, true, true, false}, {"odd", true, 300, 3608, 1096, 0, false, false, false},
      {"small", false, 800, 1536, 576, 40, false, true, false}, {"small", true, 800, 576, 1536, 0, false, false, false},
      {"rope", false, 515, 1152, 896, 24, true, false, true}, {"rank", false, 129, 640, 136, 48, false, false, false},
      {"rank", false, 129, 640, 136, 64, false, true, false}, {"rank", false, 129, 640, 136, 72, false, false, false},
      {"rank", false, 129, 640, 136, 128, true, false, false}, {"rank", false, 129, 640, 136, 192, true, true, true},
  };
  for (const problem &p : edges)
    for (int variant = 1; variant <= 2 && !(small && p.M * p.N > 100000); variant++) check(memory, p, variant);
  for (int M : {1, 5, 8}) check(memory, {"few", false, M, 1152, 896, 24, true, true, true}, 0);
}

/* A shape that chooses a tile; M is 0 where there is none. */
static problem choosing(const char *name, int tile, linear_sm90_order order, int multiprocessors) {
  const int K = 456;
  for (uint64_t seed = 0; seed < 100000; seed++) {
    const int M = 1 + hash(seed) % 2000, N = 8 * (1 + hash(seed + 1000000) % 1000);
    if (linear_sm90_choose(M, N, K, order, multiprocessors) == tile) return {name, order == B_N_INNER, M, N, K, 0, false, false, false};
  }
  return {name, order == B_N_INNER, 0, 0, 0, 0, false, false, false};
}

/* Every tile, in both orders of B that it takes, with every kernel of it. */
static void check_tiles(arena &memory, int multiprocessors) {
  for (int tile = 0; tile < linear_sm90_tile_count; tile++)
    for (const linear_sm90_order order : {B_K_INNER, B_N_INNER}) {
      if (!(linear_sm90_tiles[tile].orders & order)) continue;
      char name[32];
      snprintf(name, sizeof name, "tile %d", linear_sm90_tiles[tile].width);
      problem p = choosing(name, tile, order, multiprocessors);
      if (!p.M) {
        expect(false, name);
        continue;
      }
      check(memory, p, 2);
      if (order == B_N_INNER) continue;
      p.R = 8, p.bias = p.residual = true, p.rope = p.N >= 4 * D;
      check(memory, p, 2);
      p.R = 24, p.bias = p.rope = false;
      check(memory, p, 2);
    }
}

/* ---- Speed. */

static void measure(FILE *json, arena &memory, const cublas &yardstick, const problem &p) {
  const tensors t = make(memory, p);
  const size_t n = (size_t)p.M * p.N, weight = (size_t)p.N * p.K;
  bf16 *c = (bf16 *)memory.take(n * 2), *c2 = (bf16 *)memory.take(n * 2);
  const int copies = weight * 2 > 400e6 ? 2 : 6;  // so that W comes from memory, as in a step
  std::vector<bf16 *> b = {t.b};
  for (int i = 1; i < copies; i++) b.push_back(memory.normal<bf16>(weight, .02f, 100 + i));
  problem plain = p;
  plain.R = 0, plain.bias = plain.residual = plain.rope = false;

  CHECK_CUDA(cudaMemset(c, 0xff, n * 2));
  if (run(plain, t, c, t.b, nullptr, 2)) printf("%s\n", qk_last_error()), exit(1);
  yardstick.run(c2, t.a, t.b, p.back, p.M, p.N, p.K);
  const comparison same = compare(c, c2, n);
  char line[128];
  snprintf(line, sizeof line, "%s %s whole output against cuBLAS: diff %.1e", p.name, p.back ? "back" : "fwd", same.diff());
  expect(same.diff() < 1e-6, line);

  const bool fused = p.R || p.bias || p.residual;
  std::vector<const char *> names = {"cublas", "sm90", "sm90 fused", "sm80"};
  std::vector<work> works = {
      [&](int i) { yardstick.run(c2, t.a, b[i % copies], p.back, p.M, p.N, p.K); },
      [&](int i) { run(plain, t, c, b[i % copies], nullptr, 2); },
      [&](int i) { run(p, t, c, b[i % copies], t.residual, 2); },
      [&](int i) { run(p, t, c, b[i % copies], t.residual, 1); }};
  const double flops = 2. * p.M * p.N * p.K, estimate = flops / 650e6;
  const std::vector<double> turn = interleaved(works, std::max(1, std::min(8, (int)(500 / estimate))), 21);
  const std::vector<sustained_time> sustained = sustained_times(works, turn, fused ? std::vector<int>{0, 1, 2} : std::vector<int>{0, 1});
  CHECK_CUDA(cudaGetLastError());
  for (int i = 0; i < 4; i++) {
    if (i == 2 && !fused) continue;
    fprintf(json, "{\"op\":\"linear\",\"name\":\"%s\",\"back\":%d,\"M\":%d,\"N\":%d,\"K\":%d,\"R\":%d,\"kernel\":\"%s\",\"us\":%.1f,\"tflops\":%.1f,"
            "\"ratio\":%.3f", p.name, p.back, p.M, p.N, p.K, i >= 2 ? p.R : 0, names[i], turn[i], flops / turn[i] / 1e6, turn[0] / turn[i]);
    const sustained_time &a = sustained[i];
    if (a.us) fprintf(json, ",\"alone_us\":%.1f,\"alone_tflops\":%.1f,\"alone_ratio\":%.3f,\"mhz\":%u,\"watts\":%.0f", a.us,
                      flops / a.us / 1e6, sustained[0].us / a.us, a.card.mhz, a.card.milliwatts / 1e3);
    fprintf(json, "}\n");
    printf("%-8s %-4s %-10s %8.1f us %6.1f TF %.3f x", p.name, p.back ? "back" : "fwd", names[i], turn[i], flops / turn[i] / 1e6, turn[0] / turn[i]);
    if (a.us) printf(" | alone %8.1f us %6.1f TF %.3f x %4u MHz %3.0f W", a.us, flops / a.us / 1e6, sustained[0].us / a.us, a.card.mhz, a.card.milliwatts / 1e3);
    printf("\n");
  }
  fflush(stdout), fflush(json);
}

int main(int argc, char **argv) {
  int multiprocessors, major;
  CHECK_CUDA(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  CHECK_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  printf("architectures %s, capability %d, %d multiprocessors\n", qk_architectures(), major, multiprocessors);
  if (major != 9) printf("this program needs a Hopper card: the sm_90a kernels are what it tests\n"), exit(1);
  const bool small = argc > 1 && !strcmp(argv[1], "small");
  arena memory(small ? (size_t)256 << 20 : (size_t)12 << 30);
  check_edges(memory, small);
  if (small) return printf("%d failures\n", failures), failures > 0;
  check_tiles(memory, multiprocessors);
  if (argc < 2) return failures > 0;

  FILE *json = fopen(argv[1], "w");
  cublas yardstick;
  if (!json || !yardstick.open()) printf("%s\n", json ? "no cuBLAS: name it in CUBLAS" : "cannot write results"), exit(1);
  const int T = 2048, C = 3584, F = 18944, V = 152064, QKV = 4608;
  for (const problem &p : {problem{"o", false, T, C, C, 8, false, true, false}, {"qkv", false, T, QKV, C, 24, true, false, false},
                           {"qkv rope", false, T, QKV, C, 24, true, false, true}, {"gateup", false, T, 2 * F, C, 16, false, false, false},
                           {"down", false, T, C, F, 8, false, true, false}, {"head", false, T, V, C, 0, false, false, false},
                           {"o", true, T, C, C, 0, false, false, false}, {"qkv", true, T, C, QKV, 0, false, false, false},
                           {"gateup", true, T, C, 2 * F, 0, false, false, false}, {"down", true, T, F, C, 0, false, false, false},
                           {"head", true, T, C, V, 0, false, false, false}}) {
    measure(json, memory, yardstick, p);
  }
  fclose(json);
  printf("%d failures\n", failures);
  return failures > 0;
}
