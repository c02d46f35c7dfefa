/* Warpgroup matrix instructions of sm_90a: D (64,N) f32 += A (64,16) * B (16,N), bf16 operands, for the widths N that
tiles.h uses. A comes from shared memory (ss) or registers (rs), B from shared memory, given by descriptors.

Accumulator of thread t in its warpgroup, lane l = t % 32: row 16*(t/32) + l/4 (and + 8 for the second pair), columns
8*j + 2*(l%4) + {0,1}: d[4j], d[4j+1] the upper row, d[4j+2], d[4j+3] the lower one. So the accumulators 8j..8j+7 of a
product, packed in pairs, are the A fragment of k16 step j of the next: no shuffle between two chained products.

Rules that ptxas enforces by serialising (C75xx in the build log, which the Makefile makes an error): every group of
instructions behind a branch needs a wgmma_fence of its own; no register of an instruction in flight may be touched
before wgmma_wait; and settle() after the wait keeps the compiler from moving reads above it. */
#pragma once

#include "common.cuh"

QK_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
QK_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Pending> QK_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
template <int N> QK_DEVICE void settle(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N> QK_DEVICE void settle(uint32_t (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(d[i])::"memory");
}

enum swizzle { swizzle_128 = 1, swizzle_64 = 2 };  // bytes of a shared-memory row, as descriptors encode them

/* Descriptor of an operand: address in 16-byte units, and the byte distances of its 8-row groups (stride) and, where it
is not K-major, of its column chunks (lead). Adding (bytes >> 4) to it moves the operand. */
QK_DEVICE uint64_t descriptor(uint32_t address, int lead, int stride, swizzle s) {
  return (uint64_t)((address & 0x3FFFF) >> 4) | (uint64_t)(lead >> 4) << 16 | (uint64_t)(stride >> 4) << 32 |
         (uint64_t)s << 62;
}

/* wgmma<N>::ss<TransB>(d, a, b, accumulate): TransB 1 where B lies with N innermost; accumulate 0 starts from zero.
wgmma<N>::rs<TransB>(d, a0..a3, b): A from registers, always accumulating. */
template <int N> struct wgmma;

#define QK_R0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define QK_R1 QK_R0 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define QK_R2 QK_R1 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define QK_R3 QK_R2 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define QK_R4 QK_R3 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define QK_R5 QK_R4 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define QK_R6 QK_R5 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define QK_R7 QK_R6 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define QK_R8 QK_R7 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define QK_R9 QK_R8 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define QK_R10 QK_R9 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define QK_R11 QK_R10 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define QK_R12 QK_R11 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define QK_R13 QK_R12 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define QK_R14 QK_R13 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define QK_R15 QK_R14 ", %120, %121, %122, %123, %124, %125, %126, %127"

#define QK_OUT8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define QK_D0 QK_OUT8(0)
#define QK_D1 QK_D0, QK_OUT8(8)
#define QK_D2 QK_D1, QK_OUT8(16)
#define QK_D3 QK_D2, QK_OUT8(24)
#define QK_D4 QK_D3, QK_OUT8(32)
#define QK_D5 QK_D4, QK_OUT8(40)
#define QK_D6 QK_D5, QK_OUT8(48)
#define QK_D7 QK_D6, QK_OUT8(56)
#define QK_D8 QK_D7, QK_OUT8(64)
#define QK_D9 QK_D8, QK_OUT8(72)
#define QK_D10 QK_D9, QK_OUT8(80)
#define QK_D11 QK_D10, QK_OUT8(88)
#define QK_D12 QK_D11, QK_OUT8(96)
#define QK_D13 QK_D12, QK_OUT8(104)
#define QK_D14 QK_D13, QK_OUT8(112)
#define QK_D15 QK_D14, QK_OUT8(120)

/* REGS and OUTS name the N/2 accumulators; the operands behind them are numbered from N/2 on: P0.. */
#define QK_WGMMA_SS(N, REGS, OUTS, P0, P1, P2, P3)                                                               \
  template <int TransB> static __device__ __forceinline__ void ss(float (&d)[N / 2], uint64_t a, uint64_t b,     \
                                                                  int accumulate) {                              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P2 ", 0;\n"                                                 \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGS "}, " P0 ", " P1              \
                 ", p, 1, 1, 0, " P3 ";\n}\n" : OUTS : "l"(a), "l"(b), "r"(accumulate), "n"(TransB));            \
  }
#define QK_WGMMA_RS(N, REGS, OUTS, P0, P1, P2, P3, P4, P5)                                                       \
  template <int TransB> static __device__ __forceinline__ void rs(float (&d)[N / 2], uint32_t a0, uint32_t a1,   \
                                                                  uint32_t a2, uint32_t a3, uint64_t b) {        \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                                      \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGS "}, {" P0 ", " P1 ", " P2     \
                 ", " P3 "}, " P4 ", p, 1, 1, " P5 ";\n}\n" : OUTS                                              \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "n"(TransB));                                     \
  }

template <> struct wgmma<64> {
  QK_WGMMA_SS(64, QK_R3, QK_D3, "%32", "%33", "%34", "%35")
  QK_WGMMA_RS(64, QK_R3, QK_D3, "%32", "%33", "%34", "%35", "%36", "%37")
};
template <> struct wgmma<112> { QK_WGMMA_SS(112, QK_R6, QK_D6, "%56", "%57", "%58", "%59") };
template <> struct wgmma<128> {
  QK_WGMMA_SS(128, QK_R7, QK_D7, "%64", "%65", "%66", "%67")
  QK_WGMMA_RS(128, QK_R7, QK_D7, "%64", "%65", "%66", "%67", "%68", "%69")
};
template <> struct wgmma<144> { QK_WGMMA_SS(144, QK_R8, QK_D8, "%72", "%73", "%74", "%75") };
template <> struct wgmma<160> { QK_WGMMA_SS(160, QK_R9, QK_D9, "%80", "%81", "%82", "%83") };
template <> struct wgmma<176> { QK_WGMMA_SS(176, QK_R10, QK_D10, "%88", "%89", "%90", "%91") };
template <> struct wgmma<192> { QK_WGMMA_SS(192, QK_R11, QK_D11, "%96", "%97", "%98", "%99") };
template <> struct wgmma<224> { QK_WGMMA_SS(224, QK_R13, QK_D13, "%112", "%113", "%114", "%115") };
template <> struct wgmma<256> { QK_WGMMA_SS(256, QK_R15, QK_D15, "%128", "%129", "%130", "%131") };
