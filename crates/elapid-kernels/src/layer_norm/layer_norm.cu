// Residual add and layer normalisation. T is the dtype of activations, S that of s: f32 for a sum, T where s is x. LANES
// threads own a row and hold it in registers, VECTORS times eight values each. LANES = 0 is the form for any width and
// alignment: one block per row, which reads it several times.

struct Args {
  Mat<T> x;
  Mat<float> residual;
  const float* weight;  // absent: 1
  const float* bias;    // absent: 0
  Mat<T> y;
  Mat<S> s;           // in the forward the sum to write, absent without a residual
  float* statistics;  // [rows 2]: mean, rstd
  Mat<T> dy;
  Mat<float> dsum;
  Mat<T> dx;
  Mat<float> dresidual;
  Mat<float> partial;  // a row per block: of the weight's gradient, then of the bias'
  i64 rows;
  int d;
  float keep;
  float scale;
  float eps;
};

#define THREADS 256

#if LANES == 0

// The sum over a block, the same on every thread.
__device__ __forceinline__ float block_sum(float x, float* shared) {
  x = warp_sum(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int w = 0; w < THREADS / 32; ++w) total += shared[w];
  return total;
}

__device__ __forceinline__ float sum_at(const Args& a, i64 r, int c) {
  float x = to_float(a.x.row(r)[c]);
  return a.residual.data ? a.keep * a.residual.row(r)[c] + a.scale * x : x;
}

extern "C" __global__ void __launch_bounds__(THREADS) forward(const __grid_constant__ Args a) {
  __shared__ float shared[THREADS / 32];
  for (i64 r = blockIdx.x; r < a.rows; r += gridDim.x) {
    float total = 0.0f, squares = 0.0f;
    for (int c = threadIdx.x; c < a.d; c += THREADS) total += sum_at(a, r, c);
    float mean = block_sum(total, shared) / a.d;
    for (int c = threadIdx.x; c < a.d; c += THREADS) {
      float off = sum_at(a, r, c) - mean;
      squares += off * off;
    }
    float rstd = rsqrtf(block_sum(squares, shared) / a.d + a.eps);
    if (threadIdx.x == 0) a.statistics[2 * r] = mean, a.statistics[2 * r + 1] = rstd;
    for (int c = threadIdx.x; c < a.d; c += THREADS) {
      float s = sum_at(a, r, c);
      if (a.s.data) a.s.row(r)[c] = from_float<S>(s);
      float y = (s - mean) * rstd * (a.weight ? a.weight[c] : 1.0f) + (a.bias ? a.bias[c] : 0.0f);
      a.y.row(r)[c] = from_float<T>(y);
    }
  }
}

// Every block takes some of the rows and writes its part of the parameters' gradients to a row of `partial`.
extern "C" __global__ void __launch_bounds__(THREADS) backward(const __grid_constant__ Args a) {
  __shared__ float shared[THREADS / 32];
  float* partial = a.partial.row(blockIdx.x);
  for (int c = threadIdx.x; c < 2 * a.d; c += THREADS) partial[c] = 0.0f;
  for (i64 r = blockIdx.x; r < a.rows; r += gridDim.x) {
    float mean = a.statistics[2 * r], rstd = a.statistics[2 * r + 1], total = 0.0f, dot = 0.0f;
    for (int c = threadIdx.x; c < a.d; c += THREADS) {
      float g = to_float(a.dy.row(r)[c]) * (a.weight ? a.weight[c] : 1.0f);
      total += g;
      dot += g * ((to_float(a.s.row(r)[c]) - mean) * rstd);
    }
    float mean_g = block_sum(total, shared) / a.d, mean_dot = block_sum(dot, shared) / a.d;
    for (int c = threadIdx.x; c < a.d; c += THREADS) {
      float dy = to_float(a.dy.row(r)[c]), hat = (to_float(a.s.row(r)[c]) - mean) * rstd;
      float ds = rstd * (dy * (a.weight ? a.weight[c] : 1.0f) - mean_g - hat * mean_dot);
      if (a.dsum.data) ds += a.dsum.row(r)[c];
      a.dx.row(r)[c] = from_float<T>(a.scale * ds);
      if (a.dresidual.data) a.dresidual.row(r)[c] = a.keep * ds;
      // A thread has the same columns in every row.
      partial[c] += dy * hat;
      partial[a.d + c] += dy;
    }
  }
}

#else

#define GROUPS (THREADS / LANES)

// The sum over the LANES threads of a row.
__device__ __forceinline__ float row_sum(float x, float* shared) {
  if (LANES == 32) return warp_sum(x);
  x = warp_sum(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0.0f;
  int first = threadIdx.x / LANES * (LANES / 32);
#pragma unroll
  for (int w = 0; w < LANES / 32; ++w) total += shared[first + w];
  return total;
}

// Two such sums, at the price of one's barriers.
__device__ __forceinline__ float2 row_sums(float x, float y, float2* shared) {
  x = warp_sum(x);
  y = warp_sum(y);
  if (LANES == 32) return make_float2(x, y);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = make_float2(x, y);
  __syncthreads();
  float2 total = make_float2(0.0f, 0.0f);
  int first = threadIdx.x / LANES * (LANES / 32);
#pragma unroll
  for (int w = 0; w < LANES / 32; ++w) total.x += shared[first + w].x, total.y += shared[first + w].y;
  return total;
}

// Eight values of a parameter, or of a constant in its place.
__device__ __forceinline__ void load_or(const float* from, int c, float other, float* x) {
  if (from) {
    load8(from + c, x);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = other;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) forward(const __grid_constant__ Args a) {
  __shared__ float shared[THREADS / 32];
  int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
  i64 rounds = (a.rows + i64(gridDim.x) * GROUPS - 1) / (i64(gridDim.x) * GROUPS);
  for (i64 round = 0; round < rounds; ++round) {
    i64 r = (round * gridDim.x + blockIdx.x) * GROUPS + group;
    bool live = r < a.rows;
    float s[VECTORS][8];
    float total = 0.0f, squares = 0.0f;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      int c = (k * LANES + lane) * 8;
      if (!live || c >= a.d) continue;
      load8(a.x.row(r) + c, s[k]);
      if (a.residual.data) {
        float residual[8];
        load8(a.residual.row(r) + c, residual);
#pragma unroll
        for (int i = 0; i < 8; ++i) s[k][i] = a.keep * residual[i] + a.scale * s[k][i];
      }
      if (a.s.data) store8(a.s.row(r) + c, s[k]);
#pragma unroll
      for (int i = 0; i < 8; ++i) total += s[k][i];
    }
    float mean = row_sum(total, shared) / a.d;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      int c = (k * LANES + lane) * 8;
      if (!live || c >= a.d) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        s[k][i] -= mean;
        squares += s[k][i] * s[k][i];
      }
    }
    float rstd = rsqrtf(row_sum(squares, shared) / a.d + a.eps);
    if (live && lane == 0) a.statistics[2 * r] = mean, a.statistics[2 * r + 1] = rstd;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      int c = (k * LANES + lane) * 8;
      if (!live || c >= a.d) continue;
      float w[8], b[8];
      load_or(a.weight, c, 1.0f, w);
      load_or(a.bias, c, 0.0f, b);
#pragma unroll
      for (int i = 0; i < 8; ++i) s[k][i] = s[k][i] * rstd * w[i] + b[i];
      store8(a.y.row(r) + c, s[k]);
    }
  }
}

// Sums the groups' parts of a parameter's gradient in a fixed order, and writes the block's row.
__device__ __forceinline__ void write_partial(const Args& a, float (*sums)[8], float* parts, float* partial) {
  int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
  __syncthreads();
#pragma unroll
  for (int k = 0; k < VECTORS; ++k) {
    int c = (k * LANES + lane) * 8;
    if (c < a.d) store8(parts + group * a.d + c, sums[k]);
  }
  __syncthreads();
  for (int c = threadIdx.x; c < a.d; c += THREADS) {
    float sum = 0.0f;
    for (int k = 0; k < GROUPS; ++k) sum += parts[k * a.d + c];
    partial[c] = sum;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) backward(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) float parts[];  // [GROUPS d]
  __shared__ float2 shared[THREADS / 32];
  int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
  float dw[VECTORS][8], db[VECTORS][8];
#pragma unroll
  for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
    for (int i = 0; i < 8; ++i) dw[k][i] = 0.0f, db[k][i] = 0.0f;
  }
  i64 rounds = (a.rows + i64(gridDim.x) * GROUPS - 1) / (i64(gridDim.x) * GROUPS);
  for (i64 round = 0; round < rounds; ++round) {
    i64 r = (round * gridDim.x + blockIdx.x) * GROUPS + group;
    bool live = r < a.rows;
    // What arrives at the sum is read before the row's sums are known, so that the memory has more to do.
    float g[VECTORS][8], hat[VECTORS][8], ds[VECTORS][8];
    float mean = live ? a.statistics[2 * r] : 0.0f, rstd = live ? a.statistics[2 * r + 1] : 0.0f;
    float total = 0.0f, dot = 0.0f;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      int c = (k * LANES + lane) * 8;
      if (!live || c >= a.d) continue;
      float w[8];
      load8(a.dy.row(r) + c, g[k]);
      load8(a.s.row(r) + c, hat[k]);
      load_or(a.weight, c, 1.0f, w);
      if (a.dsum.data) {
        load8(a.dsum.row(r) + c, ds[k]);
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) ds[k][i] = 0.0f;
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        hat[k][i] = (hat[k][i] - mean) * rstd;
        dw[k][i] += g[k][i] * hat[k][i];
        db[k][i] += g[k][i];
        g[k][i] *= w[i];
        total += g[k][i];
        dot += g[k][i] * hat[k][i];
      }
    }
    float2 sums = row_sums(total, dot, shared);
    float mean_g = sums.x / a.d, mean_dot = sums.y / a.d;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      int c = (k * LANES + lane) * 8;
      if (!live || c >= a.d) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        ds[k][i] += rstd * (g[k][i] - mean_g - hat[k][i] * mean_dot);
        g[k][i] = a.scale * ds[k][i];
      }
      store8(a.dx.row(r) + c, g[k]);
      if (a.dresidual.data) {
#pragma unroll
        for (int i = 0; i < 8; ++i) ds[k][i] *= a.keep;
        store8(a.dresidual.row(r) + c, ds[k]);
      }
    }
  }
  write_partial(a, dw, parts, a.partial.row(blockIdx.x));
  write_partial(a, db, parts, a.partial.row(blockIdx.x) + a.d);
}

#endif
