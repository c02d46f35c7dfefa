/* Attention backward on Hopper: deterministic by construction, in two kernels of products.

Math    P = exp2(S * log2(e)/sqrt(D) - lse2), S = Q K';  dP = dO V';  dS = P o (dP - delta)
        dQ = dS K / sqrt(D);  dK = dS' Q / sqrt(D);  dV = P' dO;  then the rotation of q and k taken back
Shapes  attention.cuh; dqkv (T,(H+2Hk)*D)       Limits  D 64 or 128
Numeric f32 sums in a fixed order, P and dS rounded to bf16 as operands. 7 products where 5 would do with sums of dQ
        across blocks: those need ordered adds, which cost more than they save up to T = 4096
Bound   tensor cores; H100, 28/4 heads, D 128: T = 2048 236 us (318 TFLOP/s), 4096 397, 8192 426; 16 segments of 128 100 us
Form    dQ: an item is a tile of 128 queries of one head, K and V by tiles of 128 keys; dS goes from registers into the
        third product. dK, dV: an item is a tile of 128 keys and some heads of its group (attention_bwd_plan.cuh), 64 keys
        a warpgroup; Q and dO come by blocks of 64 queries through 4 stages with their lse2 and delta. The scores are made
        transposed, S' = K Q', so that P' and dS' are already the A fragments of dV and dK: nothing passes through shared
        memory. dK stays in flight over the loop's edge: the next scores are issued before it is waited for.
Tried   (H200, 28/4 heads, D 128, T = 2048) heads in fixed groups 131 us -> by simulated finish time 122; dK in flight 117
        -> 112 us; both kernels at once on two streams 209 -> 202 in all; a fused kernel of 5 products 267 us against 209 for all of these
Oracle  model/cpu/attention.go */
#pragma once

#include "attention_bwd_plan.cuh"
#include "attention_sm90.cuh"
#include "tensor_map.h"

/* ---- dQ. */

template <int D> struct attention_dq_layout {
  static constexpr int tile_bytes = attention_rows * D * 2;
  static constexpr int q_at = 0, do_at = tile_bytes, k_at = 2 * tile_bytes, v_at = 4 * tile_bytes, dq_at = 6 * tile_bytes;
  static constexpr int barriers_at = 7 * tile_bytes, bytes = barriers_at + 6 * 8;
  static_assert(bytes <= 227 * 1024, "a block has 227 KB of shared memory");
};
template <int D>
QK_DEVICE void attention_dq_produce(const CUtensorMap &q_map, const CUtensorMap &do_map, const CUtensorMap &k_map,
                                    const CUtensorMap &v_map, const attention_problem &p, const attention_work &work,
                                    uint32_t base) {
  typedef attention_dq_layout<D> L;
  const uint32_t q_full = base + L::barriers_at, q_empty = q_full + 8, k_full = q_full + 16, kv_empty = q_full + 32;
  constexpr int chunks = D / 64;
  const int items = work.counts->tiles * p.H;
  ring_cursor at = {0, 0};
  for (int turn = 0; attention_item(turn) < items; turn++) {
    const int item = attention_item(turn), head = item % p.H, kv = head / (p.H / p.Hk);
    const attention_tile t = attention_unpack(work.tiles[item / p.H]);
    const int begin = __ldg(p.seg_start + t.segment), row = begin + t.level * attention_rows;
    barrier_wait(q_empty, turn % 2 ^ 1);
    barrier_expect(q_full, 2 * L::tile_bytes);
    tma_load(base + L::q_at, &q_map, q_full, 0, row, head * chunks);
    tma_load(base + L::do_at, &do_map, q_full, 0, row, head * chunks);
    for (int keys = row; keys >= begin; keys -= attention_rows) {  // from the diagonal down
      const uint32_t full = k_full + 8 * at.stage;
      barrier_wait(kv_empty + 8 * at.stage, at.parity ^ 1);
      barrier_expect(full, 2 * L::tile_bytes);
      tma_load(base + L::k_at + at.stage * L::tile_bytes, &k_map, full, 0, keys, kv * chunks);
      tma_load(base + L::v_at + at.stage * L::tile_bytes, &v_map, full, 0, keys, kv * chunks);
      at.advance(2);
    }
  }
}

template <int D>
QK_DEVICE void attention_dq_consume(const CUtensorMap &dq_map, const attention_problem &p, const attention_work &work,
                                    uint32_t base, int group, int warp, int lane) {
  typedef attention_dq_layout<D> L;
  const uint32_t q_full = base + L::barriers_at, q_empty = q_full + 8, k_full = q_full + 16, kv_empty = q_full + 32;
  const float scale = rsqrtf(D), scale_log2 = scale * attention_log2e;
  const uint64_t q = descriptor(base + L::q_at + group * 8192, 16, 1024, swizzle_128);
  const uint64_t d_o = descriptor(base + L::do_at + group * 8192, 16, 1024, swizzle_128);
  const uint64_t k0 = descriptor(base + L::k_at, 16, 1024, swizzle_128), v0 = descriptor(base + L::v_at, 16, 1024, swizzle_128);
  const uint64_t k0_transposed = descriptor(base + L::k_at, attention_rows * 128, 1024, swizzle_128);
  constexpr uint64_t stage = L::tile_bytes >> 4;
  const int items = work.counts->tiles * p.H, local = group * 64 + warp * 16 + lane / 4;
  float s[64], dp[64], dq[D / 2];
  uint32_t ds[32];
  ring_cursor at = {0, 0};

  for (int turn = 0; attention_item(turn) < items; turn++) {
    const int item = attention_item(turn), head = item % p.H;
    const attention_tile t = attention_unpack(work.tiles[item / p.H]);
    const int row = __ldg(p.seg_start + t.segment) + t.level * attention_rows, end = __ldg(p.seg_start + t.segment + 1);
    const int64_t padded = (int64_t)head * work.padded_rows + attention_place(p.seg_start, t) * attention_rows + local;
    const float lse0 = work.lse2[padded], lse1 = work.lse2[padded + 8];
    const float delta0 = work.delta[padded], delta1 = work.delta[padded + 8];
#pragma unroll
    for (int i = 0; i < D / 2; i++) dq[i] = 0;
    barrier_wait(q_full, turn % 2);
    for (int n = t.level; n >= 0; n--) {
      barrier_wait(k_full + 8 * at.stage, at.parity);
      settle(s), settle(dp), settle(dq), settle(ds);
      wgmma_fence();
      attention_issue_scores<D, 128, attention_rows, attention_rows>(s, q, k0 + at.stage * stage);
      attention_issue_scores<D, 128, attention_rows, attention_rows>(dp, d_o, v0 + at.stage * stage);
      wgmma_wait<1>();
      settle(s);
      if (n == t.level) attention_mask(s, local, 0, lane);
#pragma unroll
      for (int j = 0; j < 16; j++) {
        s[4 * j] = exp2_fast(fmaf(s[4 * j], scale_log2, -lse0));
        s[4 * j + 1] = exp2_fast(fmaf(s[4 * j + 1], scale_log2, -lse0));
        s[4 * j + 2] = exp2_fast(fmaf(s[4 * j + 2], scale_log2, -lse1));
        s[4 * j + 3] = exp2_fast(fmaf(s[4 * j + 3], scale_log2, -lse1));
      }
      wgmma_wait<0>();
      settle(dp);
      if (lane == 0 && n == 0) barrier_arrive(q_empty);
#pragma unroll
      for (int j = 0; j < 16; j++) {
        ds[2 * j] = pack_bf16(s[4 * j] * (dp[4 * j] - delta0), s[4 * j + 1] * (dp[4 * j + 1] - delta0));
        ds[2 * j + 1] = pack_bf16(s[4 * j + 2] * (dp[4 * j + 2] - delta1), s[4 * j + 3] * (dp[4 * j + 3] - delta1));
      }
      settle(ds), settle(dq);
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < 8; j++)
        wgmma<D>::template rs<1>(dq, ds[4 * j], ds[4 * j + 1], ds[4 * j + 2], ds[4 * j + 3],
                                 k0_transposed + at.stage * stage + j * (2048 >> 4));
      wgmma_commit();
      wgmma_wait<0>();
      settle(dq), settle(ds);
      if (lane == 0) barrier_arrive(kv_empty + 8 * at.stage);
      at.advance(2);
    }
#pragma unroll
    for (int i = 0; i < D / 2; i++) dq[i] *= scale;
    attention_rope_back(dq, p.rope, row + local, end, lane);
    attention_store_rows<D>(dq, dq_map, p.dqkv, (p.H + 2 * p.Hk) * D, head, row + group * 64, end,
                            base + L::dq_at + group * (L::tile_bytes / 2), 1 + group, warp, lane);
  }
  if (warp == 0 && lane == 0) tma_store_wait();
}

template <int D>
__global__ void __launch_bounds__(384, 1)
    attention_dq_sm90_kernel(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap do_map,
                             const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map,
                             const __grid_constant__ CUtensorMap dq_map, const __grid_constant__ attention_problem p,
                             const __grid_constant__ attention_work work) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  typedef attention_dq_layout<D> L;
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t base = shared_address(memory), barriers = base + L::barriers_at;
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    barrier_init(barriers, 1), barrier_init(barriers + 8, 8);  // queries: full, empty by 8 consumer warps
    for (int i = 0; i < 2; i++) barrier_init(barriers + 16 + 8 * i, 1), barrier_init(barriers + 32 + 8 * i, 8);
    barrier_init_visible();
  }
  __syncthreads();
  if (group == 2) {
    leave_registers<24>();
    if (warp == 0 && lane == 0) attention_dq_produce<D>(q_map, do_map, k_map, v_map, p, work, base);
  } else {
    take_registers<240>();
    attention_dq_consume<D>(dq_map, p, work, base, group, warp, lane);
  }
  wait_for_previous_kernel();  // so that whoever waits for this kernel has waited for dK, dV too
#endif
}

/* ---- dK, dV. */

template <int D> struct attention_dkv_layout {
  static constexpr int stages = 4, block = 64;                 // queries of one stage
  static constexpr int block_bytes = block * D * 2, stage_bytes = 2 * block_bytes, statistics_bytes = 2 * block * 4;
  static constexpr int k_at = 0, v_at = 2 * block_bytes, ring_at = 4 * block_bytes;
  static constexpr int statistics_at = ring_at + stages * stage_bytes, barriers_at = statistics_at + stages * statistics_bytes;
  static constexpr int bytes = barriers_at + (2 + 2 * stages) * 8;
  static_assert(bytes <= 227 * 1024, "a block has 227 KB of shared memory");
};

template <int D>
QK_DEVICE void attention_dkv_produce(const CUtensorMap &q_map, const CUtensorMap &do_map, const CUtensorMap &k_map,
                                     const CUtensorMap &v_map, const attention_problem &p, const attention_work &work,
                                     uint32_t base) {
  typedef attention_dkv_layout<D> L;
  const uint32_t kv_full = base + L::barriers_at, kv_empty = kv_full + 8, full = kv_full + 16, empty = full + 8 * L::stages;
  constexpr int chunks = D / 64;
  const int items = work.counts->dkv_items;
  ring_cursor at = {0, 0};
  for (int turn = 0; attention_item(turn) < items; turn++) {
    const attention_dkv_item item = work.items[attention_item(turn)];
    const attention_tile t = attention_unpack(item.tile);
    const int kv = item.head / (p.H / p.Hk), row = __ldg(p.seg_start + t.segment) + t.level * attention_rows;
    const int blocks = attention_query_blocks(p.seg_start, t);
    barrier_wait(kv_empty, turn % 2 ^ 1);
    barrier_expect(kv_full, 4 * L::block_bytes);
    for (int half = 0; half < 2; half++) {
      tma_load(base + L::k_at + half * L::block_bytes, &k_map, kv_full, 0, row + 64 * half, kv * chunks);
      tma_load(base + L::v_at + half * L::block_bytes, &v_map, kv_full, 0, row + 64 * half, kv * chunks);
    }
    for (int head = item.head; head < item.head + item.heads; head++)
      for (int n = 0; n < blocks; n++) {
        const uint32_t arrived = full + 8 * at.stage, queries = base + L::ring_at + at.stage * L::stage_bytes;
        const uint32_t statistics = base + L::statistics_at + at.stage * L::statistics_bytes;
        const int64_t padded = (int64_t)head * work.padded_rows + attention_place(p.seg_start, t) * attention_rows + n * 64;
        barrier_wait(empty + 8 * at.stage, at.parity ^ 1);
        barrier_expect(arrived, L::stage_bytes + L::statistics_bytes);
        tma_load(queries, &q_map, arrived, 0, row + n * 64, head * chunks);
        tma_load(queries + L::block_bytes, &do_map, arrived, 0, row + n * 64, head * chunks);
        bulk_load(statistics, work.lse2 + padded, 256, arrived);
        bulk_load(statistics + 256, work.delta + padded, 256, arrived);
        at.advance(L::stages);
      }
  }
}

template <int D>
QK_DEVICE void attention_dkv_consume(const attention_problem &p, const attention_work &work, uint32_t base, int group,
                                     int warp, int lane) {
  typedef attention_dkv_layout<D> L;
  const uint32_t kv_full = base + L::barriers_at, kv_empty = kv_full + 8, full = kv_full + 16, empty = full + 8 * L::stages;
  const float scale_log2 = rsqrtf(D) * attention_log2e;
  const uint64_t k = descriptor(base + L::k_at + group * L::block_bytes, 16, 1024, swizzle_128);
  const uint64_t v = descriptor(base + L::v_at + group * L::block_bytes, 16, 1024, swizzle_128);
  // Q of a stage as B with D innermost or with D outermost; dO lies block_bytes behind it.
  const uint64_t q0 = descriptor(base + L::ring_at, 16, 1024, swizzle_128);
  const uint64_t q0_transposed = descriptor(base + L::ring_at, L::block * 128, 1024, swizzle_128);
  constexpr uint64_t stage = L::stage_bytes >> 4, to_do = L::block_bytes >> 4;
  const int items = work.counts->dkv_items, local = group * 64 + warp * 16 + lane / 4;
  float s[32], dp[32], dk[D / 2], dv[D / 2];
  uint32_t probability[16], ds[16];
  ring_cursor at = {0, 0};

  for (int turn = 0; attention_item(turn) < items; turn++) {
    const attention_dkv_item item = work.items[attention_item(turn)];
    const attention_tile t = attention_unpack(item.tile);
    const int row = __ldg(p.seg_start + t.segment) + t.level * attention_rows, end = __ldg(p.seg_start + t.segment + 1);
    const int blocks = attention_query_blocks(p.seg_start, t), all = item.heads * blocks;
    int previous = -1;  // the stage that dK in flight still reads
#pragma unroll
    for (int i = 0; i < D / 2; i++) dk[i] = dv[i] = 0;
    barrier_wait(kv_full, turn % 2);
    for (int i = 0, n = 0; i < all; i++) {
      barrier_wait(full + 8 * at.stage, at.parity);
      if (n < group) {  // the first 64 queries do not see the upper 64 keys
        __syncwarp();
        if (lane == 0) barrier_arrive(empty + 8 * at.stage);
      } else {
        wgmma_fence();
        attention_issue_scores<D, 64, L::block, L::block>(s, k, q0 + at.stage * stage);
        wgmma_wait<1>();
        settle(dk), settle(ds);
        if (previous >= 0 && lane == 0) barrier_arrive(empty + 8 * previous);
        previous = at.stage;
        settle(dp);
        wgmma_fence();
        attention_issue_scores<D, 64, L::block, L::block>(dp, v, q0 + at.stage * stage + to_do);
        wgmma_wait<1>();
        settle(s);
        if (n == group) attention_mask_transposed(s, warp * 16 + lane / 4, 0, lane);
        const uint32_t statistics = base + L::statistics_at + at.stage * L::statistics_bytes + lane % 4 * 8;
#pragma unroll
        for (int j = 0; j < 8; j++) {
          const float2 lse = shared_float2(statistics + j * 32);
          s[4 * j] = exp2_fast(fmaf(s[4 * j], scale_log2, -lse.x));
          s[4 * j + 1] = exp2_fast(fmaf(s[4 * j + 1], scale_log2, -lse.y));
          s[4 * j + 2] = exp2_fast(fmaf(s[4 * j + 2], scale_log2, -lse.x));
          s[4 * j + 3] = exp2_fast(fmaf(s[4 * j + 3], scale_log2, -lse.y));
          probability[2 * j] = pack_bf16(s[4 * j], s[4 * j + 1]);
          probability[2 * j + 1] = pack_bf16(s[4 * j + 2], s[4 * j + 3]);
        }
        settle(probability), settle(dv);
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < 4; j++)
          wgmma<D>::template rs<1>(dv, probability[4 * j], probability[4 * j + 1], probability[4 * j + 2],
                                   probability[4 * j + 3], q0_transposed + at.stage * stage + to_do + j * (2048 >> 4));
        wgmma_commit();
        wgmma_wait<1>();
        settle(dp);
#pragma unroll
        for (int j = 0; j < 8; j++) {
          const float2 delta = shared_float2(statistics + 256 + j * 32);
          ds[2 * j] = pack_bf16(s[4 * j] * (dp[4 * j] - delta.x), s[4 * j + 1] * (dp[4 * j + 1] - delta.y));
          ds[2 * j + 1] = pack_bf16(s[4 * j + 2] * (dp[4 * j + 2] - delta.x), s[4 * j + 3] * (dp[4 * j + 3] - delta.y));
        }
        settle(ds), settle(dk);
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < 4; j++)
          wgmma<D>::template rs<1>(dk, ds[4 * j], ds[4 * j + 1], ds[4 * j + 2], ds[4 * j + 3],
                                   q0_transposed + at.stage * stage + j * (2048 >> 4));
        wgmma_commit();
        wgmma_wait<1>();
        settle(dv), settle(probability);
      }
      if (++n == blocks) n = 0;
      at.advance(L::stages);
    }
    wgmma_wait<0>();
    settle(dk), settle(dv), settle(probability), settle(ds);
    if (lane == 0) {
      if (previous >= 0) barrier_arrive(empty + 8 * previous);
      barrier_arrive(kv_empty);
    }
    attention_dkv_store<D>(dk, dv, p, work, item, row + local, end, local, lane);
  }
}

template <int D>
__global__ void __launch_bounds__(384, 1)
    attention_dkv_sm90_kernel(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap do_map,
                              const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map,
                              const __grid_constant__ attention_problem p, const __grid_constant__ attention_work work) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  typedef attention_dkv_layout<D> L;
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t base = shared_address(memory), barriers = base + L::barriers_at;
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    barrier_init(barriers, 1), barrier_init(barriers + 8, 8);  // keys: full, empty by 8 consumer warps
    for (int i = 0; i < L::stages; i++)
      barrier_init(barriers + 16 + 8 * i, 1), barrier_init(barriers + 16 + 8 * (L::stages + i), 8);
    barrier_init_visible();
  }
  __syncthreads();
  wait_for_previous_kernel();
  start_next_kernel();
  if (group == 2) {
    leave_registers<24>();
    if (warp == 0 && lane == 0) attention_dkv_produce<D>(q_map, do_map, k_map, v_map, p, work, base);
  } else {
    take_registers<240>();
    attention_dkv_consume<D>(p, work, base, group, warp, lane);
  }
#endif
}

/* ---- Launch: dK dV, then dQ, which reads nothing of the kernel before it and so starts where its own blocks have ended;
both read what the plan kernel wrote, for which dK dV has waited by then. */

template <int D>
static qk_status attention_bwd_launch(const attention_problem &p, const attention_work &work, const qk_device &device, cudaStream_t stream) {
  const int pitch = (p.H + 2 * p.Hk) * D;
  const bf16 *k_data = p.qkv + p.H * D, *v_data = k_data + p.Hk * D;
  CUtensorMap q, d_o, k, v, dq, q64, do64, k64, v64;
  qk_status status = qk_tensor_map(&q, p.name, tensor_heads{"q", p.qkv, p.T, p.H, D, pitch, 128});
  if (!status) status = qk_tensor_map(&d_o, p.name, tensor_heads{"dO", p.d_o, p.T, p.H, D, p.H * D, 128});
  if (!status) status = qk_tensor_map(&k, p.name, tensor_heads{"k", k_data, p.T, p.Hk, D, pitch, 128});
  if (!status) status = qk_tensor_map(&v, p.name, tensor_heads{"v", v_data, p.T, p.Hk, D, pitch, 128});
  if (!status) status = qk_tensor_map(&dq, p.name, tensor_heads{"dq", p.dqkv, p.T, p.H, D, pitch, 64});
  if (!status) status = qk_tensor_map(&q64, p.name, tensor_heads{"q", p.qkv, p.T, p.H, D, pitch, 64});
  if (!status) status = qk_tensor_map(&do64, p.name, tensor_heads{"dO", p.d_o, p.T, p.H, D, p.H * D, 64});
  if (!status) status = qk_tensor_map(&k64, p.name, tensor_heads{"k", k_data, p.T, p.Hk, D, pitch, 64});
  if (!status) status = qk_tensor_map(&v64, p.name, tensor_heads{"v", v_data, p.T, p.Hk, D, pitch, 64});
  if (status) return status;

  const int blocks = min(device.multiprocessors, work.max_tiles * p.H);
  status = qk_launch(p.name, attention_dkv_sm90_kernel<D>, blocks, 1, 384, attention_dkv_layout<D>::bytes, stream,
                              q64, do64, k64, v64, p, work);
  if (!status)
    status = qk_launch(p.name, attention_dq_sm90_kernel<D>, blocks, 1, 384, attention_dq_layout<D>::bytes, stream, q,
                              d_o, k, v, dq, p, work);
  return status;
}

qk_status attention_bwd_sm90(const attention_problem &p, const attention_work &work, const qk_device &device, cudaStream_t stream) {
  return p.D == 64 ? attention_bwd_launch<64>(p, work, device, stream) : attention_bwd_launch<128>(p, work, device, stream);
}
