// One position of one row through a whole Mamba-2 language model, in one launch; blocks synchronise twice per layer.
//
// A block owns some channels of every mixer, a multiple of four, from in_proj to out_proj: no other block uses their x, z,
// convolution, states and y. B, C and Δ, which all heads of a group or all channels of a head need, are made by all blocks
// together, a few rows of in_proj each. So blocks exchange two vectors per layer: [B C Δ], of which every value is made by
// one block, and what out_proj adds to the residual stream, a sum over channels. Every block has the whole residual stream.
//
// The gated norm divides by the root mean square over all channels. It is one factor of a whole row, so out_proj multiplies
// what is not yet divided, and blocks divide the sum when they read it, by squares that each block has written.
//
// COPIES of the sums are kept, of 256 blocks at most. Their units are 2^-30, and what a block adds is below 2^24.

#define UNIT 30
#define LARGEST 24
#define AHEAD 4  // float4 of states that a thread reads before it needs them

enum Gate { PLAIN, GATE_FIRST, NORM_FIRST };

struct Layer {
  const float* norm;        // [d]
  const bf16* in_proj;      // [2 ed + 2 g n + h, d]: z, x, B, C, Δ
  const float* conv;        // [ed + 2 g n, k]
  const float* conv_bias;   // [ed + 2 g n], may be absent
  const float* dt_bias;     // [h]
  const float* a_log;       // [h]
  const float* skip;        // [h], or [ed]
  const float* gated_norm;  // [ed], absent if there is none
  const bf16* out_proj;     // [ed, d]: transposed
  float* conv_state;        // [k - 1, ed + 2 g n]
  float* ssm_state;         // [h, n, p]
};

struct Args {
  const Layer* layers;
  const bf16* embedding;  // [v, d]
  const float* norm;      // [d]
  const bf16* head;       // [v, d]
  u32* ids;               // [1]: read at first, the likeliest next at last
  i64* sums;              // [2, COPIES, d]: of out_proj, of this layer and the last; 0 between launches, as is
  u32* broken;            // [1]: whether something was no number
  float* exchange;        // [2 g n + h]: B, C, Δ before its bias
  float* squares;         // [blocks]: of what the gated norm divides
  float* logits;          // [v]
  float2* best;           // [blocks]: the largest logit and, as bits, its token
  u32* arrived;           // [2]: blocks at barriers, and blocks that have finished; 0 between launches
  float eps;
  float gate_eps;
  float dt_min;
  float dt_max;
  i32 gate;               // Gate
  i32 skips;              // values of D
  i32 count;              // layers
  i32 d;
  i32 ed;
  i32 h;
  i32 n;
  i32 g;
  i32 k;
  i32 v;
  i32 shared;             // bytes of shared memory
};
// Channels of the convolution, and values that blocks exchange.
__device__ __forceinline__ int convolved(const Args& a) { return a.ed + 2 * a.g * a.n; }
__device__ __forceinline__ int exchanged(const Args& a) { return 2 * a.g * a.n + a.h; }

// This block's channels, in fours, and its share of what is exchanged. The last blocks, which have fewer channels or none,
// have the first share.
__device__ __forceinline__ int most_channels(int ed) { return 4 * most(ed / 4); }
struct Shares {
  Part own, common, words;
  int in, head;  // rows of a piece
  Spread out;
  __device__ __forceinline__ Shares(const Args& a) : own(part_of(a.ed / 4)), words(part_of(a.v)), out(4 * own.rows, a.d) {
    own.first *= 4, own.rows *= 4;
    const int each = most(exchanged(a)), first = min(int(gridDim.x - 1 - blockIdx.x) * each, exchanged(a));
    common = Part{first, min(each, exchanged(a) - first)};
    in = rows_at_once(rows(), a.d), head = rows_at_once(words.rows, a.d);
  }
  // Of in_proj: x, z, and what is exchanged.
  __device__ __forceinline__ int rows() const { return 2 * own.rows + common.rows; }
  __device__ __forceinline__ const bf16* row(const Args& a, const bf16* in_proj, int i) const {
    int at = a.ed + own.first + i;
    if (i >= own.rows) at = own.first + i - own.rows;
    if (i >= 2 * own.rows) at = 2 * a.ed + common.first + i - 2 * own.rows;
    return in_proj + i64(at) * a.d;
  }
  // Those that are convolved: x, and B and C; and channel `i` of them.
  __device__ __forceinline__ int taps(const Args& a) const {
    return own.rows + max(0, min(common.rows, 2 * a.g * a.n - common.first));
  }
  __device__ __forceinline__ int channel(const Args& a, int i) const {
    return i < own.rows ? own.first + i : a.ed + common.first + i - own.rows;
  }
};

// Shared memory.
struct Block {
  Ring ring;
  Layer* layers;       // [2]: this layer's addresses and the next one's
  bf16* x;             // [256 CHUNKS]: what is normed, without its scale; zeros after d
  float* sums;         // [4 CONSUMERS and 4 more per four channels, or d, whichever is more]
  float* residual;     // [d]
  float* norm;         // [d]: weights of the next norm
  float* scratch;      // [WARPS]
  float *u, *z, *y;    // [channels]: y times the weights of the gated norm
  float *skip, *gain;  // [channels]: D and those weights
  float* products;     // [2 channels and common]: of in_proj
  float *conv, *tap;   // [channels and common]: what earlier positions add to the convolution, what multiplies this one
  float* exchange;     // [2 g n + h]
  __device__ __forceinline__ Block(const Args& a, char* shared) {
    layers = reinterpret_cast<Layer*>(ring.begin(shared));
    x = reinterpret_cast<bf16*>(layers + 2);
    const int each = most_channels(a.ed), common = most(exchanged(a));
    sums = reinterpret_cast<float*>(x + 256 * CHUNKS);
    residual = sums + max(4 * CONSUMERS + each, a.d);
    norm = residual + a.d;
    scratch = norm + a.d;
    u = scratch + WARPS, z = u + each, y = z + each, skip = y + each, gain = skip + each, products = gain + each;
    conv = products + 2 * each + common, tap = conv + each + common, exchange = tap + each + common;
    char* end = reinterpret_cast<char*>(exchange + exchanged(a));
    ring.at = shared + (end - shared + 127) / 128 * 128;
    ring.room = int(shared + a.shared - ring.at) / 128 * 128;
  }
};

#if RING
// The warp after the computing warps: copies this block's rows of all matrices, in the order of their use.
__device__ __forceinline__ void fetch(const Args& a, const Block& s) {
  const Shares shares(a);
  const int lane = threadIdx.x % 32;
  Filler filler;
#pragma unroll 1
  for (int l = 0; l < a.count; ++l) {
    const Layer& of = a.layers[l];
    const bf16 *in = of.in_proj, *out = of.out_proj;
#pragma unroll 1
    for (int row = 0; row < shares.rows(); row += shares.in) {
      const int end = min(row + shares.in, shares.rows()), size = (end - row) * a.d * 2;
      const int to = filler.place(s.ring, size, size);
      // A lane copies the rows of x, of z, or of what is exchanged.
      const int own = shares.own.rows, from = max(row, lane * own), until = lane == 2 ? end : min(end, (lane + 1) * own);
      if (lane < 3 && from < until) {
        filler.copy(s.ring, to + (from - row) * a.d * 2, shares.row(a, in, from), (until - from) * a.d * 2);
      }
    }
    fetch_rows(filler, s.ring, out + i64(shares.own.first) * a.d, shares.own.rows, a.d, shares.out.at_once);
  }
  fetch_rows(filler, s.ring, a.head + i64(shares.words.first) * a.d, shares.words.rows, a.d, shares.head);
}
#endif

// Prefetches what this block needs of a layer, but for the weights of products; one warp.
__device__ __forceinline__ void ask_for(const Args& a, const Shares& shares, const Layer& layer) {
  const Part own = shares.own;
  const int p = a.ed / a.h, taps = shares.taps(a) - own.rows;
  if (i64(blockIdx.x) * 32 < a.d) ask(layer.norm + blockIdx.x * 32, min(32, a.d - int(blockIdx.x) * 32));
  auto channels = [&](const float* from, int each) {
    ask(from + i64(own.first) * each, own.rows * each);
    ask(from + i64(shares.channel(a, own.rows)) * each, taps * each);
  };
  channels(layer.conv, a.k);
  if (layer.conv_bias != nullptr) channels(layer.conv_bias, 1);
  for (int j = 0; j + 1 < a.k; ++j) channels(layer.conv_state + i64(j) * convolved(a), 1);
  ask(layer.dt_bias, a.h);
  ask(layer.a_log, a.h);
  if (own.rows == 0) return;
  if (a.skips == a.ed) {
    ask(layer.skip + own.first, own.rows);
  } else {
    ask(layer.skip, a.skips);
  }
  if (layer.gated_norm != nullptr) ask(layer.gated_norm + own.first, own.rows);
  // Of each head, these columns of every row.
#pragma unroll 1
  for (int c = own.first; c < own.first + own.rows; c += p - c % p) {
    const float* from = layer.ssm_state + i64(c / p) * a.n * p + c % p;
    const int last = min(p - c % p, own.first + own.rows - c) - 1;
    for (int n = threadIdx.x % 32; n < a.n; n += 32) {
      for (int i = 0; i < last + 32; i += 32) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + i64(n) * p + min(i, last)));
      }
    }
  }
}

// What this block alone uses of a layer, before others are waited for: what earlier positions add to the convolution, whose
// window moves on but for its last place; D, and the weights of the gated norm.
__device__ __forceinline__ void begin(const Args& a, const Block& s, const Shares& shares, const Layer& layer) {
  const int all = convolved(a), taps = shares.taps(a);
#pragma unroll 1
  for (int i = other(); i >= 0 && i < taps; i += OTHERS) {
    const int c = shares.channel(a, i);
    float* window = layer.conv_state + c;
    const float* w = layer.conv + i64(c) * a.k;
    float sum = layer.conv_bias != nullptr ? layer.conv_bias[c] : 0.0f;
#pragma unroll 4
    for (int j = 0; j + 1 < a.k; ++j) {
      const float x = window[j * all];
      sum += w[j] * x;
      if (j > 0) window[(j - 1) * all] = x;
    }
    s.conv[i] = sum, s.tap[i] = w[a.k - 1];
  }
  const int p = a.ed / a.h;
#pragma unroll 1
  for (int i = other(); i >= 0 && i < shares.own.rows; i += OTHERS) {
    const int c = shares.own.first + i;
    s.skip[i] = layer.skip[a.skips == a.ed ? c : c / p];
    s.gain[i] = layer.gated_norm != nullptr ? layer.gated_norm[c] : 1.0f;
  }
}

// Adds what the last layer has made to the residual stream; this lane's columns of it times the weights in `s.norm`. Returns
// what products with it are multiplied by. `sums` is absent before the first layer.
__device__ __forceinline__ float norm(const Args& a, const Block& s, const i64* sums, uint4* x) {
  const bool broken = __ldcg(a.broken) != 0;
  float gated = 1.0f / float(1ll << UNIT);
  if (sums != nullptr && a.gate != PLAIN) {
    float all = 0.0f;
    // All at once: one after another they would wait for memory each.
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int block = i * 32 + threadIdx.x % 32;
      all += block < gridDim.x ? __ldcg(a.squares + block) : 0.0f;
    }
    gated *= rsqrtf(warp_sum(all) / float(a.ed) + a.gate_eps);
  }
  const float scale = normed(a.d, a.eps, s.x, s.scratch, x, [&](int i) {
    float2 r = *reinterpret_cast<const float2*>(s.residual + i);
    if (sums != nullptr) {
      longlong2 sum = __ldcg(reinterpret_cast<const longlong2*>(sums + i));
#pragma unroll
      for (int j = 1; j < COPIES; ++j) {
        const longlong2 more = __ldcg(reinterpret_cast<const longlong2*>(sums + j * a.d + i));
        sum.x += more.x, sum.y += more.y;
      }
      r.x += round_bf16(gated * float(sum.x)), r.y += round_bf16(gated * float(sum.y));
      *reinterpret_cast<float2*>(s.residual + i) = r;
    }
    const float2 w = *reinterpret_cast<const float2*>(s.norm + i);
    return make_float4(r.x, r.y, w.x, w.y);
  });
  return broken ? NONE : scale;
}

// How threads share the states of this block's channels: four channels by every SLOTS-th of n.
struct Tile {
  int quads, slots, quad, slot, first;
  __device__ __forceinline__ Tile(const Part& own)
      : quads(max(1, own.rows / 4)), slots(CONSUMERS / quads), quad(threadIdx.x % quads), slot(threadIdx.x / quads),
        first(own.first + 4 * quad) {}
  __device__ __forceinline__ bool live(const Part& own) const { return own.rows > 0 && slot < slots; }
};

// What the states' update reads that no other block writes.
struct Ahead {
  float4 h[AHEAD];
  float bias, decay;  // of Δ, and A log2 e
  __device__ __forceinline__ Ahead(const Args& a, const Layer& layer, const Part& own, const Tile& of) {
    if (!of.live(own)) return;
    const int p = a.ed / a.h, head = of.first / p;
    const float* from = layer.ssm_state + i64(head) * a.n * p + of.first % p;
    bias = layer.dt_bias[head], decay = -LOG2_E * fast_exp2(LOG2_E * layer.a_log[head]);
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      const int n = of.slot + i * of.slots;
      if (n < a.n) h[i] = *reinterpret_cast<const float4*>(from + n * p);
    }
  }
};

// h = exp(Δ A) h + Δ B x, y = C h + D x, gated: `s.y`, and the squares that the gated norm divides by.
__device__ __forceinline__ void update(
    const Args& a, const Block& s, const Layer& layer, const Part& own, const Tile& of, const Ahead& ahead
) {
  if (of.live(own)) {
    const int p = a.ed / a.h, head = of.first / p, group = head / (a.h / a.g);
    const float *b = s.exchange + group * a.n, *c = b + a.g * a.n;
    const float dt = fminf(fmaxf(softplus(s.exchange[2 * a.g * a.n + head] + ahead.bias), a.dt_min), a.dt_max);
    const float decay = fast_exp2(dt * ahead.decay);
    float* at = layer.ssm_state + i64(head) * a.n * p + of.first % p;
    float4 u = *reinterpret_cast<const float4*>(s.u + 4 * of.quad), y = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    u.x *= dt, u.y *= dt, u.z *= dt, u.w *= dt;
    auto one = [&](int n, float4 h) {
      const float in = b[n], out = c[n];
      h.x = decay * h.x + in * u.x, h.y = decay * h.y + in * u.y;
      h.z = decay * h.z + in * u.z, h.w = decay * h.w + in * u.w;
      y.x += out * h.x, y.y += out * h.y, y.z += out * h.z, y.w += out * h.w;
      *reinterpret_cast<float4*>(at + n * p) = h;
    };
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      if (of.slot + i * of.slots < a.n) one(of.slot + i * of.slots, ahead.h[i]);
    }
#pragma unroll 1
    for (int n = of.slot + AHEAD * of.slots; n < a.n; n += of.slots) {
      one(n, *reinterpret_cast<const float4*>(at + n * p));
    }
    // One more between rows, for the banks.
    *reinterpret_cast<float4*>(s.sums + 4 * (of.quad * (of.slots + 1) + of.slot)) = y;
  }
  sync();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float squares = 0.0f;
#pragma unroll 1
  for (int quad = warp; 4 * quad < own.rows; quad += WARPS) {
    float4 y = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 2
    for (int i = lane; i < of.slots; i += 32) {
      const float4 some = *reinterpret_cast<const float4*>(s.sums + 4 * (quad * (of.slots + 1) + i));
      y.x += some.x, y.y += some.y, y.z += some.z, y.w += some.w;
    }
    y = make_float4(warp_sum(y.x), warp_sum(y.y), warp_sum(y.z), warp_sum(y.w));
    if (lane >= 4) continue;
    const int i = 4 * quad + lane;
    const float sum = lane == 0 ? y.x : lane == 1 ? y.y : lane == 2 ? y.z : y.w;
    const float whole = round_bf16(sum + s.skip[i] * s.u[i]), gated = whole * silu(s.z[i]);
    const float divided = a.gate == NORM_FIRST ? whole : gated;
    squares += divided * divided;
    s.y[i] = gated * s.gain[i];
  }
  squares = warp_sum(squares);
  if (lane == 0) s.scratch[warp] = squares;
  sync();
  if (threadIdx.x == 0) {
    float all = 0.0f;
    for (int i = 0; i < WARPS; ++i) all += s.scratch[i];
    a.squares[blockIdx.x] = all;
  }
}

// in_proj and the convolution: `s.u` and `s.z`, and what is exchanged.
__device__ __forceinline__ void input(
    const Args& a, const Block& s, Pieces& pieces, const Shares& shares, const Layer& layer, float scale, uint4* x
) {
  const int own = shares.own.rows;
  product(
      s.ring, pieces, a.d, shares.rows(), shares.in, x, [&](int row) { return shares.row(a, layer.in_proj, row); },
      [&](int row, float sum) { s.products[row] = sum; }
  );
  sync();
#pragma unroll 1
  for (int i = threadIdx.x; i < shares.rows(); i += CONSUMERS) {
    const float now = round_bf16(scale * s.products[i]);
    const bool z = i >= own && i < 2 * own;
    const int tap = i < own ? i : i - own, common = shares.common.first + i - 2 * own;
    if (z) {
      s.z[i - own] = now;
    } else if (tap >= shares.taps(a)) {
      a.exchange[common] = now;
    } else {
      const float u = round_bf16(silu(s.conv[tap] + s.tap[tap] * now));
      if (i < own) {
        s.u[i] = u;
      } else {
        a.exchange[common] = u;
      }
      if (a.k > 1) layer.conv_state[(a.k - 2) * convolved(a) + shares.channel(a, tap)] = now;
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) one_row(const __grid_constant__ Args a) {
  extern __shared__ __align__(128) char shared[];
  const Block s(a, shared);
#if RING
  if (threadIdx.x == 0) prepare(s.ring, WARPS);
#endif
  __syncthreads();
  Shares shares(a);
#if !RING
  // In memory, the rows of in_proj are not one after another: each is a piece.
  shares.in = 1;
#endif
  if (threadIdx.x >= CONSUMERS + 32) {
    ask_ahead(a.layers, a.count, [&](const Layer& layer) { ask_for(a, shares, layer); });
    return;
  }
  if (threadIdx.x >= CONSUMERS) {
#if RING
    fetch(a, s);
#endif
    return;
  }
  const Part own = shares.own, words = shares.words;
  const Tile tile(own);
  Blocks blocks{a.arrived};
  Pieces pieces;
  uint4 x[CHUNKS];
  {
    const bf16* token = a.embedding + i64(min(a.ids[0], u32(a.v - 1))) * a.d;
    for (int i = threadIdx.x; i < 256 * CHUNKS; i += CONSUMERS) {
      if (i < a.d) s.residual[i] = to_float(token[i]);
      s.x[i] = from_float<bf16>(0.0f);
    }
    if (threadIdx.x < sizeof(Layer) / 8 && a.count > 0) {
      reinterpret_cast<u64*>(s.layers)[threadIdx.x] = reinterpret_cast<const u64*>(a.layers)[threadIdx.x];
    }
  }
  sync();
  const i64* last = nullptr;
#pragma unroll 1
  for (int l = 0; l < a.count; ++l) {
    const Layer& of = s.layers[l % 2];
    // The next layer's addresses, kept while this one begins.
    const bool names = threadIdx.x < sizeof(Layer) / 8 && l + 1 < a.count;
    const u64 next = names ? reinterpret_cast<const u64*>(a.layers + l + 1)[threadIdx.x] : 0;
    i64* const sums = a.sums + l % 2 * COPIES * a.d;
    read_ahead(s.norm, of.norm, a.d);
    begin(a, s, shares, of);
    blocks.wait();
    if (names) reinterpret_cast<u64*>(s.layers + (l + 1) % 2)[threadIdx.x] = next;
    const float scale = norm(a, s, last, x);
    input(a, s, pieces, shares, of, scale, x);
    blocks.arrive();
    if (l + 1 < a.count) layer_begun();
    const Ahead ahead(a, of, own, tile);
    blocks.wait();
    // All blocks have read the sums of the last layer.
    i64* const read = a.sums + (l + 1) % 2 * COPIES * a.d;
    for (int i = (gridDim.x - 1 - blockIdx.x) * CONSUMERS + threadIdx.x; i < COPIES * a.d; i += gridDim.x * CONSUMERS) {
      read[i] = 0;
    }
    for (int i = threadIdx.x; i < exchanged(a); i += CONSUMERS) s.exchange[i] = __ldcg(a.exchange + i);
    sync();
    update(a, s, of, own, tile, ahead);
    if (own.rows > 0) {
      spread<UNIT, LARGEST>(
          s.ring, pieces, shares.out, of.out_proj + i64(own.first) * a.d, s.y, s.sums,
          sums + blockIdx.x % COPIES * a.d, a.broken
      );
    }
    last = sums;
    blocks.arrive();
  }
  read_ahead(s.norm, a.norm, a.d);
  blocks.wait();
  float best = -__int_as_float(0x7f800000);
  u32 best_id = 0xffffffffu;
  {
    const float scale = norm(a, s, last, x);
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
    // All blocks have read the sums: reset those of the last layer.
    for (int i = threadIdx.x; i < 2 * COPIES * a.d; i += CONSUMERS) a.sums[i] = 0;
    if (threadIdx.x == 0) *a.broken = 0;
  }
  leave(a.arrived);
}
