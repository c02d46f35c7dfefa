/* The head and the products of a few tokens, on a card: loss and its gradient, logits, divergence, against float64. Usage:
head_test [results.json]; with a file also times them at the 7B shape. Exit 1 on any failure. */
#include "reference.h"

#include "../matvec.cuh"

/* Logits of the label rows. */
static values logits_of(const host_batch &b, const values &x, const values &w, int C, int V) {
  values l(b.rows.size() * V);
  for (size_t i = 0; i < b.rows.size(); i++)
    for (int v = 0; v < V; v++) {
      double sum = 0;
      for (int c = 0; c < C; c++) sum += x[(size_t)b.rows[i] * C + c] * w[(size_t)v * C + c];
      l[i * V + v] = sum;
    }
  return l;
}
static double log_sum(const double *l, int V) {
  const double top = *std::max_element(l, l + V);
  double sum = 0;
  for (int v = 0; v < V; v++) sum += exp(l[v] - top);
  return top + log(sum);
}
static std::string text(const char *op, int T, int N, int C, int V) {
  return std::string(op) + " T" + std::to_string(T) + " N" + std::to_string(N) + " C" + std::to_string(C) + " V" + std::to_string(V);
}

/* room: label rows that the work holds. */
static void loss(int T, int N, int C, int V, double sigma, bool gradient, int room, int variant, float smoothing) {
  trial t(text(gradient ? "head loss" : "head loss eval", T, N, C, V) + " room " + std::to_string(room) + " variant " + std::to_string(variant) + " smoothing " +
          std::to_string(smoothing).substr(0, 4));
  host_batch b(t, T, 1 + T / 9, N, V, 0, smoothing);
  const tensor &xn = t.in(BF16, normals((size_t)T * C, 1, 1)), &head = t.in(BF16, normals((size_t)V * C, sigma / sqrt(C), 2));
  const tensor &dxn = t.out(BF16, (size_t)T * C), &nll = t.out(F32, N), &hit = t.out(F32, N);
  const int64_t bytes = qk_head_loss_work(room, C, V);
  const tensor &work = t.scratch(bytes);
  const values l = logits_of(b, xn.v, head.v, C, V);
  values nlls(N), hits(N), d((size_t)T * C);
  for (int i = 0; i < N; i++) {
    const double *row = &l[(size_t)i * V], lse = log_sum(row, V);
    const int target = (int)b.targets[i];
    nlls[i] = lse - (1 - smoothing) * row[target], hits[i] = std::max_element(row, row + V) - row == target;
    for (int v = 0; v < V; v++) {
      nlls[i] -= smoothing / V * row[v];
      const double g = b.scale * (exp(row[v] - lse) - (1 - smoothing) * (v == target) - smoothing / V);
      for (int c = 0; c < C; c++) d[(size_t)b.rows[i] * C + c] += g * head.v[(size_t)v * C + c];
    }
  }
  if (!t.run([&] { return qk_head_loss(gradient ? (qk_ptr)dxn : 0, nll, hit, xn, head, &b.device, C, V, work, bytes, 0, variant); })) return;
  t.close("nll", nll, nlls), t.exact("hit", hit, hits);
  if (gradient) t.product("dxn", dxn, d);
}

/* Rows whose target is the largest logit, alone or with an equal of a lower id. */
static void hits() {
  trial t("head loss, ties");
  const int T = 4, C = 8, V = 200;
  host_batch b(t, T, 1, 0, V);
  b.rows = {0, 1, 2, 3}, b.targets = {150, 70, 150, 3};
  b.place(t);
  values w((size_t)V * C), x((size_t)T * C);
  for (int c = 0; c < 4; c++) x[c * C + c] = 1;
  w[150 * C + 0] = 2, w[20 * C + 0] = 1;                     // 150 alone
  w[70 * C + 1] = 2, w[190 * C + 1] = 2;                     // 70, the lower of two
  w[150 * C + 2] = 2, w[20 * C + 2] = 2;                     // 20, not the target
  w[3 * C + 3] = -1;                                         // all others are larger
  const tensor &xn = t.in(BF16, x), &head = t.in(BF16, w), &nll = t.out(F32, T), &hit = t.out(F32, T);
  const int64_t bytes = qk_head_loss_work(T, C, V);
  const tensor &work = t.scratch(bytes);
  if (t.run([&] { return qk_head_loss(0, nll, hit, xn, head, &b.device, C, V, work, bytes, 0, 0); })) t.exact("hit", hit, {1, 1, 0, 0});
}

static void logits(int T, int N, int C, int V) {
  trial t(text("logits", T, N, C, V));
  host_batch b(t, T, 1, N, V);
  const tensor &xn = t.in(BF16, normals((size_t)T * C, 1, 1)), &head = t.in(BF16, normals((size_t)V * C, .05, 2)), &out = t.out(F32, (size_t)N * V);
  if (t.run([&] { return qk_logits(out, xn, head, &b.device, C, V, 0); })) t.close("logits", out, logits_of(b, xn.v, head.v, C, V));
}

static void divergence(int T, int N, int C, int V, double noise, int room) {
  trial t(text("kl", T, N, C, V) + " noise " + std::to_string(noise));
  host_batch b(t, T, 1, N, V);
  const tensor &base = t.in(BF16, normals((size_t)T * C, 1, 1)), &head = t.in(BF16, normals((size_t)V * C, 1 / sqrt(C), 2)), &kl = t.out(F32, N);
  values near = base.v;
  const values jitter = normals(near.size(), noise, 3);
  for (size_t i = 0; i < near.size(); i++) near[i] += jitter[i];
  const tensor &tuned = t.in(BF16, near);
  const int64_t bytes = qk_kl_work(room, V);
  const tensor &work = t.scratch(bytes);
  if (!t.run([&] { return qk_kl(kl, base, tuned, head, &b.device, C, V, work, bytes, 0); })) return;
  const values p = logits_of(b, base.v, head.v, C, V), q = logits_of(b, tuned.v, head.v, C, V);
  values want(N);
  for (int i = 0; i < N; i++) {
    const double lp = log_sum(&p[(size_t)i * V], V), lq = log_sum(&q[(size_t)i * V], V);
    for (int v = 0; v < V; v++) want[i] += exp(p[(size_t)i * V + v] - lp) * (p[(size_t)i * V + v] - lp - q[(size_t)i * V + v] + lq);
  }
  t.within("kl", kl, want, 1e-5);
}

/* A product of M tokens with all that may be added to it; rope on the columns of two heads of 8. */
static void matvec(int M, int N, int K, int R, bool bias, bool residual, bool rope) {
  trial t("matvec M" + std::to_string(M) + " N" + std::to_string(N) + " K" + std::to_string(K) + " R" + std::to_string(R) + (rope ? " rope" : ""));
  const int D = 8, positions = 9;
  values at(M), want((size_t)M * N);
  for (int i = 0; i < M; i++) at[i] = hash(i) % positions;
  const tensor &x = t.in(BF16, normals((size_t)M * K, 1, 1)), &w = t.in(BF16, normals((size_t)N * K, 1 / sqrt(K), 2)), &u = t.in(BF16, normals((size_t)M * R, 1, 3));
  const tensor &l = t.in(BF16, normals((size_t)N * R, .3, 4)), &b = t.in(F32, normals(N, 1, 5)), &y = t.update(BF16, normals((size_t)M * N, 1, 6));
  const tensor &cos = t.in(F32, normals(positions * D / 2, 1, 7)), &sin = t.in(F32, normals(positions * D / 2, 1, 8)), &pos = t.in(I32, at);
  linear_problem p = {};
  p.name = "matvec", p.c = (bf16 *)(qk_ptr)y, p.a = (const bf16 *)(qk_ptr)x, p.b = (const bf16 *)(qk_ptr)w;
  p.bias = bias ? (const float *)(qk_ptr)b : nullptr, p.residual = residual ? (const bf16 *)(qk_ptr)y : nullptr;
  p.u = (const bf16 *)(qk_ptr)u, p.lora_b = (const bf16 *)(qk_ptr)l, p.M = M, p.N = N, p.K = K, p.R = R;
  p.rope = {(const float *)(qk_ptr)cos, (const float *)(qk_ptr)sin, (const int32_t *)(qk_ptr)pos, D}, p.rope_columns = rope ? 2 * D : 0;
  if (!t.run([&] { return matvec_linear(p, 0); })) return;
  for (int m = 0; m < M; m++) {
    for (int n = 0; n < N; n++) {
      double sum = (bias ? b.v[n] : 0) + (residual ? y.v[(size_t)m * N + n] : 0);
      for (int k = 0; k < K; k++) sum += x.v[(size_t)m * K + k] * w.v[(size_t)n * K + k];
      for (int r = 0; r < R; r++) sum += u.v[(size_t)m * R + r] * l.v[(size_t)n * R + r];
      want[(size_t)m * N + n] = sum;
    }
    for (int n = 0; rope && n < 2 * D; n += 2) {
      const size_t angle = (size_t)at[m] * (D / 2) + n % D / 2, e = (size_t)m * N + n;
      const double even = want[e], odd = want[e + 1];
      want[e] = even * cos.v[angle] - odd * sin.v[angle], want[e + 1] = odd * cos.v[angle] + even * sin.v[angle];
    }
  }
  t.close("y", y, want);
}

static void speed(const char *path) {
  FILE *json = fopen(path, "w");
  if (!json) printf("cannot write %s\n", path), exit(1);
  arena memory((size_t)8 << 30);
  const qk_ptr xn = (qk_ptr)memory.normal<bf16>((size_t)T7 * C7, 1, 1), head = (qk_ptr)memory.normal<bf16>((size_t)V7 * C7, .02f, 2), dxn = (qk_ptr)memory.take((size_t)T7 * C7 * 2);
  const qk_ptr nll = (qk_ptr)memory.take(T7 * 4), hit = (qk_ptr)memory.take(T7 * 4), out = (qk_ptr)memory.take((size_t)8 * V7 * 4);
  const double weight = 2. * V7 * C7;
  for (int N : {614, 2048}) {
    const qk_batch b = device_batch(memory, N);
    const int64_t bytes = qk_head_loss_work(N, C7, V7);
    const qk_ptr work = (qk_ptr)memory.take(bytes);
    const std::string shape = "N " + std::to_string(N);
    report(json, "head_loss", shape.c_str(), 2 * weight + 6. * N * V7, [&](int) { return qk_head_loss(dxn, nll, hit, xn, head, &b, C7, V7, work, bytes, 0, 0); });
    report(json, "head_loss_eval", shape.c_str(), weight, [&](int) { return qk_head_loss(0, nll, hit, xn, head, &b, C7, V7, work, bytes, 0, 0); });
  }
  for (int M : {1, 8}) {
    const rotating w(memory, (size_t)C7 * C7);
    linear_problem p = {};
    p.name = "matvec", p.c = (bf16 *)out, p.a = (const bf16 *)xn, p.M = M, p.N = p.K = C7;
    report(json, "matvec 3584x3584", ("M " + std::to_string(M)).c_str(), 2. * C7 * C7, [&](int i) { return p.b = (const bf16 *)w(i), matvec_linear(p, 0); });
    p.b = (const bf16 *)head, p.N = 2 * F7;
    report(json, "matvec 37888x3584", ("M " + std::to_string(M)).c_str(), 4. * F7 * C7, [&](int) { return matvec_linear(p, 0); });
  }
  for (int N : {1, 8}) {
    const qk_batch b = device_batch(memory, N);
    report(json, "logits", ("N " + std::to_string(N)).c_str(), weight, [&](int) { return qk_logits(out, xn, head, &b, C7, V7, 0); });
  }
  fclose(json);
}

int main(int argc, char **argv) {
  int major;
  CHECK_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  for (float e : {0.f, .1f}) {
    for (int variant = 1; variant <= (major == 9 ? 2 : 1); variant++) {
      loss(1, 1, 8, 8, 3, true, 1, variant, e), loss(5, 3, 40, 104, 3, true, 3, variant, e), loss(200, 150, 104, 1000, 3, true, 150, variant, e);
      loss(300, 300, 256, 808, 1, true, 100, variant, e), loss(16, 16, 896, 4096, 8, true, 16, variant, e), loss(20, 7, 40, 301, 3, false, 7, variant, e);
    }
    loss(140, 129, 72, 130, 20, false, 129, 0, e);
  }
  loss(1, 1, 8, 1, 3, false, 1, 0, 0);
  hits();
  logits(1, 1, 8, 5), logits(9, 3, 40, 301), logits(9, 8, 520, 1000), logits(9, 9, 520, 1001), logits(200, 150, 72, 300);
  divergence(9, 5, 64, 300, .3, 5), divergence(200, 140, 104, 1001, .01, 60), divergence(4, 4, 64, 300, 3, 4), divergence(4, 4, 64, 300, 0, 4);
  matvec(1, 8, 8, 0, false, false, false), matvec(3, 40, 104, 16, true, true, true), matvec(8, 1000, 520, 24, true, true, false), matvec(7, 24, 3584, 8, false, true, true);
  if (argc > 1) speed(argv[1]);
  printf("%d failures\n", failures);
  return failures > 0;
}
