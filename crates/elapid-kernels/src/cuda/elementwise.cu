// Elementwise conversion, sums and fills, and gathering rows. A and B are dtypes.

struct Args {
  Mat<A> from;
  Mat<B> to;
  i64 rows;
  i64 cols;
  float factor;
  u64* found;
  const u32* order;
};

// A thread processes elements of one row, so that no index is divided by a run-time number.
template <typename F>
__device__ __forceinline__ void each(i64 rows, i64 cols, F f) {
  for (i64 r = blockIdx.y; r < rows; r += gridDim.y) {
    for (i64 c = i64(blockIdx.x) * blockDim.x + threadIdx.x; c < cols; c += i64(gridDim.x) * blockDim.x) f(r, c);
  }
}

extern "C" __global__ void __launch_bounds__(256) convert(const __grid_constant__ Args a) {
  each(a.rows, a.cols, [&](i64 r, i64 c) { a.to.row(r)[c] = from_float<B>(to_float(a.from.row(r)[c])); });
}

// to += from
extern "C" __global__ void __launch_bounds__(256) add(const __grid_constant__ Args a) {
  each(a.rows, a.cols, [&](i64 r, i64 c) {
    B* to = a.to.row(r) + c;
    *to = from_float<B>(to_float(*to) + to_float(a.from.row(r)[c]));
  });
}

extern "C" __global__ void __launch_bounds__(256) scale(const __grid_constant__ Args a) {
  each(a.rows, a.cols, [&](i64 r, i64 c) {
    B* to = a.to.row(r) + c;
    *to = from_float<B>(a.factor * to_float(*to));
  });
}

extern "C" __global__ void __launch_bounds__(256) fill(const __grid_constant__ Args a) {
  each(a.rows, a.cols, [&](i64 r, i64 c) { a.to.row(r)[c] = from_float<B>(a.factor); });
}

// The smallest index, in row-major order, of a value that is not finite; `found` starts as the largest u64.
extern "C" __global__ void __launch_bounds__(256) first_non_finite(const __grid_constant__ Args a) {
  each(a.rows, a.cols, [&](i64 r, i64 c) {
    float x = to_float(a.from.row(r)[c]);
    if (!(fabsf(x) <= 3.4028235e38f)) atomicMin(a.found, u64(r * a.cols + c));
  });
}

extern "C" __global__ void __launch_bounds__(256) select_rows(const __grid_constant__ Args a) {
  each(a.rows, a.cols, [&](i64 r, i64 c) {
    a.to.row(r)[c] = from_float<B>(to_float(a.from.row(a.order[r])[c]));
  });
}

// to += the sum of all rows of `from`, always in the same order: first within eight ranges of rows, then over these.
extern "C" __global__ void __launch_bounds__(256) add_rows(const __grid_constant__ Args a) {
  __shared__ float sums[8][33];
  int lane = threadIdx.x % 32, stretch = threadIdx.x / 32;
  i64 c = i64(blockIdx.x) * 32 + lane;
  i64 step = (a.rows + 7) / 8;
  i64 end = (stretch + 1) * step < a.rows ? (stretch + 1) * step : a.rows;
  float sum = 0.0f;
  if (c < a.cols) {
#pragma unroll 8
    for (i64 r = stretch * step; r < end; ++r) sum += to_float(a.from.row(r)[c]);
  }
  sums[stretch][lane] = sum;
  __syncthreads();
  if (stretch == 0 && c < a.cols) {
    for (int k = 1; k < 8; ++k) sum += sums[k][lane];
    B* to = a.to.row(0) + c;
    *to = from_float<B>(to_float(*to) + sum);
  }
}
