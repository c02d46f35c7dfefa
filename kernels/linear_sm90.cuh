/* Matrix product on Hopper, with LoRA, bias, residual and rope inside.

Math    C = A * B + bias + U * L' + residual; rope on the first columns. GEMM letters: forward M = T, N = out, K = in,
        B = W' (W lies (N,K), K innermost); backward dx = dy * W: M = T, N = in, K = out, B = W (N innermost).
Shapes  linear.cuh                              Limits  K, N, R % 8 == 0 (TMA rows of 16 bytes); edges are TMA's
Numeric f32 sums in k order, the LoRA columns last; one rounding at the end: bitwise repeatable, whatever the tile
Bound   tensor cores, and the card's power: 690 of 700 W at 1.3 to 1.6 GHz. Times cuBLAS's speed on an H100 at T = 2048, bare,
        in turn with it and alone: o 1.17, 1.09; qkv 1.01, 1.00; gate|up 0.99, 0.995; down 1.15, 1.06; head 0.98, 1.03;
        backward o 1.16, 1.04; qkv 1.13, 1.03; gate|up 1.10, 1.07; down 0.99, 0.995; head 1.10, 1.03
Form    One persistent block of 384 threads a multiprocessor, in clusters of two: warpgroup 2 is the producer (one thread
        drives TMA), warpgroups 0 and 1 multiply 64 rows each. A block's ring stage holds A (128,64) of its own rows
        and B (64,width), of which each block of the cluster loads half and multicasts it to both.
        LoRA is a K tail: after K, the ring carries blocks of U and L. The last one is multiplied only by the k16 steps
        it has columns for, where they are one or two: a number compiled in, because ptxas serialises wgmma behind a
        branch on the accumulators' way. The residual tile comes through the ring as well, as one or two more stages.
        What the epilogue adds is fetched early: the residual behind the last k block, a tile's bias and positions at its
        start, the first angles behind its last products, the others four groups of 16 columns ahead.
Tried   (in turn with cuBLAS, H200) remote arrive with .release.cluster 0.70, without 1.00; 256 x 128 tiles for all, as cuBLAS;
        width by waves 1.12-1.15 on N = 3584; 4 stages at width 256 -2 %; clusters of 4 -2 to -5 %; L2 hints, other tile
        orders, 5 stages: nothing. Residual by plain loads +15 %, through the ring +2 %; bias by plain loads +5 %. (H100)
        Angles loaded where they are used, each behind a division by D, +9 % on qkv. K split over blocks: not, although
        1280 and 1536 rows leave it a few per cent, since a row's sums must not depend on the rows beside it.
Oracle  model/cpu/linear.go */
#pragma once

#include "linear_sm90_ring.cuh"

/* Where the bias of a tile's column lies among the floats: the four of a thread in 16 columns side by side. */
QK_DEVICE int linear_sm90_bias_place(int column) {
  return (column & ~15) + (column & 7) / 2 * 4 + (column >> 3 & 1) * 2 + (column & 1);
}

/* The angles of 16 columns that a thread rotates: of its two rows the pairs at its columns and 8 further on. */
struct linear_sm90_angles {
  float2 cos[2], sin[2];

  QK_DEVICE_MEMBER void load(const rope_table &r, const int (&position)[2], int column, int lane) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int at = position[i] * (r.D / 2) + r.pair(column) + lane % 4;
      cos[i] = {__ldg(r.cos + at), __ldg(r.cos + at + 4)}, sin[i] = {__ldg(r.sin + at), __ldg(r.sin + at + 4)};
    }
  }
  QK_DEVICE_MEMBER void rotate(float *v) const {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float x = v[2 * i], y = v[4 + 2 * i];
      v[2 * i] = x * cos[i].x - v[2 * i + 1] * sin[i].x, v[2 * i + 1] = v[2 * i + 1] * cos[i].x + x * sin[i].x;
      v[4 + 2 * i] = y * cos[i].y - v[5 + 2 * i] * sin[i].y, v[5 + 2 * i] = v[5 + 2 * i] * cos[i].y + y * sin[i].y;
    }
  }
};
constexpr int linear_sm90_ahead = 4;  // groups of 16 columns whose angles are on their way

/* Rounds the accumulators, with what is to be added, and stores them. */
template <class Layout>
QK_DEVICE void linear_sm90_store(const linear_sm90_maps &maps, const linear_problem &p, const linear_sm90_slab &s,
                                 ring_cursor &at, float (&d)[Layout::width / 2], const int (&position)[2],
                                 linear_sm90_angles (&angles)[linear_sm90_ahead]) {
  constexpr auto tile = Layout::tile;
  constexpr int pitch = tile.store_columns * 2;
  const bool leader = s.warp == 0 && s.lane == 0;
  // This lane's row address for stmatrix, and TMA's swizzle: the 16-byte unit is exclusive-ored with the 128-byte line.
  const int row = s.warp * 16 + (s.lane & 15);
  const uint32_t mask = (row * pitch >> 7) & (pitch / 16 - 1);
#pragma unroll
  for (int c = 0; c < Layout::stores; c++) {
    if (c % Layout::store_group == 0) {
      if (c == 0 && leader) tma_store_wait_read<0>();
      if (c >= tile.store_slots && leader) tma_store_wait_read<Layout::groups_in_flight>();
      if (c == 0 || c >= tile.store_slots) threads_sync(1 + s.group, 128);
    }
    if (p.residual && c % Layout::residual_first == 0) barrier_wait(s.full + 8 * at.stage, at.parity);
    const uint32_t slot = s.slots + c % tile.store_slots * Layout::slot_bytes;
    const uint32_t residual = s.base + at.stage * Layout::stage_bytes + c % Layout::residual_first * Layout::residual_bytes +
                              s.group * (Layout::residual_bytes / 2);
    // All that is to be added first, so that its latency is met once a store.
    constexpr int groups = tile.store_columns / 16;
    float4 bias[groups];
    uint32_t old[groups][4];
#pragma unroll
    for (int j = 0; j < groups; j++) {
      if (p.bias) bias[j] = shared_float4(s.bias + (c * groups + j) * 64 + (s.lane & 3) * 16);
      if (p.residual) load_matrices(old[j], residual + row * pitch + (((2 * j + (s.lane >> 4)) ^ mask) << 4));
    }
#pragma unroll
    for (int j = 0; j < groups; j++) {
      const int group = c * groups + j, column = s.column + 16 * group;
      float *v = d + 8 * group;  // columns 2*(lane%4) + {0,1} and + 8 of two rows
      if (p.bias) {
        v[0] += bias[j].x, v[1] += bias[j].y, v[2] += bias[j].x, v[3] += bias[j].y;
        v[4] += bias[j].z, v[5] += bias[j].w, v[6] += bias[j].z, v[7] += bias[j].w;
      }
      if (p.residual)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float2 x = unpack_bf16(old[j][i]);
          v[2 * i] += x.x, v[2 * i + 1] += x.y;
        }
      if (column < p.rope_columns) {
        auto &a = angles[group % linear_sm90_ahead];
        const int next = column + 16 * linear_sm90_ahead;
        a.rotate(v);
        if (group + linear_sm90_ahead < Layout::width / 16 && next < p.rope_columns) a.load(p.rope, position, next, s.lane);
      }
      store_matrices(slot + row * pitch + (((2 * j + (s.lane >> 4)) ^ mask) << 4), pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]),
                     pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
    }
    if (p.residual && (c % Layout::residual_first == Layout::residual_first - 1 || c == Layout::stores - 1)) {
      __syncwarp();
      linear_sm90_release(s.empty, at.stage, s.lane);
      at.advance(tile.stages);
    }
    if (c % Layout::store_group == Layout::store_group - 1 || c == Layout::stores - 1) {
      fence_async();
      threads_sync(1 + s.group, 128);
      if (leader) {
#pragma unroll
        for (int i = c / Layout::store_group * Layout::store_group; i <= c; i++)
          tma_store(&maps.c, s.slots + i % tile.store_slots * Layout::slot_bytes, s.column + i * tile.store_columns,
                    s.row + 64 * s.group);
        tma_store_commit();
      }
    }
  }
}

/* A consumer warpgroup: multiplies its 64 rows of every tile, releasing a stage when the product behind it has started. */
template <class Layout, bool BNInner, int Tail>
QK_DEVICE void linear_sm90_consume(const linear_sm90_maps &maps, const linear_sm90_counts &n, const linear_problem &p,
                                   linear_sm90_slab s, int rank) {
  constexpr auto tile = Layout::tile;
  float d[Layout::width / 2];
  ring_cursor at = {0, 0};

  for (int t = blockIdx.x / 2; t < n.tiles; t += gridDim.x / 2) {
    s.row = n.first_row(t, rank);
    s.column = n.column(t) * tile.width;
    // What the epilogue reads from global memory is fetched now, behind the products.
    const int thread = s.warp * 32 + s.lane;
    float bias[2] = {0, 0};
    int position[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int column = s.column + thread + 128 * i, row = s.row + 64 * s.group + s.warp * 16 + s.lane / 4 + 8 * i;
      if (p.bias && thread + 128 * i < tile.width && column < p.N) bias[i] = __ldg(p.bias + column);
      if (s.column < p.rope_columns && row < p.M) position[i] = __ldg(p.rope.pos + row);
    }

    linear_sm90_angles angles[linear_sm90_ahead];
    linear_sm90_accumulate<Layout, BNInner, Tail>(d, n, s, at, [&] {
#pragma unroll
      for (int i = 0; i < linear_sm90_ahead; i++)
        if (s.column + 16 * i < p.rope_columns) angles[i].load(p.rope, position, s.column + 16 * i, s.lane);
      if (p.bias)
#pragma unroll
        for (int i = 0; i < 2; i++)
          if (thread + 128 * i < tile.width)
            asm volatile("st.shared.f32 [%0], %1;" ::"r"(s.bias + linear_sm90_bias_place(thread + 128 * i) * 4), "f"(bias[i]) : "memory");
    });
    linear_sm90_store<Layout>(maps, p, s, at, d, position, angles);
  }
  if (s.warp == 0 && s.lane == 0) tma_store_wait();
}

/* Tail: k16 steps of the last block of LoRA columns, 1 or 2; 0 where there is none or it counts as a full one. */
template <int Tile, bool BNInner, int Tail>
__global__ void __launch_bounds__(384, 1)
    linear_sm90_kernel(const __grid_constant__ linear_sm90_maps maps, const __grid_constant__ linear_sm90_counts n,
                       const __grid_constant__ linear_problem p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  typedef linear_sm90_layout<Tile, BNInner> Layout;
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t base = shared_address(memory);
  const uint32_t full = base + Layout::barriers_at, empty = full + 8 * Layout::stages;
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int rank = linear_sm90_open<Layout>(full, empty, maps);
  if (group == 2) {
    leave_registers<40>();
    if (warp == 0 && lane == 0) linear_sm90_produce<Layout, BNInner, Tail>(maps, n, p, base, full, empty, rank);
  } else {
    take_registers<232>();  // 2 * 232 + 40 = 3 * 168, what 384 threads start with
    const linear_sm90_slab slab = {base, full, empty,
                                   base + Layout::slots_at + group * Layout::tile.store_slots * Layout::slot_bytes,
                                   base + Layout::bias_at + group * Layout::width * 4, group, warp, lane, 0, 0};
    linear_sm90_consume<Layout, BNInner, Tail>(maps, n, p, slab, rank);
  }
  __syncwarp();
  cluster_sync();  // a block must not end while the other still writes to its shared memory
#endif
}

template <int Tile, bool BNInner, int Tail>
static qk_status linear_sm90_launch(const linear_problem &p, const qk_device &device, cudaStream_t stream) {
  typedef linear_sm90_layout<Tile, BNInner> Layout;
  constexpr auto tile = Layout::tile;

  linear_sm90_maps maps;
  qk_status status = qk_tensor_map(&maps.a, p.name, tensor_box{"A", p.a, p.M, p.K, p.K, 128, 64});
  if (!status)
    status = BNInner ? qk_tensor_map(&maps.b, p.name, tensor_box{"B", p.b, p.K, p.N, p.N, 32, tile.chunk_columns})
                     : qk_tensor_map(&maps.b, p.name, tensor_box{"B", p.b, p.N, p.K, p.K, tile.width / 2, 64});
  if (!status) status = qk_tensor_map(&maps.c, p.name, tensor_box{"C", p.c, p.M, p.N, p.N, 64, tile.store_columns});
  maps.u = maps.a, maps.lora_b = maps.b, maps.residual = maps.c;
  if (!status && p.R) status = qk_tensor_map(&maps.u, p.name, tensor_box{"u", p.u, p.M, p.R, p.R, 128, 64});
  if (!status && p.R) status = qk_tensor_map(&maps.lora_b, p.name, tensor_box{"pack_b", p.lora_b, p.N, p.R, p.R, tile.width / 2, 64});
  if (!status && p.residual)
    status = qk_tensor_map(&maps.residual, p.name, tensor_box{"residual", p.residual, p.M, p.N, p.N, 128, tile.store_columns});
  if (status) return status;

  linear_sm90_counts n;
  n.rows = p.M, n.row_tiles = ceil_div(p.M, 256);
  n.tiles = n.row_tiles * ceil_div(p.N, tile.width);
  n.k_blocks = ceil_div(p.K, 64);
  n.full_blocks = n.k_blocks + ceil_div(p.R, 64) - (Tail > 0);

  const int clusters = n.tiles < device.multiprocessors / 2 ? n.tiles : device.multiprocessors / 2;
  return qk_launch(p.name, linear_sm90_kernel<Tile, BNInner, Tail>, 2 * clusters, 2, 384, Layout::bytes, stream, maps, n, p);
}

/* Launches the tile that was chosen, of those from Tile on. */
template <bool BNInner, int Tail, int Tile = 0>
static qk_status linear_sm90_dispatch(int chosen, const linear_problem &p, const qk_device &device, cudaStream_t stream) {
  if constexpr (Tile < linear_sm90_tile_count) {
    if constexpr ((linear_sm90_tiles[Tile].orders & (BNInner ? B_N_INNER : B_K_INNER)) != 0)
      if (chosen == Tile) return linear_sm90_launch<Tile, BNInner, Tail>(p, device, stream);
    return linear_sm90_dispatch<BNInner, Tail, Tile + 1>(chosen, p, device, stream);
  } else
    return qk_fail(QK_NO_VARIANT, "%s: no tile %d", p.name, chosen);
}

qk_status linear_sm90(const linear_problem &p, const qk_device &device, cudaStream_t stream) {
  const int chosen = linear_sm90_choose(p.M, p.N, p.K, p.b_n_inner ? B_N_INNER : B_K_INNER, device.multiprocessors);
  if (p.b_n_inner) return linear_sm90_dispatch<true, 0>(chosen, p, device, stream);
  switch (ceil_div(p.R % 64, 16)) {
    case 1: return linear_sm90_dispatch<false, 1>(chosen, p, device, stream);
    case 2: return linear_sm90_dispatch<false, 2>(chosen, p, device, stream);
    default: return linear_sm90_dispatch<false, 0>(chosen, p, device, stream);
  }
}
