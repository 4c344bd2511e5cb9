// Residual add and RMSNorm. T is the dtype of activations. LANES threads own a row and hold it in registers, VECTORS times
// eight values each. LANES = 0 is the form for any width and alignment: one block per row, which reads it twice.

struct Args {
  Mat<T> x;
  Mat<float> residual;
  const float* weight;
  Mat<T> y;
  Mat<float> sum;
  float* rstd;
  Mat<T> dy;
  Mat<float> dsum;
  Mat<T> dx;
  Mat<float> dresidual;
  Mat<float> partial;
  i64 rows;
  int d;
  float eps;
};

#define THREADS 256

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

#if LANES == 0

extern "C" __global__ void __launch_bounds__(THREADS) forward(const __grid_constant__ Args a) {
  let_next_start();
  wait_for_previous();
  __shared__ float shared[THREADS / 32];
  for (i64 r = blockIdx.x; r < a.rows; r += gridDim.x) {
    float squares = 0.0f;
    for (int c = threadIdx.x; c < a.d; c += THREADS) {
      float s = to_float(a.x.row(r)[c]) + (a.residual.data ? a.residual.row(r)[c] : 0.0f);
      a.sum.row(r)[c] = s;
      squares += s * s;
    }
    float rstd = rsqrtf(block_sum(squares, shared) / a.d + a.eps);
    if (threadIdx.x == 0) a.rstd[r] = rstd;
    for (int c = threadIdx.x; c < a.d; c += THREADS) {
      a.y.row(r)[c] = from_float<T>(a.sum.row(r)[c] * (rstd * a.weight[c]));
    }
  }
}

// y recomputed: the same products of the same values in every form.
extern "C" __global__ void __launch_bounds__(THREADS) scale(const __grid_constant__ Args a) {
  for (i64 r = blockIdx.x; r < a.rows; r += gridDim.x) {
    float rstd = a.rstd[r];
    for (int c = threadIdx.x; c < a.d; c += THREADS) {
      a.y.row(r)[c] = from_float<T>(a.sum.row(r)[c] * (rstd * a.weight[c]));
    }
  }
}

// Every block takes a range of rows and writes its part of the weight's gradient to a row of `partial`.
extern "C" __global__ void __launch_bounds__(THREADS) backward(const __grid_constant__ Args a) {
  __shared__ float shared[THREADS / 32];
  for (int c = threadIdx.x; c < a.d; c += THREADS) a.partial.row(blockIdx.x)[c] = 0.0f;
  for (i64 r = blockIdx.x; r < a.rows; r += gridDim.x) {
    float rstd = a.rstd[r], dot = 0.0f;
    for (int c = threadIdx.x; c < a.d; c += THREADS) {
      dot += to_float(a.dy.row(r)[c]) * a.weight[c] * a.sum.row(r)[c];
    }
    float mean = block_sum(dot, shared) * rstd / a.d;
    for (int c = threadIdx.x; c < a.d; c += THREADS) {
      float dy = to_float(a.dy.row(r)[c]), hat = a.sum.row(r)[c] * rstd;
      float dx = rstd * (dy * a.weight[c] - hat * mean) + (a.dsum.data ? a.dsum.row(r)[c] : 0.0f);
      a.dx.row(r)[c] = from_float<T>(dx);
      if (a.dresidual.data) a.dresidual.row(r)[c] = dx;
      a.partial.row(blockIdx.x)[c] += dy * hat;
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

extern "C" __global__ void __launch_bounds__(THREADS) forward(const __grid_constant__ Args a) {
  let_next_start();
  wait_for_previous();
  __shared__ float shared[THREADS / 32];
  int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
  i64 rounds = (a.rows + i64(gridDim.x) * GROUPS - 1) / (i64(gridDim.x) * GROUPS);
  for (i64 round = 0; round < rounds; ++round) {
    i64 r = (round * gridDim.x + blockIdx.x) * GROUPS + group;
    bool live = r < a.rows;
    float s[VECTORS][8];
    float squares = 0.0f;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      int c = (k * LANES + lane) * 8;
      if (!live || c >= a.d) continue;
      load8(a.x.row(r) + c, s[k]);
      if (a.residual.data) {
        float residual[8];
        load8(a.residual.row(r) + c, residual);
#pragma unroll
        for (int i = 0; i < 8; ++i) s[k][i] += residual[i];
      }
      store8(a.sum.row(r) + c, s[k]);
#pragma unroll
      for (int i = 0; i < 8; ++i) squares += s[k][i] * s[k][i];
    }
    float rstd = rsqrtf(row_sum(squares, shared) / a.d + a.eps);
    if (live && lane == 0) a.rstd[r] = rstd;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      int c = (k * LANES + lane) * 8;
      if (!live || c >= a.d) continue;
      float w[8];
      load8(a.weight + c, w);
#pragma unroll
      for (int i = 0; i < 8; ++i) s[k][i] *= rstd * w[i];
      store8(a.y.row(r) + c, s[k]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) scale(const __grid_constant__ Args a) {
  int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
  for (i64 r = i64(blockIdx.x) * GROUPS + group; r < a.rows; r += i64(gridDim.x) * GROUPS) {
    float rstd = a.rstd[r], s[VECTORS][8];
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      int c = (k * LANES + lane) * 8;
      if (c < a.d) load8(a.sum.row(r) + c, s[k]);
    }
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      int c = (k * LANES + lane) * 8;
      if (c >= a.d) continue;
      float w[8];
      load8(a.weight + c, w);
#pragma unroll
      for (int i = 0; i < 8; ++i) s[k][i] *= rstd * w[i];
      store8(a.y.row(r) + c, s[k]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) backward(const __grid_constant__ Args a) {
  extern __shared__ float parts[];  // [GROUPS d]
  __shared__ float shared[THREADS / 32];
  int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
  float dw[VECTORS][8];
#pragma unroll
  for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
    for (int i = 0; i < 8; ++i) dw[k][i] = 0.0f;
  }
  i64 rounds = (a.rows + i64(gridDim.x) * GROUPS - 1) / (i64(gridDim.x) * GROUPS);
  for (i64 round = 0; round < rounds; ++round) {
    i64 r = (round * gridDim.x + blockIdx.x) * GROUPS + group;
    bool live = r < a.rows;
    float g[VECTORS][8], hat[VECTORS][8];
    float rstd = live ? a.rstd[r] : 0.0f, dot = 0.0f;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      int c = (k * LANES + lane) * 8;
      if (!live || c >= a.d) continue;
      float w[8];
      load8(a.dy.row(r) + c, g[k]);
      load8(a.sum.row(r) + c, hat[k]);
      load8(a.weight + c, w);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        hat[k][i] *= rstd;
        dw[k][i] += g[k][i] * hat[k][i];
        g[k][i] *= w[i];
        dot += g[k][i] * hat[k][i];
      }
    }
    float mean = row_sum(dot, shared) / a.d;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      int c = (k * LANES + lane) * 8;
      if (!live || c >= a.d) continue;
      float dx[8] = {};
      if (a.dsum.data) load8(a.dsum.row(r) + c, dx);
#pragma unroll
      for (int i = 0; i < 8; ++i) dx[i] += rstd * (g[k][i] - hat[k][i] * mean);
      store8(a.dx.row(r) + c, dx);
      if (a.dresidual.data) store8(a.dresidual.row(r) + c, dx);
    }
  }
#pragma unroll
  for (int k = 0; k < VECTORS; ++k) {
    int c = (k * LANES + lane) * 8;
    if (c < a.d) store8(parts + group * a.d + c, dw[k]);
  }
  __syncthreads();
  for (int c = threadIdx.x; c < a.d; c += THREADS) {
    float sum = 0.0f;
    for (int k = 0; k < GROUPS; ++k) sum += parts[k * a.d + c];
    a.partial.row(blockIdx.x)[c] = sum;
  }
}

#endif
