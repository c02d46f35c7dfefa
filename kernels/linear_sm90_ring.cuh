/* The part of Hopper's matrix products that does not depend on what becomes of the sums: the ring of stages in shared memory,
the producer that fills it, and a consumer warpgroup's sums over it. See linear_sm90.cuh for the form of the whole. */
#pragma once

#include "linear.cuh"
#include "sm90.cuh"
#include "tensor_map.h"
#include "tiles.h"
#include "wgmma.cuh"

/* Everything a tile shape implies, in bytes. */
template <int Tile, bool BNInner> struct linear_sm90_layout {
  static constexpr linear_sm90_tile tile = linear_sm90_tiles[Tile];
  static constexpr int width = tile.width, stages = tile.stages, block_rows = 128, block_k = 64;

  // B with N innermost lies in chunks of chunk_columns, of which the last may be partly unused; its two halves of 32 k,
  // one from each block of the cluster, behind each other. With K innermost the halves are halves of the columns.
  static constexpr int chunks = ceil_div(width, tile.chunk_columns);
  static constexpr int chunk_bytes = 32 * tile.chunk_columns * 2;
  static constexpr int a_bytes = block_rows * block_k * 2;
  static constexpr int b_bytes = BNInner ? 2 * chunks * chunk_bytes : width * block_k * 2;
  static constexpr int stage_bytes = a_bytes + b_bytes;

  // C leaves in stores of (64, store_columns), through a warpgroup's slots, committed by groups.
  static constexpr int stores = width / tile.store_columns;
  static constexpr int slot_bytes = 64 * tile.store_columns * 2;
  static constexpr int store_group = tile.store_slots >= stores ? stores : tile.store_slots / 2;
  static constexpr int groups_in_flight = tile.store_slots >= stores ? 0 : tile.store_slots / store_group - 1;

  // The residual fills one ring stage and, where it is wider, a second.
  static constexpr int residual_bytes = block_rows * tile.store_columns * 2;  // both warpgroups' rows of one store
  static constexpr int residual_first = stores < stage_bytes / residual_bytes ? stores : stage_bytes / residual_bytes;
  static_assert(stores - residual_first <= residual_first, "the residual must fit in two stages");

  static constexpr int slots_at = stages * stage_bytes;
  static constexpr int bias_at = slots_at + 2 * tile.store_slots * slot_bytes;
  static constexpr int barriers_at = bias_at + 2 * width * 4;
  static constexpr int bytes = barriers_at + 2 * stages * 8;
  static_assert(bytes <= 227 * 1024, "a block has 227 KB of shared memory");
  static_assert(stage_bytes % 1024 == 0 && slot_bytes % 1024 == 0, "swizzled tiles start at multiples of 1024");
  static_assert(BNInner || width % 16 == 0, "half of B's columns must be whole groups of 8");
};

struct linear_sm90_maps {
  CUtensorMap a, b, c, u, lora_b, residual;
};

/* How the tiles and the k blocks of a product are counted. */
struct linear_sm90_counts {
  int rows, row_tiles, tiles;  // of A and C; tiles of 256 of them; all
  int k_blocks;          // of A and B
  int full_blocks;       // k_blocks and those of U and L but for the tail

  // Rows fastest: the tiles that run together share their columns of B.
  __device__ __forceinline__ int first_row(int tile, int rank) const { return (tile % row_tiles * 2 + rank) * 128; }
  __device__ __forceinline__ int column(int tile) const { return tile / row_tiles; }
};

/* The producer: one thread that keeps the ring full. */
template <class Layout, bool BNInner, int Tail>
QK_DEVICE void linear_sm90_produce(const linear_sm90_maps &maps, const linear_sm90_counts &n, const linear_problem &p,
                                   uint32_t base, uint32_t full, uint32_t empty, int rank) {
  constexpr auto tile = Layout::tile;
  ring_cursor at = {0, 0};
  for (int t = blockIdx.x / 2; t < n.tiles; t += gridDim.x / 2) {
    const int row = n.first_row(t, rank), column = n.column(t) * tile.width;
    // Rows that are all outside are not loaded but multiplied as they lie: TMA would be slower at filling in zeros (+45 % by
    // tiles of 128 columns) than at reading.
    const bool outside = row >= n.rows;
    for (int i = 0; i < n.full_blocks + (Tail > 0); i++) {
      const bool lora = i >= n.k_blocks;
      const int k = (lora ? i - n.k_blocks : i) * Layout::block_k;
      const uint32_t arrived = full + 8 * at.stage, a = base + at.stage * Layout::stage_bytes, b = a + Layout::a_bytes;
      barrier_wait(empty + 8 * at.stage, at.parity ^ 1);
      barrier_expect(arrived, Layout::stage_bytes - (outside ? Layout::a_bytes : 0));
      if (!outside) tma_load(a, lora ? &maps.u : &maps.a, arrived, k, row);
      if constexpr (BNInner) {
#pragma unroll
        for (int c = 0; c < Layout::chunks; c++)
          tma_load_multicast(b + rank * (Layout::b_bytes / 2) + c * Layout::chunk_bytes, &maps.b, arrived, 3,
                             column + c * tile.chunk_columns, k + 32 * rank);
      } else {
        tma_load_multicast(b + rank * (Layout::b_bytes / 2), lora ? &maps.lora_b : &maps.b, arrived, 3, k,
                           column + rank * (tile.width / 2));
      }
      at.advance(tile.stages);
    }
    if (!p.residual) continue;
    for (int first = 0; first < Layout::stores; first += Layout::residual_first) {
      const int count = min(Layout::residual_first, Layout::stores - first);
      const uint32_t arrived = full + 8 * at.stage;
      barrier_wait(empty + 8 * at.stage, at.parity ^ 1);
      barrier_expect(arrived, count * Layout::residual_bytes);
      for (int i = 0; i < count; i++)
        tma_load(base + at.stage * Layout::stage_bytes + i * Layout::residual_bytes, &maps.residual, arrived,
                 column + (first + i) * tile.store_columns, row);
      at.advance(tile.stages);
    }
  }
}

/* One k block of Steps k16 steps, issued and committed, not waited for. */
template <class Layout, bool BNInner, int Steps>
QK_DEVICE void linear_sm90_multiply(float (&d)[Layout::width / 2], uint64_t a, uint64_t b, bool accumulate) {
  wgmma_fence();
#pragma unroll
  for (int j = 0; j < Steps; j++) {
    // K innermost: 16 k are 32 bytes of a row. N innermost: 16 rows of k, or the other half.
    constexpr int row_bytes = Layout::tile.chunk_columns * 2;
    const int b_bytes = BNInner ? (j / 2) * (Layout::b_bytes / 2) + (j % 2) * 16 * row_bytes : 32 * j;
    wgmma<Layout::width>::template ss<BNInner>(d, a + 2 * j, b + (b_bytes >> 4), accumulate || j > 0);
  }
  wgmma_commit();
}

/* Frees a stage in both blocks, whose halves of B lie in it: the first two lanes of each warp arrive, one at each. */
QK_DEVICE void linear_sm90_release(uint32_t empty, int stage, int lane) {
  if (lane < 2) barrier_arrive_block(empty + 8 * stage, lane);
}

/* A consumer's view of its tile. */
struct linear_sm90_slab {
  uint32_t base, full, empty;  // ring
  uint32_t slots, bias;        // this warpgroup's
  int group, warp, lane;       // warpgroup 0 or 1, warp in it
  int row, column;             // of the tile's first element
};

/* A warpgroup's 64 rows of a tile, summed over all k blocks; a stage is released when the product behind it has started. behind
is run behind the last products but for those of a tail: for what the epilogue needs from memory, and for writes to shared
memory that the epilogue of the tile before may still have read. */
template <class Layout, bool BNInner, int Tail, class Behind>
QK_DEVICE void linear_sm90_accumulate(float (&d)[Layout::width / 2], const linear_sm90_counts &n, const linear_sm90_slab &s,
                                      ring_cursor &at, Behind behind) {
  constexpr auto tile = Layout::tile;
  constexpr swizzle b_swizzle = BNInner && tile.chunk_columns == 32 ? swizzle_64 : swizzle_128;
  constexpr int b_row = BNInner ? tile.chunk_columns * 2 : 128;
  const uint64_t a0 = descriptor(s.base + s.group * (Layout::a_bytes / 2), 16, 1024, swizzle_128);
  const uint64_t b0 = descriptor(s.base + Layout::a_bytes, BNInner ? Layout::chunk_bytes : 16, 8 * b_row, b_swizzle);
  int previous = -1;
  for (int i = 0; i < n.full_blocks; i++) {
    const uint64_t offset = (uint64_t)(at.stage * Layout::stage_bytes) >> 4;
    barrier_wait(s.full + 8 * at.stage, at.parity);
    linear_sm90_multiply<Layout, BNInner, 4>(d, a0 + offset, b0 + offset, i > 0);
    if (previous >= 0) {
      wgmma_wait<1>();
      linear_sm90_release(s.empty, previous, s.lane);
    }
    previous = at.stage;
    at.advance(tile.stages);
  }
  behind();
  if constexpr (Tail > 0) {
    const uint64_t offset = (uint64_t)(at.stage * Layout::stage_bytes) >> 4;
    barrier_wait(s.full + 8 * at.stage, at.parity);
    linear_sm90_multiply<Layout, BNInner, Tail>(d, a0 + offset, b0 + offset, true);
    wgmma_wait<1>();
    linear_sm90_release(s.empty, previous, s.lane);
    previous = at.stage;
    at.advance(tile.stages);
  }
  wgmma_wait<0>();
  settle(d);
  linear_sm90_release(s.empty, previous, s.lane);
}

/* The prologue of a block, all threads: barriers, and the block's rank in its cluster. */
template <class Layout> QK_DEVICE int linear_sm90_open(uint32_t full, uint32_t empty, const linear_sm90_maps &maps) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < Layout::stages; i++) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, 8 * 2);  // the consumer warps of both blocks
    }
    barrier_init_visible();
    tma_prefetch(&maps.a);
    tma_prefetch(&maps.b);
    tma_prefetch(&maps.c);
  }
  cluster_sync();
  wait_for_previous_kernel();
  return cluster_rank();
}
