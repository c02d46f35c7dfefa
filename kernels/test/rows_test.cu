/* The ops that work by rows of tokens, on a card: embedding, norms, SwiGLU, LoRA's packs and gradients, against float64.
Usage: rows_test [results.json]; with a file also times them at the 7B shape. Exit 1 on any failure. */
#include "reference.h"

struct adapters {
  std::vector<int> ranks;
  double p;
  int sum() const {
    int n = 0;
    for (int r : ranks) n += r;
    return n;
  }
};
static std::string text(const adapters &a) {
  std::string s = " ranks";
  for (int r : a.ranks) s += " " + std::to_string(r);
  return s + " drop " + std::to_string(a.p).substr(0, 4);
}
static std::string text(const char *op, int T, int C) { return std::string(op) + " T" + std::to_string(T) + " C" + std::to_string(C); }

static const int lengths[] = {1, 7, 8, 9, 16, 17, 33, 300};
static const adapters patterns[] = {{{8, 8, 8}, .05}, {{4, 0, 13}, .5}, {{}, 0}, {{64, 64, 64}, .05}, {{0, 16, 0}, 0}, {{8, 8, 0}, 0}, {{1, 33, 7}, .1}, {{40, 8, 8}, .05}};

static void embed(int T, int C, int S, float alpha) {
  trial t(text("embed", T, C) + " alpha " + std::to_string(alpha).substr(0, 4));
  host_batch b(t, T, S, 1, 100, alpha);
  const tensor &x = t.out(BF16, (size_t)T * C), &table = t.in(BF16, normals(100 * C, 1, 1));
  if (!t.run([&] { return qk_embed(x, table, &b.device, C, 0); })) return;
  values want;
  for (double id : b.ids) want.insert(want.end(), table.v.begin() + (size_t)id * C, table.v.begin() + ((size_t)id + 1) * C);
  if (!alpha) return t.exact("x", x, want);
  for (int i = 0, s = 0; i < T; i++) {
    while (i >= b.seg[s + 1]) s++;
    const double unit = alpha / (65536 * sqrt((b.seg[s + 1] - b.seg[s]) * (double)C));
    for (int c = 0; c < C; c++) want[(size_t)i * C + c] += (2. * lane_of(b, 0x4e454654, i, c) - 65535) * unit;
  }
  t.close("x", x, want);
}

static void norm(int T, int C, const adapters &a, int w_type) {
  trial t(text("rmsnorm", T, C) + text(a) + (w_type == QK_F32 ? " w float32" : ""));
  host_batch b(t, T, (T + 9) / 10, 1, 100);
  const tensor &x = t.in(BF16, normals((size_t)T * C, 1, 1)), &w = t.in(w_type == QK_F32 ? F32 : BF16, normals(C, 1, 2));
  const tensor &xn = t.out(BF16, (size_t)T * C), &rho = t.out(F32, T);
  const bool some = a.sum();
  host_lora l(t, C, {24, 16, 16}, some ? a.ranks : std::vector<int>{8, 0, 0}, a.p);
  const tensor &u = t.out(BF16, (size_t)T * l.device.rank);
  if (!t.run([&] { return qk_rmsnorm_fwd(xn, rho, some ? (qk_ptr)u : 0, x, w, w_type, 1e-6f, some ? &l.device : nullptr, &b.device, C, 0); }, [&] { return l.pack(); })) return;
  values rhos(T), want((size_t)T * C);
  for (int i = 0; i < T; i++) {
    double sum = 0;
    for (int c = 0; c < C; c++) sum += x.v[(size_t)i * C + c] * x.v[(size_t)i * C + c];
    rhos[i] = 1 / sqrt(sum / C + 1e-6);
    for (int c = 0; c < C; c++) want[(size_t)i * C + c] = x.v[(size_t)i * C + c] * rhos[i] * w.v[c];
  }
  t.close("rho", rho, rhos);
  t.close("xn", xn, want);
  if (some) t.product("u", u, l.down(b, t.got(xn), T));
}

/* A token's bits do not tell whether it came alone, as in decoding, or among others. */
static void norm_alone(int C) {
  constexpr int most = 20, few = 5;
  trial t(text("rmsnorm, few of many", few, C));
  host_batch all(t, most, 2, 1, 100), some(t, few, 1, 1, 100);
  const tensor &x = t.in(BF16, normals((size_t)most * C, 1, 1)), &w = t.in(F32, normals(C, 1, 2));
  const tensor &xn = t.out(BF16, (size_t)most * C), &rho = t.out(F32, most), &xn_few = t.out(BF16, (size_t)few * C), &rho_few = t.out(F32, few);
  if (!t.run([&] {
        const qk_status status = qk_rmsnorm_fwd(xn, rho, 0, x, w, QK_F32, 1e-6f, nullptr, &all.device, C, 0);
        return status ? status : qk_rmsnorm_fwd(xn_few, rho_few, 0, x, w, QK_F32, 1e-6f, nullptr, &some.device, C, 0);
      })) return;
  values want = t.got(xn), rhos = t.got(rho);
  want.resize((size_t)few * C), rhos.resize(few);
  t.exact("xn", xn_few, want), t.exact("rho", rho_few, rhos);
}

static void norm_back(int T, int C, const adapters &in, int out_rank, int residual, int w_type) {
  trial t(text("rmsnorm back", T, C) + text(in) + " out " + std::to_string(out_rank) + " residual " + std::to_string(residual));
  host_batch b(t, T, (T + 9) / 10, 1, 100);
  const tensor &x = t.in(BF16, normals((size_t)T * C, 1, 1)), &w = t.in(w_type == QK_F32 ? F32 : BF16, normals(C, 1, 2)), &dxn = t.in(BF16, normals((size_t)T * C, 1, 3));
  values rhos(T);
  for (int i = 0; i < T; i++) {
    double sum = 0;
    for (int c = 0; c < C; c++) sum += x.v[(size_t)i * C + c] * x.v[(size_t)i * C + c];
    rhos[i] = 1 / sqrt(sum / C + 1e-6);
  }
  const tensor &rho = t.in(F32, rhos), &dres = residual == 2 ? t.update(BF16, normals((size_t)T * C, 1, 4)) : t.in(BF16, normals((size_t)T * C, 1, 4));
  const tensor &dx = residual == 2 ? dres : t.out(BF16, (size_t)T * C);
  const bool some = in.sum();
  host_lora l(t, C, {24, 16, 16}, some ? in.ranks : std::vector<int>{8, 0, 0}, in.p), o(t, 40, {C}, {out_rank ? out_rank : 8}, .05);
  const tensor &du = t.in(BF16, normals((size_t)T * l.device.rank, 1, 5)), &du_out = t.out(BF16, (size_t)T * o.device.rank);
  values xn(x.v);
  for (int i = 0; i < T; i++)
    for (int c = 0; c < C; c++) xn[(size_t)i * C + c] *= rho.v[i] * w.v[c];
  const tensor &u = t.in(BF16, l.down(b, xn, T));
  const auto launch = [&] {
    return qk_rmsnorm_bwd(dx, out_rank ? (qk_ptr)du_out : 0, residual ? (qk_ptr)dres : 0, dxn, du, u, x, rho, w, w_type, some ? &l.device : nullptr,
                          out_rank ? &o.device : nullptr, &b.device, C, 0);
  };
  if (!t.run(launch, [&] { return l.pack() ? QK_BAD_ARGUMENT : o.pack(); })) return;
  values g = dxn.v, want = residual ? dres.v : values(g.size());
  if (some) l.back(b, g, du.v, T);
  for (int i = 0; i < T; i++) {
    double mean = 0;
    for (size_t e = (size_t)i * C; e < (size_t)(i + 1) * C; e++) g[e] *= w.v[e % C], mean += g[e] * x.v[e] * rho.v[i] / C;
    for (size_t e = (size_t)i * C; e < (size_t)(i + 1) * C; e++) want[e] += rho.v[i] * (g[e] - x.v[e] * rho.v[i] * mean);
  }
  if (some) t.product("dx", dx, want);
  else t.close("dx", dx, want);
  if (out_rank) t.product("du_out", du_out, o.up(t.got(dx), T));
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

static void swiglu(int T, int F, int rank, double p) {
  trial t(text("swiglu", T, F) + " rank " + std::to_string(rank));
  host_batch b(t, T, (T + 9) / 10, 1, 100);
  const tensor &gateup = t.in(BF16, normals((size_t)T * 2 * F, 2, 1)), &act = t.out(BF16, (size_t)T * F);
  host_lora l(t, F, {24}, {rank ? rank : 8}, p);
  const tensor &u = t.out(BF16, (size_t)T * l.device.rank);
  if (!t.run([&] { return qk_swiglu_fwd(act, rank ? (qk_ptr)u : 0, gateup, rank ? &l.device : nullptr, &b.device, F, 0); }, [&] { return l.pack(); })) return;
  values want((size_t)T * F);
  for (int i = 0; i < T; i++)
    for (int f = 0; f < F; f++) {
      const double g = gateup.v[(size_t)i * 2 * F + f];
      want[(size_t)i * F + f] = g * sigmoid(g) * gateup.v[(size_t)i * 2 * F + F + f];
    }
  t.close("act", act, want);
  if (rank) t.product("u", u, l.down(b, t.got(act), T));
}

/* blocks: how many blocks of 256 tokens the work holds; the gradients' bits must not depend on it. */
static void swiglu_back(int T, int F, int down_rank, const adapters &gu_ranks, int blocks) {
  trial t(text("swiglu back", T, F) + " down " + std::to_string(down_rank) + text(gu_ranks) + " blocks " + std::to_string(blocks));
  host_batch b(t, T, (T + 9) / 10, 1, 100);
  const tensor &gateup = t.update(BF16, normals((size_t)T * 2 * F, 2, 1)), &dact = t.in(BF16, normals((size_t)T * F, 1, 2));
  const bool some = gu_ranks.sum();
  host_lora down(t, F, {24}, {down_rank ? down_rank : 8}, gu_ranks.p, QK_PLAIN, {}, true);
  host_lora gu(t, 40, {F, F}, some ? gu_ranks.ranks : std::vector<int>{8, 8}, .05, QK_GATE_UP, {}, true);
  const tensor &du_down = t.in(BF16, normals((size_t)T * down.device.rank, 1, 3)), &u_gu = t.in(BF16, normals((size_t)T * gu.device.rank, 1, 4));
  const tensor &du_gu = t.out(BF16, (size_t)T * gu.device.rank);
  const int64_t bytes = qk_swiglu_bwd_work(256 * blocks, F, std::max({down.m(0).rank, gu.m(0).rank, gu.m(gu.modules() - 1).rank}));
  const tensor &work = t.scratch(bytes);
  const auto launch = [&] {
    return qk_swiglu_bwd(gateup, some ? (qk_ptr)du_gu : 0, dact, down_rank ? (qk_ptr)du_down : 0, some ? (qk_ptr)u_gu : 0, down_rank ? &down.device : nullptr,
                         some ? &gu.device : nullptr, &b.device, F, work, bytes, 0);
  };
  if (!t.run(launch, [&] { return down.pack() ? QK_BAD_ARGUMENT : gu.pack(); })) return;
  values d = dact.v, want((size_t)T * 2 * F), act((size_t)T * F);
  if (down_rank) down.back(b, d, du_down.v, T);
  for (int i = 0; i < T; i++)
    for (int f = 0; f < F; f++) {
      const size_t at = (size_t)i * 2 * F + f;
      const double g = gateup.v[at], up = gateup.v[at + F], s = sigmoid(g), dy = d[(size_t)i * F + f];
      act[(size_t)i * F + f] = round_bf16(g * s * up);
      want[at] = dy * up * s * (1 + g * (1 - s)), want[at + F] = dy * g * s;
    }
  t.product("dgate, dup", gateup, want);
  const values dgateup = t.got(gateup);
  if (some) t.product("du", du_gu, gu.up(dgateup, T));
  if (down_rank) t.product("dA down", *down.da[0], down.grad_a(b, 0, act, du_down.v, T));
  for (int i = 0; some && i < gu.modules(); i++) t.product("dB", *gu.db[i], gu.grad_b(i, dgateup, u_gu.v, T));
}

static void packs() {
  trial t("pack");
  const qk_heads h = {3, 1, 16};
  host_lora l(t, 40, {48, 16, 16}, {8, 5, 0}, 0, QK_QKV, h);
  if (!t.run([&] { return l.pack(); })) return;
  values a, b((size_t)l.device.out * l.device.rank), bt;
  for (int i = 0; i < l.modules(); i++) {
    const qk_module &m = l.m(i);
    a.insert(a.end(), l.a[i]->v.begin(), l.a[i]->v.end());
    a.resize((size_t)(m.col + (m.rank + 7) / 8 * 8) * l.device.in);
    values own((size_t)m.rank * m.rows);
    for (int o = 0; o < m.rows; o++)
      for (int r = 0; r < m.rank; r++) {
        const double v = l.b[i]->v[o * m.rank + r];
        b[(size_t)l.fused(i, o) * l.device.rank + m.col + r] = v;
        own[(size_t)r * m.rows + l.fused(i, o) - m.row] = v;
      }
    bt.insert(bt.end(), own.begin(), own.end());
  }
  t.exact("pack_a", *l.pack_a, a), t.exact("pack_b", *l.pack_b, b), t.exact("pack_bt", *l.pack_bt, bt);
}

/* normed: 0 or the type of a norm's w, whose input stands for xn. */
static void grads(int T, int C, const adapters &qkv, const adapters &o, int blocks, int normed) {
  trial t(text("lora grad", T, C) + text(qkv) + " o" + text(o) + " blocks " + std::to_string(blocks) + " normed " + std::to_string(normed));
  host_batch b(t, T, (T + 9) / 10, 1, 100);
  const qk_heads h = {4, 2, 24};
  host_lora lq(t, C, {96, 48, 48}, qkv.ranks, qkv.p, QK_QKV, h, true), lo(t, 96, {C}, o.ranks, o.p, QK_PLAIN, {}, true);
  const tensor &xn = t.in(BF16, normals((size_t)T * C, 1, 1)), &dqkv = t.in(BF16, normals((size_t)T * 192, 1, 2)), &dx = t.in(BF16, normals((size_t)T * C, 1, 3)),
               &oo = t.in(BF16, normals((size_t)T * 96, 1, 4));
  const tensor &uq = t.in(BF16, normals((size_t)T * lq.device.rank, 1, 5)), &duq = t.in(BF16, normals((size_t)T * lq.device.rank, 1, 6)),
               &uo = t.in(BF16, normals((size_t)T * lo.device.rank, 1, 7)), &duo = t.in(BF16, normals((size_t)T * lo.device.rank, 1, 8));
  const tensor &rho = t.in(F32, normals(T, 1, 9)), &w = t.in(normed == QK_F32 ? F32 : BF16, normals(C, 1, 10));
  const qk_grad_job jobs[] = {{&lq.device, 0, xn, duq, normed ? (qk_ptr)rho : 0, w, normed}, {&lq.device, 1, dqkv, uq}, {&lo.device, 1, dx, uo}, {&lo.device, 0, oo, duo}};
  const int64_t bytes = qk_lora_grad_work(256 * blocks, 2 * C + 192 + 96, std::max(lq.device.rank, lo.device.rank));
  const tensor &work = t.scratch(bytes);
  if (!t.run([&] { return qk_lora_grad(jobs, 4, &b.device, work, bytes, 0); }, [&] { return lq.pack() ? QK_BAD_ARGUMENT : lo.pack(); })) return;
  values read(xn.v);  // what dA is made of
  for (size_t e = 0; normed && e < read.size(); e++) read[e] = round_bf16((float)((float)read[e] * (float)rho.v[e / C]) * (float)w.v[e % C]);
  for (int i = 0; i < lq.modules(); i++) {
    t.product("dA", *lq.da[i], lq.grad_a(b, i, read, duq.v, T));
    t.product("dB", *lq.db[i], lq.grad_b(i, dqkv.v, uq.v, T));
  }
  t.product("o dA", *lo.da[0], lo.grad_a(b, 0, oo.v, duo.v, T));
  t.product("o dB", *lo.db[0], lo.grad_b(0, dx.v, uo.v, T));
}

static void speed(const char *path) {
  FILE *json = fopen(path, "w");
  if (!json) printf("cannot write %s\n", path), exit(1);
  arena memory((size_t)16 << 30);
  const qk_batch b = device_batch(memory, 512);
  const rotating x(memory, (size_t)T7 * C7), y(memory, (size_t)T7 * C7), z(memory, (size_t)T7 * C7), qkv(memory, (size_t)T7 * QKV7), gu(memory, (size_t)T7 * 2 * F7), act(memory, (size_t)T7 * F7), u(memory, (size_t)T7 * 24);
  const rotating table(memory, (size_t)V7 * C7 / TURNS);
  const qk_ptr w = (qk_ptr)memory.normal<float>(C7, 1, 5), rho = (qk_ptr)memory.normal<float>(T7, 1, 6);
  const int64_t bytes = std::max(qk_swiglu_bwd_work(T7, F7, 8), qk_lora_grad_work(T7, 3 * C7 + QKV7, 24));
  const qk_ptr work = (qk_ptr)memory.take(bytes);
  const double row = 2. * T7;
  report(json, "embed", "", row * 2 * C7, [&](int i) { return qk_embed(x(i), table(0), &b, C7, 0); });
  for (double p : {0., .05}) {
    const qk_lora lq = device_lora(memory, C7, {C7, 512, 512}, 8, p, QK_QKV), lg = device_lora(memory, C7, {F7, F7}, 8, p, QK_GATE_UP),
                  lo = device_lora(memory, C7, {C7}, 8, p, QK_PLAIN), ld = device_lora(memory, F7, {C7}, 8, p, QK_PLAIN);
    const char *drop = p ? "R 8 drop 0.05" : "R 8";
    if (!p) {
      report(json, "rmsnorm", "no LoRA", row * 2 * C7, [&](int i) { return qk_rmsnorm_fwd(y(i), rho, 0, x(i), w, QK_F32, 1e-6f, nullptr, &b, C7, 0); });
      report(json, "rmsnorm_back", "no LoRA", row * 4 * C7, [&](int i) { return qk_rmsnorm_bwd(z(i), 0, z(i), y(i), 0, 0, x(i), rho, w, QK_F32, nullptr, nullptr, &b, C7, 0); });
      report(json, "swiglu", "no LoRA", row * 3 * F7, [&](int i) { return qk_swiglu_fwd(act(i), 0, gu(i), nullptr, &b, F7, 0); });
      report(json, "swiglu_back", "no LoRA", row * 5 * F7, [&](int i) { return qk_swiglu_bwd(gu(i), 0, act(i), 0, 0, nullptr, nullptr, &b, F7, work, bytes, 0); });
      report(json, "lora_pack", "qkv", 4. * 8 * (3 * C7 + QKV7), [&](int) { return qk_lora_pack(&lq, 1, 0); });
    }
    report(json, "rmsnorm qkv", drop, row * 2 * C7, [&](int i) { return qk_rmsnorm_fwd(y(i), rho, u(i), x(i), w, QK_F32, 1e-6f, &lq, &b, C7, 0); });
    report(json, "rmsnorm_back gu, o", drop, row * 4 * C7, [&](int i) { return qk_rmsnorm_bwd(z(i), u(i + 1), z(i), y(i), u(i), u(i + 2), x(i), rho, w, QK_F32, &lg, &lo, &b, C7, 0); });
    report(json, "swiglu", drop, row * 3 * F7, [&](int i) { return qk_swiglu_fwd(act(i), u(i), gu(i), &ld, &b, F7, 0); });
    report(json, "swiglu_back", drop, row * 5 * F7, [&](int i) { return qk_swiglu_bwd(gu(i), u(i), act(i), u(i + 1), u(i + 2), &ld, &lg, &b, F7, work, bytes, 0); });
    report(json, "lora_grad attn", drop, row * (3 * C7 + QKV7), [&](int i) {
      const qk_grad_job jobs[] = {{&lo, 1, x(i), u(i)}, {&lo, 0, y(i), u(i + 1)}, {&lq, 1, qkv(i), u(i + 2)}, {&lq, 0, z(i), u(i + 3)}};
      return qk_lora_grad(jobs, 4, &b, work, bytes, 0);
    });
  }
  fclose(json);
}

int main(int argc, char **argv) {
  const int widths[] = {8, 40, 104, 512, 1000, 3584, 5120};
  int n = 0;
  for (int T : {1, 5, 300})
    for (int S : {1, (T + 2) / 3}) embed(T, 8 * T, S, 0), embed(T, 8 * T, S, 5);
  for (int T : lengths)
    for (int k = 0; k < 3; k++, n++) {
      const int C = T == 300 ? 520 : widths[n % 7];
      norm(T, C, patterns[n % 8], n % 2 ? QK_F32 : QK_BF16);
      norm_back(T, C, patterns[(n + 3) % 8], (const int[]){8, 0, 5, 64}[n % 4], n % 3, n % 2 ? QK_BF16 : QK_F32);
    }
  for (int C : {40, 1000, 3584, 5120}) norm_alone(C);
  norm(3, 16384, patterns[0], QK_F32);
  norm_back(3, 16384, patterns[0], 8, 2, QK_F32);
  for (int T : lengths) {
    n++;
    swiglu(T, (const int[]){8, 40, 1000, 4864}[n % 4], (const int[]){8, 0, 13, 64}[(n + T) % 4], n % 2 ? .05 : 0);
    swiglu_back(T, (const int[]){40, 8, 520, 1000}[n % 4], (const int[]){8, 13, 0, 64}[n % 4], (const adapters[]){{{8, 8}, .05}, {{0, 5}, 0}, {{64, 64}, .5}, {{}, 0}, {{9, 0}, .05}}[n % 5], 1);
  }
  for (int blocks : {1, 2, 4}) swiglu_back(769, 136, 8, {{8, 8}, .05}, blocks);
  packs();
  for (int T : lengths)
    for (int k = 0; k < 2; k++, n++) grads(T, (const int[]){8, 104, 520}[n % 3], patterns[(const int[]){0, 1, 3, 4, 5, 6, 7}[n % 7]], {{(const int[]){8, 1, 64, 13}[n % 4]}, n % 2 ? .05 : 0}, 1 + T / 256, n % 3);
  for (int blocks : {1, 3, 4}) grads(769, 264, patterns[0], {{8}, .05}, blocks, blocks % 3);
  if (argc > 1) speed(argv[1]);
  printf("%d failures\n", failures);
  return failures > 0;
}
