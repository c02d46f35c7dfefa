/* Failures of launchers: a status code to the caller and a sentence for qk_last_error. Nothing here exits or prints. */
#pragma once

#include <cuda_runtime.h>

#include "api.h"

/* Keeps the sentence for this thread and returns status. */
__attribute__((format(printf, 2, 3))) qk_status qk_fail(qk_status status, const char *format, ...);

/* Facts of the current device that launchers decide by; read once a device. */
struct qk_device {
  int multiprocessors, major, minor;
  bool hopper() const { return major == 9 && minor == 0; }
};
qk_status qk_current_device(qk_device *device, const char *launcher);

/* After a launch: QK_OK, or the runtime's error under the launcher's name. */
static inline qk_status qk_launched(const char *launcher, cudaError_t error) {
  return error == cudaSuccess ? QK_OK : qk_fail(QK_LAUNCH_FAILED, "%s: %s", launcher, cudaGetErrorString(error));
}

/* Launches a kernel that may start while the one before it still runs (programmatic dependent launch), and so waits for
it itself, with its dynamic shared memory raised to bytes. cluster: blocks in one. */
template <class Kernel, class... Args>
static qk_status launch_dependent(const char *launcher, Kernel kernel, int blocks, int cluster, int threads, int bytes,
                                  cudaStream_t stream, const Args &...args) {
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return qk_launched(launcher, error);
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  return qk_launched(launcher, cudaLaunchKernelEx(&config, kernel, args...));
}
