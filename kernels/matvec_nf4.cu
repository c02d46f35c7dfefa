/* Products of one to eight tokens with a weight in NF4.

Math    y = x * W' + bias + u * L' + residual, then rope
Shapes  as in matvec.cu; W in parts of (rows,K) as nf4.cu has them                     Limits  M <= 8, K % 128 == 0, K >= 896
Numeric W = code*absmax, the code rounded to bf16, the absmax in f32, their product not rounded: nearer to NF4 (0.13 % of a
        normal weight, root mean square) than the bf16 that other products read (0.17 %). f32 sums: within a block of 64 columns,
        then a warp's blocks in order, then the warps in order. A token's result does not depend on the others.
Bound   memory: half a byte an element. Next to it instructions, near three for two elements, and the look-up of codes, half a
        cycle of shared memory an element and warp
Form    mma.sync with W's rows as rows and tokens as n, as in matvec.cu, on pairs of elements, which a table gives by their byte
        of codes; the sums of a block are scaled by its absmax. A step of the product is two blocks of W, so that a quad of
        lanes reads 64 bytes in a row; their sums are kept apart by giving each of four tokens two of the eight n: one where
        the second block of x is zeros, one where the first is. One block of threads a multiprocessor, of teams of warps that
        share the columns of 16 rows. W comes by asynchronous copies: loads to registers, and those of x beside them, were
        given one scoreboard by the compiler, and each was waited for with the latest of all.
Tried   (H100, gate-up of 7B, 68 MB; floor 22 us) Elements one by one, each rounded as in nf4.cu: 68 us. Pairs, W in registers:
        35 us. As here: 28 us, 18 for down (35 MB). No better: two stages ahead with fewer warps (31), W asked for in L2 (30), the
        last warp of a team writes the results instead of a barrier (29), two chains of products (31), an address of the table in
        one instruction (its base cannot be a constant).
Oracle  model/cpu/linear.go */
#include "matvec.cuh"
#include "nf4.cuh"

constexpr int nf4_step = 2 * nf4_block, nf4_stage = 2 * nf4_step;  // columns of a step, and of a stage: of a line that is copied
constexpr int nf4_stage_bytes = matvec_rows * nf4_stage / 2;       // of codes
constexpr int nf4_most_warps = 24, nf4_few_warps = 12;             // of a block: few where memory or registers have no room for most
constexpr int nf4_splits[] = {4, 8, 12};                           // warps of a team
constexpr int nf4_least_columns = nf4_splits[0] * nf4_stage - nf4_step;  // a stage for each of them

/* Two neighbours in a row by their byte of codes, an entry for every lane, so that no two meet in a bank. */
struct nf4_pairs {
  uint32_t of[256][32];
  QK_DEVICE_MEMBER void fill() {
    const float own = nf4_value(threadIdx.x % 16);
    for (int e = threadIdx.x; e < 256 * 8; e += blockDim.x) {  // by whole warps
      const uint32_t pair = pack_bf16(__shfl_sync(~0u, own, e / 8 / 16), __shfl_sync(~0u, own, e / 8 % 16));
      *(uint4 *)&of[e / 8][e % 8 * 4] = make_uint4(pair, pair, pair, pair);
    }
  }
};
/* From the address of the lane's first entry. */
QK_DEVICE uint32_t nf4_pair(uint32_t pairs, uint32_t codes, int byte) {
  uint32_t pair;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(pair) : "r"(pairs + (__byte_perm(codes, 0, 0x4440 + byte) << 7)));
  return pair;
}
QK_DEVICE uint4 shared16(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
  return v;
}
/* 16 bytes where wanted; elsewhere v stays, and costs nothing. */
QK_DEVICE void shared16_where(uint4 &v, uint32_t address, bool wanted) {
  asm volatile("{\n.reg .pred wanted;\nsetp.ne.s32 wanted, %5, 0;\n@wanted ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
               : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w) : "r"(address), "r"((int)wanted));
}
QK_DEVICE void load16_where(uint4 &v, const bf16 *p, bool wanted) {
  asm volatile("{\n.reg .pred wanted;\nsetp.ne.s32 wanted, %5, 0;\n@wanted ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
               : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w) : "l"(p), "r"((int)wanted));
}
/* Keeps a value in its register: made again where it is used, it costs more than the register. */
QK_DEVICE uint32_t keep(uint32_t v) {
  asm volatile("mov.b32 %0, %0;" : "+r"(v));
  return v;
}

QK_LAYOUT int nf4_sixteens(int rows) { return (rows + matvec_rows - 1) / matvec_rows; }

/* 16 rows of W in one part. Of the last rows of a part eight may be missing: their sums are of rows that are there, or of codes that
were there before, and nobody reads them. */
struct nf4_rows {
  const uint8_t *codes;  // what the lane copies first: of row lane / 8, 16 bytes
  int hop;               // from there to what it copies next, in bytes: of rows lane / 8, + 4, + 8, + 12
  float offset;          // of the part's absmax
  int part, first;       // first: the column of y that the first row makes
  int step, below;       // in steps of the part: the first of row lane / 4, and how far below it that of eight rows on is; 0: missing
  QK_DEVICE_MEMBER int count() const { return below ? 16 : 8; }
  QK_DEVICE_MEMBER void set(const qk_nf4_weight &w, int sixteen, int steps) {
    part = 0, first = 0;
    for (; part + 1 < w.n && sixteen >= nf4_sixteens(w.part[part].rows); part++) {
      sixteen -= nf4_sixteens(w.part[part].rows);
      first += w.part[part].rows;
    }
    const int lane = threadIdx.x % 32, r = sixteen * 16;
    const bool rope = w.kind == QK_QKV && part < 2, whole = r + 8 < w.part[part].rows;
    const auto own = [&](int r) { return rope ? rope_row(r, w.h.D) : r; };
    first += r;
    hop = (rope ? 2 : 4) * steps * (nf4_step / 2);
    codes = (const uint8_t *)w.part[part].codes + (int64_t)own(r + lane / 8) * steps * (nf4_step / 2) + lane % 8 * 16;
    step = own(r + lane / 4) * steps, below = whole ? (rope ? 4 : 8) * steps : 0;
    offset = nf4_offset(w.part[part]);
  }
};

/* What the absmax of both blocks of a step are made of, of row lane / 4 and of eight rows on. */
struct nf4_step_absmax {
  uint32_t own[2][2];  // where it is nested, both in the first
  float nested[2];
  QK_DEVICE_MEMBER void load(const qk_nf4_part &part, const nf4_rows &rows, int step) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const uint32_t at = rows.step + h * rows.below + step;
      if (part.nested) {
        own[h][0] = __ldg((const uint16_t *)part.absmax + at), nested[h] = __ldg((const float *)part.nested + at / (nested_block / 2));
      } else {
        const uint2 both = __ldg((const uint2 *)part.absmax + at);
        own[h][0] = both.x, own[h][1] = both.y;
      }
    }
  }
  QK_DEVICE_MEMBER void decode(float (&to)[2][2], bool is_nested, const nf4_tables &tables, float offset) const {
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int k = 0; k < 2; k++)
        to[h][k] = is_nested ? __fadd_rn(__fmul_rn(tables.nested[own[h][0] >> (8 * k) & 255], nested[h]), offset) : __uint_as_float(own[h][k]);
  }
};

/* x in shared memory. A lane reads 32 columns, four times 16 bytes, whose order differs between the halves of a quad, so that the lanes
of a quad meet in no bank. */
constexpr int nf4_x_columns = 32, nf4_x_bytes = 64;

/* What a block has beside the tables, of the dynamic shared memory: two stages of each warp, two sums of each warp, x. */
template <int Fours> struct nf4_layout {
  int warps;
  __host__ __device__ int sums() const { return warps * 2 * nf4_stage_bytes; }
  __host__ __device__ int x() const { return sums() + warps * 2 * (int)sizeof(matvec_sums<4 * Fours>); }
  __host__ __device__ int bytes(int M, int K) const { return x() + M * (K / nf4_x_columns) * nf4_x_bytes; }
};

struct nf4_product {
  linear_problem linear;
  qk_nf4_weight w;
  int sixteens, split;  // sixteens: of rows; split: warps of a team
};

/* Persistent blocks: a team takes 16 rows, then the next that are its own. Fours: of tokens. Shared: whether x has room in shared
memory. */
template <int Fours, bool Shared>
__global__ void __launch_bounds__((Fours == 1 ? nf4_most_warps : nf4_few_warps) * 32, 1)
    matvec_nf4_kernel(const __grid_constant__ nf4_product problem) {
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ nf4_pairs all_pairs;
  __shared__ nf4_tables tables;
  const linear_problem &p = problem.linear;
  const qk_nf4_weight &w = problem.w;
  const int of_block = __shfl_sync(~0u, threadIdx.x / 32, 0);  // so that the compiler sees a warp stay together
  const int warps = blockDim.x / 32, split = problem.split;
  const int warp = of_block % split, team = of_block / split, lane = threadIdx.x % 32, i = lane / 4, q = lane % 4;
  const int steps = p.K / nf4_step, stages = (steps + 1) / 2, hop = gridDim.x * (warps / split);
  const nf4_layout<Fours> layout = {warps};

  const uint32_t ring = shared_address(memory) + of_block * 2 * nf4_stage_bytes;
  // In a stage of the ring: 16 bytes of a row in the place of its step, which odd rows have the other way round.
  const uint32_t copied = keep(ring + lane / 8 * 128 + (lane % 8 ^ lane / 8 % 2 * 4) * 16);
  const uint32_t read = keep(ring + i * 128 + (q ^ i % 2 * 4) * 16);
  nf4_rows rows = {};
  nf4_step_absmax absmax = {};  // lane q of four: of step q % 2 of stage q / 2 of a pair of stages
  const auto load_absmax = [&](int stage) { absmax.load(w.part[rows.part], rows, min(2 * (stage + q / 2 * split) + q % 2, steps - 1)); };
  const auto copy = [&](int stage, uint32_t odd) {
    if (2 * stage + lane % 8 / 4 >= steps) return;
    const uint8_t *from = rows.codes + stage * (nf4_stage / 2);
#pragma unroll
    for (int t = 0; t < 4; t++)
      if (t < rows.count() / 4) copy_async(copied + odd * nf4_stage_bytes + t * 512, from + t * rows.hop, 16);
  };
  tables.fill();  // first, as it comes from memory
  int sixteen = team * gridDim.x + blockIdx.x;
  if (sixteen < problem.sixteens) {
    rows.set(w, sixteen, steps);
    load_absmax(warp);
    copy(warp, 0);
  }
  copy_commit();
  all_pairs.fill();
  take_turn();
  if (Shared) {
    for (int e = threadIdx.x; e < p.M * (p.K / 8); e += blockDim.x) {
      const int of_lane = e / 4;  // of the tokens one behind the other
      *(uint4 *)(memory + layout.x() + of_lane * nf4_x_bytes + (e % 4 ^ of_lane / 2 % 2) * 16) = load16(p.a + (int64_t)e * 8);
    }
  }
  __syncthreads();

  const uint32_t pairs = keep(shared_address(&all_pairs) + 4 * lane);
  const bool own = i % 2 == q / 2;
  const int tokens = own ? p.M - i / 2 : 0;
  const int x_row = i / 2 * (p.K / nf4_x_columns) + q;  // in units of a lane's columns
  const uint32_t x_at = keep(Shared ? shared_address(memory) + layout.x() + x_row * nf4_x_bytes + q / 2 * 16 : x_row * nf4_x_columns);
  uint4 x[Fours][2] = {};  // half the lane's columns of a step; zeros where the product wants them
  const auto load_x = [&](int step, int half) {
#pragma unroll
    for (int f = 0; f < Fours; f++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int at = 2 * half + j;
        if (Shared)
          shared16_where(x[f][j], (x_at + 4 * f * (p.K / nf4_x_columns) * nf4_x_bytes + step * 4 * nf4_x_bytes) ^ 16 * at, 4 * f < tokens);
        else
          load16_where(x[f][j], p.a + (x_at + 4 * f * p.K + step * nf4_step) + 8 * at, 4 * f < tokens);
      }
  };

  for (uint32_t odd = 0, buffer = 0; sixteen < problem.sixteens; buffer ^= 1) {
    const int first = rows.first, end = first + rows.count();
    sixteen += hop;
    float sum[Fours][2] = {}, scale[2][2];
    for (int at = warp, second = 0; at < stages; at += split, second ^= 2, odd ^= 1) {
      copy_wait<0>();
      __syncwarp();  // all lanes' copies are there, and all have read the stage before
      if (!second) {
        absmax.decode(scale, w.part[rows.part].nested, tables, rows.offset);
        if (at + 2 * split < stages) load_absmax(at + 2 * split);
      }
      if (at + split < stages) {
        copy(at + split, odd ^ 1);
      } else if (sixteen < problem.sixteens) {
        rows.set(w, sixteen, steps);
        load_absmax(warp);
        copy(warp, odd ^ 1);
      }
      copy_commit();
#pragma unroll
      for (int s = 0; s < 2; s++) {
        if (2 * at + s >= steps) break;
        load_x(2 * at + s, 0);
        const uint32_t from = (read + odd * nf4_stage_bytes) ^ s * 64;
        const uint4 a = shared16(from), b = shared16(from + 8 * 128);
        float d[Fours][4] = {};
#pragma unroll
        for (int j = 0; j < 8; j++) {
          if (j == 4) load_x(2 * at + s, 1);
          const uint32_t aw = word(a, j / 2), bw = word(b, j / 2);
          const int byte = j % 2 * 2;
          const uint32_t a0 = nf4_pair(pairs, aw, byte), b0 = nf4_pair(pairs, bw, byte);
          const uint32_t a1 = nf4_pair(pairs, aw, byte + 1), b1 = nf4_pair(pairs, bw, byte + 1);
#pragma unroll
          for (int f = 0; f < Fours; f++) mma_k16(d[f], a0, b0, a1, b1, word(x[f][j / 2 % 2], byte), word(x[f][j / 2 % 2], byte + 1));
        }
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
          for (int k = 0; k < 2; k++) {
            const float of_block = __shfl_sync(~0u, scale[h][k], second + s, 4);
#pragma unroll
            for (int f = 0; f < Fours; f++) sum[f][h] = fmaf(d[f][2 * h + k], of_block, sum[f][h]);
          }
      }
    }
    auto *sums = (matvec_sums<4 * Fours> *)(memory + layout.sums()) + buffer * warps + team * split;
#pragma unroll
    for (int f = 0; f < Fours; f++)
#pragma unroll
      for (int h = 0; h < 2; h++) sums[warp][4 * f + q][i + 8 * h] = sum[f][h];
    threads_sync(1 + team, split * 32);  // there are two places for sums, so that none is written before the results of it are
    const int thread = warp * 32 + lane;
    if (thread < 4 * Fours * matvec_rows)
      matvec_write(p, thread / matvec_rows, first + thread % matvec_rows, end, matvec_total<4 * Fours>(sums, split, thread));
  }
}

/* Warps that share the columns of a row: so many that the team with most to do is done first. Not by the number of tokens, which may not
change the order of a sum. */
static int nf4_split(int warps, int sixteens, int stages, int multiprocessors) {
  int best = 0, least = 0;
  for (int split : nf4_splits) {
    if (split > stages || split > warps) break;
    const int teams = multiprocessors * (warps / split), turns = (sixteens + teams - 1) / teams;
    const int time = turns * ((stages + split - 1) / split * 2 + 1);  // of a stage, and of rows beside their stages
    if (!best || time < least) best = split, least = time;
  }
  return best;
}

template <int Fours, bool Shared>
static qk_status nf4_launch(const nf4_product &p, int warps, int multiprocessors, cudaStream_t stream) {
  const nf4_layout<Fours> layout = {warps / p.split * p.split};
  const int blocks = p.sixteens < multiprocessors ? p.sixteens : multiprocessors;
  return qk_launch(p.linear.name, matvec_nf4_kernel<Fours, Shared>, blocks, 1, layout.warps * 32, layout.bytes(Shared ? p.linear.M : 0, p.linear.K),
                   stream, p);
}

qk_status matvec_nf4(const linear_problem &p, const qk_nf4_weight &w, cudaStream_t stream) {
  if (p.M < 1 || p.M > matvec_max_tokens) return qk_fail(QK_BAD_ARGUMENT, "%s: a matrix-vector product of %d tokens; 1 to %d", p.name, p.M, matvec_max_tokens);
  if (p.K % nf4_step || p.K < nf4_least_columns) return qk_fail(QK_BAD_ARGUMENT, "%s: %d columns; a multiple of %d, at least %d", p.name, p.K, nf4_step, nf4_least_columns);
  if (w.kind == QK_QKV && w.h.D % 16) return qk_fail(QK_BAD_ARGUMENT, "%s: heads of %d; they must be divisible by 16", p.name, w.h.D);
  qk_device device;
  if (const qk_status status = qk_current_device(&device, p.name)) return status;
  nf4_product product = {p, w};
  for (int i = 0; i < w.n; i++) {
    product.sixteens += nf4_sixteens(w.part[i].rows);
    if (w.part[i].absmax % 8) return qk_fail(QK_BAD_ARGUMENT, "%s: part %d: absmax at %p is not aligned to 8 bytes", p.name, i, (void *)w.part[i].absmax);
  }
  const int room = device.shared - (int)(sizeof(nf4_pairs) + sizeof(nf4_tables)), multiprocessors = device.multiprocessors;
  const int warps = nf4_layout<1>{nf4_most_warps}.x() <= room ? nf4_most_warps : nf4_few_warps;
  product.split = nf4_split(warps, product.sixteens, (p.K / nf4_step + 1) / 2, multiprocessors);
  if (p.M > 4) return nf4_launch<2, false>(product, nf4_few_warps, multiprocessors, stream);
  if (nf4_layout<1>{warps}.bytes(p.M, p.K) > room) return nf4_launch<1, false>(product, warps, multiprocessors, stream);
  return nf4_launch<1, true>(product, warps, multiprocessors, stream);
}
