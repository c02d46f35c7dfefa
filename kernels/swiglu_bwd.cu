/* SwiGLU (Shazeer, 2020), backward, in one pass over the tile: all that needs act, dgate or dup is made while they are here.

Math    d = dact + mask*(du_down*A_down);  act = silu(gate)*up
        dup = d*silu(gate);  dgate = d*up*sig*(1 + gate*(1 - sig));  du_gu = s*(dgate*B_gate, dup*B_up)
        dA_down += du_down'*dropout(act);  dB_gate += dgate'*u_gate;  dB_up += dup'*u_up
Shapes  gateup (T,2F, layout.cuh), dact (T,F), u, du (T,Rt) bf16; gradients f32              Limits  F % 8 == 0
Numeric float32; act as the forward rounds it, dgate and dup rounded before anything is made of them. Gradients are sums over
        256 tokens, added in index order; du a sum over runs of columns, 16 neighbouring parts of which are added in order.
        All of it depends on nothing but the shapes, and a token's results not on the tokens beside it.
Bound   memory: 10*F bytes a token, and 1.3*F for the partial sums at rank 8
Form    Block (run of columns, 256 tokens), 4 warps, tiles of 64 tokens by 64 columns through two stages of cp.async. A warp has
        16 tokens of the tile to begin with: d by mma.sync (rows tokens, k ranks), dgate, dup, act, which leave for memory
        and take the place of gate, up, dact in the stage, and du (rows tokens, k columns). Then it has 16 columns: dA, dB
        (rows columns, k tokens) from the stage, transposed by ldmatrix. A second kernel adds the partial sums. Ranks past
        16 make du by lora_up: its partial sums would outweigh reading dgate and dup again.
Tried   three passes (dA with act made again; dgate, dup, du; dB) 421 us on an H200 at T = 2048, F = 18944, rank 8
Oracle  model/cpu/swiglu.go */
#include "lora_grad.cuh"
#include "swiglu.cuh"

constexpr int swiglu_bwd_threads = 128;

/* What a block of rank tiles (8 ranks each, of the largest module) implies, in bytes. */
template <int Tiles> struct swiglu_bwd_layout {
  static constexpr int chunks = Tiles <= 2 ? 2 : 1;  // of 64 columns, of a run: their gradients stay in registers
  static constexpr bool makes_du = Tiles <= 2;
  static constexpr int tensor_bytes = 64 * 128, stage_bytes = 3 * tensor_bytes;  // gate, up, dact
  static constexpr int factors_at = 2 * stage_bytes, factor_bytes = 8 * Tiles * 128;  // of a module's chunk
  static constexpr int low_at = factors_at + 3 * chunks * factor_bytes, low_bytes = Tiles * 64 * 16;  // of a module's 64 tokens
  static constexpr int low_buffers = Tiles <= 4 ? 2 : 1;
  static constexpr int bytes = low_at + low_buffers * 3 * low_bytes;
  static_assert(bytes <= 99 * 1024, "a block of a GeForce card has 99 KB of shared memory");
};

enum { DOWN, GATE, UP };

/* A module's part: rows of A or B' (rank,F), and the columns of du or u that are its own. rank 0: there is no such module. */
struct swiglu_factor {
  const bf16 *rows, *low;
  int rank, ld;  // of low
};

struct swiglu_backward {
  bf16 *gateup;
  const bf16 *dact;
  swiglu_factor factor[3];
  float4 *grads;  // [block of tokens][run][chunk][module][tile][thread]
  float *du;      // [run][token of the launch][2 * 8 * Tiles]
  dropout_batch batch;
  uint32_t threshold, stream;  // down's
  int T, F, first_block, runs;
};

/* Places in a tile (rows of 128 bytes) and in a factor, exclusive-ored or turned so that the eight lanes that read at once meet
all banks: two rows by four units in the elements' pass, eight rows in ldmatrix; ranks 2q or i by four units in the products. */
QK_DEVICE int swiglu_place(int row, int unit) { return row * 128 + ((unit ^ ((row & 1) << 2 | (row >> 1 & 3))) << 4); }
QK_DEVICE int swiglu_factor_place(int rank, int unit) { return rank * 128 + (((unit + 4 * (rank & 1) + (rank >> 1 & 3)) & 7) << 4); }

QK_DEVICE uint4 shared16(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
  return v;
}
QK_DEVICE uint32_t shared4(uint32_t address) {
  uint32_t v;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
}
QK_DEVICE void store_shared16(uint32_t address, const uint4 &v) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

/* Starts the copies of the factors of a run. */
template <class L, int Tiles> QK_DEVICE void swiglu_bwd_factors(const swiglu_backward &p, uint32_t base, int column) {
  for (int n = threadIdx.x; n < 3 * L::chunks * 8 * Tiles * 8; n += swiglu_bwd_threads) {
    const int unit = n % 8, rank = n / 8 % (8 * Tiles), chunk = n / (64 * Tiles) % L::chunks, x = n / (64 * Tiles * L::chunks);
    const int c = column + 64 * chunk + 8 * unit;
    const swiglu_factor &f = p.factor[x];
    const bool inside = rank < f.rank && c < p.F;
    copy_async(base + L::factors_at + (x * L::chunks + chunk) * L::factor_bytes + swiglu_factor_place(rank, unit),
               inside ? f.rows + (int64_t)rank * p.F + c : p.dact, inside ? 16 : 0);
  }
}

/* Starts the copies of du_down, u_gate and u_up of 64 tokens, from `first` on: units of 8 ranks, one behind the other by tokens. */
template <class L, int Tiles> QK_DEVICE void swiglu_bwd_low(const swiglu_backward &p, uint32_t low, int first) {
  for (int n = threadIdx.x; n < 3 * Tiles * 64; n += swiglu_bwd_threads) {
    const int t = first + n % 64, tile = n / 64 % Tiles, x = n / (64 * Tiles);
    const swiglu_factor &f = p.factor[x];
    const uint32_t place = low + x * L::low_bytes + (tile * 64 + n % 64) * 16;
    const bool inside = t < p.T && 8 * tile < f.rank;
    copy_async(place, inside ? f.low + (int64_t)t * f.ld + 8 * tile : p.dact, inside ? 16 : 0);
  }
}

/* Starts the copies of gate, up and dact of a tile. */
template <class L> QK_DEVICE void swiglu_bwd_tile(const swiglu_backward &p, uint32_t stage, int first, int column) {
  const int unit = threadIdx.x % 8, c = column + 8 * unit;
#pragma unroll
  for (int k = 0; k < 4; k++) {
    const int row = threadIdx.x / 8 + 16 * k, t = first + row;
    const bool inside = t < p.T && c < p.F;
    const bf16 *gateup = p.gateup + (int64_t)t * 2 * p.F;
    const uint32_t place = stage + swiglu_place(row, unit);
    copy_async(place, inside ? gateup + gate_column(c, p.F) : p.dact, inside ? 16 : 0);
    copy_async(place + L::tensor_bytes, inside ? gateup + up_column(c, p.F) : p.dact, inside ? 16 : 0);
    copy_async(place + 2 * L::tensor_bytes, inside ? p.dact + (int64_t)t * p.F + c : p.dact, inside ? 16 : 0);
  }
}

/* A warp's 16 tokens of a tile. Lane 4i + q has the columns 8q.. and 32 + 8q.. of tokens i and i + 8. Adds to du. */
template <class L, int Tiles>
QK_DEVICE void swiglu_bwd_rows(const swiglu_backward &p, float (&du)[2][Tiles][4], uint32_t stage, uint32_t factors, uint32_t low,
                               int first, int column, uint2 key, const dropout_token (&token)[2]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, i = lane / 4, q = lane % 4;
  // du_down * A_down: element j of column group g of token i + 8h is sum[j][2h + g], as n is the group of eight columns.
  float sum[8][4] = {};
  const int own_unit = i % 2 * 4 + i / 2;
#pragma unroll
  for (int n = 0; n < Tiles; n++) {
    if (8 * n >= p.factor[DOWN].rank) break;
    const uint4 w0 = shared16(factors + swiglu_factor_place(8 * n + 2 * q, own_unit));
    const uint4 w1 = shared16(factors + swiglu_factor_place(8 * n + 2 * q + 1, own_unit));
    const uint32_t row = low + (n * 64 + 16 * warp + i) * 16 + 4 * q;
    const uint32_t a0 = shared4(row), a1 = shared4(row + 8 * 16);
#pragma unroll
    for (int j = 0; j < 8; j++) mma_k8(sum[j], a0, a1, pair_of(w0, w1, j));
  }
  const float scale = dropout_scale(p.threshold);
#pragma unroll
  for (int g = 0; g < 2; g++) {
    const int c = column + 32 * g + 8 * q;
    uint4 dgate[2], dup[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = 16 * warp + i + 8 * h, t = first + row;
      const uint32_t place = stage + swiglu_place(row, 4 * g + q);
      uint4 act, keep = make_uint4(~0u, ~0u, ~0u, ~0u);
      float d[8];
      dgate[h] = shared16(place), dup[h] = shared16(place + L::tensor_bytes);
      unpack8(d, shared16(place + 2 * L::tensor_bytes));
      if (p.threshold) {
        keep = dropout_mask(key, c / 8, token[h], p.stream, p.threshold);
#pragma unroll
        for (int j = 0; j < 8; j++)
          if (word(keep, j / 2) >> (j % 2 * 16) & 1) d[j] = fmaf(scale, sum[j][2 * h + g], d[j]);
      } else {
#pragma unroll
        for (int j = 0; j < 8; j++) d[j] += sum[j][2 * h + g];
      }
      swiglu8_back(dgate[h], dup[h], act, d);
      store_shared16(place, dgate[h]), store_shared16(place + L::tensor_bytes, dup[h]);
      store_shared16(place + 2 * L::tensor_bytes, masked(act, keep));
      if (t >= p.T || c >= p.F) continue;
      bf16 *to = p.gateup + (int64_t)t * 2 * p.F;
      *(uint4 *)(to + gate_column(c, p.F)) = dgate[h], *(uint4 *)(to + up_column(c, p.F)) = dup[h];
    }
    if constexpr (L::makes_du)
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < Tiles; n++) {
          const uint4 w = shared16(factors + (GATE + m) * L::chunks * L::factor_bytes + swiglu_factor_place(8 * n + i, 4 * g + q));
          const uint4 &v0 = m ? dup[0] : dgate[0], &v1 = m ? dup[1] : dgate[1];
          mma_k16(du[m][n], v0.x, v1.x, v0.y, v1.y, w.x, w.y);
          mma_k16(du[m][n], v0.z, v1.z, v0.w, v1.w, w.z, w.w);
        }
  }
}

/* A warp's 16 columns of a tile: adds the 64 tokens to the gradients of all three modules. */
template <class L, int Tiles>
QK_DEVICE void swiglu_bwd_columns(float (&grad)[3][Tiles][4], uint32_t stage, uint32_t low) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int x = 0; x < 3; x++) {
    const uint32_t tensor = stage + (x == DOWN ? 2 : x - GATE) * L::tensor_bytes;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t a[2][4];
#pragma unroll
      for (int k = 0; k < 2; k++)
        load_matrices_transposed(a[k], tensor + swiglu_place(32 * half + 16 * k + lane / 16 * 8 + lane % 8, 2 * warp + lane / 8 % 2));
#pragma unroll
      for (int n = 0; n < Tiles; n++) {
        uint32_t b[4];
        load_matrices_transposed(b, low + x * L::low_bytes + (n * 64 + 32 * half + lane) * 16);
        mma_k16(grad[x][n], a[0][0], a[0][1], a[0][2], a[0][3], b[0], b[1]);
        mma_k16(grad[x][n], a[1][0], a[1][1], a[1][2], a[1][3], b[2], b[3]);
      }
    }
  }
}

/* Block (run of columns, block of tokens of the launch). */
template <int Tiles>
__global__ void __launch_bounds__(swiglu_bwd_threads, Tiles == 1 ? 3 : 2) swiglu_bwd_kernel(const __grid_constant__ swiglu_backward p) {
  take_turn();
  typedef swiglu_bwd_layout<Tiles> L;
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t base = shared_address(memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, run = blockIdx.x, column = run * L::chunks * 64;
  const int begin = (p.first_block + blockIdx.y) * grad_block, end = min(begin + grad_block, p.T);
  const int steps = (end - begin + 63) / 64, tiles = steps * L::chunks;
  const auto low_of = [base](int step) { return base + L::low_at + step % L::low_buffers * 3 * L::low_bytes; };
  const auto fetch = [&](int tile) {
    if (tile < tiles) {
      const int step = tile / L::chunks, chunk = tile % L::chunks;
      if (L::low_buffers == 2 && chunk == 0) swiglu_bwd_low<L, Tiles>(p, low_of(step), begin + 64 * step);
      swiglu_bwd_tile<L>(p, base + tile % 2 * L::stage_bytes, begin + 64 * step, column + 64 * chunk);
    }
    copy_commit();
  };

  uint2 key = {};
  if (p.threshold) key = p.batch.key();
  swiglu_bwd_factors<L, Tiles>(p, base, column);
  fetch(0), fetch(1);
  float grad[L::chunks][3][Tiles][4] = {};
  for (int step = 0; step < steps; step++) {
    const int first = begin + 64 * step, t = first + 16 * warp + lane / 4;
    const uint32_t low = low_of(step);
    dropout_token token[2] = {};
    if (p.threshold) token[0] = dropout_token_of(p.batch, t, p.T), token[1] = dropout_token_of(p.batch, t + 8, p.T);
    if (L::low_buffers == 1) swiglu_bwd_low<L, Tiles>(p, low, first), copy_commit(), copy_wait<0>();
    float du[2][Tiles][4] = {};
#pragma unroll
    for (int chunk = 0; chunk < L::chunks; chunk++) {
      const int tile = step * L::chunks + chunk;
      const uint32_t stage = base + tile % 2 * L::stage_bytes;
      copy_wait<1>();
      __syncthreads();
      swiglu_bwd_rows<L, Tiles>(p, du, stage, base + L::factors_at + chunk * L::factor_bytes, low, first, column + 64 * chunk, key, token);
      __syncthreads();
      swiglu_bwd_columns<L, Tiles>(grad[chunk], stage, low);
      __syncthreads();
      fetch(tile + 2);
    }
    if constexpr (L::makes_du)
#pragma unroll
      for (int h = 0; h < 2; h++)
        if (t + 8 * h < p.T)
#pragma unroll
          for (int m = 0; m < 2; m++)
#pragma unroll
            for (int n = 0; n < Tiles; n++) {
              const int64_t row = (int64_t)run * gridDim.y * grad_block + t + 8 * h - p.first_block * grad_block;
              *(float2 *)(p.du + row * 16 * Tiles + (m * Tiles + n) * 8 + lane % 4 * 2) = make_float2(du[m][n][2 * h], du[m][n][2 * h + 1]);
            }
  }
  float4 *to = p.grads + ((int64_t)blockIdx.y * p.runs + run) * L::chunks * 3 * Tiles * swiglu_bwd_threads + threadIdx.x;
#pragma unroll
  for (int chunk = 0; chunk < L::chunks; chunk++)
#pragma unroll
    for (int x = 0; x < 3; x++)
#pragma unroll
      for (int n = 0; n < Tiles; n++) {
        const float *v = grad[chunk][x][n];
        if (p.factor[x].rank) to[((chunk * 3 + x) * Tiles + n) * swiglu_bwd_threads] = make_float4(v[0], v[1], v[2], v[3]);
      }
}

/* ---- The sums of partial results. */

constexpr int finish_threads = 256, finish_parts = 16;  // of the runs of columns, each summed by a thread of its own

struct swiglu_finish {
  const float4 *grads;
  const float *du;
  bf16 *du_gu;
  int blocks, runs, chunks, tiles;  // of tokens; of columns; of a run; of ranks
  int first, tokens, F;             // the launch's
  int grad_blocks;                  // of the grid; the others sum du
};

/* dA, dB: a thread a float4, that is ranks r and r + 1 of two columns 8 apart. */
QK_DEVICE void swiglu_add_grads(const swiglu_finish &p, const qk_lora &down, const qk_lora &gu) {
  const int64_t per_block = (int64_t)p.runs * p.chunks * 3 * p.tiles * swiglu_bwd_threads, e = (int64_t)blockIdx.x * finish_threads + threadIdx.x;
  if (e >= per_block) return;
  const int thread = e % swiglu_bwd_threads, lane = thread % 32, n = e / swiglu_bwd_threads % p.tiles, x = e / swiglu_bwd_threads / p.tiles % 3;
  const int64_t chunk = e / swiglu_bwd_threads / p.tiles / 3;
  const qk_lora &l = x == DOWN ? down : gu;
  const qk_module *m = nullptr;
  for (int k = 0; k < l.n; k++)
    if (x == DOWN || (x == GATE) == (l.m[k].row == 0)) m = &l.m[k];
  const int rank = 8 * n + lane % 4 * 2;
  const int64_t column = chunk * 64 + thread / 32 * 16 + lane / 4;
  if (!m || rank >= m->rank) return;
  const float scale = x == DOWN ? dropout_scale(m->threshold) : 1.f;
  const int64_t by_rank = x == DOWN ? p.F : 1, by_column = x == DOWN ? 1 : m->rank;
  float *place = (float *)(x == DOWN ? m->da : m->db) + rank * by_rank + column * by_column;
  const bool wanted[4] = {column < p.F, column < p.F && rank + 1 < m->rank, column + 8 < p.F, column + 8 < p.F && rank + 1 < m->rank};
  const int64_t at[4] = {0, by_rank, 8 * by_column, 8 * by_column + by_rank};
  float sum[4];
#pragma unroll
  for (int k = 0; k < 4; k++) sum[k] = wanted[k] ? place[at[k]] : 0.f;
  for (int b = 0; b < p.blocks; b++) {
    const float4 v = __ldg(p.grads + b * per_block + e);
    sum[0] += scale * v.x, sum[1] += scale * v.y, sum[2] += scale * v.z, sum[3] += scale * v.w;
  }
#pragma unroll
  for (int k = 0; k < 4; k++)
    if (wanted[k]) place[at[k]] = sum[k];
}

/* du: threads 16 * part + e, a float4 (four ranks of a token) of one part of the runs. */
QK_DEVICE void swiglu_sum_du(const swiglu_finish &p, const qk_lora &gu) {
  __shared__ float4 parts[finish_parts][finish_threads / finish_parts];
  const int own = threadIdx.x % (finish_threads / finish_parts), part = threadIdx.x / (finish_threads / finish_parts);
  const int width = 4 * p.tiles;  // float4 of a token
  const int64_t all = (int64_t)p.tokens * width, e = (int64_t)(blockIdx.x - p.grad_blocks) * (finish_threads / finish_parts) + own;
  const int64_t pitch = (int64_t)p.blocks * grad_block * width;
  float4 sum = {};
  if (e < all) {
    const int from = p.runs * part / finish_parts, to = p.runs * (part + 1) / finish_parts;
#pragma unroll 4
    for (int run = from; run < to; run++) {
      const float4 v = __ldg((const float4 *)p.du + run * pitch + e);
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
  }
  parts[part][own] = sum;
  __syncthreads();
  if (part || e >= all) return;
  for (int k = 1; k < finish_parts; k++) {
    const float4 v = parts[k][own];
    sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
  }
  const int64_t t = p.first + e / width;
  const int column = e % width * 4, rank = column % (8 * p.tiles);
  const bool gate = column < 8 * p.tiles;
  const float v[4] = {sum.x, sum.y, sum.z, sum.w};
  for (int k = 0; k < gu.n; k++) {
    const qk_module &m = gu.m[k];
    if ((m.row == 0) != gate) continue;
    for (int j = 0; j < 4 && rank + j < module_columns(m.rank); j++) p.du_gu[t * gu.rank + m.col + rank + j] = __float2bfloat16(m.scale * v[j]);
  }
}

__global__ void __launch_bounds__(finish_threads)
    swiglu_bwd_finish_kernel(const __grid_constant__ swiglu_finish p, const __grid_constant__ qk_lora down, const __grid_constant__ qk_lora gu) {
  take_turn();
  if ((int)blockIdx.x < p.grad_blocks)
    swiglu_add_grads(p, down, gu);
  else
    swiglu_sum_du(p, gu);
}

/* ---- Launch. */

/* The scratch memory of so many blocks of tokens: du's partial sums behind those of the gradients. */
struct swiglu_bwd_work {
  int tiles, chunks, runs;
  int64_t du, bytes;
  swiglu_bwd_work(int64_t blocks, int F, int rank)
      : tiles(rank <= 8 ? 1 : rank <= 16 ? 2 : rank <= 32 ? 4 : 8), chunks(tiles <= 2 ? 2 : 1), runs((F + 64 * chunks - 1) / (64 * chunks)),
        du(blocks * runs * chunks * 3 * tiles * swiglu_bwd_threads * (int64_t)sizeof(float4)),
        bytes(du + (tiles <= 2 ? blocks * runs * grad_block * 16 * tiles * (int64_t)sizeof(float) : 0)) {}
};

template <int Tiles> static qk_status swiglu_bwd_launch(const char *name, const swiglu_backward &p, int blocks, cudaStream_t stream) {
  return qk_launch(name, swiglu_bwd_kernel<Tiles>, dim3(p.runs, blocks), 1, swiglu_bwd_threads, swiglu_bwd_layout<Tiles>::bytes, stream, p);
}

static swiglu_factor factor_of(const qk_lora *l, int module, const bf16 *rows, const bf16 *low) {
  const qk_module &m = l->m[module];
  return {rows, low + m.col, m.rank, l->rank};
}

extern "C" {

int64_t qk_swiglu_bwd_work(int32_t T, int32_t F, int32_t rank) {
  return swiglu_bwd_work(((int64_t)T + grad_block - 1) / grad_block, F, rank).bytes;
}

qk_status qk_swiglu_bwd(qk_ptr gateup, qk_ptr du_gu, qk_ptr dact, qk_ptr du_down, qk_ptr u_gu, const qk_lora *down,
                        const qk_lora *gu, const qk_batch *b, int32_t F, qk_ptr work, int64_t work_bytes, qk_stream s) {
  const char *name = "qk_swiglu_bwd";
  if (const qk_status status = swiglu_check(name, F, down)) return status;
  if (const qk_status status = lora_check(name, gu)) return status;
  if (gu && (gu->kind != QK_GATE_UP || gu->n > 2 || gu->out != 2 * F || !gu->pack_bt))
    return qk_fail(QK_BAD_ARGUMENT, "%s: the LoRA of gate and up should write %d columns, with pack_bt", name, 2 * F);
  const auto stream = (cudaStream_t)s;
  const qk_lora none = {};
  swiglu_backward p = {(bf16 *)gateup, (const bf16 *)dact, {}, nullptr, nullptr, dropout_batch(b), 0, 0, b->T, F};
  int rank = 0;
  if (down) {
    p.factor[DOWN] = factor_of(down, 0, (const bf16 *)down->pack_a, (const bf16 *)du_down);
    p.threshold = down->m[0].threshold, p.stream = down->m[0].stream, rank = down->m[0].rank;
  }
  for (int i = 0; gu && i < gu->n; i++) {
    p.factor[gu->m[i].row == 0 ? GATE : UP] = factor_of(gu, i, (const bf16 *)gu->pack_bt + bt_offset(*gu, i), (const bf16 *)u_gu);
    rank = gu->m[i].rank > rank ? gu->m[i].rank : rank;
  }

  // As many blocks of tokens at a time as the work holds; without adapters nothing is summed.
  const int all = (b->T + grad_block - 1) / grad_block;
  int most = all;
  while (most > 1 && swiglu_bwd_work(most, F, rank).bytes > work_bytes) most--;
  const int64_t least = swiglu_bwd_work(most, F, rank).bytes;
  if (rank && least > work_bytes) return qk_fail(QK_BAD_ARGUMENT, "%s: %lld bytes of work; at least %lld", name, (long long)work_bytes, (long long)least);
  for (int first = 0; first < all; first += most) {
    const int blocks = all - first < most ? all - first : most;
    const swiglu_bwd_work place(blocks, F, rank);
    p.grads = (float4 *)work, p.du = (float *)(work + place.du), p.first_block = first, p.runs = place.runs;
    qk_status status;
    switch (place.tiles) {
      case 1: status = swiglu_bwd_launch<1>(name, p, blocks, stream); break;
      case 2: status = swiglu_bwd_launch<2>(name, p, blocks, stream); break;
      case 4: status = swiglu_bwd_launch<4>(name, p, blocks, stream); break;
      default: status = swiglu_bwd_launch<8>(name, p, blocks, stream);
    }
    if (status) return status;
    if (!rank) continue;
    swiglu_finish finish = {p.grads, p.du, (bf16 *)du_gu, blocks, place.runs, place.chunks, place.tiles, first * grad_block};
    finish.tokens = (b->T - finish.first < blocks * grad_block ? b->T - finish.first : blocks * grad_block), finish.F = F;
    finish.grad_blocks = (int)((place.du / blocks / (int64_t)sizeof(float4) + finish_threads - 1) / finish_threads);
    const int64_t sums = gu && place.tiles <= 2 ? (int64_t)finish.tokens * 4 * place.tiles : 0, each = finish_threads / finish_parts;
    const unsigned grid = (unsigned)(finish.grad_blocks + (sums + each - 1) / each);
    status = qk_launch(name, swiglu_bwd_finish_kernel, grid, finish_threads, stream, finish, down ? *down : none, gu ? *gu : none);
    if (status) return status;
  }
  return gu && swiglu_bwd_work(1, F, rank).tiles > 2 ? lora_up(name, (bf16 *)du_gu, (const bf16 *)gateup, gu, b, stream) : QK_OK;
}

}  // extern "C"
