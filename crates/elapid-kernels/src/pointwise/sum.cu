// y = alpha a + beta b + gamma. Each matrix is f32 or bf16, as an argument: a branch that all threads take alike. VECTOR:
// eight elements at a time, for aligned rows whose length is a multiple of eight.

// A matrix of either format.
struct Any {
  unsigned char* data;
  i64 stride;
  i64 narrow;  // whether it is bf16
};

struct Args {
  Any a;
  Any b;  // may be absent
  Any y;
  i64 rows;
  i64 cols;
  float alpha;
  float beta;
  float gamma;
};

#if VECTOR
#define W 8
#else
#define W 1
#endif

template <typename T>
__device__ __forceinline__ void load(const T* from, float* x) {
#if VECTOR
  load8(from, x);
#else
  x[0] = to_float(*from);
#endif
}
template <typename T>
__device__ __forceinline__ void store(T* to, const float* x) {
#if VECTOR
  store8(to, x);
#else
  *to = from_float<T>(x[0]);
#endif
}

__device__ __forceinline__ void load(const Any& m, i64 r, i64 c, float* x) {
  i64 at = r * m.stride + c;
  if (m.narrow) {
    load(reinterpret_cast<const bf16*>(m.data) + at, x);
  } else {
    load(reinterpret_cast<const float*>(m.data) + at, x);
  }
}

extern "C" __global__ void __launch_bounds__(256) add_scaled(const __grid_constant__ Args a) {
  for (i64 r = i64(blockIdx.y) * blockDim.y + threadIdx.y; r < a.rows; r += i64(gridDim.y) * blockDim.y) {
    for (i64 c = (i64(blockIdx.x) * blockDim.x + threadIdx.x) * W; c < a.cols; c += i64(gridDim.x) * blockDim.x * W) {
      float x[W];
      load(a.a, r, c, x);
      if (a.b.data) {
        float other[W];
        load(a.b, r, c, other);
#pragma unroll
        for (int i = 0; i < W; ++i) x[i] = a.alpha * x[i] + a.beta * other[i];
      } else {
#pragma unroll
        for (int i = 0; i < W; ++i) x[i] *= a.alpha;
      }
#pragma unroll
      for (int i = 0; i < W; ++i) x[i] += a.gamma;
      i64 at = r * a.y.stride + c;
      if (a.y.narrow) {
        store(reinterpret_cast<bf16*>(a.y.data) + at, x);
      } else {
        store(reinterpret_cast<float*>(a.y.data) + at, x);
      }
    }
  }
}
