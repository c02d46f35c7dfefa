/* The whole ABI of qlora's CUDA kernels: one launcher per op of model/ops, plain C types only.
 *
 * Conventions
 *   - Device addresses are qk_ptr (an integer, so that Go never sees a pointer it must not keep).
 *     0 means "not given" where a contract says optional.
 *   - Arguments stand in the order outputs, saved, inputs, dimensions, stream, variant, as in model/ops.
 *   - Tensors are row-major, 256-byte aligned; activations and frozen weights bf16; LoRA factors, their
 *     gradients, statistics (rho, lse, nll) and the optimizer float32; ids, positions and segments int32.
 *   - A launcher checks what C alone can know (device, alignment, limits), launches on the stream, and
 *     returns a qk_status; shapes were checked in Go. It never allocates, synchronises, prints or exits.
 *   - variant: 0 chooses by a static table, 1 the sm_80 kernels, 2 the sm_90a kernels, 3 of qk_linear_fwd the matrix-vector
 *     products for at most 8 tokens, which sum in another order: for inference alone.
 *   - Every kernel is bitwise repeatable: sums in a fixed order, no float atomics.
 *
 * Letters: T tokens, S segments, C hidden, H query heads, Hk key/value heads, D head size, F feed-forward,
 * V vocabulary rows, N label rows, R LoRA rank (a module's), Rt columns of u: R of a fused weight's modules, each rounded up to a multiple of 8.
 */
#ifndef QLORA_KERNELS_API_H
#define QLORA_KERNELS_API_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef uintptr_t qk_ptr;    /* device address */
typedef uintptr_t qk_stream; /* CUstream / cudaStream_t */

typedef enum qk_status {
  QK_OK = 0,
  QK_BAD_ARGUMENT = 1, /* a limit of the kernel: dimension, alignment, rank */
  QK_NO_VARIANT = 2,   /* the variant asked for is not built in or not for this card */
  QK_LAUNCH_FAILED = 3 /* see qk_last_error */
} qk_status;

/* Text of the last failure of this thread: launcher, argument, CUDA error. */
const char *qk_last_error(void);
/* Architectures built in, for doctor: "sm_80 sm_90a". */
const char *qk_architectures(void);

/* One packed row in device memory: model/ops Batch. */
typedef struct qk_batch {
  qk_ptr header;    /* int32 (8): T, S, N, seed, step, bits of the loss scale, of NEFTune's alpha and the label smoothing */
  qk_ptr ids;       /* int32 (T) */
  qk_ptr pos;       /* int32 (T) */
  qk_ptr sample;    /* int32 (T) */
  qk_ptr seg_start; /* int32 (S+1) */
  qk_ptr rows;      /* int32 (N) */
  qk_ptr targets;   /* int32 (N) */
  int32_t T, S, N;
  uint32_t seed, step;
  float smoothing; /* of the labels: as in the header, for launchers to choose by */
} qk_batch;

typedef struct qk_heads {
  int32_t H, Hk, D;
} qk_heads;

/* Storage types, numbered as model/ops DType. */
enum { QK_F32 = 1, QK_BF16 = 2 };

/* Kinds of fused weights, numbered as model/ops WeightKind, and how their output rows lie here (layout.cuh):
 * plain as they are; QKV with the rows of each head of q and k permuted 0, D/2, 1, D/2+1, ... so that rope pairs lie
 * side by side; GateUp gate and then up. */
enum { QK_PLAIN = 0, QK_QKV = 1, QK_GATE_UP = 2 };

enum { QK_MAX_MODULES = 3, QK_MAX_RANK = 64 }; /* q, k, v */

/* One module of a LoRA: model/ops Module. Rows and columns are those in the fused weight and in u. */
typedef struct qk_module {
  int32_t rank, col;      /* R; first column in u and du, whose columns beyond R, to the next multiple of 8, are zeros */
  int32_t row, rows;      /* first output row of its part, rows of the part */
  float scale;            /* s */
  uint32_t threshold;     /* dropout: 16-bit lanes below it are dropped; 0 keeps all */
  uint32_t stream;        /* module number in the dropout counter */
  qk_ptr a, b, da, db;    /* float32 (R,in), (rows,R) and gradients */
} qk_module;

/* The adapters on one fused weight, all bf16 packs in the weight's own row order, written by qk_lora_pack: pack_a (Rt,in);
 * pack_b (out,Rt), block diagonal, the K tail of the product; pack_bt, module after module B' (R, rows of its part), 0
 * where no gradient passes (inference). Limits of every launcher that takes one: in, out and each part divisible by 8, R at
 * most QK_MAX_RANK. h is read for QKV alone. */
typedef struct qk_lora {
  int32_t n, rank; /* modules; Rt */
  int32_t in, out;
  int32_t kind;
  qk_heads h;
  qk_ptr pack_a, pack_b, pack_bt;
  qk_module m[QK_MAX_MODULES];
} qk_lora;

/* ---- loading ------------------------------------------------------------------------------------ */

/* dst (rows,cols) bf16, its rows pitch elements apart = numbers first, first+1, ... of a stream of internal/random, whose
 * scale is given. Limits: cols % 8 == 0. */
qk_status qk_random_normal(qk_ptr dst, int64_t pitch, int64_t first, int32_t rows, int32_t cols, uint32_t seed,
                           uint32_t stream, float scale, qk_stream s);

/* ---- forward ------------------------------------------------------------------------------------ */

/* x (T,C) = table[ids], and NEFTune's noise where the header has an alpha; table bf16 (V,C). Limits: C % 8 == 0. */
qk_status qk_embed(qk_ptr x, qk_ptr table, const qk_batch *b, int32_t C, qk_stream s);

/* rho (T) = 1/sqrt(mean(x^2)+eps), xn (T,C) = x*rho*w, u (T,Rt) bf16 = s*dropout(xn)*A'. rho, u, l optional. w (C) is of
 * type w_type, QK_F32 or QK_BF16. Limits: C % 8 == 0. */
qk_status qk_rmsnorm_fwd(qk_ptr xn, qk_ptr rho, qk_ptr u, qk_ptr x, qk_ptr w, int32_t w_type, float eps,
                         const qk_lora *l, const qk_batch *b, int32_t C, qk_stream s);

/* y (M,N) = x (M,K) * W' + bias + u (M,Rt) * pack_b' + residual. W bf16 (N,K); bias float32 (N), u, l,
 * residual (M,N) optional; residual may be y. kind 1 (QKV) with cos, sin float32 (P,D/2): rope on q and k, last.
 * Limits: K % 8 == 0, N % 8 == 0, Rt <= 192; for rope D a power of two from 16 on. */
qk_status qk_linear_fwd(qk_ptr y, qk_ptr x, qk_ptr w, qk_ptr bias, qk_ptr u, const qk_lora *l, qk_ptr residual,
                        qk_ptr cos, qk_ptr sin, qk_heads h, const qk_batch *b, int32_t M, int32_t N, int32_t K,
                        qk_stream s, int32_t variant);

/* dx (M,K) = dy (M,N) * W: plain. W is the forward's, read untransposed. Limits: K % 8 == 0, N % 8 == 0. */
qk_status qk_linear_bwd(qk_ptr dx, qk_ptr dy, qk_ptr w, int32_t M, int32_t N, int32_t K, qk_stream s,
                        int32_t variant);

/* o (T,H*D), lse (H,T) float32 (optional), u (T,Rt) of o's reader (optional) from qkv (T,(H+2Hk)*D): causal in
 * each segment, scores scaled by 1/sqrt(D). Limits: D 64 or 128, H % Hk == 0. */
qk_status qk_attention_fwd(qk_ptr o, qk_ptr lse, qk_ptr u, qk_ptr qkv, qk_heads h, const qk_lora *l,
                           const qk_batch *b, qk_stream s, int32_t variant);

/* act (T,F) = silu(gate)*up of gateup (T,2F) in its own layout, u (T,Rt) of act's reader (optional). Limits: F % 8 == 0. */
qk_status qk_swiglu_fwd(qk_ptr act, qk_ptr u, qk_ptr gateup, const qk_lora *l, const qk_batch *b, int32_t F,
                        qk_stream s);

/* ---- backward ----------------------------------------------------------------------------------- */

/* dx (T,C) = dres + norm'(dxn + sum mask*(du*A)); du_out (T,Rt of out) = s*dx*B. u is what qk_rmsnorm_fwd made of in. dres
 * may be dx or absent; in, du, u and out, du_out optional. */
qk_status qk_rmsnorm_bwd(qk_ptr dx, qk_ptr du_out, qk_ptr dres, qk_ptr dxn, qk_ptr du, qk_ptr u, qk_ptr x, qk_ptr rho,
                         qk_ptr w, int32_t w_type, const qk_lora *in, const qk_lora *out, const qk_batch *b, int32_t C,
                         qk_stream s);

/* Who computes what of an attention backward: a function of the batch's segments and the heads, made once a batch. */
int64_t qk_attention_plan_bytes(int32_t T, int32_t S, qk_heads h);
qk_status qk_attention_plan(qk_ptr plan, int64_t plan_bytes, qk_heads h, const qk_batch *b, qk_stream s);

/* dqkv before rope and du_qkv = s*dqkv*B from d_o += mask*(du_o*A). Optional: du_o with lo, du_qkv with lqkv, cos with sin.
 * plan is that of the batch and heads. The work is for at most T tokens in at most S segments, on a card of so many
 * multiprocessors. */
int64_t qk_attention_bwd_work(int32_t T, int32_t S, qk_heads h, int32_t multiprocessors);
qk_status qk_attention_bwd(qk_ptr dqkv, qk_ptr du_qkv, qk_ptr d_o, qk_ptr du_o, qk_ptr o, qk_ptr lse, qk_ptr qkv,
                           qk_ptr cos, qk_ptr sin, qk_heads h, const qk_lora *lo, const qk_lora *lqkv, const qk_batch *b,
                           qk_ptr plan, qk_ptr work, int64_t work_bytes, qk_stream s, int32_t variant);

/* gate, up become dgate, dup; du_gu = s*dgateup*B; adds dA of down, dB of gate and up. rank: the largest R. Any work_bytes
 * from that of 256 tokens on will do: the bits are the same. */
int64_t qk_swiglu_bwd_work(int32_t T, int32_t F, int32_t rank);
qk_status qk_swiglu_bwd(qk_ptr gateup, qk_ptr du_gu, qk_ptr dact, qk_ptr du_down, qk_ptr u_gu, const qk_lora *down,
                        const qk_lora *gu, const qk_batch *b, int32_t F, qk_ptr work, int64_t work_bytes,
                        qk_stream s);

typedef struct qk_grad_job {
  const qk_lora *l;
  int32_t side;    /* 0: dA += du'*dropout(wide); 1: dB += wide'*low */
  qk_ptr wide, low;
  qk_ptr rho, w;   /* of side 0, optional: wide is the x of a norm, and xn = x*rho*w, rounded, is meant */
  int32_t w_type;
} qk_grad_job;

/* Adds to dA or dB of each job, tokens in fixed blocks of 256 summed in index order. columns: those of wide, over all
 * jobs; rank: the largest Rt. Any work_bytes from that of 256 tokens on will do: the bits are the same. */
int64_t qk_lora_grad_work(int32_t T, int64_t columns, int32_t rank);
qk_status qk_lora_grad(const qk_grad_job *jobs, int32_t n, const qk_batch *b, qk_ptr work, int64_t work_bytes,
                       qk_stream s);

/* pack_a, pack_b, pack_bt of n LoRAs from float32 a, b. Limits: in*Rt, out*Rt below 2^31. */
qk_status qk_lora_pack(const qk_lora *l, int32_t n, qk_stream s);

/* For the N label rows by chunks: nll, hit (N) float32, dxn (T,C) (optional), labels smoothed as the batch says. head bf16
 * (V,C). hit is 1 where no other logit is larger, of equals the lowest id. Limits: C % 8 == 0, V % 8 == 0. The work of fewer rows than N will do: chunks
 * are then shorter, and slower below 1024. */
int64_t qk_head_loss_work(int32_t N, int32_t C, int32_t V);
qk_status qk_head_loss(qk_ptr dxn, qk_ptr nll, qk_ptr hit, qk_ptr xn, qk_ptr head, const qk_batch *b, int32_t C,
                       int32_t V, qk_ptr work, int64_t work_bytes, qk_stream s, int32_t variant);

/* norm (2) float32: the L2 norm of grads (n), and how many of them are not finite. */
int64_t qk_grad_norm_work(int64_t n);
qk_status qk_grad_norm(qk_ptr norm, qk_ptr grads, int64_t n, qk_ptr work, int64_t work_bytes, qk_stream s);

typedef struct qk_adamw_group {
  int64_t len;
  double lr, weight_decay;
} qk_adamw_group;

/* One AdamW step; nothing is written where norm[0] is not finite. The groups' lengths add up to n. */
qk_status qk_adamw(qk_ptr params, qk_ptr m, qk_ptr v, qk_ptr grads, qk_ptr norm, int64_t n,
                   const qk_adamw_group *groups, int32_t n_groups, int32_t step, double beta1, double beta2, double eps,
                   double max_norm, qk_stream s);

/* ---- inference ---------------------------------------------------------------------------------- */

/* logits (N,V) float32 of the batch's rows of xn. Limits: C % 8 == 0. */
qk_status qk_logits(qk_ptr logits, qk_ptr xn, qk_ptr head, const qk_batch *b, int32_t C, int32_t V, qk_stream s);

/* kl (N) float32 = KL(softmax(base*W') || softmax(tuned*W')) in nats. Limits: C % 8 == 0. The work of fewer rows than N
 * will do. */
int64_t qk_kl_work(int32_t N, int32_t V);
qk_status qk_kl(qk_ptr kl, qk_ptr base, qk_ptr tuned, qk_ptr head, const qk_batch *b, int32_t C, int32_t V,
                qk_ptr work, int64_t work_bytes, qk_stream s);

/* k, v of each token to (sample, pos) of the cache (sequences, cap, Hk*D). */
qk_status qk_store_kv(qk_ptr k, qk_ptr v, qk_ptr qkv, qk_heads h, int32_t cap, const qk_batch *b, qk_stream s);

/* o (T,H*D), u (T,Rt) (optional): each token attends to cached positions 0..pos of its sequence. Limits: D 64 or 128, H % Hk
 * == 0. The work of one token will do; that of all is one launch. */
int64_t qk_decode_attention_work(int32_t T, qk_heads h, int32_t cap);
qk_status qk_decode_attention(qk_ptr o, qk_ptr u, qk_ptr qkv, qk_ptr k, qk_ptr v, qk_heads h, int32_t cap,
                              const qk_lora *l, const qk_batch *b, qk_ptr work, int64_t work_bytes, qk_stream s);

typedef struct qk_sampling {
  double temperature, top_p, repetition_penalty;
  int32_t top_k, limit;
  uint32_t seed, step;
} qk_sampling;

/* next (n) int32 from logits (n,V) float32. context int32 (n,context_cap), context_len (n), sequence (n) uint32; the
 * first two are read for a repetition penalty alone, sequence for a temperature above 0. next is -1 for a row that has no
 * finite largest logit: the model's output is broken. */
int64_t qk_sample_work(int32_t n, int32_t V);
qk_status qk_sample(qk_ptr next, qk_ptr logits, qk_ptr context, qk_ptr context_len, qk_ptr sequence,
                    const qk_sampling *a, int32_t n, int32_t V, int32_t context_cap, qk_ptr work, int64_t work_bytes,
                    qk_stream s);

/* ---- NF4 ---------------------------------------------------------------------------------------- */

/* bitsandbytes' NF4, blocks of 64. codes (ceil(n/2)), absmax float32 (ceil(n/64)) of src (n) bf16: a piece of a tensor, from a
 * multiple of 64 on, or all of it. */
qk_status qk_nf4_quant(qk_ptr codes, qk_ptr absmax, qk_ptr src, int64_t n, qk_stream s);

/* Double quantisation: absmax8 uint8 (blocks), nested float32 (ceil(blocks/256)), offset float32 (1) from the float32 absmax of a
 * whole tensor. */
int64_t qk_nf4_absmax_work(int64_t blocks);
qk_status qk_nf4_absmax(qk_ptr absmax8, qk_ptr nested, qk_ptr offset, qk_ptr absmax, int64_t blocks, qk_ptr work,
                        int64_t work_bytes, qk_stream s);

/* dst (n) bf16 = code * absmax; absmax uint8 with nested, offset, or float32 with nested = offset = 0. */
qk_status qk_nf4_dequant(qk_ptr dst, qk_ptr codes, qk_ptr absmax, qk_ptr nested, qk_ptr offset, int64_t n,
                         qk_stream s);

/* A part of a fused weight (rows, cols) as it is stored, its rows in the order of its checkpoint. */
typedef struct qk_nf4_part {
  qk_ptr codes, absmax, nested, offset;
  int32_t rows;
} qk_nf4_part;

/* A fused weight in NF4. h is read for QKV alone. Limits: cols % 64 == 0, each part divisible by 8 rows. */
typedef struct qk_nf4_weight {
  int32_t n, kind;
  qk_heads h;
  int32_t cols;
  qk_nf4_part part[QK_MAX_MODULES];
} qk_nf4_weight;

/* dst (rows of all parts, cols) bf16 = the weight, its rows in the order of this file's products. */
qk_status qk_nf4_dequant_weight(qk_ptr dst, const qk_nf4_weight *w, qk_stream s);

/* qk_linear_fwd of at most 8 tokens with a weight in NF4, which is read as it is stored: for inference alone, as variant 3. The
 * values of W are those that qk_nf4_dequant_weight writes. */
qk_status qk_linear_nf4(qk_ptr y, qk_ptr x, const qk_nf4_weight *w, qk_ptr bias, qk_ptr u, const qk_lora *l, qk_ptr residual,
                        qk_ptr cos, qk_ptr sin, qk_heads h, const qk_batch *b, int32_t M, qk_stream s);

/* ---- probes: what the card does at most, for qlora bench ------------------------------------------ */

/* dst = src. Limits: bytes % 16 == 0. */
qk_status qk_probe_copy(qk_ptr dst, qk_ptr src, int64_t bytes, qk_stream s);
/* Reads all of src; out holds QK_PROBE_OUT bytes a multiprocessor. Limits: bytes % 16 == 0. */
qk_status qk_probe_read(qk_ptr out, qk_ptr src, int64_t bytes, qk_stream s);
/* At least so many FLOPs of bf16 products with float32 sums, of operands from src (QK_PROBE_SRC bytes of bf16); flops is how
 * many. out as above. */
enum { QK_PROBE_OUT = 4096, QK_PROBE_SRC = 49152 };
qk_status qk_probe_products(qk_ptr out, qk_ptr src, double least_flops, double *flops, qk_stream s, int32_t variant);

#ifdef __cplusplus
}
#endif
#endif
