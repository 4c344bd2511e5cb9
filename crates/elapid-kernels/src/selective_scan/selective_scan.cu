// The selective scan, forward and backward.
//
// A block owns CH channels of one sequence (or of one chunk of it): G lanes share a channel, with S states each in
// registers. Time is processed in tiles: activations are read in vectors of one position's channels, softplus is computed
// once, and the tile is in shared memory as f32 while the recurrence runs over it.
//
// T: dtype of activations. G, S: lanes per channel and states per lane, G S >= n, powers of two. RULE: 0 exp-euler, 1
// zero-order hold, 2 bilinear. VECTOR: whether rows are aligned and whole, so that vectors can be read and written; G S is
// then n. SEGMENTS: whether there are resets.

#define THREADS 128
#define CH (THREADS / G)
#define NP (G * S)
// Shorter for many states, as the shared memory of a tile grows with them.
#define TILE (NP >= 256 ? 16 : 32)
#define SAVE (NP >= 256 ? 4 : NP >= 128 ? 8 : 16)

#define PER_THREAD(tile, vec) ((tile) * CH / (THREADS * (vec)) > 0 ? (tile) * CH / (THREADS * (vec)) : 1)

// VEC neighbouring values as they are in memory.
template <typename U, int VEC>
struct Pack {
  U x[VEC];
};
template <int VEC>
__device__ __forceinline__ void load_pack(const bf16* from, Pack<bf16, VEC>& p) {
  if constexpr (VEC == 8) *reinterpret_cast<uint4*>(p.x) = *reinterpret_cast<const uint4*>(from);
  if constexpr (VEC == 4) *reinterpret_cast<uint2*>(p.x) = *reinterpret_cast<const uint2*>(from);
  if constexpr (VEC == 2) *reinterpret_cast<u32*>(p.x) = *reinterpret_cast<const u32*>(from);
  if constexpr (VEC == 1) p.x[0] = *from;
}
template <int VEC>
__device__ __forceinline__ void load_pack(const float* from, Pack<float, VEC>& p) {
  if constexpr (VEC >= 4) {
#pragma unroll
    for (int i = 0; i < VEC; i += 4) *reinterpret_cast<float4*>(p.x + i) = *reinterpret_cast<const float4*>(from + i);
  }
  if constexpr (VEC == 2) *reinterpret_cast<float2*>(p.x) = *reinterpret_cast<const float2*>(from);
  if constexpr (VEC == 1) p.x[0] = *from;
}
template <int VEC>
__device__ __forceinline__ void store_pack(bf16* to, const float* x) {
  if constexpr (VEC == 8) store8(to, x);
  if constexpr (VEC == 4) *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]));
  if constexpr (VEC == 1) *to = from_float<bf16>(x[0]);
}
template <int VEC>
__device__ __forceinline__ void store_pack(float* to, const float* x) {
  if constexpr (VEC == 8) store8(to, x);
  if constexpr (VEC == 4) *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
  if constexpr (VEC == 1) *to = x[0];
}
template <typename U, int VEC>
__device__ __forceinline__ void clear(Pack<U, VEC>& p) {
#pragma unroll
  for (int i = 0; i < VEC; ++i) p.x[i] = U{};
}

// What a block works on.
struct Job {
  i64 row, chunk, from, to, len, first;  // first: its first channel
  int g, ch;
  bool live;
  __device__ __forceinline__ Job(const Args& a) {
    row = blockIdx.z;
    chunk = blockIdx.y;
    from = chunk * a.chunk;
    to = from + a.chunk < a.l ? from + a.chunk : a.l;
    len = a.lengths == nullptr || a.lengths[row] > a.l ? a.l : a.lengths[row];
    first = i64(blockIdx.x) * CH;
    g = threadIdx.x % G;
    ch = threadIdx.x / G;
    live = first + ch < a.d;
  }
  // Offset of this lane's states in a `[.. d NP]` array.
  __device__ __forceinline__ i64 at(const Args& a, i64 index) const {
    return (index * a.d + first + ch) * NP + g * S;
  }
};

__device__ __forceinline__ void load_states(const float* from, float* h) {
  if constexpr (S % 4 == 0) {
#pragma unroll
    for (int s = 0; s < S; s += 4) {
      float4 v = *reinterpret_cast<const float4*>(from + s);
      h[s] = v.x, h[s + 1] = v.y, h[s + 2] = v.z, h[s + 3] = v.w;
    }
  } else {
#pragma unroll
    for (int s = 0; s < S; ++s) h[s] = from[s];
  }
}
__device__ __forceinline__ void store_states(float* to, const float* h) {
  if constexpr (S % 4 == 0) {
#pragma unroll
    for (int s = 0; s < S; s += 4) {
      *reinterpret_cast<float4*>(to + s) = make_float4(h[s], h[s + 1], h[s + 2], h[s + 3]);
    }
  } else {
#pragma unroll
    for (int s = 0; s < S; ++s) to[s] = h[s];
  }
}

// A, times log2 e if it goes into a power of 2; 0 for padding states.
__device__ __forceinline__ void load_a(const Args& a, const Job& job, float* a2) {
#pragma unroll
  for (int s = 0; s < S; ++s) {
    int n = job.g * S + s;
    float x = job.live && n < a.n ? a.a[(job.first + job.ch) * a.n + n] : 0.0f;
    a2[s] = RULE == 0 ? LOG2_E * x : x;
  }
}

// A `[b d n]` array: from and to the lanes' states.
__device__ __forceinline__ void load_narrow(const float* from, const Args& a, const Job& job, float* h) {
#pragma unroll
  for (int s = 0; s < S; ++s) {
    int n = job.g * S + s;
    bool there = from != nullptr && job.live && n < a.n;
    h[s] = there ? from[(job.row * a.d + job.first + job.ch) * a.n + n] : 0.0f;
  }
}
__device__ __forceinline__ void store_narrow(float* to, const Args& a, const Job& job, const float* h) {
#pragma unroll
  for (int s = 0; s < S; ++s) {
    int n = job.g * S + s;
    if (job.live && n < a.n) to[(job.row * a.d + job.first + job.ch) * a.n + n] = h[s];
  }
}

// The tile of an activation `[b l d]` that begins at position t0: this thread's share. Outside the sequence it is 0.
template <int SIZE, int VEC>
struct Share {
  static constexpr int COUNT = PER_THREAD(SIZE, VEC);
  Pack<T, VEC> p[COUNT];

  static __device__ __forceinline__ int t(int i) { return (threadIdx.x + i * THREADS) * VEC / CH; }
  static __device__ __forceinline__ int c(int i) { return (threadIdx.x + i * THREADS) * VEC % CH; }

  __device__ __forceinline__ void load(const Mat<T>& m, const Args& a, const Job& job, i64 t0) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      i64 at = t0 + t(i);
      bool there = t(i) < SIZE && at >= 0 && at < job.to && at < job.len && job.first + c(i) < a.d;
      clear(p[i]);
      if (there) load_pack<VEC>(m.row(job.row * a.l + at) + job.first + c(i), p[i]);
    }
  }
};

// The same for B or C, `[b l n]`.
#if VECTOR
#define BC_VEC(size) ((size) * NP / THREADS >= 4 ? 4 : (size) * NP / THREADS >= 2 ? 2 : 1)
#else
#define BC_VEC(size) 1
#endif
template <int SIZE>
struct ShareBC {
  static constexpr int VEC = BC_VEC(SIZE);
  static constexpr int COUNT = SIZE * NP / (THREADS * VEC) > 0 ? SIZE * NP / (THREADS * VEC) : 1;
  Pack<T, VEC> p[COUNT];

  static __device__ __forceinline__ int t(int i) { return (threadIdx.x + i * THREADS) * VEC / NP; }
  static __device__ __forceinline__ int n(int i) { return (threadIdx.x + i * THREADS) * VEC % NP; }

  __device__ __forceinline__ void load(const Mat<T>& m, const Args& a, const Job& job, i64 t0) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      i64 at = t0 + t(i);
      bool there = t(i) < SIZE && at >= 0 && at < job.to && at < job.len && n(i) < a.n;
      clear(p[i]);
      if (there) load_pack<VEC>(m.row(job.row * a.l + at) + n(i), p[i]);
    }
  }
  __device__ __forceinline__ void put(float (*to)[NP]) const {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (t(i) >= SIZE) continue;
#pragma unroll
      for (int k = 0; k < VEC; ++k) to[t(i)][n(i) + k] = to_float(p[i].x[k]);
    }
  }
};

// The sum over the G lanes of a channel of four values at once: lane j of the first four gets that of value j.
__device__ __forceinline__ float gather4(const float* v, int g) {
  bool odd = g & 1, upper = g & 2;
  float r0 = (odd ? v[1] : v[0]) + __shfl_xor_sync(0xffffffffu, odd ? v[0] : v[1], 1);
  float r1 = (odd ? v[3] : v[2]) + __shfl_xor_sync(0xffffffffu, odd ? v[2] : v[3], 1);
  float r = (upper ? r1 : r0) + __shfl_xor_sync(0xffffffffu, upper ? r0 : r1, 2);
#pragma unroll
  for (int m = 4; m < G; m *= 2) r += __shfl_xor_sync(0xffffffffu, r, m);
  return r;
}

__device__ __forceinline__ float step_size(const Args& a, float raw) { return a.softplus ? softplus(raw) : raw; }

#define FV (VECTOR ? 8 : 1)

// ENDS: computes only a chunk's final state from zeros, and its factor of the initial state.
template <bool ENDS>
__device__ __forceinline__ void scan(const Args& a) {
  __shared__ float2 steps[TILE][CH];  // Δ, and Δ u (exp-euler) or u
  __shared__ __align__(16) float tile_b[TILE][NP], tile_c[ENDS ? 1 : TILE][NP];
  __shared__ float sums[ENDS ? 1 : TILE][CH];
  __shared__ float bias[CH], skip[CH];
  __shared__ u8 resets[TILE];
  Job job(a);
  float a2[S], h[S], product[S];
  load_a(a, job, a2);
  if (threadIdx.x < CH) {
    bool there = job.first + threadIdx.x < a.d;
    bias[threadIdx.x] = there && a.delta_bias != nullptr ? a.delta_bias[job.first + threadIdx.x] : 0.0f;
    skip[threadIdx.x] = there && a.skip != nullptr ? a.skip[job.first + threadIdx.x] : 0.0f;
  }
#pragma unroll
  for (int s = 0; s < S; ++s) h[s] = 0.0f, product[s] = 1.0f;
  if (!ENDS) {
    if (a.starts != nullptr) {
      if (job.live) load_states(a.starts + job.at(a, job.row * a.chunks + job.chunk), h);
    } else {
      load_narrow(a.initial, a, job, h);
    }
  }
  bool gated = !ENDS && a.z.data != nullptr;
  i64 tiles = (a.l + SAVE - 1) / SAVE;
  Share<TILE, FV> u, delta, z;
  ShareBC<TILE> b, c;
  u.load(a.u, a, job, job.from);
  delta.load(a.delta, a, job, job.from);
  b.load(a.b, a, job, job.from);
  if (gated) z.load(a.z, a, job, job.from);
  if (!ENDS) c.load(a.c, a, job, job.from);
  __syncthreads();

  for (i64 t0 = job.from; t0 < job.to; t0 += TILE) {
#pragma unroll
    for (int i = 0; i < u.COUNT; ++i) {
      int t = u.t(i), cc = u.c(i);
      if (t >= TILE) continue;
      bool inside = t0 + t < job.to && t0 + t < job.len;
#pragma unroll
      for (int k = 0; k < FV; ++k) {
        float dt = inside ? step_size(a, to_float(delta.p[i].x[k]) + bias[cc + k]) : 0.0f;
        float x = to_float(u.p[i].x[k]);
        steps[t][cc + k] = make_float2(dt, RULE == 0 ? dt * x : x);
      }
    }
    b.put(tile_b);
    if (!ENDS) c.put(tile_c);
    if (SEGMENTS && threadIdx.x < TILE) {
      i64 t = t0 + threadIdx.x;
      resets[threadIdx.x] = t < job.to && t < job.len && a.resets[job.row * a.l + t] != 0;
    }
    __syncthreads();
    auto u_now = u;
    auto z_now = z;
    if (t0 + TILE < job.to) {
      u.load(a.u, a, job, t0 + TILE);
      delta.load(a.delta, a, job, t0 + TILE);
      b.load(a.b, a, job, t0 + TILE);
      if (gated) z.load(a.z, a, job, t0 + TILE);
      if (!ENDS) c.load(a.c, a, job, t0 + TILE);
    }
#pragma unroll 2
    for (int t4 = 0; t4 < TILE; t4 += 4) {
      if (!ENDS && a.saved != nullptr && t4 % SAVE == 0 && t0 + t4 < a.l && job.live) {
        store_states(a.saved + job.at(a, job.row * tiles + (t0 + t4) / SAVE), h);
      }
      float y[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float2 step = steps[t4 + j][job.ch];
        float wb[S], wc[S];
        load_states(&tile_b[t4 + j][job.g * S], wb);
        if (!ENDS) load_states(&tile_c[ENDS ? 0 : t4 + j][job.g * S], wc);
        bool reset = SEGMENTS && resets[t4 + j];
        y[j] = 0.0f;
#pragma unroll
        for (int s = 0; s < S; ++s) {
          float decayed = decay(step.x, a2[s]);
          if (reset) decayed = 0.0f;
          float in = RULE == 0 ? step.y * wb[s] : weight(step.x, a2[s]) * step.y * wb[s];
          h[s] = decayed * h[s] + in;
          if (ENDS) product[s] *= decayed;
          if (!ENDS) y[j] += wc[s] * h[s];
        }
      }
      if (!ENDS) {
        float y_mine = gather4(y, job.g);
        if (job.g < 4) sums[t4 + job.g][job.ch] = y_mine;
      }
    }
    __syncthreads();
    if (!ENDS) {
#pragma unroll
      for (int i = 0; i < u.COUNT; ++i) {
        int t = u.t(i), cc = u.c(i);
        if (t >= TILE || t0 + t >= job.to || job.first + cc >= a.d) continue;
        bool inside = t0 + t < job.len;
        float y[FV];
#pragma unroll
        for (int k = 0; k < FV; ++k) {
          y[k] = sums[t][cc + k] + skip[cc + k] * to_float(u_now.p[i].x[k]);
          if (gated) y[k] *= silu(to_float(z_now.p[i].x[k]));
          if (!inside) y[k] = 0.0f;
        }
        store_pack<FV>(a.y.row(job.row * a.l + t0 + t) + job.first + cc, y);
      }
    }
  }
  if (ENDS) {
    if (!job.live) return;
    store_states(a.ends + job.at(a, job.row * a.chunks + job.chunk), h);
    store_states(a.decays + job.at(a, job.row * a.chunks + job.chunk), product);
  } else if (job.to == a.l) {
    store_narrow(a.last, a, job, h);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) forward(const __grid_constant__ Args a) { scan<false>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) forward_ends(const __grid_constant__ Args a) { scan<true>(a); }

// The states before all chunks, one after another. `backward`: the gradients after them, from the last.
__device__ __forceinline__ void chain(const Args& a, const float* first, bool reverse) {
  i64 at = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= a.batch * a.d * NP) return;
  i64 n = at % NP, c = at / NP % a.d, row = at / NP / a.d;
  float h = first != nullptr && n < a.n ? first[(row * a.d + c) * a.n + n] : 0.0f;
  for (i64 k = 0; k < a.chunks; ++k) {
    i64 chunk = reverse ? a.chunks - 1 - k : k;
    i64 i = ((row * a.chunks + chunk) * a.d + c) * NP + n;
    a.starts[i] = h;
    h = a.decays[i] * h + a.ends[i];
  }
}
extern "C" __global__ void __launch_bounds__(THREADS) chain_forward(const __grid_constant__ Args a) {
  chain(a, a.initial, false);
}
extern "C" __global__ void __launch_bounds__(THREADS) chain_backward(const __grid_constant__ Args a) {
  chain(a, a.dlast, true);
}

#define BV (VECTOR ? 4 : 1)

// A chunk's gradient at its beginning for a zero gradient at its end, and its factor of the gradient at its end.
extern "C" __global__ void __launch_bounds__(THREADS) backward_ends(const __grid_constant__ Args a) {
  __shared__ float2 steps[SAVE][CH];  // Δ, and the gradient of C h + D u
  __shared__ __align__(16) float tile_c[SAVE][NP];
  __shared__ float bias[CH];
  __shared__ u8 resets[SAVE];
  Job job(a);
  float a2[S], dh[S], product[S];
  load_a(a, job, a2);
  if (threadIdx.x < CH) {
    bool there = job.first + threadIdx.x < a.d && a.delta_bias != nullptr;
    bias[threadIdx.x] = there ? a.delta_bias[job.first + threadIdx.x] : 0.0f;
  }
#pragma unroll
  for (int s = 0; s < S; ++s) dh[s] = 0.0f, product[s] = 1.0f;
  __syncthreads();
  i64 t0 = (job.to - 1 - job.from) / SAVE * SAVE + job.from;
  Share<SAVE, BV> delta, z, dy;
  ShareBC<SAVE> c;
  delta.load(a.delta, a, job, t0);
  dy.load(a.dy, a, job, t0);
  c.load(a.c, a, job, t0);
  if (a.z.data != nullptr) z.load(a.z, a, job, t0);
  for (; t0 >= job.from; t0 -= SAVE) {
#pragma unroll
    for (int i = 0; i < dy.COUNT; ++i) {
      int t = dy.t(i), cc = dy.c(i);
      if (t >= SAVE) continue;
      bool inside = t0 + t < job.to && t0 + t < job.len;
#pragma unroll
      for (int k = 0; k < BV; ++k) {
        float dt = inside ? step_size(a, to_float(delta.p[i].x[k]) + bias[cc + k]) : 0.0f;
        float g = to_float(dy.p[i].x[k]);
        if (a.z.data != nullptr) g *= silu(to_float(z.p[i].x[k]));
        steps[t][cc + k] = make_float2(dt, g);
      }
    }
    c.put(tile_c);
    if (SEGMENTS && threadIdx.x < SAVE) {
      i64 t = t0 + threadIdx.x;
      resets[threadIdx.x] = t < job.to && t < job.len && a.resets[job.row * a.l + t] != 0;
    }
    __syncthreads();
    if (t0 > job.from) {
      delta.load(a.delta, a, job, t0 - SAVE);
      dy.load(a.dy, a, job, t0 - SAVE);
      c.load(a.c, a, job, t0 - SAVE);
      if (a.z.data != nullptr) z.load(a.z, a, job, t0 - SAVE);
    }
#pragma unroll 4
    for (int t = SAVE - 1; t >= 0; --t) {
      float2 step = steps[t][job.ch];
      float wc[S];
      load_states(&tile_c[t][job.g * S], wc);
      bool reset = SEGMENTS && resets[t];
#pragma unroll
      for (int s = 0; s < S; ++s) {
        float decayed = reset ? 0.0f : decay(step.x, a2[s]);
        dh[s] = decayed * (dh[s] + wc[s] * step.y);
        product[s] *= decayed;
      }
    }
    __syncthreads();
  }
  if (!job.live) return;
  store_states(a.ends + job.at(a, job.row * a.chunks + job.chunk), dh);
  store_states(a.decays + job.at(a, job.row * a.chunks + job.chunk), product);
}

extern "C" __global__ void __launch_bounds__(THREADS, 3) backward(const __grid_constant__ Args a) {
  __shared__ float2 steps[SAVE][CH];   // Δ, and Δ u (exp-euler) or u
  __shared__ float grads[SAVE][CH];    // gradient of C h + D u
  __shared__ float2 sums[SAVE][CH];    // Σ over states: of what becomes du, and of what becomes dΔ
  __shared__ float sums_y[SAVE][CH];   // C h
  __shared__ __align__(16) float tile_b[SAVE][NP], tile_c[SAVE][NP];
  __shared__ float sums_bc[THREADS / 32][SAVE][2 * NP];
  __shared__ float bias[CH], skip[CH];
  __shared__ u8 resets[SAVE];
  Job job(a);
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float a2[S], dh[S], da[S];
  load_a(a, job, a2);
  if (threadIdx.x < CH) {
    bool there = job.first + threadIdx.x < a.d;
    bias[threadIdx.x] = there && a.delta_bias != nullptr ? a.delta_bias[job.first + threadIdx.x] : 0.0f;
    skip[threadIdx.x] = there && a.skip != nullptr ? a.skip[job.first + threadIdx.x] : 0.0f;
  }
#pragma unroll
  for (int s = 0; s < S; ++s) dh[s] = da[s] = 0.0f;
  if (a.starts != nullptr) {
    if (job.live) load_states(a.starts + job.at(a, job.row * a.chunks + job.chunk), dh);
  } else {
    load_narrow(a.dlast, a, job, dh);
  }
  bool gated = a.z.data != nullptr;
  i64 tiles = (a.l + SAVE - 1) / SAVE;
  i64 t0 = (job.to - 1 - job.from) / SAVE * SAVE + job.from;
  Share<SAVE, BV> u, delta, z, dy;
  ShareBC<SAVE> b, c;
  constexpr int COUNT = Share<SAVE, BV>::COUNT;
  float sum_bias[COUNT * BV], sum_skip[COUNT * BV];
#pragma unroll
  for (int i = 0; i < COUNT * BV; ++i) sum_bias[i] = sum_skip[i] = 0.0f;
  u.load(a.u, a, job, t0);
  delta.load(a.delta, a, job, t0);
  dy.load(a.dy, a, job, t0);
  b.load(a.b, a, job, t0);
  c.load(a.c, a, job, t0);
  if (gated) z.load(a.z, a, job, t0);
  __syncthreads();

  for (; t0 >= job.from; t0 -= SAVE) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      int t = u.t(i), cc = u.c(i);
      if (t >= SAVE) continue;
      bool inside = t0 + t < job.to && t0 + t < job.len;
#pragma unroll
      for (int k = 0; k < BV; ++k) {
        float dt = inside ? step_size(a, to_float(delta.p[i].x[k]) + bias[cc + k]) : 0.0f;
        float x = to_float(u.p[i].x[k]), g = to_float(dy.p[i].x[k]);
        if (gated) g *= silu(to_float(z.p[i].x[k]));
        steps[t][cc + k] = make_float2(dt, RULE == 0 ? dt * x : x);
        grads[t][cc + k] = g;
      }
    }
    b.put(tile_b);
    c.put(tile_c);
    if (SEGMENTS && threadIdx.x < SAVE) {
      i64 t = t0 + threadIdx.x;
      resets[threadIdx.x] = t < job.to && t < job.len && a.resets[job.row * a.l + t] != 0;
    }
    float before[S], h[SAVE][S];
#pragma unroll
    for (int s = 0; s < S; ++s) before[s] = 0.0f;
    if (job.live) load_states(a.saved + job.at(a, job.row * tiles + t0 / SAVE), before);
    __syncthreads();

    // The states of the tile recomputed, and C h for the gate.
#pragma unroll
    for (int t4 = 0; t4 < SAVE; t4 += 4) {
      float y[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        int t = t4 + j;
        float2 step = steps[t][job.ch];
        float wb[S], wc[S];
        load_states(&tile_b[t][job.g * S], wb);
        load_states(&tile_c[t][job.g * S], wc);
        bool reset = SEGMENTS && resets[t];
        y[j] = 0.0f;
#pragma unroll
        for (int s = 0; s < S; ++s) {
          float decayed = decay(step.x, a2[s]);
          if (reset) decayed = 0.0f;
          float in = RULE == 0 ? step.y * wb[s] : weight(step.x, a2[s]) * step.y * wb[s];
          h[t][s] = decayed * (t == 0 ? before[s] : h[t == 0 ? 0 : t - 1][s]) + in;
          y[j] += wc[s] * h[t][s];
        }
      }
      if (gated) {
        float y_mine = gather4(y, job.g);
        if (job.g < 4) sums_y[t4 + job.g][job.ch] = y_mine;
      }
    }

#pragma unroll
    for (int t4 = SAVE - 4; t4 >= 0; t4 -= 4) {
      float q[4], r[4];
#pragma unroll
      for (int j = 3; j >= 0; --j) {
        int t = t4 + j;
        float2 step = steps[t][job.ch];
        float g = grads[t][job.ch];
        float wb[S], wc[S], v[2 * S];
        load_states(&tile_b[t][job.g * S], wb);
        load_states(&tile_c[t][job.g * S], wc);
        bool reset = SEGMENTS && resets[t];
        q[j] = r[j] = 0.0f;
#pragma unroll
        for (int s = 0; s < S; ++s) {
          float earlier = t == 0 ? before[s] : h[t == 0 ? 0 : t - 1][s];
          dh[s] += wc[s] * g;
          v[S + s] = g * h[t][s];
          if (RULE == 0) {
            v[s] = dh[s] * step.y;
            q[j] += dh[s] * wb[s];
            float decayed = decay(step.x, a2[s]);
            if (reset) decayed = 0.0f;
            dh[s] *= decayed;
            float w = dh[s] * earlier;
            r[j] += w * a2[s];
            da[s] += w * step.x;
          } else {
            float x = step.x * a2[s], decayed = decay(step.x, a2[s]), scale = weight(step.x, a2[s]);
            // Derivatives of Ā and of the factor of B u with respect to Δ and A.
            float decay_dt, decay_a, scale_dt, scale_a;
            if (RULE == 1) {
              decay_dt = a2[s] * decayed, decay_a = step.x * decayed, scale_dt = decayed;
              // Near 0 the difference cancels, so its series is used.
              float series = 0.5f + x * (0.33333333f + x * (0.125f + x * (0.033333333f + x * (0.0069444444f + x * 0.0011904762f))));
              scale_a = fabsf(x) < 0.3f ? step.x * step.x * series : (x * decayed - expm1f(x)) / (a2[s] * a2[s]);
            } else {
              float k = 1.0f / (1.0f - 0.5f * x);
              decay_dt = a2[s] * k * k, decay_a = step.x * k * k, scale_dt = k * k;
              scale_a = 0.5f * step.x * step.x * k * k;
            }
            if (reset) decayed = decay_dt = decay_a = 0.0f;
            v[s] = dh[s] * scale * step.y;
            q[j] += dh[s] * scale * wb[s];
            float through = dh[s] * earlier, in = dh[s] * wb[s] * step.y;
            r[j] += through * decay_dt + in * scale_dt;
            da[s] += through * decay_a + in * scale_a;
            dh[s] *= decayed;
          }
        }
        // Over the channels of the warp: half of the values are exchanged between lanes repeatedly, until each lane has its
        // own.
        int base = 0;
        bool writes = true;
#pragma unroll
        for (int m = G, width = 2 * S; m < 32; m *= 2) {
          bool bit = lane & m;
          if (width > 1) {
            width /= 2;
#pragma unroll
            for (int i = 0; i < width; ++i) {
              float keep = bit ? v[width + i] : v[i], send = bit ? v[i] : v[width + i];
              v[i] = keep + __shfl_xor_sync(0xffffffffu, send, m);
            }
            base += bit ? width : 0;
          } else {
            v[0] += __shfl_xor_sync(0xffffffffu, v[0], m);
            writes = writes && !bit;
          }
        }
        constexpr int LEFT = 2 * S * G / 32 > 0 ? 2 * S * G / 32 : 1;
#pragma unroll
        for (int i = 0; i < LEFT; ++i) {
          int at = base + i;
          if (writes) sums_bc[warp][t][(at < S ? 0 : NP - S) + job.g * S + at] = v[i];
        }
      }
      float q_mine = gather4(q, job.g), r_mine = gather4(r, job.g);
      if (job.g < 4) sums[t4 + job.g][job.ch] = make_float2(q_mine, r_mine);
    }
    auto u_now = u;
    auto delta_now = delta;
    auto z_now = z;
    auto dy_now = dy;
    if (t0 > job.from) {
      u.load(a.u, a, job, t0 - SAVE);
      delta.load(a.delta, a, job, t0 - SAVE);
      dy.load(a.dy, a, job, t0 - SAVE);
      b.load(a.b, a, job, t0 - SAVE);
      c.load(a.c, a, job, t0 - SAVE);
      if (gated) z.load(a.z, a, job, t0 - SAVE);
    }
    __syncthreads();

    for (int i = threadIdx.x; i < SAVE * 2 * NP; i += THREADS) {
      int t = i / (2 * NP), n = i % (2 * NP);
      if (t0 + t >= job.to) continue;
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < THREADS / 32; ++w) sum += sums_bc[w][t][n];
      a.partial_bc[((i64(blockIdx.x) * a.batch + job.row) * a.l + t0 + t) * (2 * NP) + n] = sum;
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      int t = u.t(i), cc = u.c(i);
      if (t >= SAVE || t0 + t >= job.to || job.first + cc >= a.d) continue;
      bool inside = t0 + t < job.len;
      float du[BV], ddelta[BV], dz[BV];
#pragma unroll
      for (int k = 0; k < BV; ++k) {
        float x = to_float(u_now.p[i].x[k]), g = grads[t][cc + k], dt = steps[t][cc + k].x;
        float2 qr = sums[t][cc + k];
        float raw = to_float(delta_now.p[i].x[k]) + bias[cc + k];
        float ddt = RULE == 0 ? LN_2 * qr.y + qr.x * x : qr.y;
        if (a.softplus) ddt *= raw > 20.0f ? 1.0f : sigmoid(raw);
        du[k] = inside ? (RULE == 0 ? dt * qr.x : qr.x) + skip[cc + k] * g : 0.0f;
        ddelta[k] = inside ? ddt : 0.0f;
        sum_bias[i * BV + k] += ddelta[k];
        sum_skip[i * BV + k] += inside ? g * x : 0.0f;
        if (gated) {
          float zz = to_float(z_now.p[i].x[k]), s = sigmoid(zz);
          float y = sums_y[t][cc + k] + skip[cc + k] * x;
          dz[k] = inside ? to_float(dy_now.p[i].x[k]) * y * s * (1.0f + zz * (1.0f - s)) : 0.0f;
        }
      }
      i64 r = job.row * a.l + t0 + t, at = job.first + cc;
      store_pack<BV>(a.du.row(r) + at, du);
      store_pack<BV>(a.ddelta.row(r) + at, ddelta);
      if (gated && a.dz.data != nullptr) store_pack<BV>(a.dz.row(r) + at, dz);
    }
    __syncthreads();
  }

  i64 part = job.row * a.chunks + job.chunk;
#pragma unroll
  for (int s = 0; s < S; ++s) {
    int n = job.g * S + s;
    if (job.live && n < a.n) a.partial_a.row(part)[(job.first + job.ch) * a.n + n] = da[s];
  }
  if (a.dinitial != nullptr && job.chunk == 0) store_narrow(a.dinitial, a, job, dh);
  // Over the positions of a tile: each channel's sums by one thread, in order.
  float2(*all)[CH] = steps;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    if (u.t(i) >= SAVE) continue;
#pragma unroll
    for (int k = 0; k < BV; ++k) {
      all[u.t(i)][u.c(i) + k] = make_float2(sum_bias[i * BV + k], sum_skip[i * BV + k]);
    }
  }
  __syncthreads();
  if (threadIdx.x < CH && job.first + threadIdx.x < a.d) {
    float2 total = make_float2(0.0f, 0.0f);
    for (int t = 0; t < SAVE; ++t) {
      float2 one = all[t][threadIdx.x];
      total.x += one.x, total.y += one.y;
    }
    a.partial_d.row(part)[job.first + threadIdx.x] = total.x;
    a.partial_d.row(part)[a.d + job.first + threadIdx.x] = total.y;
  }
}

// dB and dC: the sums of all groups of channels, in order.
extern "C" __global__ void __launch_bounds__(THREADS) join(const __grid_constant__ Args a) {
  i64 groups = (a.d + CH - 1) / CH, rows = a.batch * a.l;
  for (i64 i = i64(blockIdx.x) * THREADS + threadIdx.x; i < rows * 2 * NP; i += i64(gridDim.x) * THREADS) {
    i64 r = i / (2 * NP);
    int n = i % (2 * NP);
    float sum = 0.0f;
#pragma unroll 8
    for (i64 group = 0; group < groups; ++group) sum += a.partial_bc[group * rows * 2 * NP + i];
    if (n < NP) {
      if (n < a.n) a.db.row(r)[n] = from_float<T>(sum);
    } else if (n - NP < a.n) {
      a.dc.row(r)[n - NP] = from_float<T>(sum);
    }
  }
}
