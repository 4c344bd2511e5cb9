// Elementwise functions, with their gradients. T is the dtype; VECTOR: eight elements at a time, for aligned rows whose
// length is a multiple of eight. The function is an argument: a branch that all threads take alike, outside of the loop.

struct Args {
  Mat<T> x;
  Mat<T> z;
  Mat<T> dy;
  Mat<T> y;   // y or dx
  Mat<T> dz;
  i64 rows;
  i64 cols;
  i32 function;
  float alpha;
  float beta;
};

#if VECTOR
#define W 8
__device__ __forceinline__ void load(const T* from, float* x) { load8(from, x); }
__device__ __forceinline__ void store(T* to, const float* x) { store8(to, x); }
#else
#define W 1
__device__ __forceinline__ void load(const T* from, float* x) { x[0] = to_float(*from); }
__device__ __forceinline__ void store(T* to, const float* x) { *to = from_float<T>(x[0]); }
#endif

struct Identity {
  static __device__ __forceinline__ float value(float x) { return x; }
  static __device__ __forceinline__ float slope(float) { return 1.0f; }
};
struct Relu {
  static __device__ __forceinline__ float value(float x) { return fmaxf(x, 0.0f); }
  static __device__ __forceinline__ float slope(float x) { return x > 0.0f ? 1.0f : 0.0f; }
};
struct SquaredRelu {
  static __device__ __forceinline__ float value(float x) { return fmaxf(x, 0.0f) * fmaxf(x, 0.0f); }
  static __device__ __forceinline__ float slope(float x) { return 2.0f * fmaxf(x, 0.0f); }
};
struct Silu {
  static __device__ __forceinline__ float value(float x) { return silu(x); }
  static __device__ __forceinline__ float slope(float x) {
    float s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
  }
};
struct Gelu {
  // The normal distribution.
  static __device__ __forceinline__ float below(float x) { return 0.5f + 0.5f * erff(0.70710678f * x); }
  static __device__ __forceinline__ float value(float x) { return x * below(x); }
  static __device__ __forceinline__ float slope(float x) {
    return below(x) + 0.39894228f * x * fast_exp2(-0.5f * LOG2_E * x * x);
  }
};
// (1 + tanh(u)) / 2 is the sigmoid of 2 u.
struct GeluTanh {
  static __device__ __forceinline__ float half(float x) {
    return sigmoid(1.5957691f * (x + 0.044715f * x * x * x));
  }
  static __device__ __forceinline__ float value(float x) { return x * half(x); }
  static __device__ __forceinline__ float slope(float x) {
    float s = half(x);
    return s + x * s * (1.0f - s) * (1.5957691f * (1.0f + 3.0f * 0.044715f * x * x));
  }
};
struct Sigmoid {
  static __device__ __forceinline__ float value(float x) { return sigmoid(x); }
  static __device__ __forceinline__ float slope(float x) {
    float s = sigmoid(x);
    return s * (1.0f - s);
  }
};
struct Tanh {
  static __device__ __forceinline__ float value(float x) { return tanhf(x); }
  static __device__ __forceinline__ float slope(float x) {
    float t = tanhf(x);
    return 1.0f - t * t;
  }
};

struct EluPlusOne {
  static __device__ __forceinline__ float value(float x) { return x > 0.0f ? x + 1.0f : fast_exp2(LOG2_E * x); }
  static __device__ __forceinline__ float slope(float x) { return x > 0.0f ? 1.0f : fast_exp2(LOG2_E * x); }
};
struct Softplus {
  static __device__ __forceinline__ float value(float x) { return softplus(x); }
  static __device__ __forceinline__ float slope(float x) { return sigmoid(x); }
};
struct LogSigmoid {
  static __device__ __forceinline__ float value(float x) { return -softplus(-x); }
  static __device__ __forceinline__ float slope(float x) { return sigmoid(-x); }
};
struct LogOneMinus {
  static __device__ __forceinline__ float value(float x) { return log1pf(-x); }
  static __device__ __forceinline__ float slope(float x) { return -1.0f / (1.0f - x); }
};

// In the order of `Function`.
template <typename G>
__device__ __forceinline__ void with_function(i32 function, G g) {
  switch (function) {
    case 0: g(Identity()); break;
    case 1: g(Relu()); break;
    case 2: g(SquaredRelu()); break;
    case 3: g(Silu()); break;
    case 4: g(Gelu()); break;
    case 5: g(GeluTanh()); break;
    case 6: g(Sigmoid()); break;
    case 7: g(Tanh()); break;
    case 8: g(EluPlusOne()); break;
    case 9: g(Softplus()); break;
    case 10: g(LogSigmoid()); break;
    default: g(LogOneMinus()); break;
  }
}

// Calls g(row, column) for every W elements.
template <typename G>
__device__ __forceinline__ void each(const Args& a, G g) {
  for (i64 r = i64(blockIdx.y) * blockDim.y + threadIdx.y; r < a.rows; r += i64(gridDim.y) * blockDim.y) {
    for (i64 c = (i64(blockIdx.x) * blockDim.x + threadIdx.x) * W; c < a.cols; c += i64(gridDim.x) * blockDim.x * W) {
      g(r, c);
    }
  }
}

extern "C" __global__ void __launch_bounds__(256) forward(const __grid_constant__ Args a) {
  let_next_start();
  wait_for_previous();
  with_function(a.function, [&](auto f) {
    each(a, [&](i64 r, i64 c) {
      float x[W];
      load(a.x.row(r) + c, x);
#pragma unroll
      for (int i = 0; i < W; ++i) x[i] = a.beta * f.value(a.alpha * x[i]);
      store(a.y.row(r) + c, x);
    });
  });
}

extern "C" __global__ void __launch_bounds__(256) backward(const __grid_constant__ Args a) {
  let_next_start();
  wait_for_previous();
  float factor = a.alpha * a.beta;
  with_function(a.function, [&](auto f) {
    each(a, [&](i64 r, i64 c) {
      float x[W], dy[W];
      load(a.x.row(r) + c, x);
      load(a.dy.row(r) + c, dy);
#pragma unroll
      for (int i = 0; i < W; ++i) dy[i] *= factor * f.slope(a.alpha * x[i]);
      store(a.y.row(r) + c, dy);
    });
  });
}

extern "C" __global__ void __launch_bounds__(256) glu_forward(const __grid_constant__ Args a) {
  let_next_start();
  wait_for_previous();
  with_function(a.function, [&](auto f) {
    each(a, [&](i64 r, i64 c) {
      float x[W], z[W];
      load(a.x.row(r) + c, x);
      load(a.z.row(r) + c, z);
#pragma unroll
      for (int i = 0; i < W; ++i) z[i] *= a.beta * f.value(a.alpha * x[i]);
      store(a.y.row(r) + c, z);
    });
  });
}

// Both gradients from one read of x, z and dy.
extern "C" __global__ void __launch_bounds__(256) glu_backward(const __grid_constant__ Args a) {
  let_next_start();
  wait_for_previous();
  float factor = a.alpha * a.beta;
  with_function(a.function, [&](auto f) {
    each(a, [&](i64 r, i64 c) {
      float x[W], z[W], dy[W];
      load(a.x.row(r) + c, x);
      load(a.z.row(r) + c, z);
      load(a.dy.row(r) + c, dy);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        float u = a.alpha * x[i];
        x[i] = factor * f.slope(u) * z[i] * dy[i];
        z[i] = a.beta * f.value(u) * dy[i];
      }
      store(a.y.row(r) + c, x);
      store(a.dz.row(r) + c, z);
    });
  });
}
