// From logits to losses and the gradient of the logits. T is the dtype of logits. CAPPED: logits z become c tanh(z / c) as
// they are read, in both passes; their gradient has the factor 1 - tanh².

struct Args {
  Mat<T> logits;       // [rows v], becomes the gradient
  const i32* targets;  // [m]
  float* nll;          // [m]
  float* mean;
  float* share;  // 1 / (number of targets that count)
  i64 first;     // position of the first row
  i64 rows;
  i64 v;
  i64 m;
  float scale;
  float smoothing;
  float softcap;
  i32 gradient;
  i32 keeps;  // whether a row of logits fits in shared memory
};

#define THREADS 1024

// The logit, and the factor of its gradient.
__device__ __forceinline__ float capped(const Args& a, float z) {
#if CAPPED
  return a.softcap * tanhf(z / a.softcap);
#else
  return z;
#endif
}
__device__ __forceinline__ float slope(const Args& a, float logit) {
#if CAPPED
  float t = logit / a.softcap;
  return 1.0f - t * t;
#else
  return 1.0f;
#endif
}

// Over a block of THREADS, or of one warp.
template <typename F>
__device__ __forceinline__ float reduce(float x, float* shared, F f) {
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) x = f(x, __shfl_xor_sync(0xffffffffu, x, lane));
  if (blockDim.x == 32) {
    __syncwarp();
    return x;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  x = shared[threadIdx.x % 32];
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) x = f(x, __shfl_xor_sync(0xffffffffu, x, lane));
  return x;
}

// One block: counts the targets that are not ignored.
extern "C" __global__ void __launch_bounds__(THREADS) count(const __grid_constant__ Args a) {
  __shared__ float shared[32];
  i64 mine = 0;
  for (i64 r = threadIdx.x; r < a.m; r += THREADS) mine += a.targets[r] >= 0;
  float total = reduce(float(mine), shared, [](float x, float y) { return x + y; });
  if (threadIdx.x == 0) *a.share = 1.0f / fmaxf(total, 1.0f);
}

// A block processes one row at a time; for short rows, a warp does.
extern "C" __global__ void __launch_bounds__(THREADS) rows(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ float shared[32];
  T* kept = reinterpret_cast<T*>(memory);
  auto add = [](float x, float y) { return x + y; };
  for (i64 r = blockIdx.x; r < a.rows; r += gridDim.x) {
    T* logits = a.logits.row(r);
    i64 target = a.targets[a.first + r];
    if (target < 0) {
      if (threadIdx.x == 0) a.nll[a.first + r] = 0.0f;
      if (a.gradient) {
        for (i64 j = threadIdx.x; j < a.v; j += blockDim.x) logits[j] = from_float<T>(0.0f);
      }
      continue;
    }
    const T* row = a.keeps ? kept : logits;
    // The running maximum and the sum of exponentials relative to it, in one pass. The sum excludes the target itself: it is
    // the loss if the target is nearly certain. Vectors of eight if v is a multiple of 8.
    float max = -3.4e38f, others = 0.0f, total = 0.0f;
#if VECTOR
    for (i64 j = i64(threadIdx.x) * 8; j < a.v; j += blockDim.x * 8) {
      float x[8], before = max;
      load8(logits + j, x);
      if (a.keeps) store8(kept + j, x);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        x[i] = capped(a, x[i]);
        max = fmaxf(max, x[i]), total += x[i];
      }
      others *= fast_exp2(LOG2_E * (before - max));
#pragma unroll
      for (int i = 0; i < 8; ++i) others += j + i == target ? 0.0f : fast_exp2(LOG2_E * (x[i] - max));
    }
#else
    for (i64 j = threadIdx.x; j < a.v; j += blockDim.x) {
      T z = logits[j];
      if (a.keeps) kept[j] = z;
      float x = capped(a, to_float(z)), before = max;
      max = fmaxf(max, x), total += x;
      others = others * fast_exp2(LOG2_E * (before - max)) + (j == target ? 0.0f : fast_exp2(LOG2_E * (x - max)));
    }
#endif
    float mine = max;
    max = reduce(max, shared, [](float x, float y) { return fmaxf(x, y); });
    others = reduce(others * fast_exp2(LOG2_E * (mine - max)), shared, add);
    bool known = target < a.v;
    float above = known ? capped(a, to_float(row[target])) - max : __int_as_float(0x7fc00000);
    float own = expf(above), sum = own + others;
    // The target's logit minus the mean of the logits.
    float lead = 0.0f;
    if (a.smoothing > 0.0f) lead = above + (max - reduce(total, shared, add) / float(a.v));
    if (threadIdx.x == 0) {
      a.nll[a.first + r] = (above == 0.0f ? log1pf(others) : logf(sum) - above) + a.smoothing * lead;
    }
    if (!a.gradient) {
      __syncthreads();
      continue;
    }
    const float scale = a.scale * *a.share, factor = scale / sum;
    const float shared_by_all = scale * a.smoothing / float(a.v), own_part = scale * a.smoothing - shared_by_all;
    // The target's logit must not be overwritten before all threads have read it.
    __syncthreads();
#if VECTOR
    for (i64 j = i64(threadIdx.x) * 8; j < a.v; j += blockDim.x * 8) {
      float x[8];
      load8(row + j, x);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float z = capped(a, x[i]);
        x[i] = j + i == target ? own_part - factor * others : factor * fast_exp2(LOG2_E * (z - max)) - shared_by_all;
        x[i] *= slope(a, z);
      }
      store8(logits + j, x);
    }
#else
    for (i64 j = threadIdx.x; j < a.v; j += blockDim.x) {
      float z = capped(a, to_float(row[j]));
      float x = j == target ? own_part - factor * others : factor * fast_exp2(LOG2_E * (z - max)) - shared_by_all;
      logits[j] = from_float<T>(x * slope(a, z));
    }
#endif
    __syncthreads();
  }
}

// One block: the mean of the losses, in f64 and a fixed order.
extern "C" __global__ void __launch_bounds__(THREADS) mean(const __grid_constant__ Args a) {
  __shared__ double sums[THREADS];
  double sum = 0.0;
  for (i64 r = threadIdx.x; r < a.m; r += THREADS) sum += a.nll[r];
  sums[threadIdx.x] = sum;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *a.mean = float(sums[0] * double(*a.share));
}
