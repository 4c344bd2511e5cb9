// Kernels around matrix products. T is the dtype of y.

struct Args {
  Mat<T> y;
  const float* bias;
  Mat<float> partial;
  i64 rows;
  i64 cols;
};

// Every row becomes the bias.
extern "C" __global__ void __launch_bounds__(128) spread(const __grid_constant__ Args a) {
  i64 c = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= a.cols) return;
  T bias = from_float<T>(a.bias[c]);
  for (i64 r = blockIdx.y; r < a.rows; r += gridDim.y) a.y.row(r)[c] = bias;
}

// Sums of ranges of rows, one per block row.
extern "C" __global__ void __launch_bounds__(128) column_sums(const __grid_constant__ Args a) {
  i64 c = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= a.cols) return;
  i64 step = (a.rows + gridDim.y - 1) / gridDim.y;
  i64 from = blockIdx.y * step, to = from + step < a.rows ? from + step : a.rows;
  float sum = 0.0f;
  for (i64 r = from; r < to; ++r) sum += to_float(a.y.row(r)[c]);
  a.partial.row(blockIdx.y)[c] = sum;
}
