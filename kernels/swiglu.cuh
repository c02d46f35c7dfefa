/* SwiGLU of eight columns of one token, for the kernels that make act or make it again: all round it alike. */
#pragma once

#include "mma.cuh"

QK_DEVICE float sigmoid(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }

/* act = silu(gate)*up. */
QK_DEVICE uint4 swiglu8(const uint4 &gate, const uint4 &up) {
  float g[8], u[8];
  unpack8(g, gate), unpack8(u, up);
#pragma unroll
  for (int j = 0; j < 8; j++) g[j] = g[j] * sigmoid(g[j]) * u[j];
  return pack8(g);
}

/* gate and up become their gradients, d that of act. */
QK_DEVICE void swiglu8_back(uint4 &gate, uint4 &up, const float (&d)[8]) {
  float g[8], u[8];
  unpack8(g, gate), unpack8(u, up);
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const float s = sigmoid(g[j]), silu = g[j] * s;
    g[j] = d[j] * u[j] * s * (1.f + g[j] * (1.f - s));
    u[j] = d[j] * silu;
  }
  gate = pack8(g), up = pack8(u);
}
