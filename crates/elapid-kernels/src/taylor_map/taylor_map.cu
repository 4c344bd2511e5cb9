// Features of a head of F columns: 1, F first powers, F (F + 1) / 2 products. T is the dtype. A warp works on a head of a row.

#define FEATURES (1 + F + F * (F + 1) / 2)
#define WARPS 8

struct Args {
  Mat<T> x, y;  // y: its gradient in the backward
  Mat<T> dx;
  i64 rows;
  i64 heads;
  float first, square, product;
};

// The place of the product of i and i.
__device__ __forceinline__ int line(int i) { return 1 + F + i * F - i * (i - 1) / 2; }

extern "C" __global__ void __launch_bounds__(32 * WARPS) forward(const __grid_constant__ Args a) {
  __shared__ float all[WARPS][F];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float* x = all[warp];
  for (i64 at = i64(blockIdx.x) * WARPS + warp; at < a.rows * a.heads; at += i64(gridDim.x) * WARPS) {
    i64 r = at / a.heads, head = at - r * a.heads;
    const T* from = a.x.row(r) + head * F;
    T* y = a.y.row(r) + head * FEATURES;
    for (int i = lane; i < F; i += 32) x[i] = to_float(from[i]);
    __syncwarp();
    if (lane == 0) y[0] = from_float<T>(1.0f);
    for (int i = lane; i < F; i += 32) y[1 + i] = from_float<T>(a.first * x[i]);
    // Line i has F - i products: i and F - 1 - i have F + 1 together.
    for (int p = lane; p < F * (F + 1) / 2; p += 32) {
      int pair = p / (F + 1), c = p - pair * (F + 1);
      int i = c < F - pair ? pair : F - 1 - pair;
      int j = c < F - pair ? pair + c : c - (F - pair) + i;
      y[line(i) + j - i] = from_float<T>((i == j ? a.square : a.product) * x[i] * x[j]);
    }
    __syncwarp();
  }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) backward(const __grid_constant__ Args a) {
  __shared__ float all[WARPS][F];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float* x = all[warp];
  for (i64 at = i64(blockIdx.x) * WARPS + warp; at < a.rows * a.heads; at += i64(gridDim.x) * WARPS) {
    i64 r = at / a.heads, head = at - r * a.heads;
    const T* from = a.x.row(r) + head * F;
    const T* dy = a.y.row(r) + head * FEATURES;
    T* dx = a.dx.row(r) + head * F;
    for (int i = lane; i < F; i += 32) x[i] = to_float(from[i]);
    __syncwarp();
    for (int i = lane; i < F; i += 32) {
      float sum = a.first * to_float(dy[1 + i]) + 2.0f * a.square * x[i] * to_float(dy[line(i)]);
      for (int j = 0; j < i; ++j) sum += a.product * x[j] * to_float(dy[line(j) + i - j]);
      for (int j = i + 1; j < F; ++j) sum += a.product * x[j] * to_float(dy[line(i) + j - i]);
      dx[i] = from_float<T>(sum);
    }
    __syncwarp();
  }
}
