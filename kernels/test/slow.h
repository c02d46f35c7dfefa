/* Included before a kernel by `make bench-slowed`, to see that `qlora bench` notices: every barrier of a block takes about
   QK_SLOW_NS longer. */
#include <cuda_runtime.h>

#include <cstdint>

__device__ __forceinline__ void qk_slow_barrier() {
  __syncthreads();
  __nanosleep(QK_SLOW_NS);
}
#define __syncthreads() qk_slow_barrier()
