// Step sizes and decays. T is the dtype of x.

struct Args {
  Mat<T> x, dx;
  Mat<float> delta, decay;  // their gradients in the backward
  Mat<float> partial;       // [blocks 2h]: sums of a block for the bias, and for A_log
  const float *bias, *a_log;
  i64 rows, h;
  float low, high;
};

extern "C" __global__ void __launch_bounds__(256) forward(const __grid_constant__ Args a) {
  i64 c = i64(blockIdx.y) * 32 + threadIdx.x;
  if (c >= a.h) return;
  float bias = a.bias[c], rate = -expf(a.a_log[c]);
  for (i64 r = i64(blockIdx.x) * 8 + threadIdx.y; r < a.rows; r += i64(gridDim.x) * 8) {
    float delta = fminf(fmaxf(softplus(to_float(a.x.row(r)[c]) + bias), a.low), a.high);
    a.delta.row(r)[c] = delta;
    a.decay.row(r)[c] = rate * delta;
  }
}

extern "C" __global__ void __launch_bounds__(256) backward(const __grid_constant__ Args a) {
  __shared__ float sums[2][8][32];
  i64 c = i64(blockIdx.y) * 32 + threadIdx.x;
  float of_bias = 0.0f, of_a_log = 0.0f;
  if (c < a.h) {
    float bias = a.bias[c], rate = -expf(a.a_log[c]);
    for (i64 r = i64(blockIdx.x) * 8 + threadIdx.y; r < a.rows; r += i64(gridDim.x) * 8) {
      float x = to_float(a.x.row(r)[c]) + bias;
      float free = softplus(x), delta = fminf(fmaxf(free, a.low), a.high), ddecay = a.decay.row(r)[c];
      float d = free >= a.low && free <= a.high ? (a.delta.row(r)[c] + rate * ddecay) * sigmoid(x) : 0.0f;
      a.dx.row(r)[c] = from_float<T>(d);
      of_bias += d;
      of_a_log += rate * delta * ddecay;
    }
  }
  sums[0][threadIdx.y][threadIdx.x] = of_bias;
  sums[1][threadIdx.y][threadIdx.x] = of_a_log;
  __syncthreads();
  if (threadIdx.y >= 2 || c >= a.h) return;
  float sum = 0.0f;
  for (int i = 0; i < 8; ++i) sum += sums[threadIdx.y][i][threadIdx.x];
  a.partial.row(blockIdx.x)[threadIdx.y * a.h + c] = sum;
}
