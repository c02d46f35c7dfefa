/* What the kernels that make a normed row, or make it again, share: all round it alike. */
#pragma once

#include "lora.cuh"

/* Whether the limits of api.h hold. l: the modules that read the norm, or null. */
qk_status norm_check(const char *name, int C, int w_type, const qk_lora *l);

/* Eight of w's columns as floats. */
QK_DEVICE void load_w(float (&f)[8], const float *w, int c) {
  const float4 a = __ldg((const float4 *)(w + c)), b = __ldg((const float4 *)(w + c) + 1);
  f[0] = a.x, f[1] = a.y, f[2] = a.z, f[3] = a.w, f[4] = b.x, f[5] = b.y, f[6] = b.z, f[7] = b.w;
}
QK_DEVICE void load_w(float (&f)[8], const bf16 *w, int c) { unpack8(f, load16(w + c)); }

/* Eight columns of xn = x*rho*w. */
QK_DEVICE uint4 normalise(const uint4 &x, float rho, const float (&w)[8]) {
  float f[8];
  unpack8(f, x);
#pragma unroll
  for (int j = 0; j < 8; j++) f[j] = f[j] * rho * w[j];
  return pack8(f);
}
