// One position of one row through a whole Mamba-1 language model, in one launch. The blocks synchronise as in
// mamba1_step.cu, but twice per layer instead of four times, because waiting is most of the cost of one row.
//
// A block owns some channels of every mixer, from in_proj to out_proj: no other block uses its x, z, convolution, Δ, states
// and y. Blocks exchange two vectors per layer: the output of x_proj, and what out_proj adds to the residual stream. Both
// are sums over channels, to which every block adds its part by atomic additions of integers, whose sum does not depend on
// their order. So both matrices must be transposed, with one row per channel.
//
// COPIES of the residual stream's sums are kept, COPIES_DBC of those of x_proj's output. Their units are 2^-36, and what a block
// adds is below 2^13.

#define LANES 16              // that work on a channel in the scan
#define UNIT 36
#define LARGEST 13

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

#define AT_ONCE_DT (CONSUMERS / LANES)

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
    fetch_rows(filler, s.ring, w, count, cols, at_once);
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

// The sums of all blocks.
__device__ __forceinline__ float added(const i64* at, int cols) {
  i64 sum = __ldcg(at);
#pragma unroll
  for (int j = 1; j < COPIES_DBC; ++j) sum += __ldcg(at + j * cols);
  return float(sum) * (1.0f / float(1ll << UNIT));
}

// This lane's columns of the residual stream times the weights in `s.norm`; returns what products with it are multiplied by.
__device__ __forceinline__ float norm(const Args& a, const Block& s, uint4* x) {
  const bool broken = __ldcg(a.broken) != 0;
  const float scale = normed(a.d, a.eps, s.x, s.scratch, x, [&](int i) {
    longlong2 sum = __ldcg(reinterpret_cast<const longlong2*>(a.residual + i));
#pragma unroll
    for (int j = 1; j < COPIES; ++j) {
      const longlong2 more = __ldcg(reinterpret_cast<const longlong2*>(a.residual + j * a.d + i));
      sum.x += more.x, sum.y += more.y;
    }
    const float2 e = *reinterpret_cast<const float2*>(s.embedding + i);
    const float2 w = *reinterpret_cast<const float2*>(s.norm + i);
    const float unit = 1.0f / float(1ll << UNIT);
    return make_float4(e.x + float(sum.x) * unit, e.y + float(sum.y) * unit, w.x, w.y);
  });
  return broken ? NONE : scale;
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
  each_piece(s.ring, pieces, own.rows, AT_ONCE_DT, from, [&](const bf16* w, int row0, int rows) {
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
    const Part own = part_of(a.ed);
    ask_ahead(a.layers, a.count, [&](const Layer& layer) { ask_for(a, layer, 1, own, own); });
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
          s.ring, pieces, a.d, 2 * own.rows, shares.in, x,
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
      spread<UNIT, LARGEST>(
          s.ring, pieces, shares.dbc, of.x_proj + i64(own.first) * cols, s.u, s.sums,
          dbc + blockIdx.x % COPIES_DBC * cols, a.broken
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
      spread<UNIT, LARGEST>(
          s.ring, pieces, shares.out, of.out_proj + i64(own.first) * a.d, s.y, s.sums,
          a.residual + blockIdx.x % COPIES * a.d, a.broken
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
        s.ring, pieces, a.d, words.rows, shares.head, x, [&](int row) { return a.head + i64(words.first + row) * a.d; },
        [&](int row, float sum) {
          const int id = words.first + row;
          a.logits[id] = scale * sum;
          better(best, best_id, scale * sum, u32(id));
        }
    );
  }
  best_of_block(best, best_id, s.sums, a.best);
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
