/* Gradients of LoRA factors: sums over tokens, several jobs in one launch.

Math    dA += du' * dropout(x), x perhaps x*rho*w of a norm's input;  dB += dy' * u
Shapes  x (T,in), dy (T,out), u, du (T,Rt) bf16; dA (R,in), dB (rows,R) f32       Limits  lora_check; at most grad_max_jobs
Numeric f32 sums over fixed blocks of 256 tokens, added to the gradient one after another in index order: the same bits
        however much scratch memory there is, and however the tokens are cut into calls at multiples of 256
Bound   memory: the wide operands once for 16 ranks (2 tiles of 8) of modules that share them
Form    A warp takes a strip of 64 columns by 256 tokens, with mma.sync: rows are columns of the wide operand, n tiles are
        ranks, k is tokens. Lane 4i + q loads the eight columns from 8i of four tokens, which are four blocks of dropout
        lanes, and pairs tokens by byte permutation. Sums of each block of tokens go to scratch memory in the order of the
        fragments; a second kernel adds them. A normed operand is made again from the norm's input, so that nothing else has to.
Tried   (H100, cold, the jobs of attention at T = 2048, 7B) no loads ahead 37 us; blocks of one strip, a quarter of the tokens a
        warp 56 us: what a block does once, reading its job among them, outweighs
Oracle  model/cpu/lora.go, product.go */
#include "lora_grad.cuh"
#include "rmsnorm.cuh"

constexpr int grad_warps = 4, grad_threads = 32 * grad_warps;
constexpr int grad_ahead = 2;  // steps of 16 tokens whose loads are on their way
constexpr int grad_strip = 64, grad_tiles = 2, grad_max_groups = 64;

/* Up to two tiles of 8 ranks that read the same columns: of one module (dB), or of neighbours (dA). */
struct grad_group {
  int job, module, rank;  // the first tile's
  int tiles, strips;
  int first_block;   // of the launch; blocks take grad_warps strips
  int64_t partials;  // float4 before the group's in a block of tokens
};
struct grad_job {
  qk_lora l;
  const bf16 *wide, *low;
  int side;
  const float *rho;  // of the norm whose input wide is, or null
  const void *w;
  int w_type;
};
struct grad_problem {
  int groups, blocks;  // blocks of the launch, for a block of tokens
  int T;
  int64_t partials;  // float4 of a block of tokens
  float4 *work;      // null: a single block of tokens, added to the gradient at once
  dropout_batch batch;
  grad_group group[grad_max_groups];
  grad_job job[grad_max_jobs];
};

/* A tile's module and first rank. */
struct grad_tile {
  int module, rank;
  __host__ __device__ __forceinline__ void next(const qk_lora &l) {
    rank += 8;
    if (rank >= l.m[module].rank) module++, rank = 0;
  }
};

/* Where element e (0-3) of a lane's fragment belongs: columns c and c + 1, of each ranks r and r + 1. Null where outside. */
QK_DEVICE float *grad_place(const grad_job &job, const qk_module &m, int c, int r, int e) {
  const int columns = job.side == SIDE_A ? job.l.in : m.rows, column = c + e / 2, rank = r + e % 2;
  if (column >= columns || rank >= m.rank) return nullptr;
  return job.side == SIDE_A ? (float *)m.da + (int64_t)rank * columns + column
                            : (float *)m.db + (int64_t)own_row(job.l, m, column) * m.rank + rank;
}

/* Eight ranks of a token from r on. */
QK_DEVICE uint4 grad_low(const grad_job &job, const qk_module &m, int r, int64_t t) {
  return load16(job.low + t * job.l.rank + m.col + r);
}

/* Block (strips of a group, block of tokens). */
__global__ void __launch_bounds__(grad_threads, 4) lora_grad_kernel(const __grid_constant__ grad_problem p, int first_block) {
  take_turn();
  __shared__ __align__(16) uint4 low[grad_tiles][grad_block];
  __shared__ __align__(16) float rho[grad_block], norm_w[grad_warps][grad_strip];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, i = lane / 4, q = lane % 4;
  int g = 0;
  while (g + 1 < p.groups && (int)blockIdx.x >= p.group[g + 1].first_block) g++;
  const grad_group &group = p.group[g];
  const grad_job &job = p.job[group.job];
  const qk_lora &l = job.l;
  const int first = (first_block + blockIdx.y) * grad_block, tokens = min(grad_block, p.T - first);
  const int strip = (blockIdx.x - group.first_block) * grad_warps + warp, c = strip * grad_strip + 8 * i;
  const bool inside = strip < group.strips && c < (job.side == SIDE_A ? l.in : l.m[group.module].rows);

  // Tokens 2q, 2q + 1, 2q + 8, 2q + 9 of a step of 16; those of the next steps are on their way.
  const bf16 *column = job.wide + (job.side == SIDE_A ? c : part_column(l, l.m[group.module], c));
  const int64_t pitch = job.side == SIDE_A ? l.in : l.out;
  const auto token_of = [q](int step, int k) { return 16 * step + 2 * q + k % 2 + k / 2 * 8; };
  uint4 wide[grad_ahead][4];
  const auto load = [&](uint4(&to)[4], int step) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const int t = token_of(step, k);
      to[k] = load16(column + (first + t) * pitch, inside && t < tokens);
    }
  };
#pragma unroll
  for (int step = 0; step < grad_ahead; step++) load(wide[step], step);
  grad_tile tile = {group.module, group.rank};
  for (int n = 0; n < group.tiles; n++, tile.next(l))
    for (int t = threadIdx.x; t < grad_block; t += grad_threads)
      low[n][t] = t < tokens ? grad_low(job, l.m[tile.module], tile.rank, first + t) : make_uint4(0, 0, 0, 0);
  if (job.rho) {
    for (int t = threadIdx.x; t < grad_block; t += grad_threads) rho[t] = t < tokens ? __ldg(job.rho + first + t) : 0.f;
    for (int k = lane; k < grad_strip; k += 32) {
      const int at = strip * grad_strip + k;
      norm_w[warp][k] = at >= l.in ? 0.f : job.w_type == QK_F32 ? __ldg((const float *)job.w + at) : __bfloat162float(((const bf16 *)job.w)[at]);
    }
  }
  __syncthreads();
  if (strip >= group.strips) return;

  const uint2 key = job.side == SIDE_A ? p.batch.key() : make_uint2(0, 0);
  float acc[grad_tiles][4][4] = {};  // tile of ranks, of columns 8i + 2 * that and the next
  for (int base = 0; 16 * base < tokens; base += grad_ahead)
#pragma unroll
    for (int ahead = 0; ahead < grad_ahead; ahead++) {
      const int step = base + ahead;
      uint4 own[4];
#pragma unroll
      for (int k = 0; k < 4; k++) own[k] = wide[ahead][k];
      load(wide[ahead], step + grad_ahead);
      if (job.rho) {
        float w[8];
#pragma unroll
        for (int j = 0; j < 8; j++) w[j] = norm_w[warp][8 * i + j];
#pragma unroll
        for (int k = 0; k < 4; k++) own[k] = normalise(own[k], rho[token_of(step, k) % grad_block], w);
      }
      tile = {group.module, group.rank};
      int module = -1;
      uint4 kept[4];
#pragma unroll
      for (int n = 0; n < grad_tiles; n++) {
        if (n >= group.tiles) break;
        if (tile.module != module) {
          module = tile.module;
          const qk_module &m = l.m[module];
          const bool drop = job.side == SIDE_A && m.threshold;
#pragma unroll
          for (int k = 0; k < 4; k++) {
            kept[k] = own[k];
            if (!drop) continue;
            const dropout_token token = dropout_token_of(p.batch, first + token_of(step, k), p.T);
            kept[k] = masked(kept[k], dropout_mask(key, c / 8, token, m.stream, m.threshold));
          }
        }
        uint32_t b[2];
        load_matrices_transposed(b, shared_address(&low[n][16 * step + lane % 16]));
#pragma unroll
        for (int mt = 0; mt < 4; mt++)
          mma_k16(acc[n][mt], pair_of(kept[0], kept[1], 2 * mt), pair_of(kept[0], kept[1], 2 * mt + 1),
                  pair_of(kept[2], kept[3], 2 * mt), pair_of(kept[2], kept[3], 2 * mt + 1), b[0], b[1]);
        tile.next(l);
      }
    }

  tile = {group.module, group.rank};
#pragma unroll
  for (int n = 0; n < grad_tiles; n++) {
    if (n >= group.tiles) break;
    const qk_module &m = l.m[tile.module];
    const float scale = job.side == SIDE_A ? dropout_scale(m.threshold) : 1.f;
#pragma unroll
    for (int mt = 0; mt < 4; mt++) {
      const float v[4] = {scale * acc[n][mt][0], scale * acc[n][mt][1], scale * acc[n][mt][2], scale * acc[n][mt][3]};
      if (p.work) {
        p.work[blockIdx.y * p.partials + group.partials + (((int64_t)strip * group.tiles + n) * 4 + mt) * 32 + lane] =
            make_float4(v[0], v[1], v[2], v[3]);
        continue;
      }
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (float *place = grad_place(job, m, c + 2 * mt, tile.rank + 2 * q, e)) *place += v[e];
    }
    tile.next(l);
  }
}

/* Adds the sums of so many blocks of tokens, in order. A thread a float4, numbered as they were written. */
constexpr int add_threads = 256;

__global__ void __launch_bounds__(add_threads) lora_grad_add_kernel(const __grid_constant__ grad_problem p, int blocks) {
  take_turn();
  const int64_t e = (int64_t)blockIdx.x * add_threads + threadIdx.x;
  if (e >= p.partials) return;
  int g = 0;
  while (g + 1 < p.groups && e >= p.group[g + 1].partials) g++;
  const grad_group &group = p.group[g];
  const grad_job &job = p.job[group.job];
  const int64_t own = e - group.partials;
  const int lane = own % 32, mt = own / 32 % 4, n = own / 128 % group.tiles, strip = own / 128 / group.tiles;
  grad_tile tile = {group.module, group.rank};
  for (int i = 0; i < n; i++) tile.next(job.l);
  const qk_module &m = job.l.m[tile.module];
  const int c = strip * grad_strip + lane / 4 * 8 + 2 * mt, r = tile.rank + 2 * (lane % 4);
  float *place[4], sum[4];
#pragma unroll
  for (int i = 0; i < 4; i++) place[i] = grad_place(job, m, c, r, i), sum[i] = place[i] ? *place[i] : 0.f;
  for (int b = 0; b < blocks; b++) {
    const float4 v = __ldg(p.work + b * p.partials + e);
    sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (place[i]) *place[i] = sum[i];
}

/* Lists the groups of a job's tiles from (module, 0) on. */
static qk_status plan_groups(const char *name, grad_problem &p, int job, int module, int tiles, int columns) {
  const int strips = (columns + grad_strip - 1) / grad_strip;
  grad_tile tile = {module, 0};
  for (int done = 0; done < tiles; done += grad_tiles) {
    if (p.groups == grad_max_groups) return qk_fail(QK_BAD_ARGUMENT, "%s: more than %d groups of ranks", name, grad_max_groups);
    grad_group &g = p.group[p.groups++];
    g = {job, tile.module, tile.rank, tiles - done < grad_tiles ? tiles - done : grad_tiles, strips, p.blocks, p.partials};
    p.blocks += (strips + grad_warps - 1) / grad_warps;
    p.partials += (int64_t)strips * g.tiles * 128;
    for (int i = 0; i < g.tiles; i++) tile.next(p.job[job].l);
  }
  return QK_OK;
}

extern "C" {

/* Ranks are padded to tiles of 8 a module, columns to strips of 64 a module. */
int64_t qk_lora_grad_work(int32_t T, int64_t columns, int32_t rank) {
  const int64_t slack = (int64_t)grad_max_jobs * QK_MAX_MODULES * grad_strip;
  return ((int64_t)T + grad_block - 1) / grad_block * (columns + slack) * (rank + 7 * QK_MAX_MODULES) * (int64_t)sizeof(float);
}

qk_status qk_lora_grad(const qk_grad_job *jobs, int32_t n, const qk_batch *b, qk_ptr work, int64_t work_bytes, qk_stream s) {
  const char *name = "qk_lora_grad";
  const auto stream = (cudaStream_t)s;
  if (n < 1 || n > grad_max_jobs) return qk_fail(QK_BAD_ARGUMENT, "%s: %d jobs; 1 to %d", name, n, grad_max_jobs);
  grad_problem p = {0, 0, b->T, 0, nullptr, dropout_batch(b)};
  for (int j = 0; j < n; j++) {
    const qk_lora *l = jobs[j].l;
    if (!l) return qk_fail(QK_BAD_ARGUMENT, "%s: job %d has no LoRA", name, j);
    if (const qk_status status = lora_check(name, l)) return status;
    p.job[j] = {*l, (const bf16 *)jobs[j].wide, (const bf16 *)jobs[j].low, jobs[j].side, (const float *)jobs[j].rho, (const void *)jobs[j].w, jobs[j].w_type};
    int all = 0;
    for (int m = 0; m < l->n; m++) {
      const int tiles = (l->m[m].rank + 7) / 8;
      all += tiles;
      if (jobs[j].side == SIDE_B)
        if (const qk_status status = plan_groups(name, p, j, m, tiles, l->m[m].rows)) return status;
    }
    if (jobs[j].side == SIDE_A)
      if (const qk_status status = plan_groups(name, p, j, 0, all, l->in)) return status;
  }

  const int blocks = (b->T + grad_block - 1) / grad_block;
  if (blocks == 1) return qk_launch(name, lora_grad_kernel, p.blocks, grad_threads, stream, p, 0);
  p.work = (float4 *)work;
  const int64_t room = work ? work_bytes / ((int64_t)sizeof(float4) * p.partials) : 0;
  if (room < 1) return qk_fail(QK_BAD_ARGUMENT, "%s: %lld bytes of work; at least %lld", name, (long long)work_bytes, (long long)(sizeof(float4) * p.partials));
  for (int first = 0; first < blocks; first += (int)room) {
    const int turn = blocks - first < room ? blocks - first : (int)room;
    qk_status status = qk_launch(name, lora_grad_kernel, dim3(p.blocks, turn), grad_threads, stream, p, first);
    if (!status) status = qk_launch(name, lora_grad_add_kernel, (unsigned)((p.partials + add_threads - 1) / add_threads), add_threads, stream, p, turn);
    if (status) return status;
    if (room >= blocks) break;
  }
  return QK_OK;
}

}  // extern "C"
