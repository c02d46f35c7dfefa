/* The product of label rows with the head on Hopper, with the statistics of each row made from the accumulators.

Math    logits = x * W', and of each row in each part of 256 columns the largest logit and the sum of exp(logit - largest)
Shapes  x (n,C), W (V,C) bf16; logits (n,ld) f16                                          Limits  C % 8 == 0
Numeric as head_product.cuh: f32 sums, statistics of the unrounded ones, float16 clamped at 65504
Bound   tensor cores
Form    The ring and the producer of linear_sm90_ring.cuh with tiles of 128 x 256; x is a gathered copy, as TMA takes rows that lie
        side by side. A thread's 64 logits of a row are reduced in registers, then over the four lanes of the row.
Oracle  model/cpu/headloss.go */
#pragma once

#include "head_product.cuh"
#include "linear_sm90_ring.cuh"

constexpr int head_sm90_tile = linear_sm90_tile_count - 1;  // the widest
typedef linear_sm90_layout<head_sm90_tile, false> head_sm90_layout;
constexpr int head_sm90_part = head_sm90_layout::width;
static_assert(head_sm90_part == 256 && head_sm90_layout::tile.store_slots == head_sm90_layout::stores, "all of a tile is staged at once");

/* Statistics of the row of half h (rows i and i + 8 of the warp), and its target's logit. Whole: no column is beyond V. */
template <bool Whole> QK_DEVICE void head_sm90_stats(const head_problem &p, const float (&d)[128], int h, int row, int column, int lane) {
  const int first = column + lane % 4 * 2;
  const auto inside = [&](int j, int e) { return Whole || first + 8 * j + e < p.V; };
  float top = -INFINITY;
#pragma unroll
  for (int j = 0; j < 32; j++)
#pragma unroll
    for (int e = 0; e < 2; e++)
      if (inside(j, e)) top = fmaxf(top, d[4 * j + 2 * h + e]);
  top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
  top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
  // The lowest column that has it: from the last to the first. One that is NaN is no largest logit, but makes the sum NaN.
  int at = 0x7fffffff;
  float sum = 0;
#pragma unroll
  for (int j = 31; j >= 0; j--)
#pragma unroll
    for (int e = 1; e >= 0; e--)
      if (inside(j, e)) {
        const float v = d[4 * j + 2 * h + e];
        if (v == top) at = first + 8 * j + e;
        sum += __expf(v - top);
      }
  sum += __shfl_xor_sync(~0u, sum, 1);
  sum += __shfl_xor_sync(~0u, sum, 2);
  at = min(at, __shfl_xor_sync(~0u, at, 1));
  at = min(at, __shfl_xor_sync(~0u, at, 2));
  if (row < p.n && lane % 4 == 0) p.stats[(int64_t)row * p.parts + column / head_sm90_part] = {top, sum, min(at, p.V - 1)};
  const int target = row < p.n ? __ldg(p.targets + row) - first : -1;
  if (!__any_sync(~0u, target >= 0 && target < 256 && target % 8 < 2)) return;
#pragma unroll
  for (int j = 0; j < 32; j++)
#pragma unroll
    for (int e = 0; e < 2; e++)
      if (target == 8 * j + e) p.target_logit[row] = d[4 * j + 2 * h + e];
}

QK_DEVICE uint32_t head_pack_f16(float x, float y) {
  const __half2 v = __floats2half2_rn(fminf(fmaxf(x, -65504.f), 65504.f), fminf(fmaxf(y, -65504.f), 65504.f));
  return reinterpret_cast<const uint32_t &>(v);
}

/* Logits in float16 to memory, through the warpgroup's slots. */
QK_DEVICE void head_sm90_store(const linear_sm90_maps &maps, const linear_sm90_slab &s, const float (&d)[128]) {
  typedef head_sm90_layout L;
  const bool leader = s.warp == 0 && s.lane == 0;
  const int row = s.warp * 16 + (s.lane & 15);
  if (leader) tma_store_wait_read<0>();
  threads_sync(1 + s.group, 128);
#pragma unroll
  for (int j = 0; j < 16; j++) {
    const float *v = d + 8 * j;
    store_matrices(s.slots + j / 4 * L::slot_bytes + row * 128 + (((2 * (j % 4) + (s.lane >> 4)) ^ (row & 7)) << 4), head_pack_f16(v[0], v[1]),
                   head_pack_f16(v[2], v[3]), head_pack_f16(v[4], v[5]), head_pack_f16(v[6], v[7]));
  }
  fence_async();
  threads_sync(1 + s.group, 128);
  if (!leader) return;
#pragma unroll
  for (int i = 0; i < L::stores; i++) tma_store(&maps.c, s.slots + i * L::slot_bytes, s.column + 64 * i, s.row + 64 * s.group);
  tma_store_commit();
}

template <head_output Output>
__global__ void __launch_bounds__(384, 1)
    head_sm90_kernel(const __grid_constant__ linear_sm90_maps maps, const __grid_constant__ linear_sm90_counts n,
                     const __grid_constant__ linear_problem product, const __grid_constant__ head_problem p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  typedef head_sm90_layout L;
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t base = shared_address(memory), full = base + L::barriers_at, empty = full + 8 * L::stages;
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int rank = linear_sm90_open<L>(full, empty, maps);
  if (group == 2) {
    leave_registers<40>();
    if (warp == 0 && lane == 0) linear_sm90_produce<L, false, 0>(maps, n, product, base, full, empty, rank);
  } else {
    take_registers<232>();
    linear_sm90_slab s = {base, full, empty, base + L::slots_at + group * L::tile.store_slots * L::slot_bytes, 0, group, warp, lane, 0, 0};
    float d[L::width / 2];
    ring_cursor at = {0, 0};
    for (int t = blockIdx.x / 2; t < n.tiles; t += gridDim.x / 2) {
      s.row = n.first_row(t, rank), s.column = n.column(t) * L::width;
      linear_sm90_accumulate<L, false, 0>(d, n, s, at, [] {});
      if (Output == LOGITS_F16) head_sm90_store(maps, s, d);
      const int row = s.row + 64 * group + 16 * warp + lane / 4;
#pragma unroll
      for (int h = 0; h < 2; h++)
        if (s.column + L::width <= p.V)
          head_sm90_stats<true>(p, d, h, row + 8 * h, s.column, lane);
        else
          head_sm90_stats<false>(p, d, h, row + 8 * h, s.column, lane);
    }
    if (warp == 0 && lane == 0) tma_store_wait();
  }
  __syncwarp();
  cluster_sync();
#endif
}

/* p.xn are the gathered rows, p.rows is not read. */
template <head_output Output> static qk_status head_sm90(const char *name, const head_problem &p, const qk_device &device, cudaStream_t stream) {
  typedef head_sm90_layout L;
  linear_sm90_maps maps;
  qk_status status = qk_tensor_map(&maps.a, name, tensor_box{"xn", p.xn, p.n, p.C, p.C, 128, 64});
  if (!status) status = qk_tensor_map(&maps.b, name, tensor_box{"head", p.w, p.V, p.C, p.C, L::width / 2, 64});
  maps.c = maps.a;
  if (!status && Output == LOGITS_F16) status = qk_tensor_map(&maps.c, name, tensor_box{"logits", p.logits, p.n, p.ld, p.ld, 64, 64});
  if (status) return status;
  maps.u = maps.lora_b = maps.residual = maps.a;
  linear_problem product = {};
  linear_sm90_counts n;
  n.rows = p.n, n.row_tiles = ceil_div(p.n, 256);
  n.tiles = n.row_tiles * ceil_div(p.V, L::width);
  n.k_blocks = n.full_blocks = ceil_div(p.C, 64);
  const int clusters = n.tiles < device.multiprocessors / 2 ? n.tiles : device.multiprocessors / 2;
  return qk_launch(name, head_sm90_kernel<Output>, 2 * clusters, 2, 384, L::bytes, stream, maps, n, product, p);
}
