/* Planted breaches, one for each check of scripts/kernelgate and named after it: the gate must catch them all, or it
could never fail. Compiled for the gate alone; never linked. */
#include <cuda_bf16.h>
#include <stdint.h>

extern "C" {

__global__ void canary_local(float *x, int i) {
  float a[64] = {};
  for (int k = 0; k < 64; k++) a[i * k & 63] += x[k];  // an index known at run time alone keeps the array out of registers
  x[0] = a[i & 63] + a[(i ^ 1) & 63];
}

__global__ void canary_floatatomic(float *sum, const float *x) { atomicAdd(sum, x[threadIdx.x]); }

__global__ void canary_floatatomic_shared(float *sum, const float *x) {
  __shared__ float s;
  atomicAdd(&s, x[threadIdx.x]);
  __syncthreads();
  *sum = s;
}

__global__ void canary_floatatomic_bulk(float *sum, const float *x) {
#if __CUDA_ARCH__ >= 900
  __shared__ __align__(128) float s[32];
  s[threadIdx.x] = x[threadIdx.x];
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], 128;" ::"l"(sum),
               "r"((uint32_t)__cvta_generic_to_shared(s)) : "memory");
#else
  atomicAdd(sum, x[threadIdx.x]);
#endif
}

__global__ void canary_fence(float *x) {
  x[0] = 1;
  __threadfence();
  x[1] = 2;
}

__global__ void canary_hgmma(float *x) { x[threadIdx.x] = fmaf(x[threadIdx.x], 2.f, 1.f); }

__global__ void canary_hmma(float *x) { x[threadIdx.x] = fmaf(x[threadIdx.x], 2.f, 1.f); }

}  // extern "C"
