// Heads of two halves. T is the dtype; in the backward a, b and y are their gradients.

struct Args {
  Mat<T> a;
  Mat<T> b;
  Mat<T> y;
  const u64* positions;  // may be absent
  u64 border;
  i64 rows;
  i64 cols;  // of y
  i64 c;
};

// Calls g(row, column of y, element of a or b, whether it is there) for every element of y.
template <typename G>
__device__ __forceinline__ void each(const Args& a, G g) {
  for (i64 r = i64(blockIdx.y) * blockDim.y + threadIdx.y; r < a.rows; r += i64(gridDim.y) * blockDim.y) {
    bool late = !a.positions || a.positions[r] >= a.border, early = !a.positions || !late;
    for (i64 at = i64(blockIdx.x) * blockDim.x + threadIdx.x; at < a.cols; at += i64(gridDim.x) * blockDim.x) {
      i64 head = at / (2 * a.c), i = at - head * 2 * a.c;
      bool second = i >= a.c;
      const Mat<T>& from = second ? a.b : a.a;
      g(r, at, from.row(r) + head * a.c + (second ? i - a.c : i), second ? early : late);
    }
  }
}

extern "C" __global__ void __launch_bounds__(256) forward(const __grid_constant__ Args a) {
  each(a, [&](i64 r, i64 at, const T* x, bool there) { a.y.row(r)[at] = there ? *x : from_float<T>(0.0f); });
}

extern "C" __global__ void __launch_bounds__(256) backward(const __grid_constant__ Args a) {
  each(a, [&](i64 r, i64 at, T* dx, bool there) { *dx = there ? a.y.row(r)[at] : from_float<T>(0.0f); });
}
