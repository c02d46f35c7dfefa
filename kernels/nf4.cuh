/* The values of bitsandbytes' NF4, as nf4.cu and matvec_nf4.cu read them. */
#pragma once

#include "common.cuh"
#include "layout.cuh"
#include "status.h"

/* Whether the limits of qk_nf4_weight hold. */
qk_status nf4_check(const char *name, const qk_nf4_weight *w);

constexpr int nf4_block = 64, nested_block = 256;

/* The value of a code that the compiler knows. */
QK_DEVICE constexpr float nf4_code(int code) {
  switch (code) {
    case 0: return -1.0f; case 1: return -0.6961928009986877f; case 2: return -0.5250730514526367f;
    case 3: return -0.39491748809814453f; case 4: return -0.28444138169288635f; case 5: return -0.18477343022823334f;
    case 6: return -0.09105003625154495f; case 7: return 0.0f; case 8: return 0.07958029955625534f;
    case 9: return 0.16093020141124725f; case 10: return 0.24611230194568634f; case 11: return 0.33791524171829224f;
    case 12: return 0.44070982933044434f; case 13: return 0.5626170039176941f; case 14: return 0.7229568362236023f;
  }
  return 1.0f;
}
/* That only the running program knows, without a load. */
QK_DEVICE float nf4_value(int code) {
  float v = nf4_code(0);
#pragma unroll
  for (int i = 1; i < 16; i++) v = code == i ? nf4_code(i) : v;
  return v;
}

/* bitsandbytes' dynamic map for the 8-bit absmax: seven decades of growing precision, either sign, made as there from
torch.linspace(0.1, 1, items + 1), which steps from the nearer end. */
struct nested_map {
  float code[256];
  static constexpr float boundary(int i, int items) {
    const double from = 0.1f, to = 1, step = (float)(to - from) / (float)items;
    return i < (items + 1) / 2 ? (float)(from + step * i) : (float)(to - step * (items - i));
  }
  constexpr nested_map() : code() {
    const float power[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1};
    int n = 0;
    for (int decade = 0; decade < 7; decade++)
      for (int i = 0, items = 1 << decade; i < items; i++) {
        const float x = power[decade] * ((boundary(i, items) + boundary(i + 1, items)) / 2);
        code[n++] = x, code[n++] = -x;
      }
    code[n++] = 0, code[n++] = 1;
    for (int i = 1; i < 256; i++)  // by insertion: once, by the compiler
      for (int j = i; j > 0 && code[j - 1] > code[j]; j--) {
        const float x = code[j];
        code[j] = code[j - 1], code[j - 1] = x;
      }
  }
};
__device__ const nested_map nested_table = {};
static_assert(nested_map().code[255] == 1 && nested_map().code[127] == 0, "127 negative codes, 0, 128 positive ones");

/* What a block's absmax is made of: a float, or eight bits and the scale of 256 blocks. */
struct nf4_absmax {
  uint32_t own;
  float nested;
  QK_DEVICE_MEMBER void load(const qk_nf4_part &p, int64_t block) {
    own = p.nested ? __ldg((const uint8_t *)p.absmax + block) : __ldg((const uint32_t *)p.absmax + block);
    nested = p.nested ? __ldg((const float *)p.nested + block / nested_block) : 0.f;
  }
};
QK_DEVICE float nf4_offset(const qk_nf4_part &p) { return p.nested ? __ldg((const float *)p.offset) : 0.f; }

/* Both maps in shared memory, where lanes that read different entries do not wait for each other. */
struct nf4_tables {
  float code[16], nested[256];
  /* By all threads of a block; the caller synchronises. */
  QK_DEVICE_MEMBER void fill() {
    for (int i = threadIdx.x; i < 256; i += blockDim.x) nested[i] = __ldg(nested_table.code + i);
    if (threadIdx.x < 16) code[threadIdx.x] = nf4_value(threadIdx.x);
  }
  /* The absmax of a block of a part. */
  QK_DEVICE_MEMBER float absmax(const qk_nf4_part &p, const nf4_absmax &a, float offset) const {
    return p.nested ? __fadd_rn(__fmul_rn(nested[a.own], a.nested), offset) : __uint_as_float(a.own);
  }
  QK_DEVICE_MEMBER float absmax(const qk_nf4_part &p, int64_t block) const {
    nf4_absmax a;
    a.load(p, block);
    return absmax(p, a, nf4_offset(p));
  }
  /* Eight elements of a block from their codes, as pairs of bf16. */
  QK_DEVICE_MEMBER uint4 eight(uint32_t codes, float absmax) const {
    uint32_t w[4];
#pragma unroll
    for (int i = 0; i < 4; i++) w[i] = pack_bf16(of(codes >> (8 * i + 2)) * absmax, of(i ? codes >> (8 * i - 2) : codes << 2) * absmax);
    return make_uint4(w[0], w[1], w[2], w[3]);
  }

private:
  /* The entry at bits 2 to 5, which are its place in bytes. */
  QK_DEVICE_MEMBER float of(uint32_t code4) const { return *(const float *)((const char *)code + (code4 & 60)); }
};
