/* The ops on flat vectors, on a card: norm and AdamW bit for bit, NF4 bit for bit. Usage: flat_test [results.json]; with a file also
times them. Exit 1 on any failure. */
#include "reference.h"

static void norm(int n, double scale, int bad) {
  trial t("grad norm " + std::to_string(n) + " scale " + std::to_string(scale) + " bad " + std::to_string(bad));
  values g = normals(n, scale, 1);
  for (int i = 0; i < bad; i++) g[hash(i) % n] = i % 2 ? INFINITY : NAN;
  const tensor &grads = t.in(F32, g), &out = t.out(F32, 2);
  const tensor &work = t.scratch(qk_grad_norm_work(n));
  if (!t.run([&] { return qk_grad_norm(out, grads, n, work, qk_grad_norm_work(n), 0); })) return;
  double sum = 0, count = 0;
  for (double x : grads.v) sum += x * x, count += !isfinite(x);
  const values got = t.got(out);
  t.line(bad ? !isfinite(got[0]) : fabs(got[0] - sqrt(sum)) <= 1e-7 * sqrt(sum), "norm", "", got[0]);
  t.line(got[1] == count, "not finite", "", got[1]);
}

/* The host rounds after each operation in float32, as torch does. */
static void adamw(const std::vector<qk_adamw_group> &groups, int step, double max_norm, float norm_value) {
  int64_t n = 0;
  for (const auto &g : groups) n += g.len;
  trial t("adamw " + std::to_string(n) + " groups " + std::to_string(groups.size()) + " step " + std::to_string(step) + " norm " + std::to_string(norm_value));
  const double b1 = .9, b2 = .999;
  values square = normals(n, .1, 3);
  for (double &x : square) x *= x;
  const tensor &p = t.update(F32, normals(n, 1, 1)), &m = t.update(F32, normals(n, .1, 2)), &v = t.update(F32, square), &g = t.in(F32, normals(n, .1, 4)), &norm = t.in(F32, {norm_value, 0});
  if (!t.run([&] { return qk_adamw(p, m, v, g, norm, n, groups.data(), groups.size(), step, b1, b2, 1e-8, max_norm, 0); })) return;
  values ps = p.v, ms = m.v, vs = v.v;
  const float clip = max_norm > 0 ? std::min(1.f, (float)max_norm / (norm_value + 1e-6f)) : 1;
  int64_t i = 0;
  for (const auto &group : groups)
    for (const int64_t end = i + group.len; i < end && isfinite(norm_value); i++) {
      const float x = (float)g.v[i] * clip;
      volatile float rest = (x - (float)ms[i]) * (float)(1 - b1), kept = (float)vs[i] * (float)b2, part = (float)(1 - b2) * x;
      volatile float added = part * x;
      ms[i] = (float)ms[i] + rest, vs[i] = kept + added;
      const float denominator = sqrtf((float)vs[i]) / (float)sqrt(1 - pow(b2, step)) + 1e-8f;
      volatile float scaled = (float)ps[i] * (float)(1 - group.lr * group.weight_decay), moved = (float)(group.lr / (1 - pow(b1, step))) * (float)ms[i];
      ps[i] = scaled - moved / denominator;
    }
  t.exact("params", p, ps), t.exact("m", m, ms), t.exact("v", v, vs);
}

/* ---- NF4: model/cpu/nf4.go, whose bits are those of bitsandbytes. */

static const float nf4_code[16] = {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
                                   0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};
static std::vector<float> dynamic_map() {
  std::vector<float> code = {0, 1};
  for (int decade = 0; decade < 7; decade++) {
    const int items = 1 << decade;
    const double from = 0.1f, step = (float)(1 - from) / (float)items;
    const auto boundary = [&](int i) { return i < (items + 1) / 2 ? (float)(from + step * i) : (float)(1 - step * (items - i)); };
    for (int i = 0; i < items; i++) {
      const float x = (float)pow(10, decade - 6) * ((boundary(i) + boundary(i + 1)) / 2);
      code.push_back(x), code.push_back(-x);
    }
  }
  std::sort(code.begin(), code.end());
  return code;
}
template <class At> static float cascade(int64_t n, At at) {
  int bits = 0;
  for (int64_t m = std::max<int64_t>(n, 1) - 1; m; m >>= 1) bits++;
  const int power = std::max(4, bits / 4);
  const int64_t step = 1 << power;
  float sums[4] = {};
  int64_t i = 0;
  while (i + step <= n) {
    for (int64_t k = 0; k < step; k++) sums[0] += at(i++);
    for (int level = 1; level < 4; level++) {
      sums[level] += sums[level - 1], sums[level - 1] = 0;
      if (i & (step - 1) << (level * power)) break;
    }
  }
  for (; i < n; i++) sums[0] += at(i);
  return sums[0] + sums[1] + sums[2] + sums[3];
}
template <class At> static float row_sum(int64_t n, At at) {
  float sums[4];
  for (int k = 0; k < 4; k++) sums[k] = cascade(n / 4, [&](int64_t i) { return at(i * 4 + k); });
  for (int64_t i = n / 4 * 4; i < n; i++) sums[0] += at(i);
  return sums[0] + sums[1] + sums[2] + sums[3];
}
static float mean_of(const std::vector<float> &x) {
  const int64_t n = x.size(), rows = n / 8;
  if (n < 8) return row_sum(n, [&](int64_t i) { return x[i]; }) / n;
  float total = 0;
  for (int64_t i = rows * 8; i < n; i++) total += x[i];
  for (int lane = 0; lane < 8; lane++) total += row_sum(rows, [&](int64_t i) { return x[i * 8 + lane]; });
  return total / n;
}
static int nearest(const std::vector<float> &map, float x) {
  const volatile float half = (x + 1) * .5f;
  const volatile float level = half * 65535;
  const volatile float back = floorf(level + .5f) * (float)(2. / 65535);
  x = back - 1;
  int right = std::lower_bound(map.begin(), map.end(), x) - map.begin();
  if (right == 0) return 0;
  if (right == 256 || map[right] - x >= x - map[right - 1]) right--;
  return right;
}

static void nf4(int64_t n, bool nested) {
  trial t("nf4 " + std::to_string(n) + (nested ? " nested" : ""));
  values x = normals(n, 1, 1);
  for (int64_t i = 0; i < n; i++) x[i] *= 1 + i / 64 % 7, x[i] = i / 64 % 11 == 5 ? 0 : i % 9 == 0 ? -0. : i % 97 == 3 ? 1e-40 : x[i];
  const int64_t blocks = (n + 63) / 64, groups = (blocks + 255) / 256;
  const tensor &src = t.in(BF16, x), &dst = t.out(BF16, n), &codes = t.out(U8, (n + 1) / 2), &absmax = nested ? t.out(U8, blocks) : t.out(F32, blocks);
  const tensor &scale = t.out(F32, groups), &offset = t.out(F32, 1), &work = t.scratch(4 * blocks + qk_nf4_absmax_work(blocks));
  const qk_ptr s = nested ? (qk_ptr)scale : 0, o = nested ? (qk_ptr)offset : 0;
  const auto launch = [&] {
    qk_status status = qk_nf4_quant(codes, nested ? (qk_ptr)work : (qk_ptr)absmax, src, n, 0);
    if (!status && nested) status = qk_nf4_absmax(absmax, s, o, work, blocks, (qk_ptr)work + 4 * blocks, qk_nf4_absmax_work(blocks), 0);
    return status ? status : qk_nf4_dequant(dst, codes, absmax, s, o, n, 0);
  };
  if (!t.run(launch)) return;
  std::vector<float> top(blocks);
  values code((n + 1) / 2), back(n), eight(blocks), scales(groups);
  for (int64_t b = 0; b < blocks; b++) {
    const int64_t end = std::min(n, b * 64 + 64);
    for (int64_t i = b * 64; i < end; i++) top[b] = std::max(top[b], fabsf((float)src.v[i]));
    const float divisor = std::max(top[b], 1e-38f);
    const volatile float inverse = 1 / divisor;
    if (end < b * 64 + 64) top[b] = divisor;
    for (int64_t i = b * 64; i < (end + 1) / 2 * 2; i++) {
      const volatile float v = (i < n ? (float)src.v[i] : 0.f) * inverse;
      int c = 0;
      for (int k = 0; k < 15; k++) c += v > (nf4_code[k] + nf4_code[k + 1]) / 2;
      code[i / 2] += i % 2 ? c : 16 * c;
    }
  }
  std::vector<float> used = top;
  if (nested) {
    static const std::vector<float> map = dynamic_map();
    const float mean = mean_of(top);
    for (int64_t g = 0; g < groups; g++) {
      float most = 0;
      for (int64_t b = g * 256; b < std::min(blocks, g * 256 + 256); b++) most = std::max(most, fabsf(top[b] - mean));
      scales[g] = most;
      for (int64_t b = g * 256; b < std::min(blocks, g * 256 + 256); b++) {
        eight[b] = most == 0 ? 0 : nearest(map, (top[b] - mean) / most);
        const volatile float product = map[(int)eight[b]] * most;
        used[b] = product + mean;
      }
    }
    t.exact("offset", offset, {mean}), t.exact("nested", scale, scales), t.exact("absmax", absmax, eight);
  } else {
    t.exact("absmax", absmax, values(top.begin(), top.end()));
  }
  t.exact("codes", codes, code);
  for (int64_t i = 0; i < n; i++) back[i] = round_bf16(nf4_code[(int)code[i / 2] >> (i % 2 ? 0 : 4) & 15] * used[i / 64]);
  t.exact("dequantised", dst, back);
}

static void speed(const char *path) {
  FILE *json = fopen(path, "w");
  if (!json) printf("cannot write %s\n", path), exit(1);
  arena memory((size_t)8 << 30);
  const int64_t n = 20185088, w = (int64_t)2 * F7 * C7;  // LoRA of rank 8 on all of a 7B; gate and up of a layer
  const qk_ptr p = (qk_ptr)memory.normal<float>(n, 1, 1), m = (qk_ptr)memory.normal<float>(n, 1, 2), v = (qk_ptr)memory.take(n * 4), g = (qk_ptr)memory.normal<float>(n, 1, 3), norm = (qk_ptr)memory.take(8);
  CHECK_CUDA(cudaMemset((void *)v, 0, n * 4));
  const int64_t bytes = std::max(qk_grad_norm_work(n), 4 * (w / 64) + qk_nf4_absmax_work(w / 64));
  const qk_ptr work = (qk_ptr)memory.take(bytes);
  const qk_adamw_group group = {n, 1e-4, .1};
  report(json, "grad_norm", "20.2M", 4. * n, [&](int) { return qk_grad_norm(norm, g, n, work, bytes, 0); });
  report(json, "adamw", "20.2M", 28. * n, [&](int) { return qk_adamw(p, m, v, g, norm, n, &group, 1, 5, .9, .999, 1e-8, 1, 0); });
  const qk_ptr src = (qk_ptr)memory.normal<bf16>(w, 1, 5), codes = (qk_ptr)memory.take(w / 2), absmax = (qk_ptr)memory.take(w / 64), nested = (qk_ptr)memory.take(w / 64 / 256 * 4 + 4), offset = (qk_ptr)memory.take(4);
  report(json, "nf4_quant", "gate|up", 2.5 * w, [&](int) {
    const qk_status status = qk_nf4_quant(codes, work, src, w, 0);
    return status ? status : qk_nf4_absmax(absmax, nested, offset, work, w / 64, work + 4 * (w / 64), qk_nf4_absmax_work(w / 64), 0);
  });
  report(json, "nf4_dequant", "gate|up", 2.5 * w, [&](int) { return qk_nf4_dequant(src, codes, absmax, nested, offset, w, 0); });
  // A layer's weights as training makes them in 16 bits, and as decoding reads them: of random codes, one absmax for all.
  const auto weight = [&](int kind, std::vector<int> rows, int cols) {
    qk_nf4_weight to = {(int32_t)rows.size(), kind, {28, 4, 128}, cols};
    for (size_t i = 0; i < rows.size(); i++) to.part[i] = {codes, absmax, nested, offset, rows[i]};
    return to;
  };
  const qk_ptr x = (qk_ptr)memory.normal<bf16>(8 * (int64_t)F7, 1, 6), y = (qk_ptr)memory.take(8 * 2 * (int64_t)F7 * 2);
  const qk_batch batch = {};
  for (const auto &[name, kind, rows, cols] : std::vector<std::tuple<const char *, int, std::vector<int>, int>>{
           {"qkv", QK_QKV, {C7, 512, 512}, C7}, {"o", QK_PLAIN, {C7}, C7}, {"gate|up", QK_GATE_UP, {F7, F7}, C7}, {"down", QK_PLAIN, {C7}, F7}}) {
    const qk_nf4_weight w = weight(kind, rows, cols);
    int64_t n = 0;
    for (int r : rows) n += (int64_t)r * cols;
    report(json, "nf4_dequant_weight", name, 2.516 * n, [&](int) { return qk_nf4_dequant_weight(src, &w, 0); });
    for (int M : {1, 8})
      report(json, "linear_nf4", (std::string(name) + " M" + std::to_string(M)).c_str(), .516 * n,
             [&, M = M](int) { return qk_linear_nf4(y, x, &w, 0, 0, nullptr, 0, 0, 0, {}, &batch, M, 0); });
  }
  fclose(json);
}

int main(int argc, char **argv) {
  for (int n : {1, 2, 3, 31, 4097, 16384, 16385, 70001}) norm(n, 1, 0);
  norm(1000, 1e-15, 0), norm(5000, 1e25, 0), norm(70001, 1, 3);
  adamw({{1, 1e-3, 0}}, 1, 0, 3.5f), adamw({{4097, 1e-3, .1}}, 1, 1, 3.5f), adamw({{1, 1e-2, 0}, {30000, 1e-3, .1}, {40000, 0, 0}}, 100, 1, .5f);
  adamw({{5000, 1e-3, .1}}, 7, 1, INFINITY), adamw({{5000, 1e-3, .1}}, 7, 1, NAN);
  std::vector<qk_adamw_group> many;
  for (int i = 0; i < 150; i++) many.push_back({i % 5 * 37, 1e-4 * i, .01 * i});
  adamw(many, 3, 1, 2);
  for (int64_t n : {1, 2, 63, 64, 65, 1000, 20001, 64 * 7, 64 * 8, 64 * 40, 64 * 64 * 33, 5000037})
    for (int nested = 0; nested < 2; nested++) nf4(n, nested);
  if (argc > 1) speed(argv[1]);
  printf("%d failures\n", failures);
  return failures > 0;
}
