/* Tile shapes of the matrix products, and the choice among them. Plain C++, so that the choice can be tested without a
card. It is a function of the shape and the card alone, never of a timing: another tile sums in the same order, but what
a run does must not depend on what else the card did that day. */
#pragma once

/* ---- sm_90a: 128 rows (two consumer warpgroups of 64) x width columns, in k blocks of 64. */

struct linear_sm90_tile {
  int width;          // columns of C: an N of wgmma
  int stages;         // of the ring: A 16 KB and B 128 bytes a column each
  int store_columns;  // of one TMA store of C: 64, 32 or 16, the widest that divides width
  int store_slots;    // C staging of a warpgroup, in stores; all of the tile where it fits
  int chunk_columns;  // B with N innermost: columns of one TMA box, 64 (128-byte swizzle) or 32
  int epilogue;       // cycles from a tile's last product to the next tile's first, measured on an H200 (down to 144)
};

constexpr linear_sm90_tile linear_sm90_tiles[] = {
    {112, 6, 16, 7, 32, 900},
    {144, 5, 16, 9, 32, 1000},
    {176, 4, 16, 11, 32, 1100},
    {192, 4, 64, 3, 64, 1070},
    {224, 4, 32, 6, 32, 1550},  // 7 chunks of 32 exactly; 7 store slots would not fit beside 4 stages
    {256, 3, 64, 4, 64, 1300},  // 3 stages feed it as well as 4, and leave room to stage all of C: 2060 cycles with 4
};
constexpr int linear_sm90_tile_count = sizeof(linear_sm90_tiles) / sizeof(linear_sm90_tiles[0]);

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

/* Index of the tile that takes the fewest cycles by count of waves: clusters of two blocks (256 rows), each a tile at a
time, at 4 cycles a column and k block of 64, which the kernel keeps to within 1 %. At T = 2048 on 132 multiprocessors:
224 for N = 3584 (16 columns of tiles: 1.94 waves, where 256 wide makes 1.70 of 2), 192 for 4608, 256 for 37888. */
constexpr int linear_sm90_choose(int M, int N, int K, int multiprocessors) {
  const int clusters = multiprocessors / 2;
  int best = -1;
  long long best_cycles = 0;
  for (int i = linear_sm90_tile_count - 1; i >= 0; i--) {  // the wider of two equals: fewer bytes moved
    const linear_sm90_tile &t = linear_sm90_tiles[i];
    const long long tiles = (long long)ceil_div(M, 256) * ceil_div(N, t.width);
    const long long waves = (tiles + clusters - 1) / clusters;
    const long long cycles = waves * (4LL * t.width * ceil_div(K, 64) + t.epilogue);
    if (best < 0 || cycles < best_cycles) best = i, best_cycles = cycles;
  }
  return best;
}
static_assert(linear_sm90_tiles[linear_sm90_choose(2048, 3584, 3584, 132)].width == 224, "o");
static_assert(linear_sm90_tiles[linear_sm90_choose(2048, 4608, 3584, 132)].width == 192, "qkv");
static_assert(linear_sm90_tiles[linear_sm90_choose(2048, 37888, 3584, 132)].width == 256, "gate, up");

/* ---- sm_80: 4 warps of 64 x 64 in 2 x 2, k blocks of 32. 3 stages are 48 KB, so that two blocks share a
multiprocessor of a GeForce card (100 KB) and one multiplies while the other stores. */

constexpr int linear_sm80_rows = 128, linear_sm80_columns = 128, linear_sm80_k = 32, linear_sm80_stages = 3;
