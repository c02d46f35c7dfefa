/* The launchers of the matrix products: what C alone can check, and the choice of a variant. */
#include "linear_sm80.cuh"
#include "linear_sm90.cuh"
#include "matvec.cuh"
#include "nf4.cuh"

enum { VARIANT_AUTO, VARIANT_SM80, VARIANT_SM90, VARIANT_MATVEC };

/* auto: Hopper's kernel on Hopper. */
static qk_status linear_run(const linear_problem &p, qk_stream stream, int32_t variant) {
  if (p.M < 1 || p.N < 1 || p.K < 1) return qk_fail(QK_BAD_ARGUMENT, "%s: empty product (%d,%d,%d)", p.name, p.M, p.N, p.K);
  if (p.K % 8 || p.N % 8) return qk_fail(QK_BAD_ARGUMENT, "%s: (%d,%d,%d) must be divisible by 8 but for the tokens", p.name, p.M, p.N, p.K);
  if (p.R < 0 || p.R > 192 || p.R % 8) return qk_fail(QK_BAD_ARGUMENT, "%s: LoRA of %d columns; a multiple of 8, at most 192", p.name, p.R);
  for (const void *data : {(const void *)p.c, (const void *)p.a, (const void *)p.b, (const void *)p.residual, (const void *)p.u, (const void *)p.lora_b})
    if ((uintptr_t)data % 16) return qk_fail(QK_BAD_ARGUMENT, "%s: a tensor at %p is not aligned to 16 bytes", p.name, data);

  qk_device device;
  if (const qk_status status = qk_current_device(&device, p.name)) return status;
  const bool built = QK_HAS_SM90;
  const auto s = (cudaStream_t)stream;
  switch (variant) {
    case VARIANT_AUTO:
      return built && device.hopper() ? linear_sm90(p, device, s) : linear_sm80(p, s);
    case VARIANT_SM80: return linear_sm80(p, s);
    case VARIANT_SM90:
      if (!built) return qk_fail(QK_NO_VARIANT, "%s: built without sm_90a", p.name);
      if (!device.hopper()) return qk_fail(QK_NO_VARIANT, "%s: the sm_90a kernels run on capability 9.0; this card has %d.%d", p.name, device.major, device.minor);
      return linear_sm90(p, device, s);
    case VARIANT_MATVEC: return matvec_linear(p, s);
  }
  return qk_fail(QK_NO_VARIANT, "%s: there is no variant %d", p.name, variant);
}

/* The arguments of a forward product but for W, checked. */
static qk_status forward_problem(linear_problem *to, const char *name, qk_ptr y, qk_ptr x, qk_ptr bias, qk_ptr u, const qk_lora *l,
                                 qk_ptr residual, qk_ptr cos, qk_ptr sin, qk_heads h, const qk_batch *b, int32_t M, int32_t N, int32_t K) {
  linear_problem &p = *to;
  p = {};
  p.name = name;
  p.c = (bf16 *)y, p.a = (const bf16 *)x;
  p.bias = (const float *)bias, p.residual = (const bf16 *)residual;
  p.M = M, p.N = N, p.K = K;
  if (l && u) p.u = (const bf16 *)u, p.lora_b = (const bf16 *)l->pack_b, p.R = l->rank;
  if (!cos || !sin) return QK_OK;
  p.rope = {(const float *)cos, (const float *)sin, (const int32_t *)b->pos, h.D};
  p.rope_columns = (h.H + h.Hk) * h.D;
  if (h.D < 16 || h.D & (h.D - 1)) return qk_fail(QK_BAD_ARGUMENT, "%s: heads of %d; rope takes powers of two from 16 on", name, h.D);
  if (p.rope_columns > N) return qk_fail(QK_BAD_ARGUMENT, "%s: %d columns of q and k in %d of qkv", name, p.rope_columns, N);
  return QK_OK;
}

extern "C" {

qk_status qk_linear_fwd(qk_ptr y, qk_ptr x, qk_ptr w, qk_ptr bias, qk_ptr u, const qk_lora *l, qk_ptr residual,
                        qk_ptr cos, qk_ptr sin, qk_heads h, const qk_batch *b, int32_t M, int32_t N, int32_t K,
                        qk_stream s, int32_t variant) {
  linear_problem p;
  if (const qk_status status = forward_problem(&p, "qk_linear_fwd", y, x, bias, u, l, residual, cos, sin, h, b, M, N, K)) return status;
  p.b = (const bf16 *)w;
  return linear_run(p, s, variant);
}

qk_status qk_linear_nf4(qk_ptr y, qk_ptr x, const qk_nf4_weight *w, qk_ptr bias, qk_ptr u, const qk_lora *l, qk_ptr residual,
                        qk_ptr cos, qk_ptr sin, qk_heads h, const qk_batch *b, int32_t M, qk_stream s) {
  const char *name = "qk_linear_nf4";
  if (const qk_status status = nf4_check(name, w)) return status;
  int N = 0;
  for (int i = 0; i < w->n; i++) N += w->part[i].rows;
  linear_problem p;
  if (const qk_status status = forward_problem(&p, name, y, x, bias, u, l, residual, cos, sin, h, b, M, N, w->cols)) return status;
  return matvec_nf4(p, *w, (cudaStream_t)s);
}

qk_status qk_linear_bwd(qk_ptr dx, qk_ptr dy, qk_ptr w, int32_t M, int32_t N, int32_t K, qk_stream s, int32_t variant) {
  linear_problem p = {};
  p.name = "qk_linear_bwd";
  p.c = (bf16 *)dx, p.a = (const bf16 *)dy, p.b = (const bf16 *)w, p.b_n_inner = true;
  p.M = M, p.N = K, p.K = N;  // the product sums over W's rows
  return linear_run(p, s, variant);
}

}  // extern "C"
