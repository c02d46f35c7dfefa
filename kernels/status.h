/* Failures of launchers: a status code to the caller and a sentence for qk_last_error. Nothing here exits or prints. */
#pragma once

#include <cuda_runtime.h>

#include "api.h"

/* Keeps the sentence for this thread and returns status. */
__attribute__((format(printf, 2, 3))) qk_status qk_fail(qk_status status, const char *format, ...);

/* Facts of the current device that launchers decide by; read once a device. */
struct qk_device {
  int multiprocessors, major, minor;
  int shared;      // bytes of shared memory that a block can have
  bool dependent;  // kernels run code for sm_90 or newer, which has programmatic dependent launch
  bool hopper() const { return major == 9 && minor == 0; }
};
qk_status qk_current_device(qk_device *device, const char *launcher);

/* After a launch: QK_OK, or the runtime's error under the launcher's name. */
static inline qk_status qk_launched(const char *launcher, cudaError_t error) {
  return error == cudaSuccess ? QK_OK : qk_fail(QK_LAUNCH_FAILED, "%s: %s", launcher, cudaGetErrorString(error));
}

/* Launches a kernel that waits for the one before it by itself (take_turn in common.cuh), and so may start while that still
runs, where the card can: programmatic dependent launch. bytes: dynamic shared memory; cluster: blocks in one. */
template <class... Parameters, class... Args>
static qk_status qk_launch(const char *launcher, void (*kernel)(Parameters...), dim3 grid, int cluster, int threads, int bytes,
                           cudaStream_t stream, const Args &...args) {
  qk_device device;
  if (const qk_status status = qk_current_device(&device, launcher)) return status;
  if (bytes > 0) {  // with what the kernel has of its own it may pass the 48 KB that need no asking
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return qk_launched(launcher, error);
  }
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  if (device.dependent) {
    cudaLaunchAttribute &a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeProgrammaticStreamSerialization, a.val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    cudaLaunchAttribute &a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeClusterDimension;
    a.val.clusterDim.x = cluster, a.val.clusterDim.y = a.val.clusterDim.z = 1;
  }
  config.gridDim = grid, config.blockDim = dim3(threads), config.dynamicSmemBytes = bytes;
  config.stream = stream, config.attrs = attributes;
  return qk_launched(launcher, cudaLaunchKernelEx(&config, kernel, args...));
}
/* The common case. */
template <class... Parameters, class... Args>
static qk_status qk_launch(const char *launcher, void (*kernel)(Parameters...), dim3 grid, int threads, cudaStream_t stream, const Args &...args) {
  return qk_launch(launcher, kernel, grid, 1, threads, 0, stream, args...);
}
