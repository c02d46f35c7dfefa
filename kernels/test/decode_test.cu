/* Decoding on a card: the cache, attention over it, sampling, against float64. Usage: decode_test [results.json]; with a file also
times them at the 7B shape. Exit 1 on any failure. */
#include "reference.h"

/* Tokens at the given positions of sequences, the cache full of other numbers, each token stored before it attends. */
static void attend(qk_heads h, int cap, const std::vector<int> &sample, const std::vector<int> &pos, int rank, int tokens_of_work) {
  trial t("decode H" + std::to_string(h.H) + " Hk" + std::to_string(h.Hk) + " D" + std::to_string(h.D) + " cap " + std::to_string(cap) + " T" + std::to_string(pos.size()) + " rank " + std::to_string(rank));
  const int T = pos.size(), D = h.D, width = h.Hk * D, wide = h.H * D + 2 * width, narrow = h.H * D;
  host_batch b(t, T, 1, 0, 10);
  b.sample.assign(sample.begin(), sample.end()), b.pos.assign(pos.begin(), pos.end());
  b.place(t);
  const int sequences = 1 + *std::max_element(sample.begin(), sample.end());
  const tensor &qkv = t.in(BF16, normals((size_t)T * wide, 1, 1)), &k = t.update(BF16, normals((size_t)sequences * cap * width, 1, 2)), &v = t.update(BF16, normals((size_t)sequences * cap * width, 1, 3));
  const tensor &o = t.out(BF16, (size_t)T * narrow);
  host_lora l(t, narrow, {24}, {rank ? rank : 8}, 0);
  const tensor &u = t.out(BF16, (size_t)T * l.device.rank);
  const int64_t bytes = qk_decode_attention_work(tokens_of_work, h, cap);
  const tensor &work = t.scratch(bytes);
  const auto launch = [&] {
    const qk_status status = qk_store_kv(k, v, qkv, h, cap, &b.device, 0);
    return status ? status : qk_decode_attention(o, rank ? (qk_ptr)u : 0, qkv, k, v, h, cap, rank ? &l.device : nullptr, &b.device, work, bytes, 0);
  };
  if (!t.run(launch, [&] { return l.pack(); })) return;
  values ks = k.v, vs = v.v, want((size_t)T * narrow), coarse(want.size());
  for (int i = 0; i < T; i++)
    for (int c = 0; c < width; c++) {
      const size_t at = ((size_t)sample[i] * cap + pos[i]) * width + c;
      ks[at] = qkv.v[(size_t)i * wide + narrow + c], vs[at] = qkv.v[(size_t)i * wide + narrow + width + c];
    }
  t.exact("cache k", k, ks), t.exact("cache v", v, vs);
  double plain = 0, error = 0, atol = 0;
  for (int i = 0; i < T; i++)
    for (int head = 0; head < h.H; head++) {
      const size_t at = (size_t)sample[i] * cap * width + head / (h.H / h.Hk) * D;
      // FlashAttention's rule: at most twice the error of a plain computation in bfloat16.
      for (int rounds = 0; rounds < 2; rounds++) {
        const auto rnd = [&](double x) { return rounds ? round_bf16(x) : x; };
        values s(pos[i] + 1);
        double top = -INFINITY, sum = 0;
        for (int j = 0; j <= pos[i]; j++) {
          double dot = 0;
          for (int d = 0; d < D; d++) dot += qkv.v[(size_t)i * wide + head * D + d] * ks[at + (size_t)j * width + d];
          s[j] = rnd(dot / sqrt(D)), top = std::max(top, s[j]);
        }
        for (double x : s) sum += exp(x - top);
        for (int d = 0; d < D; d++) {
          double y = 0;
          for (int j = 0; j <= pos[i]; j++) y += rnd(exp(s[j] - top) / sum) * vs[at + (size_t)j * width + d];
          (rounds ? coarse : want)[(size_t)i * narrow + head * D + d] = rnd(y);
        }
      }
    }
  const values got = t.got(o);
  for (size_t i = 0; i < want.size(); i++) {
    error = std::max(error, isfinite(got[i]) ? fabs(got[i] - want[i]) : INFINITY), plain = std::max(plain, fabs(coarse[i] - want[i]));
    const double stored = round_bf16(want[i]);
    atol = std::max(atol, fabs(round_bf16(round_bf16(stored + .3) - .3) - stored));
  }
  t.line(error <= 2 * plain + 2 * atol, "o", "of the allowed error", error / (2 * plain + 2 * atol));
  if (rank) t.product("u", u, l.down(b, got, T));
}

/* ---- Sampling: model/cpu/sample.go in float64 and float32 as there. */

static int draw(std::vector<float> l, const std::vector<int> &context, const qk_sampling &a, double u) {
  const int V = l.size();
  const float none = -INFINITY;
  for (int i = a.limit ? a.limit : V; i < V; i++) l[i] = none;
  std::vector<int> seen(V);
  if (a.repetition_penalty != 0 && a.repetition_penalty != 1)
    for (int id : context)
      if (!seen[id]++) l[id] = l[id] < 0 ? l[id] * (float)a.repetition_penalty : l[id] / (float)a.repetition_penalty;
  const auto top = [&] { return (int)(std::max_element(l.begin(), l.end()) - l.begin()); };
  for (float x : l)
    if (x != x) return -1;
  if (!isfinite(l[top()])) return -1;
  if (a.temperature == 0) return top();
  for (float &x : l) x /= (float)a.temperature;
  if (a.top_k && a.top_k < V) {
    std::vector<float> sorted = l;
    std::nth_element(sorted.begin(), sorted.begin() + a.top_k - 1, sorted.end(), std::greater<float>());
    for (float &x : l)
      if (x < sorted[a.top_k - 1]) x = none;
  }
  const auto softmax = [&] {
    values p(V);
    const float most = l[top()];
    double sum = 0;
    for (int i = 0; i < V; i++) sum += p[i] = l[i] == none ? 0 : exp((double)l[i] - most);
    for (double &x : p) x /= sum;
    return p;
  };
  if (a.top_p != 0 && a.top_p != 1) {
    const values p = softmax();
    std::vector<int> ids;
    for (int i = 0; i < V; i++)
      if (p[i] > 0) ids.push_back(i);
    std::stable_sort(ids.begin(), ids.end(), [&](int x, int y) { return l[x] < l[y]; });
    double sum = 0;
    for (size_t i = 0; i + 1 < ids.size() && (float)(sum += (float)p[ids[i]]) <= (float)(1 - a.top_p); i++) l[ids[i]] = none;
  }
  const values p = softmax();
  double sum = 0;
  int last = -1;
  for (int i = 0; i < V; i++) {
    if (p[i] == 0) continue;
    sum += p[i], last = i;
    if (u < sum) break;
  }
  return last;
}
static double uniform(uint32_t seed, uint32_t step, uint32_t sequence) {
  uint32_t x[4] = {step, sequence, 0, 0x53414d50}, k[2] = {seed, 0};
  for (int round = 0; round < 10; round++) {
    const uint64_t p = x[0] * 0xD2511F53ull, q = x[2] * 0xCD9E8D57ull;
    const uint32_t y[4] = {(uint32_t)(q >> 32) ^ x[1] ^ k[0], (uint32_t)q, (uint32_t)(p >> 32) ^ x[3] ^ k[1], (uint32_t)p};
    memcpy(x, y, sizeof x);
    k[0] += 0x9E3779B9, k[1] += 0xBB67AE85;
  }
  return (double)((uint64_t)x[0] << 21 | x[1] >> 11) / 9007199254740992.;
}

/* coarse: logits in steps of a half, so that many are equal. */
static void sampling(const char *name, int n, int V, qk_sampling a, bool coarse) {
  trial t(std::string("sample ") + name + " N" + std::to_string(n) + " V" + std::to_string(V));
  a.seed = 3, a.step = 8;
  values logits = normals((size_t)n * V, 3, 1), context, length, sequence;
  if (coarse)
    for (double &x : logits) x = round(2 * x) / 2;
  for (int i = 0; i < n; i++) {
    const int len = i % 4 * 5;
    for (int j = 0; j < 16; j++) context.push_back(j < len ? (int)(hash(i * 31 + j / 2) % V) : -9);
    length.push_back(len), sequence.push_back(i * 3 + 1);
  }
  if (n > 2) logits[(size_t)V * 2] = NAN;
  const tensor &l = t.in(F32, logits), &c = t.in(I32, context), &len = t.in(I32, length), &seq = t.in(I32, sequence), &next = t.out(I32, n);
  const int64_t bytes = qk_sample_work(n, V);
  const tensor &work = t.scratch(bytes);
  if (!t.run([&] { return qk_sample(next, l, c, len, seq, &a, n, V, 16, work, bytes, 0); })) return;
  values want;
  for (int i = 0; i < n; i++) {
    const std::vector<float> row(l.v.begin() + (size_t)i * V, l.v.begin() + (size_t)(i + 1) * V);
    want.push_back(draw(row, std::vector<int>(context.begin() + i * 16, context.begin() + i * 16 + (int)length[i]), a, uniform(a.seed, a.step, sequence[i])));
  }
  t.exact("next", next, want);
}

static void speed(const char *path) {
  FILE *json = fopen(path, "w");
  if (!json) printf("cannot write %s\n", path), exit(1);
  arena memory((size_t)8 << 30);
  const qk_heads h = {28, 4, 128};
  for (int n : {1, 8}) {
    const int cap = 4096, pos = 4000;
    memory.used = 0;
    const rotating qkv(memory, (size_t)n * QKV7), k(memory, (size_t)n * cap * 512), v(memory, (size_t)n * cap * 512);
    std::vector<int32_t> words(2 * n, pos);
    for (int i = 0; i < n; i++) words[i] = i;
    int32_t *at = (int32_t *)memory.take(words.size() * 4);
    CHECK_CUDA(cudaMemcpy(at, words.data(), words.size() * 4, cudaMemcpyHostToDevice));
    qk_batch b = {};
    b.sample = (qk_ptr)at, b.pos = (qk_ptr)(at + n), b.T = n;
    const qk_ptr o = (qk_ptr)memory.take(n * 3584 * 2);
    const int64_t bytes = qk_decode_attention_work(n, h, cap);
    const qk_ptr work = (qk_ptr)memory.take(bytes);
    const std::string shape = std::to_string(n) + " sequences at 4000";
    report(json, "decode_attention", shape.c_str(), 4. * n * (pos + 1) * 512, [&](int i) { return qk_decode_attention(o, 0, qkv(i), k(i), v(i), h, cap, nullptr, &b, work, bytes, 0); });
    const qk_ptr logits = (qk_ptr)memory.normal<float>((size_t)n * V7, 2, 1), next = (qk_ptr)memory.take(n * 4), scratch = (qk_ptr)memory.take(qk_sample_work(n, V7));
    for (const auto &run : std::initializer_list<std::pair<const char *, qk_sampling>>{{"sample greedy", {}}, {"sample top-k 50 top-p .9", {.8, .9, 0, 50}}, {"sample top-p .9", {.8, .9, 0, 0}}})
      report(json, run.first, std::to_string(n).c_str(), 4. * n * V7, [&](int) { return qk_sample(next, logits, 0, 0, (qk_ptr)at, &run.second, n, V7, 0, scratch, qk_sample_work(n, V7), 0); });
  }
  fclose(json);
}

int main(int argc, char **argv) {
  attend({4, 2, 64}, 2, {0}, {0}, 0, 1);
  attend({4, 2, 64}, 40, {0, 1, 2}, {5, 31, 1}, 4, 3);
  attend({9, 3, 64}, 600, {3, 0, 2, 1}, {511, 512, 63, 599}, 16, 4);
  attend({14, 2, 64}, 300, {0}, {257}, 8, 1);
  attend({28, 4, 128}, 300, {0, 1}, {255, 256}, 8, 2);
  attend({28, 4, 128}, 40000, {0}, {39999}, 0, 1);
  attend({40, 2, 128}, 70, {0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0}, {0, 1, 2, 60, 61, 62, 3, 4, 5, 6, 69}, 8, 3);
  for (int coarse = 0; coarse < 2; coarse++) {
    sampling("greedy", 5, 101, {}, coarse);
    sampling("greedy limit", 3, 151936, {0, 0, 0, 0, 151665}, coarse);
    sampling("greedy penalty", 64, 37, {0, 0, 1.5}, coarse);
    sampling("temperature", 64, 1000, {.7}, coarse);
    sampling("top-k", 64, 1000, {1, 0, 0, 20}, coarse);
    sampling("top-k 1", 16, 1000, {1, 0, 0, 1}, coarse);
    sampling("top-p", 64, 1000, {1.3, .8}, coarse);
    sampling("top-p small", 16, 5000, {1.3, .001}, coarse);
    sampling("top-p least", 16, 500, {1, 1e-9}, coarse);
    sampling("all", 64, 1000, {.9, .9, 1.1, 50, 990}, coarse);
    sampling("all", 3, 152064, {.8, .95, 1.05, 0, 151665}, coarse);
  }
  if (argc > 1) speed(argv[1]);
  printf("%d failures\n", failures);
  return failures > 0;
}
