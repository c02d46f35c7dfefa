/* Tile shapes of the matrix products, and the choice among them. Plain C++, so that the choice can be tested without a
card. It is a function of the shape and the card alone, never of a timing: another tile sums in the same order, but what
a run does must not depend on what else the card did that day. */
#pragma once

/* ---- sm_90a: 128 rows (two consumer warpgroups of 64) x width columns, in k blocks of 64. */

enum linear_sm90_order { B_K_INNER = 1, B_N_INNER = 2 };  // how B lies

struct linear_sm90_tile {
  int width;          // columns of C: an N of wgmma
  int stages;         // of the ring: A 16 KB and B 128 bytes a column each
  int store_columns;  // of one TMA store of C: 64, 32 or 16, the widest that divides width
  int store_slots;    // C staging of a warpgroup, in stores; all of the tile where it fits
  int chunk_columns;  // B with N innermost: columns of one TMA box, 64 (128-byte swizzle) or 32
  int epilogue;       // cycles from a tile's last product to the next tile's first, measured on an H200 (down to 144)
  int orders;         // that it takes B in
};

/* B with N innermost wants boxes of whole 64 bytes: those of a width that is no multiple of 32 columns begin between two, and
come at half the speed or less (a head's backward with 1536 rows: 6768 us by 112, 2326 by 192). */
constexpr linear_sm90_tile linear_sm90_tiles[] = {
    {112, 6, 16, 7, 32, 900, B_K_INNER},
    {128, 6, 64, 2, 64, 950, B_N_INNER},
    {144, 5, 16, 9, 32, 1000, B_K_INNER},
    {160, 5, 32, 5, 32, 1050, B_N_INNER},
    {176, 4, 16, 11, 32, 1100, B_K_INNER},
    {192, 4, 64, 3, 64, 1070, B_K_INNER | B_N_INNER},
    {224, 4, 32, 6, 32, 1550, B_K_INNER | B_N_INNER},  // 7 chunks of 32 exactly; 7 store slots would not fit beside 4 stages
    {256, 3, 64, 4, 64, 1300, B_K_INNER | B_N_INNER},  // 3 stages feed it as well as 4, and leave room to stage all of C: 2060 cycles with 4
};
constexpr int linear_sm90_tile_count = sizeof(linear_sm90_tiles) / sizeof(linear_sm90_tiles[0]);

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

/* Index of the tile that takes the fewest cycles by count of waves: clusters of two blocks (256 rows), each a tile at a
time. A k block of 64 takes 4 cycles a column, which the kernel keeps to within 1 %, or as long as the L2 cache needs for its 32 KB
of A and 128 bytes a column of B, where that is longer: below 224 columns. At T = 2048 on 132 multiprocessors:
224 for N = 3584 (16 columns of tiles: 1.94 waves, where 256 wide makes 1.70 of 2), 192 for 4608, 256 for 37888. */
constexpr int linear_sm90_l2_bytes = 74;  // a cycle and cluster, when all ask: 67 to 77 on an H100 at T of 256 to 4096
constexpr int linear_sm90_choose(int M, int N, int K, linear_sm90_order order, int multiprocessors) {
  const int clusters = multiprocessors / 2;
  int best = -1;
  long long best_cycles = 0;
  for (int i = linear_sm90_tile_count - 1; i >= 0; i--) {  // the wider of two equals: fewer bytes moved
    const linear_sm90_tile &t = linear_sm90_tiles[i];
    if (!(t.orders & order)) continue;
    const long long tiles = (long long)ceil_div(M, 256) * ceil_div(N, t.width);
    const long long waves = (tiles + clusters - 1) / clusters;
    const int multiply = 4 * t.width, load = (256 + t.width) * 128 / linear_sm90_l2_bytes;
    const long long cycles = waves * ((long long)(multiply > load ? multiply : load) * ceil_div(K, 64) + t.epilogue);
    if (best < 0 || cycles < best_cycles) best = i, best_cycles = cycles;
  }
  return best;
}
constexpr int linear_sm90_width(int M, int N, int K, linear_sm90_order order) { return linear_sm90_tiles[linear_sm90_choose(M, N, K, order, 132)].width; }
static_assert(linear_sm90_width(2048, 3584, 3584, B_K_INNER) == 224, "o");
static_assert(linear_sm90_width(2048, 4608, 3584, B_K_INNER) == 192, "qkv");
static_assert(linear_sm90_width(2048, 37888, 3584, B_K_INNER) == 256, "gate, up");
static_assert(linear_sm90_width(1536, 3584, 37888, B_N_INNER) == 192, "gate, up, backward");

/* ---- sm_80: 4 warps of 64 x 64 in 2 x 2, k blocks of 32. 3 stages are 48 KB, so that two blocks share a
multiprocessor of a GeForce card (100 KB) and one multiplies while the other stores. */

constexpr int linear_sm80_rows = 128, linear_sm80_columns = 128, linear_sm80_k = 32, linear_sm80_stages = 3;
