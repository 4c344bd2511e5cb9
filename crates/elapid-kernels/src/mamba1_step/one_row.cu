// One position of one row through a whole Mamba-1 language model, in one launch. The blocks synchronise as in
// mamba1_step.cu, but twice per layer instead of four times, because waiting is most of the cost of one row.
//
// A block owns some channels of every mixer, from in_proj to out_proj: no other block uses its x, z, convolution, Δ, states
// and y. Blocks exchange two vectors per layer: the output of x_proj, and what out_proj adds to the residual stream. Both
// are sums over channels, to which every block adds its part by atomic additions of integers, whose sum does not depend on
// their order. So both matrices must be transposed, with one row per channel.
//
// A value becomes an integer in units of 2^-36. What one block adds is below 8192 in magnitude, or NaN, and then everything
// after it is NaN. Additions to the same value wait for each other, so sums are kept in several copies, each for some of the
// blocks: COPIES of the residual stream, COPIES_DBC of x_proj's output. CHUNKS: d / 256, rounded up. WHOLE: maximum bytes of
// weights for which a block's part of a matrix is copied at once.

#define PIECE (16 * 1024)  // bytes of weights that are copied at once, about
#define SPREAD ((CHUNKS * 64 + CONSUMERS - 1) / CONSUMERS)  // four columns of d for every thread
#define LANES 16              // that work on a channel in the scan
#define ONE 68719476736.0f    // 2^36
#define LARGEST 8192.0f

struct Args {
  const Layer* layers;
  const bf16* embedding;  // [v, d]
  const float* norm;      // [d]
  const bf16* head;       // [v, d]
  u32* ids;               // [1]: read at first, the likeliest next at last
  i64* residual;          // [COPIES, d]: what layers have added to the embedding; 0 between launches, as are
  i64* dbc;               // [2, COPIES_DBC, r + 2 n]: of this layer and of the next or last,
  u32* broken;            // [1]: and whether something was no number
  float* logits;          // [v]
  float2* best;           // [blocks]: the largest logit and, as bits, its token
  u32* arrived;           // [2]: blocks at barriers, and blocks that have finished; 0 between launches
  float eps;
  i32 count;              // layers
  i32 d;
  i32 ed;
  i32 n;
  i32 r;
  i32 k;
  i32 v;
  i32 shared;             // bytes of shared memory
};

// Shared memory.
struct Block {
  Ring ring;
  Layer* layers;           // [2]: this layer's addresses and the next one's
  float* sums;             // [4 CONSUMERS or d, whichever is more]
  float* scratch;          // [WARPS]
  float* embedding;        // [d]: of the token that is read
  float* norm;             // [d]: weights of the next norm
  float* dbc;              // [r + 2 n]
  float *conv, *tap;       // [channels]: what earlier positions add to the convolution, and what multiplies this one
  float *u, *z, *y;        // [channels]
  float* products;         // [2 channels]: of in_proj
  bf16* x;                 // [256 CHUNKS]: what is normed, without its scale; zeros after d
  __device__ __forceinline__ Block(const Args& a, char* shared) {
    layers = reinterpret_cast<Layer*>(ring.begin(shared));
    x = reinterpret_cast<bf16*>(layers + 2);
    sums = reinterpret_cast<float*>(x + 256 * CHUNKS);
    embedding = sums + max(4 * CONSUMERS, a.d);
    norm = embedding + a.d;
    scratch = norm + a.d;
    dbc = scratch + WARPS;
    conv = dbc + a.r + 2 * a.n;
    const int each = most(a.ed);
    tap = conv + each, u = tap + each, z = u + each, y = z + each;
    products = y + each;
    char* end = reinterpret_cast<char*>(products + 2 * each);
    ring.at = shared + (end - shared + 127) / 128 * 128;
    ring.room = int(shared + a.shared - ring.at) / 128 * 128;
  }
};

// Rows of a matrix in a piece, of `rows` of `cols` columns.
__device__ __forceinline__ int rows_at_once(int rows, int cols) {
  const int bytes = rows * cols * 2, pieces = bytes <= WHOLE ? 1 : (bytes + PIECE - 1) / PIECE;
  return max(1, (rows + pieces - 1) / pieces);
}
#define AT_ONCE_DT (CONSUMERS / LANES)

// How sums over channels are split: four columns per thread; if threads are left over, they take other channels.
struct Spread {
  int cols, rows, at_once, quads, groups, group, quad;
  __device__ __forceinline__ Spread(int rows, int cols) : cols(cols), rows(rows), quads(cols / 4) {
    groups = max(1, min(CONSUMERS / quads, rows));
    group = groups > 1 ? int(threadIdx.x) / quads : 0, quad = int(threadIdx.x) - group * quads;
    at_once = (rows_at_once(rows, cols) + groups - 1) / groups * groups;
  }
};

// A block's part of every matrix.
struct Shares {
  Part own, words;
  int in, head;  // rows of a piece
  Spread dbc, out;
  __device__ __forceinline__ Shares(const Args& a)
      : own(part_of(a.ed)), words(part_of(a.v)), dbc(own.rows, a.r + 2 * a.n), out(own.rows, a.d) {
    // Those of x and z in one row.
    in = RING ? rows_at_once(2 * own.rows, a.d) : max(1, own.rows), head = rows_at_once(words.rows, a.d);
  }
};

#if RING
// The warp after the computing warps: copies this block's rows of all matrices, in the order of their use.
__device__ __forceinline__ void fetch(const Args& a, const Block& s) {
  const Shares shares(a);
  const Part own = shares.own;
  const bool first = threadIdx.x % 32 == 0;
  Filler filler;
  auto rows = [&](const bf16* w, int count, int cols, int at_once) {
#pragma unroll 1
    for (int row = 0; row < count; row += at_once) {
      const int size = min(at_once, count - row) * cols * 2;
      const int to = filler.place(s.ring, size, size);
      if (first) filler.copy(s.ring, to, w + i64(row) * cols, size);
    }
  };
#pragma unroll 1
  for (int l = 0; l < a.count && own.rows > 0; ++l) {
    const Layer& of = a.layers[l];
    const bf16 *in = of.in_proj + i64(own.first) * a.d, *x = of.x_proj, *dt = of.dt_proj, *out = of.out_proj;
#pragma unroll 1
    for (int row = 0; row < 2 * own.rows; row += shares.in) {
      const int end = min(row + shares.in, 2 * own.rows), of_x = max(min(end, own.rows) - row, 0);
      const int size = (end - row) * a.d * 2, to = filler.place(s.ring, size, size);
      if (first && of_x > 0) filler.copy(s.ring, to, in + i64(row) * a.d, of_x * a.d * 2);
      if (first && end - row > of_x) {
        const bf16* from = in + i64(a.ed + row + of_x - own.rows) * a.d;
        filler.copy(s.ring, to + of_x * a.d * 2, from, size - of_x * a.d * 2);
      }
    }
    rows(x + i64(own.first) * shares.dbc.cols, own.rows, shares.dbc.cols, shares.dbc.at_once);
    rows(dt + i64(own.first) * a.r, own.rows, a.r, AT_ONCE_DT);
    rows(out + i64(own.first) * a.d, own.rows, a.d, shares.out.at_once);
  }
  rows(a.head + i64(shares.words.first) * a.d, shares.words.rows, a.d, shares.head);
}
#endif

// Piece by piece, `use(weights, first row, rows)`. `from(row)` is where a row is in memory.
template <typename From, typename Use>
__device__ __forceinline__ void each_piece(const Block& s, Pieces& pieces, int rows, int at_once, From from, Use use) {
#pragma unroll 1
  for (int row = 0; row < rows; row += at_once) {
    ++pieces.count;
#if RING
    use(reinterpret_cast<const bf16*>(pieces.last(s.ring)), row, min(at_once, rows - row));
    pieces.done(s.ring);
#else
    use(from(row), row, min(at_once, rows - row));
#endif
  }
}

__device__ __forceinline__ float round_bf16(float x) { return to_float(from_float<bf16>(x)); }

// The sums of all blocks.
__device__ __forceinline__ float added(const i64* at, int cols) {
  i64 sum = __ldcg(at);
#pragma unroll
  for (int j = 1; j < COPIES_DBC; ++j) sum += __ldcg(at + j * cols);
  return float(sum) * (1.0f / ONE);
}
__device__ __forceinline__ void add(const Args& a, i64* to, float x) {
  if (!(fabsf(x) < LARGEST)) {
    *a.broken = 1;
    return;
  }
  asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(to), "l"(__float2ll_rn(x * ONE)) : "memory");
}
#define NONE __int_as_float(0x7fc00000)

// This lane's columns of the residual stream times the weights in `s.norm`, those that lie at 256 i + 8 lane; returns what
// products with it are multiplied by.
__device__ __forceinline__ float norm(const Args& a, const Block& s, uint4* x) {
  float squares = 0.0f;
  const bool broken = __ldcg(a.broken) != 0;
#pragma unroll SPREAD * 2
  for (int i = threadIdx.x * 2; i < a.d; i += 2 * CONSUMERS) {
    longlong2 sum = __ldcg(reinterpret_cast<const longlong2*>(a.residual + i));
#pragma unroll
    for (int j = 1; j < COPIES; ++j) {
      const longlong2 more = __ldcg(reinterpret_cast<const longlong2*>(a.residual + j * a.d + i));
      sum.x += more.x, sum.y += more.y;
    }
    const float2 e = *reinterpret_cast<const float2*>(s.embedding + i);
    const float2 w = *reinterpret_cast<const float2*>(s.norm + i);
    const float h0 = e.x + float(sum.x) * (1.0f / ONE), h1 = e.y + float(sum.y) * (1.0f / ONE);
    squares += h0 * h0 + h1 * h1;
    *reinterpret_cast<u32*>(s.x + i) = pack_bf16(h0 * w.x, h1 * w.y);
  }
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) s.scratch[threadIdx.x / 32] = squares;
  sync();
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < WARPS; i += 4) {
    const float4 some = *reinterpret_cast<const float4*>(s.scratch + i);
    sum += some.x + some.y + (some.z + some.w);
  }
#pragma unroll
  for (int i = 0; i < CHUNKS; ++i) x[i] = *reinterpret_cast<const uint4*>(s.x + i * 256 + threadIdx.x % 32 * 8);
  return broken ? NONE : rsqrtf(sum / float(a.d) + a.eps);
}

// Rows of a matrix times x, one row per warp at a time; one lane calls `use(row, sum)`.
template <typename From, typename Use>
__device__ __forceinline__ void product(
    const Args& a, const Block& s, Pieces& pieces, int rows, int at_once, uint4* x, From from, Use use
) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  each_piece(s, pieces, rows, at_once, from, [&](const bf16* piece, int row0, int count) {
#pragma unroll 1
    for (int i = (warp - row0) & (WARPS - 1); i < count; i += WARPS) {
      const bf16* at = piece + i * a.d + lane * 8;
      float sum[2] = {};
#pragma unroll
      for (int j = 0; j < CHUNKS; ++j) {
        float w8[8], x8[8];
        uint4 raw = make_uint4(0, 0, 0, 0);
        if (j * 256 + lane * 8 < a.d) raw = *reinterpret_cast<const uint4*>(at + j * 256);
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

// Adds Σ factor[c] w[c, :] over this block's channels to `to`.
__device__ __forceinline__ void spread(
    const Args& a, const Block& s, Pieces& pieces, const Spread& of, const bf16* w, const float* factor, i64* to
) {
  float sum[SPREAD][4] = {};
  each_piece(
      s, pieces, of.rows, of.at_once, [&](int row) { return w + i64(row) * of.cols; },
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
      *reinterpret_cast<float4*>(s.sums + of.group * of.cols + at * 4) =
          make_float4(sum[j][0], sum[j][1], sum[j][2], sum[j][3]);
    }
  }
  sync();
#pragma unroll 1
  for (int j = threadIdx.x; j < of.cols; j += CONSUMERS) {
    const float* from = s.sums + j;
    float all = *from;
#pragma unroll 4
    for (int g = 1; g < of.groups; ++g) all += *(from += of.cols);
    add(a, to + j, all);
  }
}

// Inputs of the scan that no other block writes, for this thread's first channel and state.
struct Ahead {
  float decay = 0.0f, h = 0.0f, bias = 0.0f, skip = 0.0f;  // A log2 e, the state, those of Δ and D
  __device__ __forceinline__ Ahead() {}
  __device__ __forceinline__ Ahead(const Args& a, const Layer& layer, int c, int n) {
    bias = layer.dt_bias[c], skip = layer.skip[c];
    if (n >= a.n) return;
    h = layer.ssm_state[c * a.n + n], decay = -LOG2_E * fast_exp2(LOG2_E * layer.a_log[c * a.n + n]);
  }
};

__device__ __forceinline__ float sum_of_lanes(float x) {
#pragma unroll
  for (int lane = LANES / 2; lane > 0; lane >>= 1) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}

// h = exp(Δ A) h + Δ B u, y = (C h + D u) silu(z), with Δ = softplus(dt_proj(·) + bias); LANES a channel.
__device__ __forceinline__ void scan(
    const Args& a, const Block& s, Pieces& pieces, const Layer& layer, Part own, Ahead first
) {
  auto from = [&](int row) { return layer.dt_proj + i64(own.first + row) * a.r; };
  const int lane = threadIdx.x % LANES;
  const float *b = s.dbc + a.r, *c = b + a.n;
  each_piece(s, pieces, own.rows, AT_ONCE_DT, from, [&](const bf16* w, int row0, int rows) {
    const int i = threadIdx.x / LANES, channel = own.first + row0 + i;
    const bool live = i < rows;
    float dt = 0.0f;
    if (live) {
#pragma unroll 4
      for (int j = lane * 2; j < a.r; j += LANES * 2) {
        const u32 p = *reinterpret_cast<const u32*>(w + i * a.r + j);
        const float2 x = *reinterpret_cast<const float2*>(s.dbc + j);
        dt += low_bf16(p) * x.x + high_bf16(p) * x.y;
      }
    }
    dt = sum_of_lanes(dt);
    Ahead of = first;
    if (row0 > 0 && live) of = Ahead(a, layer, channel, lane);
    dt = softplus(round_bf16(dt) + of.bias);
    const float u = live ? s.u[row0 + i] : 0.0f;
    float y = 0.0f;
#pragma unroll 1
    for (int n = lane; live && n < a.n; n += LANES) {
      if (n > lane) of = Ahead(a, layer, channel, n);
      const float h = fast_exp2(dt * of.decay) * of.h + dt * u * b[n];
      layer.ssm_state[channel * a.n + n] = h;
      y += c[n] * h;
    }
    y = sum_of_lanes(y);
    if (live && lane == 0) s.y[row0 + i] = round_bf16((y + of.skip * u) * silu(s.z[row0 + i]));
  });
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) one_row(const __grid_constant__ Args a) {
  extern __shared__ __align__(128) char shared[];
  const Block s(a, shared);
#if RING
  if (threadIdx.x == 0) prepare(s.ring, WARPS);
#endif
  __syncthreads();
  if (threadIdx.x >= CONSUMERS + 32) {
    ask_ahead(a, 1, part_of(a.ed), part_of(a.ed));
    return;
  }
  if (threadIdx.x >= CONSUMERS) {
#if RING
    fetch(a, s);
#endif
    return;
  }
  const Shares shares(a);
  const Part own = shares.own, words = shares.words;
  const int cols = shares.dbc.cols;
  Blocks blocks{a.arrived};
  Pieces pieces;
  uint4 x[CHUNKS];
  {
    const bf16* token = a.embedding + i64(min(a.ids[0], u32(a.v - 1))) * a.d;
    for (int i = threadIdx.x; i < 256 * CHUNKS; i += CONSUMERS) {
      if (i < a.d) s.embedding[i] = to_float(token[i]);
      s.x[i] = from_float<bf16>(0.0f);
    }
    if (threadIdx.x < sizeof(Layer) / 8 && a.count > 0) {
      reinterpret_cast<u64*>(s.layers)[threadIdx.x] = reinterpret_cast<const u64*>(a.layers)[threadIdx.x];
    }
  }
  sync();
#pragma unroll 1
  for (int l = 0; l < a.count; ++l) {
    const Layer& of = s.layers[l % 2];
    // The next layer's addresses, kept while this one begins.
    const bool names = threadIdx.x < sizeof(Layer) / 8 && l + 1 < a.count;
    const u64 next = names ? reinterpret_cast<const u64*>(a.layers + l + 1)[threadIdx.x] : 0;
    i64* const dbc = a.dbc + l % 2 * cols * COPIES_DBC;
    read_ahead(s.norm, of.norm, a.d);
    convolve(a, of, 1, own, s.conv, s.tap);
    blocks.wait();
    // From the previous layer; all blocks have read it.
    if (blockIdx.x == gridDim.x - 1) {
      for (int i = threadIdx.x; i < cols * COPIES_DBC; i += CONSUMERS) a.dbc[(l + 1) % 2 * cols * COPIES_DBC + i] = 0;
    }
    if (names) reinterpret_cast<u64*>(s.layers + (l + 1) % 2)[threadIdx.x] = next;
    if (own.rows > 0) {
      const float scale = norm(a, s, x);
      product(
          a, s, pieces, 2 * own.rows, shares.in, x,
          [&](int row) {
            return of.in_proj + i64(row < own.rows ? own.first + row : a.ed + own.first + row - own.rows) * a.d;
          },
          [&](int row, float sum) { s.products[row] = sum; }
      );
      sync();
#pragma unroll 1
      for (int i = threadIdx.x; i < 2 * own.rows; i += CONSUMERS) {
        const float now = round_bf16(scale * s.products[i]);
        if (i < own.rows) {
          s.u[i] = round_bf16(silu(s.conv[i] + s.tap[i] * now));
          if (a.k > 1) of.conv_state[(a.k - 2) * a.ed + own.first + i] = now;
        } else {
          s.z[i - own.rows] = now;
        }
      }
      sync();
      spread(
          a, s, pieces, shares.dbc, of.x_proj + i64(own.first) * cols, s.u, dbc + blockIdx.x % COPIES_DBC * cols
      );
    }
    blocks.arrive();
    if (l + 1 < a.count) layer_begun();
    Ahead ahead;
    const int mine = threadIdx.x / LANES;
    if (mine < own.rows) ahead = Ahead(a, of, own.first + mine, threadIdx.x % LANES);
    blocks.wait();
    if (own.rows > 0) {
      const bool broken = __ldcg(a.broken) != 0;
#pragma unroll 1
      for (int i = threadIdx.x; i < cols; i += CONSUMERS) s.dbc[i] = broken ? NONE : round_bf16(added(dbc + i, cols));
      sync();
      scan(a, s, pieces, of, own, ahead);
      sync();
      spread(
          a, s, pieces, shares.out, of.out_proj + i64(own.first) * a.d, s.y, a.residual + blockIdx.x % COPIES * a.d
      );
    }
    blocks.arrive();
  }
  read_ahead(s.norm, a.norm, a.d);
  blocks.wait();
  float best = -__int_as_float(0x7f800000);
  u32 best_id = 0xffffffffu;
  {
    const float scale = norm(a, s, x);
    product(
        a, s, pieces, words.rows, shares.head, x, [&](int row) { return a.head + i64(words.first + row) * a.d; },
        [&](int row, float sum) {
          const int id = words.first + row;
          a.logits[id] = scale * sum;
          better(best, best_id, scale * sum, u32(id));
        }
    );
  }
  // The first lane of each warp has one.
  float2* all = reinterpret_cast<float2*>(s.sums);
  if (threadIdx.x % 32 == 0) all[threadIdx.x / 32] = make_float2(best, __uint_as_float(best_id));
  sync();
  if (threadIdx.x < 32) {
    best = all[threadIdx.x % WARPS].x, best_id = __float_as_uint(all[threadIdx.x % WARPS].y);
    best_of_warp(best, best_id);
    if (threadIdx.x == 0) a.best[blockIdx.x] = make_float2(best, __uint_as_float(best_id));
  }
  blocks.arrive();
  if (blockIdx.x == 0) {
    blocks.wait();
    choose(a.best, 1, a.ids);
    // All blocks have read the sums: reset them.
    for (int i = threadIdx.x; i < a.d * COPIES; i += CONSUMERS) a.residual[i] = 0;
    for (int i = threadIdx.x; i < 2 * cols * COPIES_DBC; i += CONSUMERS) a.dbc[i] = 0;
    if (threadIdx.x == 0) *a.broken = 0;
  }
  leave(a.arrived);
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
