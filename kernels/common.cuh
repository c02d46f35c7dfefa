/* What every kernel file uses: bf16 pairs, and the asynchronous-copy and matrix-load instructions that all
architectures from sm_80 on share. Addresses of shared memory are 32-bit, as the instructions take them. */
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

#define QK_DEVICE static __device__ __forceinline__
#define QK_DEVICE_MEMBER __device__ __forceinline__

/* ---- Programmatic dependent launch, from sm_90 on (status.h launches so): a kernel may be started while the one before it
still runs. */

/* Until the kernel before this one in the stream, and with it all before that, has finished and its writes can be seen.
Before the first access to memory that they may have written, or that they may still read. */
QK_DEVICE void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/* Lets the next kernel of the stream start on multiprocessors as this one leaves them, once all of its blocks have said so. */
QK_DEVICE void start_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/* The first line of a kernel that does nothing before its turn. */
QK_DEVICE void take_turn() {
  wait_for_previous_kernel();
  start_next_kernel();
}

/* Whether code is compiled for cards from sm_100 on, for which the compiler takes a few more registers for the same kernel. */
#if __CUDA_ARCH__ >= 1000
constexpr bool arch_from_100 = true;
#else
constexpr bool arch_from_100 = false;
#endif

/* Asks for the line that holds p, which a load finds in the second-level cache soon. The line may be one that the kernel before
this one writes: that cache has the newest of everything. */
QK_DEVICE void prefetch_line(const void *p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

/* Two bf16 in one register, the lower half first in memory. */
QK_DEVICE uint32_t pack_bf16(float lo, float hi) {
  __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
  return reinterpret_cast<uint32_t &>(v);
}
QK_DEVICE float2 unpack_bf16(uint32_t v) { return __bfloat1622float2(reinterpret_cast<__nv_bfloat162 &>(v)); }

/* Barrier id 1-15 among so many threads. 0 is __syncthreads'. */
QK_DEVICE void threads_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

QK_DEVICE uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* Copies 16 bytes to shared memory past the registers; bytes (0 to 16) are read and the rest is filled with zeros. */
QK_DEVICE void copy_async(uint32_t dst, const void *src, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
}
QK_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Pending> QK_DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory"); }

/* Four 8x8 matrices of bf16, or two; lane l gives the address of row l % 8 of matrix l / 8. */
QK_DEVICE void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
QK_DEVICE void load_matrices_transposed(uint32_t (&r)[2], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(address) : "memory");
}
QK_DEVICE void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

/* The rotary angles (Su et al., RoFormer, 2021) of the packed row's tokens. Rows of Wq and Wk are permuted so that a
rotated pair of a head lies side by side. */
struct rope_table {
  const float *cos, *sin;  // (positions, D/2)
  const int32_t *pos;      // (T)
  int D;                   // a power of two
  /* The pair that column `column` of any head belongs to. */
  QK_DEVICE_MEMBER int pair(int column) const { return (column & (D - 1)) / 2; }
};
/* Rotates columns column, column + 1 (column even, in any head) of a token at that position. */
QK_DEVICE void rope_rotate(const rope_table &r, int position, int column, float &x, float &y) {
  const int64_t i = (int64_t)position * (r.D / 2) + r.pair(column);
  const float c = __ldg(r.cos + i), s = __ldg(r.sin + i), x0 = x;
  x = x0 * c - y * s;
  y = y * c + x0 * s;
}
/* The gradient's way back: the rotation by the opposite angle. */
QK_DEVICE void rope_rotate_back(const rope_table &r, int position, int column, float &x, float &y) {
  const int64_t i = (int64_t)position * (r.D / 2) + r.pair(column);
  const float c = __ldg(r.cos + i), s = __ldg(r.sin + i), x0 = x;
  x = x0 * c + y * s;
  y = y * c - x0 * s;
}
