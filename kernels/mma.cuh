/* Small matrix products of one warp (mma.sync, sm_80 on), for kernels that multiply what they hold in registers.

A lane is 4i + q, i 0-7, q 0-3. d (16,8) += a (16,k) * b (k,8): a lane holds rows i and i + 8 of a and column i of b, of
each the k 2q, 2q + 1 (and 2q + 8, 2q + 9), and of d rows i and i + 8 at columns 2q, 2q + 1. Which k is which does not
matter as long as a and b agree, so a lane may load 16 bytes, eight neighbours, and use them as its k. */
#pragma once

#include "common.cuh"

/* k = 16. a: row i, row i + 8, then both at the second k; b: first, second k. */
QK_DEVICE void mma_k16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
/* k = 8. */
QK_DEVICE void mma_k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(b0));
}

/* Element j (0-7) of a and of b as a pair: k neighbours out of two rows. j is a constant. */
QK_DEVICE uint32_t word(const uint4 &v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }
QK_DEVICE uint32_t pair_of(const uint4 &a, const uint4 &b, int j) {
  return __byte_perm(word(a, j / 2), word(b, j / 2), j % 2 ? 0x7632 : 0x5410);
}

/* Eight bf16 to float and back. */
QK_DEVICE void unpack8(float (&f)[8], const uint4 &v) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 p = unpack_bf16(word(v, i));
    f[2 * i] = p.x, f[2 * i + 1] = p.y;
  }
}
QK_DEVICE uint4 pack8(const float (&f)[8]) {
  return make_uint4(pack_bf16(f[0], f[1]), pack_bf16(f[2], f[3]), pack_bf16(f[4], f[5]), pack_bf16(f[6], f[7]));
}

/* 16 bytes from memory that no thread of the kernel writes; zeros where not wanted. */
QK_DEVICE uint4 load16(const bf16 *p, bool wanted = true) {
  return wanted ? __ldg((const uint4 *)p) : make_uint4(0, 0, 0, 0);
}
