/* Four planted bugs, one for each tool of compute-sanitizer: a tool that lets its own pass would let any. Without the
sanitizer this program does nothing wrong that can be seen, and exits 0. */
#include <stdio.h>
#include <string.h>

#include <cuda_runtime.h>

/* memcheck: the last thread writes one past the end. */
__global__ void planted_memcheck(int *x, int n) {
  if (threadIdx.x <= n) x[threadIdx.x] = (int)threadIdx.x;
}

/* racecheck: a neighbour's word is read with no barrier after it was written. */
__global__ void planted_racecheck(int *x, int n) {
  extern __shared__ int shared[];
  shared[threadIdx.x] = x[threadIdx.x];
  x[threadIdx.x] = shared[(threadIdx.x + 32) % n];
}

/* initcheck: memory is read that nobody wrote. */
__global__ void planted_initcheck(int *x, int n) {
  x[threadIdx.x] = x[(threadIdx.x + 1) % n] + 1;
}

/* synccheck: the upper half of the warp waits under a mask that names the lower. */
__global__ void planted_synccheck(int *x, int n) {
  const unsigned lower = __ballot_sync(~0u, threadIdx.x % 32 < 16);
  if (threadIdx.x % 32 >= 16) __syncwarp(lower);
  if (threadIdx.x < n) x[threadIdx.x] = (int)lower;
}

int main(int argc, char **argv) {
  struct {
    const char *tool;
    void (*kernel)(int *, int);
    bool written;
  } const all[] = {{"memcheck", planted_memcheck, true}, {"racecheck", planted_racecheck, true}, {"initcheck", planted_initcheck, false},
                   {"synccheck", planted_synccheck, true}};
  for (const auto &bug : all) {
    if (argc != 2 || strcmp(argv[1], bug.tool)) continue;
    const int n = 127;
    int *x;
    cudaError_t error = cudaMalloc(&x, n * sizeof *x);
    if (error == cudaSuccess && bug.written) error = cudaMemset(x, 0, n * sizeof *x);
    if (error != cudaSuccess) return printf("%s\n", cudaGetErrorString(error)), 1;
    bug.kernel<<<1, 128, 128 * sizeof(int)>>>(x, n);
    error = cudaDeviceSynchronize();
    printf("planted for %s: %s\n", bug.tool, cudaGetErrorString(error));
    return 0;  // what the sanitizer finds is its own to report
  }
  printf("name a tool: memcheck, racecheck, initcheck or synccheck\n");
  return 2;
}
