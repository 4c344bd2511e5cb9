// y = -exp(x), and its gradient.

struct Args {
  Mat<float> x;
  Mat<float> y;
  Mat<float> dx;
  i64 rows;
  i64 cols;
};

extern "C" __global__ void __launch_bounds__(256) forward(const __grid_constant__ Args a) {
  i64 r = blockIdx.y;
  for (i64 c = i64(blockIdx.x) * blockDim.x + threadIdx.x; c < a.cols; c += i64(gridDim.x) * blockDim.x) {
    a.y.row(r)[c] = -expf(a.x.row(r)[c]);
  }
}

// dx += y dy; x holds dy.
extern "C" __global__ void __launch_bounds__(256) backward(const __grid_constant__ Args a) {
  i64 r = blockIdx.y;
  for (i64 c = i64(blockIdx.x) * blockDim.x + threadIdx.x; c < a.cols; c += i64(gridDim.x) * blockDim.x) {
    a.dx.row(r)[c] += a.y.row(r)[c] * a.x.row(r)[c];
  }
}
