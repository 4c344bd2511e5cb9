// Uses of experts: sorted by expert, gathered, combined. T is the dtype of activations; V elements are moved at a time.

#define THREADS 256
#define STRETCH 2048
#define NOWHERE 0xffffffffu
#define MOST 1024

struct Args {
  Mat<T> x;   // [m d]
  Mat<T> xs;  // [n d]
  Mat<T> d_xs;
  Mat<float> weights, dweights;  // [m k]
  const u32* picked;  // [n]
  u32* starts;  // [experts + 1]
  u32* uses;    // [n]
  u32* places;  // [n]
  u32* counts;  // [experts stretches]: picks of an expert in a stretch of uses; after `scan`, those before it
  i64 m, d;
  u32 n, k, experts, stretches, room;
};

// Picks of each expert in a stretch of uses: a block per stretch.
extern "C" __global__ void __launch_bounds__(THREADS) count(const __grid_constant__ Args a) {
  __shared__ u32 counts[MOST];
  for (u32 e = threadIdx.x; e < a.experts; e += THREADS) counts[e] = 0;
  __syncthreads();
  u32 begin = blockIdx.x * STRETCH;
  for (u32 i = begin + threadIdx.x; i < begin + STRETCH && i < a.n; i += THREADS) {
    if (a.picked[i] < a.experts) atomicAdd(counts + a.picked[i], 1u);
  }
  __syncthreads();
  for (u32 e = threadIdx.x; e < a.experts; e += THREADS) a.counts[u64(e) * a.stretches + blockIdx.x] = counts[e];
}

// One block of MOST threads, one per expert: picks before each stretch, and where the rows of experts begin.
extern "C" __global__ void __launch_bounds__(MOST) scan(const __grid_constant__ Args a) {
  __shared__ u32 sums[32];
  u32 e = threadIdx.x, lane = e % 32, warp = e / 32, before = 0;
  if (e < a.experts) {
    u32* counts = a.counts + u64(e) * a.stretches;
    for (u32 i = 0; i < a.stretches; ++i) {
      u32 here = counts[i];
      counts[i] = before;
      before += here;
    }
  }
  u32 mine = before < a.room ? before : a.room, sum = mine;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    u32 left = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += left;
  }
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  for (u32 w = 0; w < warp; ++w) sum += sums[w];
  if (e < a.experts) a.starts[e + 1] = sum;
  if (e == 0) a.starts[0] = 0;
}

// Gives the uses of a stretch their rows, in their order.
extern "C" __global__ void __launch_bounds__(THREADS) place(const __grid_constant__ Args a) {
  constexpr int WARPS = THREADS / 32;
  __shared__ u32 next[MOST];
  __shared__ u16 counts[WARPS][MOST];
  const int mine = threadIdx.x, lane = mine % 32, warp = mine / 32;
  for (u32 e = mine; e < a.experts; e += THREADS) {
    next[e] = a.counts[u64(e) * a.stretches + blockIdx.x];
#pragma unroll
    for (int w = 0; w < WARPS; ++w) counts[w][e] = 0;
  }
  __syncthreads();
  u32 begin = blockIdx.x * STRETCH;
  for (u32 i = begin + mine; i < begin + STRETCH + mine; i += THREADS) {
    bool there = i < a.n;
    u32 e = there ? a.picked[i] : MOST;
    bool known = there && e < a.experts;
    u32 same = __match_any_sync(0xffffffffu, known ? e : MOST), before = __popc(same & ((1u << lane) - 1));
    if (known && before == 0) counts[warp][e] = __popc(same);
    __syncthreads();
    if (known) {
      u32 rank = next[e] + before;
      for (int w = 0; w < warp; ++w) rank += counts[w][e];
      u32 at = a.starts[e] + rank;
      bool fits = rank < a.room;
      a.places[i] = fits ? at : NOWHERE;
      if (fits) a.uses[at] = i;
    } else if (there) {
      a.places[i] = NOWHERE;
    }
    __syncthreads();
    for (u32 one = mine; one < a.experts; one += THREADS) {
      u32 all = 0;
#pragma unroll
      for (int w = 0; w < WARPS; ++w) {
        all += counts[w][one];
        counts[w][one] = 0;
      }
      next[one] += all;
    }
    __syncthreads();
  }
}

// V elements from a row.
__device__ __forceinline__ void take(const T* from, float* x) {
#if V == 8
  load8(from, x);
#else
  x[0] = to_float(from[0]);
#endif
}
__device__ __forceinline__ void put(T* to, const float* x) {
#if V == 8
  store8(to, x);
#else
  to[0] = from_float<T>(x[0]);
#endif
}

// A warp per row.
extern "C" __global__ void __launch_bounds__(THREADS) gather(const __grid_constant__ Args a) {
  u32 lane = threadIdx.x % 32, all = a.starts[a.experts];
  for (i64 r = i64(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32; r < a.n; r += i64(gridDim.x) * (THREADS / 32)) {
    bool used = r < all;
    const T* from = a.x.row(used ? a.uses[r] / a.k : 0);
    T* to = a.xs.row(r);
    float x[V] = {};
    for (i64 c = lane * V; c < a.d; c += 32 * V) {
      if (used) take(from + c, x);
      put(to + c, x);
    }
  }
}

// A warp per position: the sum over its uses, weighed or not.
__device__ __forceinline__ void sum_up(const Args& a, bool weighed) {
  u32 lane = threadIdx.x % 32;
  for (i64 i = i64(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32; i < a.m; i += i64(gridDim.x) * (THREADS / 32)) {
    T* to = a.x.row(i);
    const u32* places = a.places + i * a.k;
    for (i64 c = lane * V; c < a.d; c += 32 * V) {
      float sum[V] = {};
      for (u32 j = 0; j < a.k; ++j) {
        u32 r = places[j];
        if (r == NOWHERE) continue;
        float x[V], weight = weighed ? a.weights.row(i)[j] : 1.0f;
        take(a.xs.row(r) + c, x);
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += weight * x[v];
      }
      put(to + c, sum);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) gather_backward(const __grid_constant__ Args a) { sum_up(a, false); }
extern "C" __global__ void __launch_bounds__(THREADS) combine(const __grid_constant__ Args a) { sum_up(a, true); }

// A warp per row: x is dy, xs is o, d_xs its gradient.
extern "C" __global__ void __launch_bounds__(THREADS) combine_backward(const __grid_constant__ Args a) {
  u32 lane = threadIdx.x % 32, all = a.starts[a.experts];
  i64 warp = i64(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32, warps = i64(gridDim.x) * (THREADS / 32);
  for (i64 r = warp; r < a.n; r += warps) {
    float zero[V] = {};
    if (r >= all) {
      for (i64 c = lane * V; c < a.d; c += 32 * V) put(a.d_xs.row(r) + c, zero);
      continue;
    }
    u32 use = a.uses[r];
    i64 i = use / a.k;
    u32 j = use - u32(i) * a.k;
    float weight = a.weights.row(i)[j], product = 0.0f;
    for (i64 c = lane * V; c < a.d; c += 32 * V) {
      float dy[V], o[V];
      take(a.x.row(i) + c, dy);
      take(a.xs.row(r) + c, o);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        product += dy[v] * o[v];
        dy[v] *= weight;
      }
      put(a.d_xs.row(r) + c, dy);
    }
    product = warp_sum(product);
    if (lane == 0) a.dweights.row(i)[j] = product;
  }
  // Uses without a row.
  for (i64 at = warp * 32 + lane; at < a.n; at += warps * 32) {
    if (a.places[at] == NOWHERE) a.dweights.row(at / a.k)[at % a.k] = 0.0f;
  }
}
