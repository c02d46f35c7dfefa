/* SwiGLU of eight columns of one token, for the kernels that make act or make it again: all round it alike. */
#pragma once

#include "mma.cuh"
#include "status.h"

/* Whether the limits of api.h hold. down: of the module that reads act, or null. */
qk_status swiglu_check(const char *name, int F, const qk_lora *down);

QK_DEVICE float sigmoid(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }

/* act = silu(gate)*up. */
QK_DEVICE uint4 swiglu8(const uint4 &gate, const uint4 &up) {
  float g[8], u[8];
  unpack8(g, gate), unpack8(u, up);
#pragma unroll
  for (int j = 0; j < 8; j++) g[j] = g[j] * sigmoid(g[j]) * u[j];
  return pack8(g);
}

/* gate and up become their gradients, d being that of act, which is made again. */
QK_DEVICE void swiglu8_back(uint4 &gate, uint4 &up, uint4 &act, const float (&d)[8]) {
  float g[8], u[8], a[8];
  unpack8(g, gate), unpack8(u, up);
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const float s = sigmoid(g[j]), silu = g[j] * s;
    a[j] = silu * u[j];
    g[j] = d[j] * u[j] * s * (1.f + g[j] * (1.f - s));
    u[j] = d[j] * silu;
  }
  gate = pack8(g), up = pack8(u), act = pack8(a);
}
