// Mean squared error over the targets that are not NaN. T is the dtype of y.

struct Args {
  Mat<T> y;
  const float* targets;
  Mat<T> dy;
  double* parts;  // [blocks 2]: sum of squares, number of targets
  float* mean;
  float* count;
  i64 len;
  i64 cols;
  i32 blocks;
  float scale;
};

#define THREADS 256

// The sum over a block, on thread 0, always in the same order.
__device__ __forceinline__ double block_sum(double x, double* shared) {
  __syncthreads();
  shared[threadIdx.x] = x;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  return shared[0];
}

__device__ __forceinline__ i64 offset(const Args& a, i64 i, i64 stride) {
  return stride == a.cols ? i : i / a.cols * stride + i % a.cols;
}

extern "C" __global__ void __launch_bounds__(THREADS) parts(const __grid_constant__ Args a) {
  __shared__ double shared[THREADS];
  double sum = 0.0, count = 0.0;
  for (i64 i = i64(blockIdx.x) * THREADS + threadIdx.x; i < a.len; i += i64(gridDim.x) * THREADS) {
    float t = a.targets[i];
    if (isnan(t)) continue;
    double off = to_float(a.y.data[offset(a, i, a.y.stride)]) - t;
    sum += off * off;
    count += 1.0;
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) a.parts[2 * blockIdx.x] = sum;
  count = block_sum(count, shared);
  if (threadIdx.x == 0) a.parts[2 * blockIdx.x + 1] = count;
}

extern "C" __global__ void __launch_bounds__(THREADS) mean(const __grid_constant__ Args a) {
  __shared__ double shared[THREADS];
  bool mine = threadIdx.x < a.blocks;
  double sum = block_sum(mine ? a.parts[2 * threadIdx.x] : 0.0, shared);
  double count = block_sum(mine ? a.parts[2 * threadIdx.x + 1] : 0.0, shared);
  if (threadIdx.x == 0) {
    count = count < 1.0 ? 1.0 : count;
    *a.mean = float(sum / count);
    *a.count = float(count);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) backward(const __grid_constant__ Args a) {
  float factor = 2.0f * a.scale / *a.count;
  for (i64 i = i64(blockIdx.x) * THREADS + threadIdx.x; i < a.len; i += i64(gridDim.x) * THREADS) {
    float t = a.targets[i], y = to_float(a.y.data[offset(a, i, a.y.stride)]);
    a.dy.data[offset(a, i, a.dy.stride)] = from_float<T>(isnan(t) ? 0.0f : factor * (y - t));
  }
}
