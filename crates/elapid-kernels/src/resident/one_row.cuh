// Shared by kernels that take one row through a whole model in one launch: products of one row, and sums over channels that
// every block adds its part to.
//
// A sum is accumulated as an integer, so that its result does not depend on the order of its parts. What one block adds is
// bounded in magnitude; beyond that, or if it is NaN, everything after it is NaN (`broken`). Additions to the same value wait
// for each other, so sums are kept in several copies, each for some of the blocks.
//
// CHUNKS: d / 256, rounded up. WHOLE: maximum bytes of weights for which a block's part of a matrix is copied at once.

#define PIECE (16 * 1024)  // bytes of weights that are copied at once, about
#define SPREAD ((CHUNKS * 64 + CONSUMERS - 1) / CONSUMERS)  // four columns of d for every thread
#define NONE __int_as_float(0x7fc00000)

// Rows of a matrix in a piece, of `rows` of `cols` columns.
__device__ __forceinline__ int rows_at_once(int rows, int cols) {
  const int bytes = rows * cols * 2, pieces = bytes <= WHOLE ? 1 : (bytes + PIECE - 1) / PIECE;
  return max(1, (rows + pieces - 1) / pieces);
}

// How sums over channels are split: four columns per thread; if threads are left over, they take other channels.
struct Spread {
  int cols, rows, at_once, quads, groups, group, quad;
  __device__ __forceinline__ Spread(int rows, int cols) : cols(cols), rows(rows), quads(cols / 4) {
    groups = max(1, min(CONSUMERS / quads, rows));
    group = groups > 1 ? int(threadIdx.x) / quads : 0, quad = int(threadIdx.x) - group * quads;
    at_once = (rows_at_once(rows, cols) + groups - 1) / groups * groups;
  }
};

#if RING
// The copying warp: rows of a matrix one after another, `at_once` in a piece.
__device__ __forceinline__ void fetch_rows(
    Filler& filler, const Ring& ring, const bf16* w, int count, int cols, int at_once
) {
#pragma unroll 1
  for (int row = 0; row < count; row += at_once) {
    const int size = min(at_once, count - row) * cols * 2;
    const int to = filler.place(ring, size, size);
    if (threadIdx.x % 32 == 0) filler.copy(ring, to, w + i64(row) * cols, size);
  }
}
#endif

// Piece by piece, `use(weights, first row, rows)`. `from(row)` is where a row is in memory.
template <typename From, typename Use>
__device__ __forceinline__ void each_piece(
    const Ring& ring, Pieces& pieces, int rows, int at_once, From from, Use use
) {
#pragma unroll 1
  for (int row = 0; row < rows; row += at_once) {
    ++pieces.count;
#if RING
    use(reinterpret_cast<const bf16*>(pieces.last(ring)), row, min(at_once, rows - row));
    pieces.done(ring);
#else
    use(from(row), row, min(at_once, rows - row));
#endif
  }
}

__device__ __forceinline__ float round_bf16(float x) { return to_float(from_float<bf16>(x)); }

// Adds x in units of 2^-UNIT; it is below 2^LARGEST in magnitude.
template <int UNIT, int LARGEST>
__device__ __forceinline__ void add(i64* to, float x, u32* broken) {
  if (!(fabsf(x) < float(1 << LARGEST))) {
    *broken = 1;
    return;
  }
  const i64 units = __float2ll_rn(x * float(1ll << UNIT));
  asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(to), "l"(units) : "memory");
}

// Rows of a matrix of d columns times x, one row per warp at a time; one lane calls `use(row, sum)`. A lane has the columns
// 256 i + 8 lane of x.
template <typename From, typename Use>
__device__ __forceinline__ void product(
    const Ring& ring, Pieces& pieces, int d, int rows, int at_once, uint4* x, From from, Use use
) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  each_piece(ring, pieces, rows, at_once, from, [&](const bf16* piece, int row0, int count) {
#pragma unroll 1
    for (int i = (warp - row0) & (WARPS - 1); i < count; i += WARPS) {
      const bf16* at = piece + i * d + lane * 8;
      float sum[2] = {};
#pragma unroll
      for (int j = 0; j < CHUNKS; ++j) {
        float w8[8], x8[8];
        uint4 raw = make_uint4(0, 0, 0, 0);
        if (j * 256 + lane * 8 < d) raw = *reinterpret_cast<const uint4*>(at + j * 256);
        // Where registers are short it shall not be widened once for all rows.
        if (CHUNKS > 5) asm volatile("" : "+r"(x[j].x), "+r"(x[j].y), "+r"(x[j].z), "+r"(x[j].w));
        widen8(x[j], x8);
        widen8(raw, w8);
#pragma unroll
        for (int m = 0; m < 8; ++m) sum[m % 2] += w8[m] * x8[m];
      }
      const float all = warp_sum(sum[0] + sum[1]);
      if (lane == 0) use(row0 + i, all);
    }
  });
}

// Adds Σ factor[c] w[c, :] over this block's channels to `to`, through `sums`, [4 CONSUMERS or columns, whichever is more].
template <int UNIT, int LARGEST>
__device__ __forceinline__ void spread(
    const Ring& ring, Pieces& pieces, const Spread& of, const bf16* w, const float* factor, float* sums, i64* to,
    u32* broken
) {
  float sum[SPREAD][4] = {};
  each_piece(
      ring, pieces, of.rows, of.at_once, [&](int row) { return w + i64(row) * of.cols; },
      [&](const bf16* piece, int row0, int count) {
        if (of.group >= of.groups) return;
        const bf16* at = piece + of.group * of.cols + of.quad * 4;
        const float* by = factor + row0 + of.group;
        const int step = of.groups * of.cols;
#pragma unroll 4
        for (int i = of.group; i < count; i += of.groups, at += step, by += of.groups) {
#pragma unroll
          for (int j = 0; j < SPREAD; ++j) {
            if (j > 0 && of.quad + j * CONSUMERS >= of.quads) break;
            const uint2 p = *reinterpret_cast<const uint2*>(at + j * CONSUMERS * 4);
            sum[j][0] += *by * low_bf16(p.x), sum[j][1] += *by * high_bf16(p.x);
            sum[j][2] += *by * low_bf16(p.y), sum[j][3] += *by * high_bf16(p.y);
          }
        }
      }
  );
  if (of.group < of.groups) {
#pragma unroll
    for (int j = 0; j < SPREAD; ++j) {
      const int at = of.quad + j * CONSUMERS;
      if (at >= of.quads) break;
      *reinterpret_cast<float4*>(sums + of.group * of.cols + at * 4) =
          make_float4(sum[j][0], sum[j][1], sum[j][2], sum[j][3]);
    }
  }
  sync();
#pragma unroll 1
  for (int j = threadIdx.x; j < of.cols; j += CONSUMERS) {
    const float* from = sums + j;
    float all = *from;
#pragma unroll 4
    for (int g = 1; g < of.groups; ++g) all += *(from += of.cols);
    add<UNIT, LARGEST>(to + j, all, broken);
  }
}

// This lane's columns of a normed vector, those that lie at 256 i + 8 lane: `x` [256 CHUNKS] and `scratch` [WARPS] are shared.
// `pair(i, h0, h1)` returns the elements i and i + 1 and what they are multiplied by; returns what products are.
template <typename Pair>
__device__ __forceinline__ float normed(int d, float eps, bf16* x, float* scratch, uint4* mine, Pair pair) {
  float squares = 0.0f;
#pragma unroll SPREAD * 2
  for (int i = threadIdx.x * 2; i < d; i += 2 * CONSUMERS) {
    const float4 p = pair(i);
    squares += p.x * p.x + p.y * p.y;
    *reinterpret_cast<u32*>(x + i) = pack_bf16(p.x * p.z, p.y * p.w);
  }
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = squares;
  sync();
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < WARPS; i += 4) {
    const float4 some = *reinterpret_cast<const float4*>(scratch + i);
    sum += some.x + some.y + (some.z + some.w);
  }
#pragma unroll
  for (int i = 0; i < CHUNKS; ++i) mine[i] = *reinterpret_cast<const uint4*>(x + i * 256 + threadIdx.x % 32 * 8);
  return rsqrtf(sum / float(d) + eps);
}

// The best of this block, of what the first lane of each warp has seen: to `best`, through shared memory.
__device__ __forceinline__ void best_of_block(float best, u32 best_id, float* sums, float2* to) {
  float2* all = reinterpret_cast<float2*>(sums);
  if (threadIdx.x % 32 == 0) all[threadIdx.x / 32] = make_float2(best, __uint_as_float(best_id));
  sync();
  if (threadIdx.x < 32) {
    best = all[threadIdx.x % WARPS].x, best_id = __float_as_uint(all[threadIdx.x % WARPS].y);
    best_of_warp(best, best_id);
    if (threadIdx.x == 0) to[blockIdx.x] = make_float2(best, __uint_as_float(best_id));
  }
}

// to [cols, rows] = from [rows, cols] transposed.
struct Transpose {
  const bf16* from;
  bf16* to;
  i32 rows;
  i32 cols;
};
extern "C" __global__ void __launch_bounds__(256) transpose(const __grid_constant__ Transpose a) {
  __shared__ bf16 tile[32][33];
  const int x = threadIdx.x % 32, y = threadIdx.x / 32, row0 = blockIdx.y * 32, col0 = blockIdx.x * 32;
  for (int i = y; i < 32 && row0 + i < a.rows; i += 8) {
    if (col0 + x < a.cols) tile[i][x] = a.from[i64(row0 + i) * a.cols + col0 + x];
  }
  __syncthreads();
  for (int i = y; i < 32 && col0 + i < a.cols; i += 8) {
    if (row0 + x < a.rows) a.to[i64(col0 + i) * a.rows + row0 + x] = tile[x][i];
  }
}
