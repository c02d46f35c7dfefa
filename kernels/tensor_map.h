/* Host side of TMA: descriptions of bf16 matrices and the boxes they are moved in. */
#pragma once

#include <cuda.h>

#include "status.h"

/* A box of a matrix (rows, columns), rows pitch elements apart, in shared memory with rows of box_columns, swizzled by
their bytes (128, 64 or 32). Fails with the launcher's and the tensor's name. */
struct tensor_box {
  const char *tensor;
  const void *data;
  int64_t rows, columns, pitch;
  int box_rows, box_columns;
};
qk_status qk_tensor_map(CUtensorMap *map, const char *launcher, const tensor_box &box);

/* Heads of an attention tensor: (T, heads, D) at pitch elements a token, as boxes of box_rows tokens of one head, in
chunks of 64 columns behind each other; coordinates (0, token, head * D / 64). */
struct tensor_heads {
  const char *tensor;
  const void *data;
  int64_t tokens, heads, D, pitch;
  int box_rows;
};
qk_status qk_tensor_map(CUtensorMap *map, const char *launcher, const tensor_heads &box);
