/* The memory of an attention backward: the plan's lists, statistics by padded row, and partials. */
#pragma once

#include "attention.cuh"
#include "lora.cuh"

/* One unit of the dK, dV kernel: query heads head .. head + heads - 1 of a kv head, on one tile of keys. */
struct attention_dkv_item {
  uint32_t tile;      // attention_tile, packed
  uint16_t head, heads;
  int32_t slot;       // of its partials; -1: it writes dK, dV itself
  int32_t cost;       // query blocks of 64 times heads
};
/* A tile and kv head whose partials are to be added: slots first .. first + count - 1. */
struct attention_sum_item {
  uint32_t tile;
  int32_t kv_head, first, count;
};
struct attention_counts {
  int32_t tiles, dkv_items, sums, slots;
};

/* Slots of partials: 1.85 a multiprocessor are needed at T = 2048, fewer elsewhere. Beyond them tiles stay whole. */
constexpr int attention_slots_per_multiprocessor = 2;

/* Where things lie: the plan of a batch in memory of its own, which serves every layer, and the scratch memory of one backward.
Either may be null, where only its size is asked for. */
struct attention_work {
  attention_counts *counts;
  uint32_t *tiles;               // most keys first: items of dQ are these times heads
  attention_dkv_item *unsorted, *items;
  attention_sum_item *sums;
  float *lse2, *delta;           // (H, padded rows)
  float *partials;               // slots of dK (128,D), dV (128,D)
  int max_tiles, max_slots, padded_rows;
  int64_t plan_bytes, bytes;
  __host__ __device__ attention_work(char *plan, char *work, int T, int S, int H, int Hk, int D, int multiprocessors) {
    char *at = plan;
    const auto take = [&at](int64_t n) {
      char *p = at;
      at += (n + 255) / 256 * 256;
      return p;
    };
    max_tiles = T / attention_rows + S;
    max_slots = min(attention_slots_per_multiprocessor * multiprocessors, max_tiles * H);
    padded_rows = max_tiles * attention_rows;
    counts = (attention_counts *)take(sizeof(attention_counts));
    tiles = (uint32_t *)take((int64_t)max_tiles * 4);
    unsorted = (attention_dkv_item *)take((int64_t)max_tiles * H * sizeof(attention_dkv_item));
    items = (attention_dkv_item *)take((int64_t)max_tiles * H * sizeof(attention_dkv_item));
    sums = (attention_sum_item *)take((int64_t)max_tiles * Hk * sizeof(attention_sum_item));
    plan_bytes = at - plan;
    at = work;
    lse2 = (float *)take((int64_t)H * padded_rows * 4);
    delta = (float *)take((int64_t)H * padded_rows * 4);
    partials = (float *)take((int64_t)max_slots * 2 * attention_rows * D * 4);
    bytes = at - work;
  }
  __host__ __device__ static int min(int a, int b) { return a < b ? a : b; }
};

/* What is added to dO before anything reads it: mask * (du * A) of its reader, where lora.n is not 0. */
struct attention_lora {
  bf16 *d_o;
  const bf16 *du;
  qk_lora lora;
  dropout_batch batch;
};

/* The plan, and before the products and behind them; the same for every variant; launched on the stream. */
qk_status attention_bwd_plan(const attention_problem &p, const attention_work &w, const qk_device &device, cudaStream_t stream);
qk_status attention_bwd_delta(const attention_problem &p, const attention_work &w, const attention_lora &add, cudaStream_t stream);
qk_status attention_bwd_sum(const attention_problem &p, const attention_work &w, const qk_device &device, cudaStream_t stream);
