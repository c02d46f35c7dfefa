/* The launchers of attention: what C alone can check, the choice of a variant, and the LoRA passes around it. */
#include "attention_bwd_sm80.cuh"
#include "attention_bwd_sm90.cuh"
#include "attention_fwd_sm80.cuh"
#include "attention_fwd_sm90.cuh"
#include "lora.cuh"

enum { VARIANT_AUTO, VARIANT_SM80, VARIANT_SM90 };

static qk_status attention_check(const attention_problem &p, const qk_lora *o_reader, const qk_lora *qkv_writer) {
  if (p.D != 64 && p.D != 128) return qk_fail(QK_BAD_ARGUMENT, "%s: heads of %d; 64 or 128", p.name, p.D);
  if (p.Hk < 1 || p.H < 1 || p.H % p.Hk) return qk_fail(QK_BAD_ARGUMENT, "%s: %d query heads over %d key heads; a multiple of them", p.name, p.H, p.Hk);
  if (p.T < 1 || p.T > attention_max_tokens || p.S < 1 || p.S > attention_max_segments)
    return qk_fail(QK_BAD_ARGUMENT, "%s: %d tokens in %d segments; at most %d and %d", p.name, p.T, p.S, attention_max_tokens, attention_max_segments);
  for (const void *data : {(const void *)p.o, (const void *)p.qkv, (const void *)p.dqkv, (const void *)p.d_o})
    if ((uintptr_t)data % 16) return qk_fail(QK_BAD_ARGUMENT, "%s: a tensor at %p is not aligned to 16 bytes", p.name, data);
  if (o_reader && o_reader->in != p.H * p.D) return qk_fail(QK_BAD_ARGUMENT, "%s: a LoRA that reads %d columns of an o of %d", p.name, o_reader->in, p.H * p.D);
  if (qkv_writer && qkv_writer->out != (p.H + 2 * p.Hk) * p.D)
    return qk_fail(QK_BAD_ARGUMENT, "%s: a LoRA that writes %d columns of a qkv of %d", p.name, qkv_writer->out, (p.H + 2 * p.Hk) * p.D);
  return QK_OK;
}

/* The variant to run: the one asked for, or Hopper's own on Hopper. */
static qk_status attention_variant(int32_t *variant, const qk_device &device, const char *name) {
  const bool built = QK_HAS_SM90;
  if (*variant == VARIANT_AUTO) *variant = built && device.hopper() ? VARIANT_SM90 : VARIANT_SM80;
  if (*variant != VARIANT_SM80 && *variant != VARIANT_SM90) return qk_fail(QK_NO_VARIANT, "%s: there is no variant %d", name, *variant);
  if (*variant == VARIANT_SM80) return QK_OK;
  if (!built) return qk_fail(QK_NO_VARIANT, "%s: built without sm_90a", name);
  if (!device.hopper()) return qk_fail(QK_NO_VARIANT, "%s: the sm_90a kernels run on capability 9.0; this card has %d.%d", name, device.major, device.minor);
  return QK_OK;
}

extern "C" {

int64_t qk_attention_plan_bytes(int32_t T, int32_t S, qk_heads h) {
  return attention_work(nullptr, nullptr, T, S, h.H, h.Hk, h.D, 1).plan_bytes;
}
int64_t qk_attention_bwd_work(int32_t T, int32_t S, qk_heads h, int32_t multiprocessors) {
  return attention_work(nullptr, nullptr, T, S, h.H, h.Hk, h.D, multiprocessors).bytes;
}

qk_status qk_attention_plan(qk_ptr plan, int64_t plan_bytes, qk_heads h, const qk_batch *b, qk_stream s) {
  attention_problem p = {};
  p.name = "qk_attention_plan", p.seg_start = (const int32_t *)b->seg_start, p.T = b->T, p.S = b->S, p.H = h.H, p.Hk = h.Hk, p.D = h.D;
  qk_device device;
  qk_status status = attention_check(p, nullptr, nullptr);
  if (!status) status = qk_current_device(&device, p.name);
  if (status) return status;
  const attention_work w((char *)plan, nullptr, p.T, p.S, p.H, p.Hk, p.D, device.multiprocessors);
  if (status == QK_OK && (plan % 256 || plan_bytes < w.plan_bytes))
    return qk_fail(QK_BAD_ARGUMENT, "%s: %lld bytes at %p; it takes %lld, aligned to 256", p.name, (long long)plan_bytes, (void *)plan, (long long)w.plan_bytes);
  return attention_bwd_plan(p, w, device, (cudaStream_t)s);
}

qk_status qk_attention_fwd(qk_ptr o, qk_ptr lse, qk_ptr u, qk_ptr qkv, qk_heads h, const qk_lora *l, const qk_batch *b,
                           qk_stream s, int32_t variant) {
  attention_problem p = {};
  p.name = "qk_attention_fwd";
  p.o = (bf16 *)o, p.lse = (float *)lse, p.qkv = (const bf16 *)qkv;
  p.seg_start = (const int32_t *)b->seg_start, p.T = b->T, p.S = b->S, p.H = h.H, p.Hk = h.Hk, p.D = h.D;
  const auto stream = (cudaStream_t)s;
  qk_device device;
  qk_status status = attention_check(p, u ? l : nullptr, nullptr);
  if (!status) status = qk_current_device(&device, p.name);
  if (!status) status = attention_variant(&variant, device, p.name);
  if (!status) status = variant == VARIANT_SM90 ? attention_fwd_sm90(p, device, stream) : attention_fwd_sm80(p, stream);
  if (!status && l && u) status = lora_down(p.name, (bf16 *)u, p.o, l, b, stream);
  return status;
}

qk_status qk_attention_bwd(qk_ptr dqkv, qk_ptr du_qkv, qk_ptr d_o, qk_ptr du_o, qk_ptr o, qk_ptr lse, qk_ptr qkv,
                           qk_ptr cos, qk_ptr sin, qk_heads h, const qk_lora *lo, const qk_lora *lqkv, const qk_batch *b,
                           qk_ptr plan, qk_ptr work, int64_t work_bytes, qk_stream s, int32_t variant) {
  attention_problem p = {};
  p.name = "qk_attention_bwd";
  p.o = (bf16 *)o, p.lse = (float *)lse, p.qkv = (const bf16 *)qkv, p.dqkv = (bf16 *)dqkv, p.d_o = (const bf16 *)d_o;
  p.seg_start = (const int32_t *)b->seg_start, p.T = b->T, p.S = b->S, p.H = h.H, p.Hk = h.Hk, p.D = h.D;
  if (cos && sin) p.rope = {(const float *)cos, (const float *)sin, (const int32_t *)b->pos, h.D};
  const auto stream = (cudaStream_t)s;
  qk_device device;
  qk_status status = attention_check(p, du_o ? lo : nullptr, du_qkv ? lqkv : nullptr);
  if (!status) status = qk_current_device(&device, p.name);
  if (!status) status = attention_variant(&variant, device, p.name);
  if (status) return status;
  const attention_work w((char *)plan, (char *)work, p.T, p.S, p.H, p.Hk, p.D, device.multiprocessors);
  if ((uintptr_t)work % 256) return qk_fail(QK_BAD_ARGUMENT, "%s: work at %p is not aligned to 256 bytes", p.name, (void *)work);
  if (work_bytes < w.bytes)
    return qk_fail(QK_BAD_ARGUMENT, "%s: %lld bytes of work; it takes %lld", p.name, (long long)work_bytes, (long long)w.bytes);

  const qk_lora none = {};
  if (lo && du_o) status = lora_check(p.name, lo);
  if (!status && lo && du_o && lo->n != 1) status = qk_fail(QK_BAD_ARGUMENT, "%s: o has %d readers with a LoRA; at most 1", p.name, lo->n);
  const attention_lora add = {(bf16 *)d_o, (const bf16 *)du_o, lo && du_o ? *lo : none, dropout_batch(b)};
  if (!status) status = attention_bwd_delta(p, w, add, stream);
  if (!status) status = variant == VARIANT_SM90 ? attention_bwd_sm90(p, w, device, stream) : attention_bwd_sm80(p, w, device, stream);
  if (!status) status = attention_bwd_sum(p, w, device, stream);
  if (!status && lqkv && du_qkv) status = lora_up(p.name, (bf16 *)du_qkv, p.dqkv, lqkv, b, stream);
  return status;
}

}  // extern "C"
