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
