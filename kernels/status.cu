#include "status.h"

#include <stdarg.h>
#include <stdio.h>

static __thread char last_error[512];

qk_status qk_fail(qk_status status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(last_error, sizeof last_error, format, args);
  va_end(args);
  return status;
}

extern "C" __attribute__((visibility("hidden"))) const char *qk_last_error(void) { return last_error; }

extern "C" __attribute__((visibility("hidden"))) const char *qk_architectures(void) { return QK_ARCHITECTURES; }

/* Compiled as all kernels are: its attributes tell which code the driver has chosen for this card. */
__global__ void probe_kernel() {}

qk_status qk_current_device(qk_device *device, const char *launcher) {
  enum { KNOWN = 64 };
  static qk_device known[KNOWN];  // written more than once at most, always with the same values
  int id = 0;
  cudaError_t error = cudaGetDevice(&id);
  if (error == cudaSuccess && id < KNOWN && known[id].multiprocessors) {
    *device = known[id];
    return QK_OK;
  }
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&device->major, cudaDevAttrComputeCapabilityMajor, id);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&device->minor, cudaDevAttrComputeCapabilityMinor, id);
  cudaFuncAttributes attributes = {};
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, probe_kernel);
  device->dependent = attributes.ptxVersion >= 90;  // what the code was written for, not the card
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&device->shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&device->multiprocessors, cudaDevAttrMultiProcessorCount, id);
  if (error == cudaSuccess && id < KNOWN) known[id] = *device;
  return qk_launched(launcher, error);
}
