/* What the programs in this folder share: random data, comparisons on the device, timing, cuBLAS and NVML opened at run
time as yardsticks. Failures end the program: these are tests. */
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

#include "../api.h"

typedef __nv_bfloat16 bf16;

#define CHECK_CUDA(call) check_cuda((call), __FILE__, __LINE__)
static void check_cuda(cudaError_t error, const char *file, int line) {
  if (error != cudaSuccess) printf("%s:%d: %s\n", file, line, cudaGetErrorString(error)), exit(1);
}

static int failures;
static void expect(bool ok, const char *what) {
  if (!ok) failures++;
  printf("%s %s\n", ok ? "ok  " : "FAIL", what);
}

__host__ __device__ inline uint32_t hash(uint64_t x) {
  x ^= x >> 33, x *= 0xff51afd7ed558ccdull, x ^= x >> 33, x *= 0xc4ceb9fe1a85ec53ull;
  return (uint32_t)(x ^ x >> 33);
}
__device__ inline float normal(uint64_t i, uint64_t seed) {
  const float u = (hash(2 * i + seed * 0x9E3779B97F4A7C15ull) + 1.f) * 2.3283064e-10f;
  const float v = hash(2 * i + 1 + seed * 0x9E3779B97F4A7C15ull) * 2.3283064e-10f;
  return sqrtf(-2 * logf(u)) * cospif(2 * v);
}
template <class T> __global__ void fill_normal(T *p, size_t n, float sigma, uint64_t seed) {
  for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
    p[i] = (T)(sigma * normal(i, seed));
}
/* Device memory of n normal numbers; never freed one by one: a case resets the arena. */
struct arena {
  char *base = nullptr;
  size_t size = 0, used = 0;
  explicit arena(size_t bytes) : size(bytes) { CHECK_CUDA(cudaMalloc(&base, bytes)); }
  void *take(size_t bytes) {
    void *p = base + used;
    used += (bytes + 255) / 256 * 256 + 256;  // a gap that sentinels fill
    if (used > size) printf("arena of %zu bytes is too small\n", size), exit(1);
    return p;
  }
  template <class T> T *normal(size_t n, float sigma, uint64_t seed) {
    T *p = (T *)take(n * sizeof(T));
    fill_normal<<<1024, 256>>>(p, n, sigma, seed);
    CHECK_CUDA(cudaGetLastError());
    return p;
  }
};

/* Sums of x*y, x*x + y*y, and whether anything is not finite, over two bf16 tensors; integer count of unequal bits. */
struct comparison {
  double xy, ss;
  unsigned long long bad, unequal;
  double diff() const { return bad ? INFINITY : 1 - 2 * xy / ss; }
};
__global__ void compare_kernel(const uint16_t *x, const uint16_t *y, size_t n, comparison *c) {
  double xy = 0, ss = 0;
  unsigned bad = 0, unequal = 0;
  for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
    const float a = __uint_as_float((uint32_t)x[i] << 16), b = __uint_as_float((uint32_t)y[i] << 16);
    xy += (double)a * b, ss += (double)a * a + (double)b * b;
    bad += !isfinite(a), unequal += x[i] != y[i];
  }
  atomicAdd(&c->xy, xy), atomicAdd(&c->ss, ss), atomicAdd(&c->bad, bad), atomicAdd(&c->unequal, unequal);
}
static comparison compare(const void *x, const void *y, size_t n) {
  static comparison *device;
  comparison c = {};
  if (!device) CHECK_CUDA(cudaMalloc(&device, sizeof c));
  CHECK_CUDA(cudaMemcpy(device, &c, sizeof c, cudaMemcpyHostToDevice));
  compare_kernel<<<512, 256>>>((const uint16_t *)x, (const uint16_t *)y, n, device);
  CHECK_CUDA(cudaMemcpy(&c, device, sizeof c, cudaMemcpyDeviceToHost));
  return c;
}

/* ---- Timing: a thing to run is a function of the repetition, which rotates its weights. */

typedef std::function<void(int)> work;

/* Median microseconds of each, all in turn, so that they share a clock. */
static std::vector<double> interleaved(const std::vector<work> &works, int repeats, int rounds) {
  std::vector<std::vector<double>> times(works.size());
  cudaEvent_t begin, end;
  CHECK_CUDA(cudaEventCreate(&begin)), CHECK_CUDA(cudaEventCreate(&end));
  int turn = 0;
  for (int round = -2; round < rounds; round++)
    for (size_t j = 0; j < works.size(); j++) {
      const size_t i = (j + round + 2) % works.size();
      CHECK_CUDA(cudaEventRecord(begin));
      for (int r = 0; r < repeats; r++) works[i](turn++);
      CHECK_CUDA(cudaEventRecord(end));
      CHECK_CUDA(cudaEventSynchronize(end));
      float ms;
      CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
      if (round >= 0) times[i].push_back(ms * 1e3 / repeats);
    }
  std::vector<double> medians;
  for (auto &t : times) std::nth_element(t.begin(), t.begin() + t.size() / 2, t.end()), medians.push_back(t[t.size() / 2]);
  return medians;
}

/* NVML's clock and power of card 0, or zeros where the library is not there. */
struct card_state {
  unsigned mhz, milliwatts;
};
static card_state read_card() {
  static void *device;
  static int (*clock)(void *, int, unsigned *), (*power)(void *, unsigned *);
  static bool tried;
  if (!tried) {
    tried = true;
    if (void *so = dlopen("libnvidia-ml.so.1", RTLD_NOW)) {
      ((int (*)())dlsym(so, "nvmlInit_v2"))();
      ((int (*)(unsigned, void **))dlsym(so, "nvmlDeviceGetHandleByIndex_v2"))(0, &device);
      clock = (decltype(clock))dlsym(so, "nvmlDeviceGetClockInfo");
      power = (decltype(power))dlsym(so, "nvmlDeviceGetPowerUsage");
    }
  }
  card_state s = {};
  if (device && clock && power) clock(device, 1, &s.mhz), power(device, &s.milliwatts);
  return s;
}

/* Microseconds of one thing alone for so many seconds, the last two thirds counted, and the card's state in them. */
struct sustained_time {
  double us;
  card_state card;
};
static sustained_time alone(const work &w, double estimate_us, double seconds) {
  const long n = (long)(seconds * 1e6 / estimate_us) + 3;
  sustained_time t = {};
  cudaEvent_t begin, end;
  CHECK_CUDA(cudaEventCreate(&begin)), CHECK_CUDA(cudaEventCreate(&end));
  for (long i = 0; i < n; i++) {
    if (i == n / 3) CHECK_CUDA(cudaEventRecord(begin));
    if (i == n - 1) t.card = read_card();  // the host is at most some hundred launches ahead
    w((int)i);
  }
  CHECK_CUDA(cudaEventRecord(end));
  CHECK_CUDA(cudaEventSynchronize(end));
  float ms;
  CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
  t.us = ms * 1e3 / (n - n / 3);
  return t;
}

/* Each of those wanted alone, in rounds that begin with another of them: the card's power control swings for a second
after every change of load, and whoever always came second would pay for the first. */
static std::vector<sustained_time> sustained_times(const std::vector<work> &works, const std::vector<double> &estimates, const std::vector<int> &wanted) {
  const int rounds = 2 * (int)wanted.size();
  std::vector<sustained_time> all(works.size());
  alone(works[wanted[0]], estimates[wanted[0]], .3);
  for (int round = 0; round < rounds; round++)
    for (size_t j = 0; j < wanted.size(); j++) {
      const int i = wanted[(j + round) % wanted.size()];
      const sustained_time t = alone(works[i], estimates[i], .15);
      all[i].us += t.us / rounds;
      all[i].card.mhz += t.card.mhz / rounds, all[i].card.milliwatts += t.card.milliwatts / rounds;
    }
  return all;
}

/* ---- cuBLAS as a yardstick: C (M,N) = A (M,K) * B, bf16, float32 sums, default heuristic, 64 MB of workspace. */
struct cublas {
  void *handle = nullptr;
  int (*gemm)(void *, int, int, int, int, int, const void *, const void *, int, int, const void *, int, int, const void *,
              void *, int, int, int, int) = nullptr;
  bool open() {
    void *so = nullptr;
    for (const char *name : {(const char *)getenv("CUBLAS"), "libcublas.so.13", "/usr/local/cuda/lib64/libcublas.so.13"})
      if (name && !so) so = dlopen(name, RTLD_NOW | RTLD_GLOBAL);
    if (!so) return false;
    void *workspace;
    CHECK_CUDA(cudaMalloc(&workspace, 64 << 20));
    ((int (*)(void **))dlsym(so, "cublasCreate_v2"))(&handle);
    ((int (*)(void *, void *, size_t))dlsym(so, "cublasSetWorkspace_v2"))(handle, workspace, 64 << 20);
    gemm = (decltype(gemm))dlsym(so, "cublasGemmEx");
    return handle && gemm;
  }
  void run(void *c, const void *a, const void *b, bool b_n_inner, int M, int N, int K) const {
    const float one = 1, zero = 0;
    enum { BF16 = 14, F32 = 68, NONE = 0, TRANSPOSED = 1 };
    const int status = gemm(handle, b_n_inner ? NONE : TRANSPOSED, NONE, N, M, K, &one, b, BF16, b_n_inner ? N : K, a, BF16, K,
                            &zero, c, BF16, N, F32, -1);
    if (status) printf("cublasGemmEx: status %d\n", status), exit(1);
  }
};
