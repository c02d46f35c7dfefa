/* Attention backward around its products: the work lists and delta before them, the sum of partials behind them.

Math    dO += mask * (du * A) of its reader;  delta[h,t] = sum_d o * dO. By padded row (attention.cuh), with lse * log2(e) beside it, +infinity past a
        segment's end: the probabilities there become zero without a branch.
Plan    dK, dV of a tile of keys need all query rows behind it of all H/Hk query heads. An item takes some of the heads, so
        that it costs about a fixed share of the card's work; items of a tile that was split leave f32 partials in slots,
        which are then added in slot order: no atomics, bitwise repeatable. Items are sorted, dearest first. One block
        makes the plan of a batch, once for all layers, on the device, because the segments are known only there.
Bound   memory and latency */
#pragma once

#include "attention_work.cuh"

/* The share of one multiprocessor's work that an item of dK, dV may take, by simulated finish time over one segment at
28/4 heads on 132 multiprocessors: 0.8 is within 2 % of the best split at T = 2048 and 4096; at 8192 whole groups are. */
constexpr float attention_dkv_share(int T) { return T <= 6144 ? 0.8f : 1.0f; }

QK_DEVICE int attention_query_blocks(const int32_t *seg_start, attention_tile t) {
  const int rows = __ldg(seg_start + t.segment + 1) - __ldg(seg_start + t.segment) - t.level * attention_rows;
  return (rows + 63) / 64;
}

/* The plan, by one block. */
__global__ void __launch_bounds__(256)
    attention_plan_kernel(const __grid_constant__ attention_problem p, const __grid_constant__ attention_work w, float share, int multiprocessors) {
  take_turn();
  __shared__ int tiles, total, items;
  const int thread = threadIdx.x, lane = thread % 32, group = p.H / p.Hk;
  if (thread < 32) {
    const int n = attention_list_tiles(w.tiles, p.seg_start, p.S, lane);
    __syncwarp();
    int blocks = 0;
    for (int i = lane; i < n; i += 32) blocks += attention_query_blocks(p.seg_start, attention_unpack(w.tiles[i]));
    blocks = __reduce_add_sync(~0u, blocks);
    if (lane == 0) tiles = n, total = blocks;
  }
  __syncthreads();

  // Each lane of one warp splits the heads of a tile and finds, by a scan over the lanes, where its items begin.
  if (thread < 32) {
    // An item costs 3 query blocks before its first: 8 at least.
    const float limit = fmaxf(8, share * p.H * total / multiprocessors);
    int next_item = 0, next_slot = 0, next_sum = 0;
    for (int first = 0; first < tiles; first += 32) {
      const bool here = first + lane < tiles;
      const attention_tile t = here ? attention_unpack(w.tiles[first + lane]) : attention_tile{0, 0};
      const int blocks = here ? attention_query_blocks(p.seg_start, t) : 1;
      const int heads = min(group, max(1, (int)(limit / blocks)));
      int parts = here ? (group + heads - 1) / heads : 0;
      // Slots are given in order; a tile that would pass their end stays whole, and so do those after it.
      const auto before = [lane](int n) {
        int sum = n;
        for (int o = 1; o < 32; o *= 2) {
          const int other = __shfl_up_sync(~0u, sum, o);
          if (lane >= o) sum += other;
        }
        return sum - n;
      };
      int slots = parts > 1 ? parts * p.Hk : 0;
      const int would = next_slot + before(slots) + slots;
      if (would > w.max_slots) parts = min(parts, 1), slots = 0;
      const int item = next_item + before(parts * p.Hk), slot = next_slot + before(slots), sum = next_sum + before(slots ? p.Hk : 0);
      for (int kv = 0; kv < p.Hk && here; kv++) {
        if (slots) w.sums[sum + kv] = {t.packed(), kv, slot + kv * parts, parts};
        for (int part = 0; part < parts; part++) {
          const int from = group * part / parts, to = group * (part + 1) / parts;
          w.unsorted[item + kv * parts + part] = {t.packed(), (uint16_t)(kv * group + from), (uint16_t)(to - from),
                                                  slots ? slot + kv * parts + part : -1, (to - from) * blocks};
        }
      }
      next_item = __shfl_sync(~0u, item + parts * p.Hk, 31);
      next_slot = __shfl_sync(~0u, slot + slots, 31);
      next_sum = __shfl_sync(~0u, sum + (slots ? p.Hk : 0), 31);
    }
    if (lane == 0) items = next_item, *w.counts = {tiles, next_item, next_sum, next_slot};
  }
  __syncthreads();

  // Rank sort: an item's place is the number of dearer ones, of equals the earlier.
  for (int i = thread; i < items; i += blockDim.x) {
    const int cost = w.unsorted[i].cost;
    int rank = 0;
    for (int j = 0; j < items; j++) {
      const int other = w.unsorted[j].cost;
      rank += other > cost || (other == cost && j < i);
    }
    w.items[rank] = w.unsorted[i];
  }
}

constexpr int attention_delta_threads = 128, attention_delta_heads = 2;  // 4 warps of 16 rows, half a tile; heads of a block

/* Block (half of a tile, heads) completes dO and makes delta and lse2, a warp 16 rows: lane 4i + q has columns 8q.. and
32 + 8q.. of rows i and i + 8, in chunks of 64. */
template <int D>
__global__ void __launch_bounds__(attention_delta_threads, arch_from_100 ? 2 : 3)
    attention_delta_kernel(const __grid_constant__ attention_problem p, const __grid_constant__ attention_work w,
                           const __grid_constant__ attention_lora add) {
  take_turn();
  __shared__ __align__(16) bf16 low[attention_delta_threads / 32][lora_tokens * back_stride_one];
  if ((int)blockIdx.x / 2 >= w.counts->tiles) return;
  const attention_tile tile = attention_unpack(w.tiles[blockIdx.x / 2]);
  const int row = __ldg(p.seg_start + tile.segment) + tile.level * attention_rows, end = __ldg(p.seg_start + tile.segment + 1);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, q = lane % 4, first = row + blockIdx.x % 2 * 64 + 16 * warp;
  const int t[2] = {first + lane / 4, first + lane / 4 + 8};
  const bool inside[2] = {t[0] < end, t[1] < end};
  const int64_t place = attention_place(p.seg_start, tile) * attention_rows - row;
  uint2 key = {};
  dropout_token tokens[2] = {};
  if (add.lora.n) {
    key = add.batch.key(), tokens[0] = dropout_token_of(add.batch, t[0], end), tokens[1] = dropout_token_of(add.batch, t[1], end);
    back_load(low[warp], back_stride_one, add.du, add.lora, first, end, lane, 32);
    __syncwarp();
  }
  for (int head = blockIdx.y * attention_delta_heads; head < min((blockIdx.y + 1) * attention_delta_heads, p.H); head++) {
    float dot[2] = {}, lse[2];
#pragma unroll
    for (int h = 0; h < 2; h++) lse[h] = inside[h] ? __ldg(p.lse + (int64_t)head * p.T + t[h]) : INFINITY;
#pragma unroll
    for (int base = 0; base < D; base += 64) {
      const bf16 *o_row[2];
      bf16 *do_row[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int64_t at = ((int64_t)t[h] * p.H + head) * D + base + 8 * q;
        o_row[h] = p.o + at, do_row[h] = add.d_o + at;
      }
      uint4 o[4], g[4];  // part k: row k / 2, column group k % 2
#pragma unroll
      for (int k = 0; k < 4; k++) {
        o[k] = load16(o_row[k / 2] + 32 * (k % 2), inside[k / 2]);
        g[k] = inside[k / 2] ? *(const uint4 *)(do_row[k / 2] + 32 * (k % 2)) : make_uint4(0, 0, 0, 0);
      }
      float sum[8][4] = {};
      if (add.lora.n) back_multiply(sum, low[warp], back_stride_one, add.lora, head * D + base, key, tokens, lane);
#pragma unroll
      for (int k = 0; k < 4; k++) {
        float x[8], y[8];
        if (add.lora.n) {
          unpack8(y, g[k]);
#pragma unroll
          for (int j = 0; j < 8; j++) y[j] += sum[j][k];
          g[k] = pack8(y);
          if (inside[k / 2]) *(uint4 *)(do_row[k / 2] + 32 * (k % 2)) = g[k];
        }
        unpack8(x, o[k]), unpack8(y, g[k]);
#pragma unroll
        for (int j = 0; j < 8; j++) dot[k / 2] = fmaf(x[j], y[j], dot[k / 2]);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      dot[h] = quad_sum(dot[h]);
      if (q) continue;
      const int64_t at = (int64_t)head * w.padded_rows + place + t[h];
      w.delta[at] = dot[h];
      w.lse2[at] = lse[h] * attention_log2e;
    }
  }
}

/* dK, dV of a thread: partials to the item's slot, or the finished rows. */
template <int D>
QK_DEVICE void attention_dkv_store(float (&dk)[D / 2], float (&dv)[D / 2], const attention_problem &p,
                                   const attention_work &work, const attention_dkv_item &item, int row, int end, int local,
                                   int lane) {
  if (item.slot >= 0) {
    float *k = work.partials + (int64_t)item.slot * 2 * attention_rows * D + local * D + lane % 4 * 2;
    float *v = k + attention_rows * D;
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
      *(float2 *)(k + 8 * j) = make_float2(dk[4 * j], dk[4 * j + 1]);
      *(float2 *)(k + 8 * D + 8 * j) = make_float2(dk[4 * j + 2], dk[4 * j + 3]);
      *(float2 *)(v + 8 * j) = make_float2(dv[4 * j], dv[4 * j + 1]);
      *(float2 *)(v + 8 * D + 8 * j) = make_float2(dv[4 * j + 2], dv[4 * j + 3]);
    }
    return;
  }
  const float scale = rsqrtf(D);
#pragma unroll
  for (int i = 0; i < D / 2; i++) dk[i] *= scale;
  attention_rope_back(dk, p.rope, row, end, lane);
  const int64_t pitch = (p.H + 2 * p.Hk) * D;
  bf16 *k = p.dqkv + row * pitch + (p.H + item.head / (p.H / p.Hk)) * D + lane % 4 * 2, *v = k + p.Hk * D;
#pragma unroll
  for (int j = 0; j < D / 8; j++) {
    if (row < end) {
      *(uint32_t *)(k + 8 * j) = pack_bf16(dk[4 * j], dk[4 * j + 1]);
      *(uint32_t *)(v + 8 * j) = pack_bf16(dv[4 * j], dv[4 * j + 1]);
    }
    if (row + 8 < end) {
      *(uint32_t *)(k + 8 * pitch + 8 * j) = pack_bf16(dk[4 * j + 2], dk[4 * j + 3]);
      *(uint32_t *)(v + 8 * pitch + 8 * j) = pack_bf16(dv[4 * j + 2], dv[4 * j + 3]);
    }
  }
}

/* dK, dV of the tiles that were split: their partials in slot order, dK scaled and turned back. 16 blocks a tile, 8 rows
each. */
template <int D>
__global__ void __launch_bounds__(256) attention_bwd_sum_kernel(attention_problem p, attention_work w) {
  take_turn();
  const float scale = rsqrtf(D);
  const int pitch = (p.H + 2 * p.Hk) * D, work = w.counts->sums * 16;
  for (int i = blockIdx.x; i < work; i += gridDim.x) {
    const attention_sum_item item = w.sums[i / 16];
    const attention_tile t = attention_unpack(item.tile);
    const int begin = __ldg(p.seg_start + t.segment) + t.level * attention_rows, end = __ldg(p.seg_start + t.segment + 1);
    for (int e = threadIdx.x * 4; e < 2 * 8 * D; e += blockDim.x * 4) {
      const int value = e / (8 * D), r = i % 16 * 8 + e / D % 8, c = e % D, row = begin + r;
      if (row >= end) continue;
      float4 sum = {0, 0, 0, 0};
#pragma unroll 4
      for (int s = item.first; s < item.first + item.count; s++) {
        const float4 x = *(const float4 *)(w.partials + ((int64_t)s * 2 + value) * attention_rows * D + r * D + c);
        sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
      }
      if (!value) {
        sum.x *= scale, sum.y *= scale, sum.z *= scale, sum.w *= scale;
        if (p.rope.cos) {
          const int position = __ldg(p.rope.pos + row);
          rope_rotate_back(p.rope, position, c, sum.x, sum.y);
          rope_rotate_back(p.rope, position, c + 2, sum.z, sum.w);
        }
      }
      bf16 *out = p.dqkv + (int64_t)row * pitch + (p.H + (value ? p.Hk : 0) + item.kv_head) * D + c;
      *(uint2 *)out = make_uint2(pack_bf16(sum.x, sum.y), pack_bf16(sum.z, sum.w));
    }
  }
}

qk_status attention_bwd_plan(const attention_problem &p, const attention_work &w, const qk_device &device, cudaStream_t stream) {
  return qk_launch(p.name, attention_plan_kernel, 1, 256, stream, p, w, attention_dkv_share(p.T), device.multiprocessors);
}
qk_status attention_bwd_delta(const attention_problem &p, const attention_work &w, const attention_lora &add, cudaStream_t stream) {
  const auto kernel = p.D == 64 ? attention_delta_kernel<64> : attention_delta_kernel<128>;
  return qk_launch(p.name, kernel, dim3(2 * w.max_tiles, (p.H + attention_delta_heads - 1) / attention_delta_heads), attention_delta_threads, stream, p, w, add);
}
qk_status attention_bwd_sum(const attention_problem &p, const attention_work &w, const qk_device &device, cudaStream_t stream) {
  const auto kernel = p.D == 64 ? attention_bwd_sum_kernel<64> : attention_bwd_sum_kernel<128>;
  return qk_launch(p.name, kernel, 4 * device.multiprocessors, 256, stream, p, w);
}
