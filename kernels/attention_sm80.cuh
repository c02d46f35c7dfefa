/* What the attention kernels for every card from sm_80 on share: tiles of a head's rows in shared memory, brought by
cp.async and read by ldmatrix, and products of a warp's 16 rows by mma.sync.

A row is D * 2 bytes; its 16-byte units are exclusive-ored with the row, so that the 8 rows a matrix load reads meet 8
different banks. Blocks are 8 warps of 16 rows. A warp has its own rows of the accumulators from the first product to the
last, so that scores become the A fragments of the next product without leaving registers. */
#pragma once

#include "attention.cuh"
#include "mma.cuh"

constexpr int attention_sm80_threads = 256;

template <int D> QK_DEVICE uint32_t attention_unit(int row, int unit) { return row * D * 2 + ((unit ^ (row & 7)) << 4); }

/* Starts the copy of Rows rows of a head from `row` on; those from `end` on become zeros. */
template <int D, int Rows>
QK_DEVICE void attention_copy_rows(uint32_t tile, const bf16 *head, int64_t pitch, int row, int end) {
  constexpr int units = D / 8;
#pragma unroll
  for (int i = 0; i < Rows * units / attention_sm80_threads; i++) {
    const int n = threadIdx.x + i * attention_sm80_threads, r = n / units, unit = n % units;
    const bool inside = row + r < end;
    copy_async(tile + attention_unit<D>(r, unit), inside ? head + (row + r) * pitch + 8 * unit : head, inside ? 16 : 0);
  }
}

QK_DEVICE void attention_mma(float *d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  mma_k16(*(float(*)[4])d, a[0], a[1], a[2], a[3], b0, b1);
}

/* s (16,N) = 16 rows of tile a, from `row` on, times the N rows of tile b, over D. */
template <int D, int N> QK_DEVICE void attention_scores_sm80(float (&s)[N / 2], uint32_t a, int row, uint32_t b, int lane) {
#pragma unroll
  for (int i = 0; i < N / 2; i++) s[i] = 0;
#pragma unroll 4  // all 8 would cost dK, dV registers that it does not have
  for (int step = 0; step < D / 16; step++) {
    uint32_t left[4];
    load_matrices(left, a + attention_unit<D>(row + (lane & 15), 2 * step + (lane >> 4)));
#pragma unroll
    for (int j = 0; j < N / 16; j++) {
      uint32_t right[4];
      load_matrices(right, b + attention_unit<D>(16 * j + (lane & 7) + (lane >> 4) * 8, 2 * step + (lane >> 3 & 1)));
      attention_mma(s + 8 * j, left, right[0], right[1]);
      attention_mma(s + 8 * j + 4, left, right[2], right[3]);
    }
  }
}

/* d (16,D) += p (16,N), rounded, times the N rows of tile b. */
template <int D, int N> QK_DEVICE void attention_values_sm80(float (&d)[D / 2], const float (&p)[N / 2], uint32_t b, int lane) {
#pragma unroll
  for (int j = 0; j < N / 16; j++) {
    const float *v = p + 8 * j;
    const uint32_t left[4] = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
#pragma unroll
    for (int c = 0; c < D / 16; c++) {
      uint32_t right[4];
      load_matrices_transposed(right, b + attention_unit<D>(16 * j + (lane & 15), 2 * c + (lane >> 4)));
      attention_mma(d + 8 * c, left, right[0], right[1]);
      attention_mma(d + 8 * c + 4, left, right[2], right[3]);
    }
  }
}

/* Rounds a warp's 16 rows, through the rows of a tile that it alone reads, and writes those before end. */
template <int D>
QK_DEVICE void attention_store_rows_sm80(const float (&d)[D / 2], uint8_t *tile, int tile_row, bf16 *head, int64_t pitch,
                                         int row, int end, int lane) {
  constexpr int units = D / 8;
  const int r = tile_row + lane / 4;
  __syncwarp();  // all lanes have read what lay here
#pragma unroll
  for (int j = 0; j < units; j++) {
    *(uint32_t *)(tile + attention_unit<D>(r, j) + lane % 4 * 4) = pack_bf16(d[4 * j], d[4 * j + 1]);
    *(uint32_t *)(tile + attention_unit<D>(r + 8, j) + lane % 4 * 4) = pack_bf16(d[4 * j + 2], d[4 * j + 3]);
  }
  __syncwarp();
#pragma unroll
  for (int i = lane; i < 16 * units; i += 32)
    if (row + i / units < end)
      *(uint4 *)(head + (row + i / units) * pitch + i % units * 8) = *(const uint4 *)(tile + attention_unit<D>(tile_row + i / units, i % units));
}
