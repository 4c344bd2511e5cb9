// The linear recurrence with a diagonal matrix. T is the dtype of activations, FORM that of a (0 constant, 1 values, 2
// logarithms, 3 an RG-LRU), PARTS the parts of a number, VEC the neighbouring channels of a thread: 16 bytes, or 1.
//
// A block has LANES VEC channels of a row of the batch and walks along it, or along a chunk of it, in tiles. A thread has ROWS
// neighbouring positions of a tile, in the order of the recurrence:
//
//   for each tile:
//     ask for the next tile's inputs
//     each thread: (p, e), the map h -> p h + e of its positions, to shared memory
//     one thread per channel: the state before the positions of every thread, one after another
//     each thread: its positions again, from that state
//
// so that all threads read and every input is read once. The backward is the same with h -> c, the gradient that passes to the
// state before, from the last position to the first. Positions that do not count have the map h -> h.
//
// A row is several chunks only where there are few blocks. Then `*_ends` give the map of each chunk and `chain` the state
// before it, at the price of reading a and x twice.

struct Args {
  Mat<T> x;
  Mat<T> factors;         // a, log a, or the recurrence gate
  Mat<T> input;           // the input gate
  const float* constant;  // a, or Λ
  const float* initial;   // [b (p d)], may be absent
  const u32* lengths;
  const u8* resets;
  Mat<T> h;
  Mat<T> dh;
  Mat<T> dx;
  Mat<T> dfactors;        // may be absent
  Mat<T> dinput;          // there if `dfactors` is
  float* partial;         // [b chunks, (p d)]: of `constant`, may be absent
  const float* entering;  // [b (p d)]: the state before a row, or the gradient behind it; may be absent
  float* leaving;         // [b (p d)]: the state behind a row, or the gradient before it; may be absent
  float* starts;          // [b chunks (p d)]: what enters chunks; absent for one chunk
  float* ends;            // [b chunks (p d)]: e of chunks
  float* products;        // [b chunks (p d)]: p of chunks
  i64 b;
  i64 l;
  i64 d;
  i64 chunk;
  i64 chunks;
  i32 reverse;
  i32 backward;
};

#define THREADS 128
#define LANES (VEC == 1 ? 32 : 8)
#define SUBS (THREADS / LANES)
#define CHANNELS (LANES * VEC)
#define ROWS_FORWARD (VEC == 1 ? 8 : PARTS == 1 && FORM < 3 ? 4 : 2)
#define ROWS_BACKWARD (VEC == 1 ? 8 : 2)
// Blocks of a multiprocessor that registers are for.
#define BLOCKS_BACKWARD (PARTS == 2 && VEC == 8 ? 2 : 3)
#define IM (PARTS - 1)
// Matrices that a_t comes from.
#define FACTORS (FORM == 0 ? 0 : FORM == 3 ? 2 : PARTS)
#define SHARPNESS 8.0f
#define LEAST_SQUARE 1e-6f

typedef float Numbers[PARTS][VEC];

// VEC neighbouring values as they are in memory.
template <int BYTES>
struct Words {
  u32 w[BYTES / 4];
  __device__ __forceinline__ void load(const void* from) {
    uint4 v = *reinterpret_cast<const uint4*>(from);
    w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
  }
};
template <>
struct Words<4> {
  u32 w[1];
  __device__ __forceinline__ void load(const void* from) { w[0] = *reinterpret_cast<const u32*>(from); }
};
template <>
struct Words<2> {
  u32 w[1];
  __device__ __forceinline__ void load(const void* from) { w[0] = *reinterpret_cast<const u16*>(from); }
};
typedef Words<VEC * sizeof(T)> Pack;

__device__ __forceinline__ void unpack(const Pack& pack, float* x) {
#pragma unroll
  for (int i = 0; i < VEC; ++i) {
    if (sizeof(T) == 4) {
      x[i] = __uint_as_float(pack.w[i]);
    } else {
      x[i] = i % 2 ? high_bf16(pack.w[i / 2]) : low_bf16(pack.w[i / 2]);
    }
  }
}

__device__ __forceinline__ void store(T* to, const float* x) {
#if VEC == 1
  *to = from_float<T>(x[0]);
#elif VEC == 4
  *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
#else
  store8(to, x);
#endif
}
__device__ __forceinline__ void store(const Mat<T>& m, i64 row, i64 channel, i64 d, const Numbers& x) {
#pragma unroll
  for (int part = 0; part < PARTS; ++part) store(m.row(row) + part * d + channel, x[part]);
}

__device__ __forceinline__ void fill(Numbers& x, float re) {
#pragma unroll
  for (int i = 0; i < VEC; ++i) {
    x[0][i] = re;
    if (PARTS == 2) x[IM][i] = 0.0f;
  }
}
// x *= a
__device__ __forceinline__ void times(const Numbers& a, Numbers& x) {
#pragma unroll
  for (int i = 0; i < VEC; ++i) {
    if (PARTS == 1) {
      x[0][i] *= a[0][i];
    } else {
      float re = a[0][i] * x[0][i] - a[IM][i] * x[IM][i];
      x[IM][i] = a[0][i] * x[IM][i] + a[IM][i] * x[0][i];
      x[0][i] = re;
    }
  }
}
__device__ __forceinline__ void plus(const Numbers& y, Numbers& x) {
#pragma unroll
  for (int part = 0; part < PARTS; ++part)
#pragma unroll
    for (int i = 0; i < VEC; ++i) x[part][i] += y[part][i];
}

// Which channels and positions a thread has.
struct Place {
  int lane, sub;
  i64 b, chunk, group, channel, len, from, to;
  bool there, down;
  __device__ __forceinline__ Place(const Args& a, bool backward) {
    lane = threadIdx.x % LANES, sub = threadIdx.x / LANES;
    i64 groups = (a.d + CHANNELS - 1) / CHANNELS, block = blockIdx.x;
    group = block % groups, chunk = block / groups % a.chunks, b = block / groups / a.chunks;
    channel = (group * LANES + lane) * VEC;
    there = channel < a.d;
    len = !a.lengths || i64(a.lengths[b]) > a.l ? a.l : i64(a.lengths[b]);
    from = chunk * a.chunk, to = from + a.chunk < a.l ? from + a.chunk : a.l;
    down = (a.reverse != 0) != backward;
  }
  // Place `s` in the order of the recurrence, as a time.
  __device__ __forceinline__ i64 time(const Args& a, i64 s) const { return down ? a.l - 1 - s : s; }
};

// Whether nothing passes between the row and what is before position 0, in reverse.
__device__ __forceinline__ bool end_is_cut(const Args& a, i64 b) {
  return a.reverse && a.resets && a.resets[b * a.l] != 0 && (!a.lengths || a.lengths[b] > 0);
}

// A thread's positions of a tile: x, or in the backward dh; what a comes from; with WHOLE the state before, and x of an RG-LRU.
template <int ROWS, bool BACKWARD, bool WHOLE>
struct Tile {
  static constexpr int STATE = PARTS + FACTORS, GATED = STATE + PARTS;
  static constexpr int PACKS = BACKWARD && WHOLE ? GATED + (FORM == 3) : STATE;
  Pack packs[ROWS][PACKS];
  u32 reset[ROWS];  // non-zero where the state before does not count
  u32 live;         // bits of positions

  __device__ __forceinline__ void load(const Args& a, const Place& place, i64 s0) {
    live = 0;
#pragma unroll
    for (int k = 0; k < ROWS; ++k) {
      i64 s = s0 + place.sub * ROWS + k, t = place.time(a, s), row = place.b * a.l + t;
      reset[k] = 0;
      if (s >= place.to || t >= place.len || !place.there) continue;
      live |= 1u << k;
      i64 at = a.reverse ? t + 1 : t;
      if (a.resets && at < place.len) reset[k] = a.resets[place.b * a.l + at];
      const Mat<T>& main = BACKWARD ? a.dh : a.x;
#pragma unroll
      for (int part = 0; part < PARTS; ++part) packs[k][part].load(main.row(row) + part * a.d + place.channel);
#if FORM == 3
      packs[k][PARTS].load(a.factors.row(row) + place.channel);
      packs[k][PARTS + 1].load(a.input.row(row) + place.channel);
#elif FORM != 0
#pragma unroll
      for (int part = 0; part < PARTS; ++part) packs[k][PARTS + part].load(a.factors.row(row) + part * a.d + place.channel);
#endif
      if constexpr (BACKWARD && WHOLE) {
        bool first = a.reverse ? at == place.len : t == 0;
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
          if (!first) packs[k][STATE + part].load(a.h.row(a.reverse ? row + 1 : row - 1) + part * a.d + place.channel);
        }
#if FORM == 3
        packs[k][GATED].load(a.x.row(row) + place.channel);
#endif
      }
    }
  }
};

// a of a thread's channels where it is constant; 8 softplus(Λ) of an RG-LRU.
__device__ __forceinline__ void load_constant(const Args& a, const Place& place, Numbers& constant) {
  fill(constant, 0.0f);
#if FORM == 0 || FORM == 3
  if (!place.there) return;
#pragma unroll
  for (int part = 0; part < PARTS; ++part)
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      float x = a.constant[part * a.d + place.channel + i];
      constant[part][i] = FORM == 0 ? x : SHARPNESS * (x > 20.0f ? x : log1pf(expf(x)));
    }
#endif
}

// Whether position k of the tile is the first of its row.
__device__ __forceinline__ bool is_first(const Args& a, const Place& place, i64 s) {
  i64 t = place.time(a, s);
  return a.reverse ? t + 1 == place.len : t == 0;
}

// a_t of a live position, 0 where the state before does not count.
template <typename TILE>
__device__ __forceinline__ void factor(const TILE& tile, int k, bool start, const Numbers& constant, Numbers& f) {
#pragma unroll
  for (int part = 0; part < PARTS; ++part) {
    float x[VEC];
    if (FORM != 0) unpack(tile.packs[k][FORM == 0 ? 0 : PARTS + part], x);
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      float y = FORM == 0 ? constant[part][i] : FORM == 1 ? x[i] : FORM == 2 ? expf(x[i]) : expf(-constant[part][i] * sigmoid(x[i]));
      f[part][i] = start ? 0.0f : y;
    }
  }
}

// The root of 1 - a² for s = -log a.
__device__ __forceinline__ float square(float s) { return -expm1f(-2.0f * s); }

// What x of a live position adds to the state.
template <typename TILE>
__device__ __forceinline__ void added(const TILE& tile, int k, bool start, const Numbers& constant, Numbers& x) {
#pragma unroll
  for (int part = 0; part < PARTS; ++part) unpack(tile.packs[k][part], x[part]);
#if FORM == 3
  float r[VEC], input[VEC];
  unpack(tile.packs[k][PARTS], r);
  unpack(tile.packs[k][PARTS + 1], input);
#pragma unroll
  for (int i = 0; i < VEC; ++i) {
    float root = start ? 1.0f : sqrtf(square(constant[0][i] * sigmoid(r[i])));
    x[0][i] *= root * sigmoid(input[i]);
  }
#endif
}

// Channels are in the order of `channel_of`, in which eight lanes write 128 neighbouring bytes at once.
struct Maps {
  float p[SUBS][PARTS][CHANNELS];
  float e[SUBS][PARTS][CHANNELS];  // then what enters each thread's positions
};

#define QUAD (VEC < 4 ? VEC : 4)

// The channel of a block at a place of `Maps`.
__device__ __forceinline__ int channel_of(int place) {
  int quad = place / (LANES * QUAD), rest = place % (LANES * QUAD);
  return rest / QUAD * VEC + quad * QUAD + rest % QUAD;
}

__device__ __forceinline__ void put(float (*to)[CHANNELS], int lane, const Numbers& x) {
#pragma unroll
  for (int part = 0; part < PARTS; ++part)
#pragma unroll
    for (int i = 0; i < VEC; i += QUAD) {
      float* at = to[part] + (i / QUAD * LANES + lane) * QUAD;
#if VEC == 1
      *at = x[part][i];
#else
      *reinterpret_cast<float4*>(at) = make_float4(x[part][i], x[part][i + 1], x[part][i + 2], x[part][i + 3]);
#endif
    }
}
__device__ __forceinline__ void take(const float (*from)[CHANNELS], int lane, Numbers& x) {
#pragma unroll
  for (int part = 0; part < PARTS; ++part)
#pragma unroll
    for (int i = 0; i < VEC; ++i) x[part][i] = from[part][(i / QUAD * LANES + lane) * QUAD + i % QUAD];
}

// What enters and leaves: of one channel, by the threads below CHANNELS.
struct Carry {
  float value[PARTS], product[PARTS];
  __device__ __forceinline__ void begin(const Args& a, const Place& place, bool ends) {
    i64 channel = place.group * CHANNELS + channel_of(threadIdx.x), row = place.b * a.chunks + place.chunk;
    bool there = threadIdx.x < CHANNELS && channel < a.d && !ends;
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      i64 at = part * a.d + channel;
      product[part] = part == 0 ? 1.0f : 0.0f;
      value[part] = 0.0f;
      if (!there) continue;
      if (a.starts) {
        value[part] = a.starts[row * PARTS * a.d + at];
      } else if (a.entering && !(a.backward && end_is_cut(a, place.b))) {
        value[part] = a.entering[place.b * PARTS * a.d + at];
      }
    }
  }
  // The maps of all threads, one after another.
  __device__ __forceinline__ void chain(Maps& maps, bool ends) {
    if (threadIdx.x >= CHANNELS) return;
#pragma unroll
    for (int sub = 0; sub < SUBS; ++sub) {
      float p[PARTS], e[PARTS];
#pragma unroll
      for (int part = 0; part < PARTS; ++part) {
        p[part] = maps.p[sub][part][threadIdx.x], e[part] = maps.e[sub][part][threadIdx.x];
        maps.e[sub][part][threadIdx.x] = value[part];
      }
      apply(p, e, value);
      if (ends) {
        float zero[PARTS] = {};
        apply(p, zero, product);
      }
    }
  }
  static __device__ __forceinline__ void apply(const float* p, const float* e, float* x) {
    if (PARTS == 1) {
      x[0] = p[0] * x[0] + e[0];
    } else {
      float re = p[0] * x[0] - p[IM] * x[IM] + e[0];
      x[IM] = p[0] * x[IM] + p[IM] * x[0] + e[IM];
      x[0] = re;
    }
  }
  __device__ __forceinline__ void end(const Args& a, const Place& place, bool ends) {
    i64 channel = place.group * CHANNELS + channel_of(threadIdx.x), row = place.b * a.chunks + place.chunk;
    if (threadIdx.x >= CHANNELS || channel >= a.d) return;
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      i64 at = part * a.d + channel;
      if (ends) {
        a.ends[row * PARTS * a.d + at] = value[part], a.products[row * PARTS * a.d + at] = product[part];
      } else if (a.leaving && place.chunk + 1 == a.chunks) {
        a.leaving[place.b * PARTS * a.d + at] = !a.backward && end_is_cut(a, place.b) ? 0.0f : value[part];
      }
    }
  }
};

template <bool ENDS>
__device__ __forceinline__ void run_forward(const Args& a) {
  constexpr int ROWS = ROWS_FORWARD, TILE = SUBS * ROWS;
  __shared__ __align__(16) Maps maps[2];
  Place place(a, false);
  Numbers constant;
  load_constant(a, place, constant);
  Carry carry;
  carry.begin(a, place, ENDS);
  Tile<ROWS, false, true> next;
  next.load(a, place, place.from);
  for (i64 s0 = place.from, turn = 0; s0 < place.to; s0 += TILE, turn ^= 1) {
    Tile<ROWS, false, true> tile = next;
    next.load(a, place, s0 + TILE);
    Numbers f[ROWS], x[ROWS], p, e;
    fill(p, 1.0f);
    fill(e, 0.0f);
#pragma unroll
    for (int k = 0; k < ROWS; ++k) {
      fill(f[k], 1.0f);
      fill(x[k], 0.0f);
      if (!(tile.live >> k & 1)) continue;
      bool start = tile.reset[k] != 0 || (!a.initial && is_first(a, place, s0 + place.sub * ROWS + k));
      factor(tile, k, start, constant, f[k]);
      added(tile, k, start, constant, x[k]);
      times(f[k], p);
      times(f[k], e);
      plus(x[k], e);
    }
    put(maps[turn].p[place.sub], place.lane, p);
    put(maps[turn].e[place.sub], place.lane, e);
    __syncthreads();
    carry.chain(maps[turn], ENDS);
    if (ENDS) continue;
    __syncthreads();
    Numbers h;
    take(maps[turn].e[place.sub], place.lane, h);
#pragma unroll
    for (int k = 0; k < ROWS; ++k) {
      i64 s = s0 + place.sub * ROWS + k;
      times(f[k], h);
      plus(x[k], h);
      if (s >= place.to || !place.there) continue;
      Numbers out;
      fill(out, 0.0f);
      if (tile.live >> k & 1) plus(h, out);
      store(a.h, place.b * a.l + place.time(a, s), place.channel, a.d, out);
    }
  }
  carry.end(a, place, ENDS);
}

// The gradients of an RG-LRU's position for that of the state, g: of x, of both gates, and to `sums` that of log a times r.
template <typename TILE>
__device__ __forceinline__ void gates_back(
    const TILE& tile, int k, bool start, const float* rate, const float* f, const float* before, const float* g,
    float* dx, float* drecurrence, float* dinput, float* sums) {
#if FORM == 3
  float r[VEC], input[VEC], x[VEC];
  unpack(tile.packs[k][PARTS], r);
  unpack(tile.packs[k][PARTS + 1], input);
  unpack(tile.packs[k][TILE::GATED], x);
#pragma unroll
  for (int i = 0; i < VEC; ++i) {
    float s = sigmoid(r[i]), gate = sigmoid(input[i]), rest = square(rate[i] * s);
    float root = start ? 1.0f : sqrtf(rest);
    dx[i] = g[i] * root * gate;
    dinput[i] = g[i] * root * x[i] * gate * (1.0f - gate);
    // The start of a segment has no a: f is 0 there.
    float slope = -2.0f * f[i] * f[i] * rsqrtf(fmaxf(4.0f * rest, LEAST_SQUARE));
    float dlog = g[i] * (before[i] * f[i] + gate * x[i] * slope);
    drecurrence[i] = -dlog * rate[i] * s * (1.0f - s);
    sums[i] += dlog * s;
  }
#endif
}

// The sums of all threads with the same channels, in order.
__device__ __forceinline__ void write_sums(const Args& a, const Place& place, Maps& maps, const Numbers& sums) {
  if (!a.partial) return;
  __syncthreads();
  put(maps.p[place.sub], place.lane, sums);
  __syncthreads();
  i64 channel = place.group * CHANNELS + channel_of(threadIdx.x);
  if (threadIdx.x >= CHANNELS || channel >= a.d) return;
#pragma unroll
  for (int part = 0; part < PARTS; ++part) {
    float sum = 0.0f;
    for (int sub = 0; sub < SUBS; ++sub) sum += maps.p[sub][part][threadIdx.x];
#if FORM == 3
    sum *= -SHARPNESS / (1.0f + expf(-a.constant[channel]));
#endif
    a.partial[(place.b * a.chunks + place.chunk) * PARTS * a.d + part * a.d + channel] = sum;
  }
}

template <bool ENDS>
__device__ __forceinline__ void run_backward(const Args& a) {
  constexpr int ROWS = ROWS_BACKWARD, TILE = SUBS * ROWS;
  typedef Tile<ROWS, true, !ENDS> Positions;
  __shared__ __align__(16) Maps maps[2];
  Place place(a, true);
  Numbers constant, sums;
  load_constant(a, place, constant);
  fill(sums, 0.0f);
  Carry carry;
  carry.begin(a, place, ENDS);
  Positions next;
  next.load(a, place, place.from);
  for (i64 s0 = place.from, turn = 0; s0 < place.to; s0 += TILE, turn ^= 1) {
    Positions tile = next;
    next.load(a, place, s0 + TILE);
    Numbers f[ROWS], dh[ROWS], p, e;
    fill(p, 1.0f);
    fill(e, 0.0f);
#pragma unroll
    for (int k = 0; k < ROWS; ++k) {
      fill(f[k], 1.0f);
      fill(dh[k], 0.0f);
      if (!(tile.live >> k & 1)) continue;
      bool first = is_first(a, place, s0 + place.sub * ROWS + k);
      factor(tile, k, tile.reset[k] != 0 || (FORM == 3 && !a.initial && first), constant, f[k]);
#pragma unroll
      for (int part = 0; part < PARTS; ++part) unpack(tile.packs[k][part], dh[k][part]);
      // The conjugate.
#pragma unroll
      for (int i = 0; i < VEC && PARTS == 2; ++i) f[k][IM][i] = -f[k][IM][i];
      times(f[k], p);
      plus(dh[k], e);
      times(f[k], e);
    }
    put(maps[turn].p[place.sub], place.lane, p);
    put(maps[turn].e[place.sub], place.lane, e);
    __syncthreads();
    carry.chain(maps[turn], ENDS);
    if constexpr (!ENDS) {
      __syncthreads();
      Numbers c;
      take(maps[turn].e[place.sub], place.lane, c);
#pragma unroll
      for (int k = 0; k < ROWS; ++k) {
        i64 s = s0 + place.sub * ROWS + k, row = place.b * a.l + place.time(a, s);
        plus(dh[k], c);
        if (s >= place.to || !place.there) continue;
        Numbers before, da, dx;
        fill(before, 0.0f);
        fill(da, 0.0f);
        fill(dx, 0.0f);
        float dinput[VEC] = {};
        if (tile.live >> k & 1) {
          bool first = is_first(a, place, s), cut = tile.reset[k] != 0;
#pragma unroll
          for (int part = 0; part < PARTS; ++part) {
            if (cut) continue;
            if (!first) {
              unpack(tile.packs[k][Positions::STATE + part], before[part]);
            } else if (a.initial) {
#pragma unroll
              for (int i = 0; i < VEC; ++i) {
                before[part][i] = a.initial[place.b * PARTS * a.d + part * a.d + place.channel + i];
              }
            }
          }
          // c is g now: of the state, and with it of x.
          if (FORM == 3) {
            bool start = cut || (first && !a.initial);
            gates_back(tile, k, start, constant[0], f[k][0], before[0], c[0], dx[0], da[0], dinput, sums[0]);
          } else {
            plus(c, dx);
            // g conj(before); of a logarithm times a.
#pragma unroll
            for (int i = 0; i < VEC && PARTS == 2; ++i) before[IM][i] = -before[IM][i];
            plus(c, da);
            times(before, da);
            if (FORM == 2) times(f[k], da);
            if (FORM == 0) plus(da, sums);
          }
        }
        store(a.dx, row, place.channel, a.d, dx);
#if FORM != 0
        if (a.dfactors.data) store(a.dfactors, row, place.channel, a.d, da);
#endif
#if FORM == 3
        if (a.dinput.data) store(a.dinput.row(row) + place.channel, dinput);
#endif
        times(f[k], c);
      }
    }
  }
  carry.end(a, place, ENDS);
  if (!ENDS) write_sums(a, place, maps[0], sums);
}

extern "C" __global__ void __launch_bounds__(THREADS, 3) forward(const __grid_constant__ Args a) {
  run_forward<false>(a);
}
extern "C" __global__ void __launch_bounds__(THREADS, 3) forward_ends(const __grid_constant__ Args a) {
  run_forward<true>(a);
}
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_BACKWARD) backward(const __grid_constant__ Args a) {
  run_backward<false>(a);
}
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_BACKWARD) backward_ends(const __grid_constant__ Args a) {
  run_backward<true>(a);
}

// What enters every chunk of a row, one after another: a thread for each channel of the batch.
extern "C" __global__ void __launch_bounds__(THREADS) chain(const __grid_constant__ Args a) {
  i64 at = i64(blockIdx.x) * THREADS + threadIdx.x;
  if (at >= a.b * a.d) return;
  i64 b = at / a.d, channel = at - b * a.d;
  float value[PARTS];
  bool enters = a.entering && !(a.backward && end_is_cut(a, b));
#pragma unroll
  for (int part = 0; part < PARTS; ++part) {
    value[part] = enters ? a.entering[(b * PARTS + part) * a.d + channel] : 0.0f;
  }
  for (i64 chunk = 0; chunk < a.chunks; ++chunk) {
    float p[PARTS], e[PARTS];
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      i64 place = ((b * a.chunks + chunk) * PARTS + part) * a.d + channel;
      a.starts[place] = value[part];
      p[part] = a.products[place], e[part] = a.ends[place];
    }
    Carry::apply(p, e, value);
  }
}

// One position of every row: `entering` and `leaving` may be the same memory.
extern "C" __global__ void __launch_bounds__(THREADS) step(const __grid_constant__ Args a) {
  i64 at = i64(blockIdx.x) * THREADS + threadIdx.x;
  if (at >= a.b * a.d) return;
  i64 b = at / a.d, channel = at - b * a.d;
  bool live = !a.lengths || a.lengths[b] > 0, reset = live && a.resets && a.resets[b] != 0;
  // In reverse a reset is behind the position.
  bool cut = reset && !a.reverse;
  float f[PARTS], x[PARTS], h[PARTS];
#pragma unroll
  for (int part = 0; part < PARTS; ++part) {
    i64 c = part * a.d + channel;
    h[part] = a.entering && !cut ? a.entering[b * PARTS * a.d + c] : 0.0f;
    x[part] = to_float(a.x.row(b)[c]);
    f[part] = FORM == 0 ? a.constant[c] : to_float(a.factors.row(b)[c]);
  }
#if FORM == 2
  f[0] = expf(f[0]);
#elif FORM == 3
  float lambda = a.constant[channel], rate = SHARPNESS * (lambda > 20.0f ? lambda : log1pf(expf(lambda)));
  float s = rate * sigmoid(f[0]);
  x[0] *= sigmoid(to_float(a.input.row(b)[channel])) * (cut || !a.entering ? 1.0f : sqrtf(square(s)));
  f[0] = expf(-s);
#endif
  float kept[PARTS];
#pragma unroll
  for (int part = 0; part < PARTS; ++part) kept[part] = h[part];
  Carry::apply(f, x, h);
#pragma unroll
  for (int part = 0; part < PARTS; ++part) {
    i64 c = part * a.d + channel;
    a.h.row(b)[c] = from_float<T>(live ? h[part] : 0.0f);
    float left = live ? h[part] : kept[part];
    if (a.leaving) a.leaving[b * PARTS * a.d + c] = reset && a.reverse ? 0.0f : left;
  }
}
