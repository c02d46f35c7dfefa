/* Trials of one launcher: tensors in one region of device memory between guards, outputs poisoned, two runs that must give
the same bits, nothing written outside outputs, and results held to a float64 reference on the host. */
#pragma once

#include <string.h>

#include <deque>
#include <string>

#include "harness.h"

enum storage { F32, BF16, I32, U8 };
static size_t size_of(storage s) { return s == BF16 ? 2 : s == U8 ? 1 : 4; }

static double round_bf16(double x) {
  float f = (float)x;
  uint32_t bits;
  memcpy(&bits, &f, 4);
  if ((double)f != x && f == f && isfinite(f)) {  // to odd first, so that the second rounding knows the side of a tie
    if (fabs((double)f) > fabs(x)) bits--;
    bits |= 1;
  }
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
  memcpy(&f, &bits, 4);
  return f;
}

typedef std::vector<double> values;

static values normals(size_t n, double sigma, uint64_t seed) {
  values v(n);
  for (size_t i = 0; i < n; i++) {
    const double a = (hash(2 * i + seed * 0x9E3779B97F4A7C15ull) + 1.) / 4294967296., b = hash(2 * i + 1 + seed * 0x9E3779B97F4A7C15ull) / 4294967296.;
    v[i] = sigma * sqrt(-2 * log(a)) * cos(2 * M_PI * b);
  }
  return v;
}
static values constant(size_t n, double x) { return values(n, x); }

/* A tensor of a trial. v: what is stored before a run, rounded to its type. */
struct tensor {
  storage type;
  values v;
  bool written;
  size_t at;
  qk_ptr address;
  size_t bytes() const { return v.size() * size_of(type); }
  operator qk_ptr() const { return address; }
};

class trial {
 public:
  explicit trial(const std::string &name) : name_(name) {
    if (!memory_) CHECK_CUDA(cudaMalloc(&memory_, capacity));
  }
  const tensor &in(storage type, const values &v) { return add(type, v, false); }
  const tensor &update(storage type, const values &v) { return add(type, v, true); }
  /* Poisoned: NaN, or -1. */
  const tensor &out(storage type, size_t n) {
    const tensor &t = add(type, values(n, 0), true);
    memset(image_.data() + t.at, 0xff, t.bytes());
    return t;
  }
  const tensor &scratch(int64_t bytes) { return out(U8, bytes); }

  /* Runs launch twice after setup. false, and a line, where something is wrong already. */
  bool run(const std::function<qk_status()> &launch, const std::function<qk_status()> &setup = nullptr) {
    CHECK_CUDA(cudaMemcpy(memory_, image_.data(), image_.size(), cudaMemcpyHostToDevice));
    if (setup) {
      if (setup()) return bad(qk_last_error());
      CHECK_CUDA(cudaDeviceSynchronize());
      CHECK_CUDA(cudaMemcpy(image_.data(), memory_, image_.size(), cudaMemcpyDeviceToHost));
    }
    std::vector<uint8_t> first;
    for (int turn = 0; turn < 2; turn++) {
      CHECK_CUDA(cudaMemcpy(memory_, image_.data(), image_.size(), cudaMemcpyHostToDevice));
      if (launch()) return bad(qk_last_error());
      const cudaError_t error = cudaDeviceSynchronize();
      if (error != cudaSuccess) printf("FAIL %s: %s\n", name_.c_str(), cudaGetErrorString(error)), exit(1);
      after_.resize(image_.size());
      CHECK_CUDA(cudaMemcpy(after_.data(), memory_, image_.size(), cudaMemcpyDeviceToHost));
      if (!turn) first = after_;
    }
    std::vector<bool> may(image_.size());
    for (const tensor &t : tensors_)
      for (size_t i = 0; t.written && i < t.bytes(); i++) may[t.at + i] = true;
    size_t outside = 0, unequal = 0;
    for (size_t i = 0; i < image_.size(); i++) outside += !may[i] && after_[i] != image_[i], unequal += after_[i] != first[i];
    if (outside) return bad(std::to_string(outside) + " bytes written outside outputs");
    if (unequal) return bad(std::to_string(unequal) + " bytes differ between two runs");
    return true;
  }
  values got(const tensor &t) const {
    values v(t.v.size());
    for (size_t i = 0; i < v.size(); i++) {
      const uint8_t *p = after_.data() + t.at + i * size_of(t.type);
      uint32_t bits = 0;
      memcpy(&bits, p, size_of(t.type));
      if (t.type == BF16) bits <<= 16;
      float f;
      memcpy(&f, &bits, 4);
      v[i] = t.type == I32 ? (double)(int32_t)bits : t.type == U8 ? (double)bits : (double)f;
    }
    return v;
  }

  /* float32: NMSE of at most 1e-10; bf16: within an ulp, and the rounding of float32 sums at the size of the tensor. */
  void close(const char *what, const tensor &t, const values &want) {
    const values g = got(t);
    double worst = 0, most = 0, error = 0, norm = 0;
    for (double w : want) most = std::max(most, fabs(w));
    for (size_t i = 0; i < g.size(); i++) {
      if (!(isfinite(g[i]) && isfinite(want[i]))) worst = error = INFINITY;
      int e;
      frexp(round_bf16(want[i]), &e);
      worst = std::max(worst, fabs(g[i] - round_bf16(want[i])) / (ldexp(1, e - 8) + most * 0x1p-20));
      error += (g[i] - want[i]) * (g[i] - want[i]), norm += want[i] * want[i];
    }
    if (t.type == BF16)
      line(worst <= 1, what, "ulp", worst);
    else
      line(error <= 1e-10 * norm, what, "nmse", error ? error / norm : 0);
  }
  /* Of a product of bf16 operands: calc_diff below 1e-5. */
  void product(const char *what, const tensor &t, const values &want) {
    const values g = got(t);
    double error = 0, norm = 0;
    for (size_t i = 0; i < g.size(); i++) {
      if (!(isfinite(g[i]) && isfinite(want[i]))) error = INFINITY;
      error += (g[i] - want[i]) * (g[i] - want[i]), norm += g[i] * g[i] + want[i] * want[i];
    }
    line(error <= 1e-5 * norm, what, "diff", error ? error / norm : 0);
  }
  void exact(const char *what, const tensor &t, const values &want) {
    const values g = got(t);
    size_t wrong = 0;
    for (size_t i = 0; i < g.size(); i++) wrong += g[i] != want[i] && !(g[i] != g[i] && want[i] != want[i]);
    line(!wrong, what, "wrong", (double)wrong);
  }
  void within(const char *what, const tensor &t, const values &want, double limit) {
    const values g = got(t);
    double worst = 0;
    for (size_t i = 0; i < g.size(); i++) worst = std::max(worst, isfinite(g[i]) ? fabs(g[i] - want[i]) : INFINITY);
    line(worst <= limit, what, "error", worst);
  }
  void line(bool ok, const char *what, const char *measure, double v) {
    char text[256];
    snprintf(text, sizeof text, "%s: %s %s %.2g", name_.c_str(), what, measure, v);
    expect(ok, text);
  }

 private:
  enum : size_t { capacity = (size_t)1 << 30, guard = 4096 };
  const tensor &add(storage type, const values &v, bool written) {
    tensor t = {type, v, written, image_.size() + guard, 0};
    t.address = (qk_ptr)memory_ + t.at;
    image_.resize(t.at + (t.bytes() + 255) / 256 * 256, 0xff);
    image_.resize(image_.size() + guard, 0xff);  // NaN: what reads beyond a tensor shows
    if (image_.size() > capacity) printf("trial %s takes more than its region\n", name_.c_str()), exit(1);
    for (size_t i = 0; i < v.size(); i++) {
      float f = (float)(type == BF16 ? round_bf16(v[i]) : v[i]);
      uint32_t bits;
      memcpy(&bits, &f, 4);
      t.v[i] = f;
      if (type == BF16) bits >>= 16;
      if (type == I32 || type == U8) t.v[i] = v[i], bits = (uint32_t)(int64_t)v[i];
      memcpy(image_.data() + t.at + i * size_of(type), &bits, size_of(type));
    }
    tensors_.push_back(t);
    return tensors_.back();
  }
  bool bad(const std::string &why) {
    expect(false, (name_ + ": " + why).c_str());
    return false;
  }
  static inline uint8_t *memory_ = nullptr;
  std::string name_;
  std::deque<tensor> tensors_;
  std::vector<uint8_t> image_, after_;
};

/* ---- Batches */

/* T tokens in S segments, with N label rows of a vocabulary V. */
struct host_batch {
  values ids, pos, sample, seg, rows, targets;
  uint32_t seed = 42, step = 3;
  float scale = 0.25f, alpha, smoothing;
  qk_batch device;
  host_batch(trial &t, int T, int S, int N, int V, float alpha = 0, float smoothing = 0) : alpha(alpha), smoothing(smoothing) {
    for (int s = 0; s <= S; s++) seg.push_back((int)((int64_t)T * s / S));
    for (int i = 0, s = 0; i < T; i++) {
      while (i >= seg[s + 1]) s++;
      ids.push_back(hash(i * 7 + 1) % V), pos.push_back(i - seg[s]), sample.push_back(s + 5);
    }
    for (int i = 0; i < N; i++) rows.push_back((int)((int64_t)T * i / N)), targets.push_back(hash(i * 13 + 5) % V);
    place(t);
  }
  void place(trial &t) {
    const auto bits = [](float f) {
      int32_t i;
      memcpy(&i, &f, 4);
      return (double)i;
    };
    const int T = ids.size(), S = seg.size() - 1, N = rows.size();
    device = {t.in(I32, {(double)T, (double)S, (double)N, (double)seed, (double)step, bits(scale), bits(alpha), bits(smoothing)}), t.in(I32, ids), t.in(I32, pos),
              t.in(I32, sample), t.in(I32, seg), t.in(I32, rows), t.in(I32, targets), T, S, N, seed, step, smoothing};
  }
};

/* ---- LoRA. model/ops/dropout.go, written again for the host. */

static uint32_t lane_of(const host_batch &b, uint32_t stream, int t, int c) {
  uint32_t x[4] = {(uint32_t)c / 8, (uint32_t)b.pos[t], (uint32_t)b.sample[t], stream}, k[2] = {b.seed, b.step};
  for (int round = 0; round < 10; round++) {
    const uint64_t p = x[0] * 0xD2511F53ull, q = x[2] * 0xCD9E8D57ull;
    const uint32_t y[4] = {(uint32_t)(q >> 32) ^ x[1] ^ k[0], (uint32_t)q, (uint32_t)(p >> 32) ^ x[3] ^ k[1], (uint32_t)p};
    memcpy(x, y, sizeof x);
    k[0] += 0x9E3779B9, k[1] += 0xBB67AE85;
  }
  return x[c % 8 / 2] >> (c % 2 * 16) & 0xffff;
}
static double drop(const host_batch &b, uint32_t threshold, uint32_t stream, int t, int c) {
  return lane_of(b, stream, t, c) < threshold ? 0 : 65536. / (65536 - threshold);
}

/* A LoRA with factors whose values bf16 holds. Parts without a module have rank 0. */
struct host_lora {
  qk_lora device = {};
  std::vector<const tensor *> a, b, da, db;
  std::vector<int> parts;
  const tensor *pack_a, *pack_b, *pack_bt;
  host_lora(trial &t, int in, const std::vector<int> &parts, const std::vector<int> &ranks, double p, int kind = QK_PLAIN, qk_heads h = {}, bool gradients = false)
      : parts(parts) {
    int row = 0, col = 0;
    size_t bt = 0;
    for (size_t i = 0; i < parts.size(); row += parts[i++]) {
      if (!ranks[i]) continue;
      const int R = ranks[i], rows = parts[i], seed = 100 + 10 * (int)i + in;
      a.push_back(&t.in(F32, rounded(normals((size_t)R * in, 1 / sqrt(in), seed))));
      b.push_back(&t.in(F32, rounded(normals((size_t)rows * R, .5, seed + 1))));
      da.push_back(gradients ? &t.update(F32, normals((size_t)R * in, 1, seed + 2)) : nullptr);
      db.push_back(gradients ? &t.update(F32, normals((size_t)rows * R, 1, seed + 3)) : nullptr);
      qk_module &m = device.m[device.n++];
      m = {R, col, row, rows, .5f + i, (uint32_t)lround(p * 65536), (uint32_t)(7 + i), *a.back(), *b.back()};
      if (gradients) m.da = *da.back(), m.db = *db.back();
      col += (R + 7) / 8 * 8, bt += (size_t)R * rows;
    }
    device.rank = col, device.in = in, device.out = row, device.kind = kind, device.h = h;
    pack_a = &t.out(BF16, (size_t)col * in), pack_b = &t.out(BF16, (size_t)row * col), pack_bt = &t.out(BF16, bt);
    device.pack_a = *pack_a, device.pack_b = *pack_b, device.pack_bt = *pack_bt;
  }
  static values rounded(values v) {
    for (double &x : v) x = round_bf16(x);
    return v;
  }
  qk_status pack() const { return qk_lora_pack(&device, 1, 0); }
  int modules() const { return device.n; }
  const qk_module &m(int i) const { return device.m[i]; }
  /* Fused row of a part's own row: rope pairs of q and k side by side. */
  int fused(int i, int own) const {
    const qk_module &mod = m(i);
    const int D = device.h.D;
    if (device.kind != QK_QKV || mod.row >= (device.h.H + device.h.Hk) * D) return mod.row + own;
    const int d = own % D;
    return mod.row + own - d + (d < D / 2 ? 2 * d : 2 * (d - D / 2) + 1);
  }
  values down(const host_batch &hb, const values &x, int T) const {
    values u((size_t)T * device.rank);
    for (int i = 0; i < modules(); i++)
      for (int t = 0; t < T; t++)
        for (int c = 0; c < device.in; c++) {
          const double kept = m(i).scale * drop(hb, m(i).threshold, m(i).stream, t, c) * x[(size_t)t * device.in + c];
          for (int r = 0; r < m(i).rank; r++) u[(size_t)t * device.rank + m(i).col + r] += kept * a[i]->v[(size_t)r * device.in + c];
        }
    return u;
  }
  values up(const values &dy, int T) const {
    values du((size_t)T * device.rank);
    for (int i = 0; i < modules(); i++)
      for (int t = 0; t < T; t++)
        for (int r = 0; r < m(i).rank; r++) {
          double sum = 0;
          for (int o = 0; o < m(i).rows; o++) sum += dy[(size_t)t * device.out + fused(i, o)] * b[i]->v[(size_t)o * m(i).rank + r];
          du[(size_t)t * device.rank + m(i).col + r] = m(i).scale * sum;
        }
    return du;
  }
  /* dx += mask * (du * A). */
  void back(const host_batch &hb, values &dx, const values &du, int T) const {
    for (int i = 0; i < modules(); i++)
      for (int t = 0; t < T; t++)
        for (int c = 0; c < device.in; c++) {
          double sum = 0;
          for (int r = 0; r < m(i).rank; r++) sum += du[(size_t)t * device.rank + m(i).col + r] * a[i]->v[(size_t)r * device.in + c];
          dx[(size_t)t * device.in + c] += drop(hb, m(i).threshold, m(i).stream, t, c) * sum;
        }
  }
  values grad_a(const host_batch &hb, int i, const values &x, const values &du, int T) const {
    values g = da[i]->v;
    for (int t = 0; t < T; t++)
      for (int c = 0; c < device.in; c++) {
        const double v = drop(hb, m(i).threshold, m(i).stream, t, c) * x[(size_t)t * device.in + c];
        for (int r = 0; r < m(i).rank; r++) g[(size_t)r * device.in + c] += v * du[(size_t)t * device.rank + m(i).col + r];
      }
    return g;
  }
  values grad_b(int i, const values &dy, const values &u, int T) const {
    values g = db[i]->v;
    for (int t = 0; t < T; t++)
      for (int o = 0; o < m(i).rows; o++)
        for (int r = 0; r < m(i).rank; r++)
          g[(size_t)o * m(i).rank + r] += dy[(size_t)t * device.out + fused(i, o)] * u[(size_t)t * device.rank + m(i).col + r];
    return g;
  }
};

/* ---- Speed, at the shapes of a Qwen2.5-7B step. Each turn takes other memory, so that nothing is found in L2. */

enum { T7 = 2048, C7 = 3584, F7 = 18944, V7 = 152064, QKV7 = 4608, TURNS = 6 };

/* So many bf16 normal numbers for each turn. */
struct rotating {
  bf16 *base;
  size_t n;
  rotating(arena &memory, size_t n) : base(memory.normal<bf16>(n * TURNS, 1, n)), n(n) {}
  qk_ptr operator()(int turn) const { return (qk_ptr)(base + turn % TURNS * n); }
};

/* T7 tokens in four segments. */
static qk_batch device_batch(arena &memory, int N) {
  std::vector<int32_t> words = {T7, 4, N, 42, 3, 0x39000000, 0, 0};
  for (int i = 0; i < T7; i++) words.push_back(hash(i) % V7);
  for (int i = 0; i < T7; i++) words.push_back(i % (T7 / 4));
  for (int i = 0; i < T7; i++) words.push_back(i / (T7 / 4));
  for (int i = 0; i <= 4; i++) words.push_back(i * T7 / 4);
  for (int i = 0; i < N; i++) words.push_back(i * (T7 / N));
  for (int i = 0; i < N; i++) words.push_back(hash(i + 7) % V7);
  int32_t *block = (int32_t *)memory.take(words.size() * 4), *at = block + 8;
  CHECK_CUDA(cudaMemcpy(block, words.data(), words.size() * 4, cudaMemcpyHostToDevice));
  return {(qk_ptr)block, (qk_ptr)at, (qk_ptr)(at + T7), (qk_ptr)(at + 2 * T7), (qk_ptr)(at + 3 * T7), (qk_ptr)(at + 3 * T7 + 5),
          (qk_ptr)(at + 3 * T7 + 5 + N), T7, 4, N, 42, 3};
}

static qk_lora device_lora(arena &memory, int in, const std::vector<int> &parts, int rank, double p, int kind) {
  qk_lora l = {};
  l.in = in, l.kind = kind, l.h = {28, 4, 128};
  for (int rows : parts) {
    qk_module &m = l.m[l.n];
    m = {rank, l.rank, l.out, rows, 2, (uint32_t)lround(p * 65536), (uint32_t)l.n + 1};
    m.a = (qk_ptr)memory.normal<float>((size_t)rank * in, .02f, 11 + l.n), m.b = (qk_ptr)memory.normal<float>((size_t)rank * rows, .02f, 21 + l.n);
    m.da = (qk_ptr)memory.normal<float>((size_t)rank * in, 1, 31), m.db = (qk_ptr)memory.normal<float>((size_t)rank * rows, 1, 32);
    l.n++, l.rank += (rank + 7) / 8 * 8, l.out += rows;
  }
  l.pack_a = (qk_ptr)memory.take((size_t)l.rank * in * 2), l.pack_b = (qk_ptr)memory.take((size_t)l.rank * l.out * 2);
  l.pack_bt = (qk_ptr)memory.take((size_t)l.rank * l.out * 2);
  if (qk_lora_pack(&l, 1, 0)) printf("%s\n", qk_last_error()), exit(1);
  return l;
}

/* Median microseconds, and the bytes that the op cannot but move over them. */
static void report(FILE *json, const char *op, const char *shape, double bytes, const std::function<qk_status(int)> &launch) {
  const work w = [&](int turn) {
    if (launch(turn)) printf("%s: %s\n", op, qk_last_error()), exit(1);
  };
  const double us = interleaved({w}, 20, 11)[0];
  printf("%-18s %-40s %8.1f us %7.0f GB/s\n", op, shape, us, bytes / us / 1e3);
  if (json) fprintf(json, "{\"op\":\"%s\",\"shape\":\"%s\",\"us\":%.2f,\"gbps\":%.1f}\n", op, shape, us, bytes / us / 1e3);
}
