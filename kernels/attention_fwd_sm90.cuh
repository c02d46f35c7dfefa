/* Attention forward on Hopper.

Math    P = softmax(Q K' / sqrt(D)) causal within a segment; O = P V; lse = log sum exp(Q K' / sqrt(D))
Shapes  attention.cuh                           Limits  D 64 or 128; T/128 + S <= 8192
Numeric scores and sums f32, P rounded to bf16 for the second product; keys from the diagonal down, always in that order
Bound   tensor cores; H100, 28/4 heads, D 128: T = 2048 59.5 us (505 TFLOP/s), 4096 525, 8192 585; 16 segments of 128 15 us
Form    One persistent block of 384 threads a multiprocessor; an item is a tile of 128 queries of one head. Warpgroup 2
        loads Q, and K and V by tiles of 128 keys, two stages each; warpgroups 0 and 1 take 64 queries each. The next
        scores are issued before the softmax of the last ones is multiplied with V, and the two warpgroups take turns
        at the tensor cores (ping-pong), one computing its softmax while the other multiplies. Only the diagonal tile
        is masked: what lies behind the segment's end lies behind the diagonal too.
Tried   (H200, 28/4 heads, D 128, T = 2048) items in order 72 us -> longest first 56; without ping-pong 60
Oracle  model/cpu/attention.go */
#pragma once

#include "attention.cuh"
#include "attention_sm90.cuh"
#include "tensor_map.h"

template <int D> struct attention_fwd_layout {
  static constexpr int tile_bytes = attention_rows * D * 2, list_tiles = 8192;
  static constexpr int q_at = 0, k_at = tile_bytes, v_at = 3 * tile_bytes, o_at = 5 * tile_bytes, list_at = 6 * tile_bytes;
  static constexpr int barriers_at = list_at + list_tiles * 4;
  static constexpr int bytes = barriers_at + 10 * 8 + 16;
  static_assert(bytes <= 227 * 1024, "a block has 227 KB of shared memory");
};

struct attention_fwd_barriers {
  uint32_t q_full, q_empty, k_full, k_empty, v_full, v_empty;  // those of K and V: two each
  QK_DEVICE_MEMBER explicit attention_fwd_barriers(uint32_t at)
      : q_full(at), q_empty(at + 8), k_full(at + 16), k_empty(at + 32), v_full(at + 48), v_empty(at + 64) {}
};

/* Item -> head, and the rows of its tile's segment. */
struct attention_fwd_item {
  int head, row, begin, end, key_tiles;
  QK_DEVICE_MEMBER attention_fwd_item(const attention_problem &p, const uint32_t *list, int item) {
    const attention_tile t = attention_unpack(list[item / p.H]);
    head = item % p.H;
    begin = __ldg(p.seg_start + t.segment), end = __ldg(p.seg_start + t.segment + 1);
    row = begin + t.level * attention_rows;
    key_tiles = t.level + 1;
  }
};

template <int D>
QK_DEVICE void attention_fwd_produce(const CUtensorMap &q_map, const CUtensorMap &k_map, const CUtensorMap &v_map,
                                     const attention_problem &p, const uint32_t *list, int items, uint32_t base) {
  typedef attention_fwd_layout<D> L;
  const attention_fwd_barriers b(base + L::barriers_at);
  constexpr int chunks = D / 64;
  ring_cursor at = {0, 0};
  for (int turn = 0; attention_item(turn) < items; turn++) {
    const attention_fwd_item w(p, list, attention_item(turn));
    const int kv = w.head / (p.H / p.Hk);
    barrier_wait(b.q_empty, turn % 2 ^ 1);
    barrier_expect(b.q_full, L::tile_bytes);
    tma_load(base + L::q_at, &q_map, b.q_full, 0, w.row, w.head * chunks);
    for (int n = w.key_tiles - 1; n >= 0; n--) {
      const int row = w.begin + n * attention_rows;
      barrier_wait(b.k_empty + 8 * at.stage, at.parity ^ 1);
      barrier_expect(b.k_full + 8 * at.stage, L::tile_bytes);
      tma_load(base + L::k_at + at.stage * L::tile_bytes, &k_map, b.k_full + 8 * at.stage, 0, row, kv * chunks);
      barrier_wait(b.v_empty + 8 * at.stage, at.parity ^ 1);
      barrier_expect(b.v_full + 8 * at.stage, L::tile_bytes);
      tma_load(base + L::v_at + at.stage * L::tile_bytes, &v_map, b.v_full + 8 * at.stage, 0, row, kv * chunks);
      at.advance(2);
    }
  }
}

/* O += P V of one tile of 128 keys, P in registers: issued and committed. */
template <int D> QK_DEVICE void attention_issue_values(float (&o)[D / 2], const uint32_t (&p)[32], uint64_t v) {
#pragma unroll
  for (int j = 0; j < 8; j++)
    wgmma<D>::template rs<1>(o, p[4 * j], p[4 * j + 1], p[4 * j + 2], p[4 * j + 3], v + j * (2048 >> 4));
  wgmma_commit();
}

template <int D>
QK_DEVICE void attention_fwd_consume(const CUtensorMap &o_map, const attention_problem &p, const uint32_t *list, int items,
                                     uint32_t base, int group, int warp, int lane) {
  typedef attention_fwd_layout<D> L;
  enum { OWN_BARRIER = 1, TURN_BARRIER = 3 };  // ids: OWN + group among 128 threads, TURN + group among 256
  const attention_fwd_barriers b(base + L::barriers_at);
  const float scale = rsqrtf(D), scale_log2 = scale * attention_log2e;
  const uint64_t q = descriptor(base + L::q_at + group * 64 * 128, 16, 1024, swizzle_128);
  const uint64_t k0 = descriptor(base + L::k_at, 16, 1024, swizzle_128);
  const uint64_t v0 = descriptor(base + L::v_at, attention_rows * 128, 1024, swizzle_128);
  constexpr uint64_t stage = L::tile_bytes >> 4;
  const uint32_t staging = base + L::o_at + group * (L::tile_bytes / 2);
  float s[64], o[D / 2];
  uint32_t probability[32];
  ring_cursor at = {0, 0};

  if (group == 1) threads_arrive(TURN_BARRIER, 256);  // warpgroup 0 goes first
  for (int turn = 0; attention_item(turn) < items; turn++) {
    const attention_fwd_item w(p, list, attention_item(turn));
    attention_softmax softmax;
    barrier_wait(b.q_full, turn % 2);

    // The diagonal tile.
    barrier_wait(b.k_full + 8 * at.stage, at.parity);
    threads_sync(TURN_BARRIER + group, 256);
    wgmma_fence();
    attention_issue_scores<D, 128, attention_rows, attention_rows>(s, q, k0 + at.stage * stage);
    threads_arrive(TURN_BARRIER + 1 - group, 256);
#pragma unroll
    for (int i = 0; i < D / 2; i++) o[i] = 0;
    wgmma_wait<0>();
    settle(s);
    if (lane == 0) barrier_arrive(b.k_empty + 8 * at.stage);
    if (lane == 0 && w.key_tiles == 1) barrier_arrive(b.q_empty);
    attention_mask(s, group * 64 + warp * 16 + lane / 4, 0, lane);
    softmax.update(s, scale_log2);
#pragma unroll
    for (int i = 0; i < 32; i++) probability[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
    ring_cursor last = at;  // the stage whose V is still to be multiplied
    at.advance(2);

    for (int n = w.key_tiles - 2; n >= 0; n--) {
      barrier_wait(b.k_full + 8 * at.stage, at.parity);
      threads_sync(TURN_BARRIER + group, 256);
      settle(s), settle(probability), settle(o);
      wgmma_fence();
      attention_issue_scores<D, 128, attention_rows, attention_rows>(s, q, k0 + at.stage * stage);
      barrier_wait(b.v_full + 8 * last.stage, last.parity);
      wgmma_fence();
      attention_issue_values<D>(o, probability, v0 + last.stage * stage);
      threads_arrive(TURN_BARRIER + 1 - group, 256);
      wgmma_wait<1>();
      settle(s);
      if (lane == 0) barrier_arrive(b.k_empty + 8 * at.stage);
      if (lane == 0 && n == 0) barrier_arrive(b.q_empty);
      const float2 shrink = softmax.update(s, scale_log2);
      wgmma_wait<0>();
      settle(o), settle(probability);
      if (lane == 0) barrier_arrive(b.v_empty + 8 * last.stage);
#pragma unroll
      for (int i = 0; i < 32; i++) probability[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
#pragma unroll
      for (int j = 0; j < D / 8; j++) {
        o[4 * j] *= shrink.x, o[4 * j + 1] *= shrink.x;
        o[4 * j + 2] *= shrink.y, o[4 * j + 3] *= shrink.y;
      }
      last = at;
      at.advance(2);
    }

    barrier_wait(b.v_full + 8 * last.stage, last.parity);
    settle(probability), settle(o);
    wgmma_fence();
    attention_issue_values<D>(o, probability, v0 + last.stage * stage);
    const float sum0 = quad_sum(softmax.sum0), sum1 = quad_sum(softmax.sum1);
    const int row = w.row + group * 64 + warp * 16 + lane / 4;
    if (p.lse && lane % 4 == 0) {
      float *lse = p.lse + (int64_t)w.head * p.T;
      if (row < w.end) lse[row] = softmax.max0 * scale + __logf(sum0);
      if (row + 8 < w.end) lse[row + 8] = softmax.max1 * scale + __logf(sum1);
    }
    wgmma_wait<0>();
    settle(o);
    if (lane == 0) barrier_arrive(b.v_empty + 8 * last.stage);
    const float inverse0 = 1 / sum0, inverse1 = 1 / sum1;
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
      o[4 * j] *= inverse0, o[4 * j + 1] *= inverse0;
      o[4 * j + 2] *= inverse1, o[4 * j + 3] *= inverse1;
    }
    attention_store_rows<D>(o, o_map, p.o, p.H * D, w.head, w.row + group * 64, w.end, staging, OWN_BARRIER + group, warp, lane);
  }
  if (warp == 0 && lane == 0) tma_store_wait();
}

template <int D>
__global__ void __launch_bounds__(384, 1)
    attention_fwd_sm90_kernel(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
                              const __grid_constant__ CUtensorMap v_map, const __grid_constant__ CUtensorMap o_map,
                              const __grid_constant__ attention_problem p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  typedef attention_fwd_layout<D> L;
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t base = shared_address(memory);
  uint32_t *list = (uint32_t *)(memory + L::list_at);
  int *items_shared = (int *)(memory + L::barriers_at + 10 * 8);
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    const attention_fwd_barriers b(base + L::barriers_at);
    barrier_init(b.q_full, 1), barrier_init(b.q_empty, 8);
    for (int i = 0; i < 2; i++) {
      barrier_init(b.k_full + 8 * i, 1), barrier_init(b.k_empty + 8 * i, 8);  // 8 consumer warps
      barrier_init(b.v_full + 8 * i, 1), barrier_init(b.v_empty + 8 * i, 8);
    }
    barrier_init_visible();
  }
  // Segments do not come from the kernel before, so the list is made while that one still runs.
  if (threadIdx.x / 32 == 8) {
    const int tiles = attention_list_tiles(list, p.seg_start, p.S, lane);
    if (lane == 0) *items_shared = tiles * p.H;
  }
  __syncthreads();
  wait_for_previous_kernel();
  const int items = *items_shared;
  if (group == 2) {
    leave_registers<24>();
    if (warp == 0 && lane == 0) attention_fwd_produce<D>(q_map, k_map, v_map, p, list, items, base);
  } else {
    take_registers<240>();
    attention_fwd_consume<D>(o_map, p, list, items, base, group, warp, lane);
  }
#endif
}

template <int D> static qk_status attention_fwd_launch(const attention_problem &p, const qk_device &device, cudaStream_t stream) {
  typedef attention_fwd_layout<D> L;
  const int tiles = p.T / attention_rows + p.S, pitch = (p.H + 2 * p.Hk) * D;  // at most
  if (tiles > L::list_tiles)
    return qk_fail(QK_BAD_ARGUMENT, "%s: %d tokens in %d segments are more than %d tiles", p.name, p.T, p.S, L::list_tiles);
  CUtensorMap q, k, v, o;
  qk_status status = qk_tensor_map(&q, p.name, tensor_heads{"q", p.qkv, p.T, p.H, D, pitch, 128});
  if (!status) status = qk_tensor_map(&k, p.name, tensor_heads{"k", p.qkv + p.H * D, p.T, p.Hk, D, pitch, 128});
  if (!status) status = qk_tensor_map(&v, p.name, tensor_heads{"v", p.qkv + (p.H + p.Hk) * D, p.T, p.Hk, D, pitch, 128});
  if (!status) status = qk_tensor_map(&o, p.name, tensor_heads{"o", p.o, p.T, p.H, D, p.H * D, 64});
  if (status) return status;
  const int items = tiles * p.H, blocks = items < device.multiprocessors ? items : device.multiprocessors;
  return qk_launch(p.name, attention_fwd_sm90_kernel<D>, blocks, 1, 384, L::bytes, stream, q, k, v, o, p);
}

qk_status attention_fwd_sm90(const attention_problem &p, const qk_device &device, cudaStream_t stream) {
  return p.D == 64 ? attention_fwd_launch<64>(p, device, stream) : attention_fwd_launch<128>(p, device, stream);
}
