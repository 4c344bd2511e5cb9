// A thread has a column. It reads the rows of p as often as it needs them: they are few, and remain in the cache.

struct Args {
  Mat<float> p;
  Mat<float> y;  // its gradient in the backward
  Mat<float> dp;
  i64 row;
  i64 rows;
  i64 cols;
};

__device__ __forceinline__ float most(const Args& a, i64 c) {
  float x = a.p.row(0)[c];
  for (i64 m = 1; m < a.rows; ++m) x = fmaxf(x, a.p.row(m)[c]);
  return x;
}

// The sum of exponentials, and that of rows 1 to `row`.
__device__ __forceinline__ float2 sums(const Args& a, i64 c, float top) {
  float2 sum = {0.0f, 0.0f};
  for (i64 m = 0; m < a.rows; ++m) {
    float e = expf(a.p.row(m)[c] - top);
    sum.x += e;
    if (m >= 1 && m <= a.row) sum.y += e;
  }
  return sum;
}

extern "C" __global__ void __launch_bounds__(128) forward(const __grid_constant__ Args a) {
  i64 c = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= a.cols) return;
  float2 sum = sums(a, c, most(a, c));
  a.y.row(0)[c] = sum.y / sum.x;
}

extern "C" __global__ void __launch_bounds__(128) backward(const __grid_constant__ Args a) {
  i64 c = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= a.cols) return;
  float top = most(a, c);
  float2 sum = sums(a, c, top);
  float y = sum.y / sum.x, dy = a.y.row(0)[c] / sum.x;
  for (i64 m = 0; m < a.rows; ++m) {
    float inside = m >= 1 && m <= a.row ? 1.0f : 0.0f;
    a.dp.row(m)[c] += expf(a.p.row(m)[c] - top) * dy * (inside - y);
  }
}
