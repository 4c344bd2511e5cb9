// The short causal convolution. T is the dtype of activations, K the number of taps, CH the channels per thread (4, read as
// one vector, or 1 if rows are not aligned), SEGMENTS whether there are resets. A thread walks along a range of positions
// with its inputs in registers.

struct Args {
  Mat<T> x;
  const float* weight;   // [d K]
  const float* bias;     // [d], may be absent
  const float* initial;  // [b K-1 d], may be absent
  const u32* lengths;
  const u8* resets;
  Mat<T> y;
  float* last;  // [b K-1 d]
  Mat<T> dy;
  const float* dlast;
  Mat<T> dx;
  float* dinitial;
  Mat<float> partial;  // [b stretches, d (K+1)]: of weights, then of biases
  i64 b;
  i64 l;
  i64 d;
  i64 stretch;
  i32 silu;
};

#define LANES 32
// Positions whose inputs are loaded at once.
#define AHEAD 8

__device__ __forceinline__ void load(const float* from, float* x) {
  if (CH == 1) {
    x[0] = *from;
  } else {
    float4 v = *reinterpret_cast<const float4*>(from);
    x[0] = v.x, x[1 % CH] = v.y, x[2 % CH] = v.z, x[3 % CH] = v.w;
  }
}
__device__ __forceinline__ void load(const bf16* from, float* x) {
  if (CH == 1) {
    x[0] = to_float(*from);
  } else {
    uint2 v = *reinterpret_cast<const uint2*>(from);
    x[0] = low_bf16(v.x), x[1 % CH] = high_bf16(v.x), x[2 % CH] = low_bf16(v.y), x[3 % CH] = high_bf16(v.y);
  }
}
__device__ __forceinline__ void store(float* to, const float* x) {
  if (CH == 1) {
    *to = x[0];
  } else {
    *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1 % CH], x[2 % CH], x[3 % CH]);
  }
}
__device__ __forceinline__ void store(bf16* to, const float* x) {
  if (CH == 1) {
    *to = from_float<bf16>(x[0]);
  } else {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(x[0], x[1 % CH]), pack_bf16(x[2 % CH], x[3 % CH]));
  }
}

// CH values as they are in memory.
struct Pack {
  T x[CH];
  __device__ __forceinline__ void load(const T* from) {
    if constexpr (CH == 4 && sizeof(T) == 2) {
      *reinterpret_cast<uint2*>(x) = *reinterpret_cast<const uint2*>(from);
    } else if constexpr (CH == 4) {
      *reinterpret_cast<float4*>(x) = *reinterpret_cast<const float4*>(from);
    } else {
      x[0] = *from;
    }
  }
  __device__ __forceinline__ void to_floats(float* to) const {
#pragma unroll
    for (int i = 0; i < CH; ++i) to[i] = to_float(x[i]);
  }
};

__device__ __forceinline__ i64 length(const Args& a, i64 row) {
  return a.lengths == nullptr || a.lengths[row] > a.l ? a.l : a.lengths[row];
}
__device__ __forceinline__ bool resets_at(const Args& a, i64 row, i64 t) {
  return SEGMENTS && t >= 0 && t < a.l && a.resets[row * a.l + t] != 0;
}

// The input at position t, which may lie before the first.
__device__ __forceinline__ void input(const Args& a, i64 row, i64 t, i64 c, float* x) {
  if (t >= 0) {
    load(a.x.row(row * a.l + t) + c, x);
  } else if (a.initial != nullptr) {
    load(a.initial + (row * (K - 1) + t + K - 1) * a.d + c, x);
  } else {
#pragma unroll
    for (int i = 0; i < CH; ++i) x[i] = 0.0f;
  }
}

// Shifts the window to make room for the input at t. Inputs before a reset at t count as 0 from t on.
__device__ __forceinline__ void shift(const Args& a, i64 row, i64 t, float (*window)[CH]) {
  bool reset = resets_at(a, row, t);
#pragma unroll
  for (int j = 0; j + 1 < K; ++j) {
#pragma unroll
    for (int i = 0; i < CH; ++i) window[j][i] = reset ? 0.0f : window[j + 1][i];
  }
}
// Advances the window by one: `window[K-1]` is the newest.
__device__ __forceinline__ void push(const Args& a, i64 row, i64 t, i64 c, float (*window)[CH]) {
  shift(a, row, t, window);
  input(a, row, t, c, window[K - 1]);
}

__device__ __forceinline__ void constants(const Args& a, i64 c, float (*w)[CH], float* bias) {
#pragma unroll
  for (int i = 0; i < CH; ++i) {
    bias[i] = a.bias == nullptr ? 0.0f : a.bias[c + i];
    const float* of = a.weight + (c + i) * K;
    if constexpr (CH == 4 && K == 4) {
      float4 v = *reinterpret_cast<const float4*>(of);
      w[0][i] = v.x, w[1][i] = v.y, w[2 % K][i] = v.z, w[3 % K][i] = v.w;
    } else {
#pragma unroll
      for (int j = 0; j < K; ++j) w[j][i] = of[j];
    }
  }
}

extern "C" __global__ void __launch_bounds__(128, 5) forward(const __grid_constant__ Args a) {
  i64 c = (i64(blockIdx.x) * LANES + threadIdx.x) * CH;
  i64 stretches = (a.l + a.stretch - 1) / a.stretch;
  i64 job = i64(blockIdx.y) * blockDim.y + threadIdx.y;
  if (c >= a.d || job >= a.b * stretches) return;
  i64 row = job / stretches, t0 = job % stretches * a.stretch;
  i64 t1 = t0 + a.stretch < a.l ? t0 + a.stretch : a.l;
  i64 len = length(a, row);
  float w[K][CH], bias[CH], window[K][CH];
  constants(a, c, w, bias);
#pragma unroll
  for (int j = 0; j < K; ++j) {
#pragma unroll
    for (int i = 0; i < CH; ++i) window[j][i] = 0.0f;
  }
#pragma unroll
  for (int j = 1; j < K; ++j) push(a, row, t0 - K + j, c, window);
  // From here on, positions count from t0.
  const T* x = a.x.row(row * a.l + t0) + c;
  T* out = a.y.row(row * a.l + t0) + c;
  int x_stride = int(a.x.stride), y_stride = int(a.y.stride);
  int count = int(t1 - t0), inside = len - t0 < count ? int(len - t0) : count;
  for (int t = 0; t < count; t += AHEAD) {
    // All loads first, so that their latencies overlap.
    Pack next[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      if (t + k < count) next[k].load(x + (t + k) * x_stride);
    }
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      if (t + k >= count) break;
      shift(a, row, t0 + t + k, window);
      next[k].to_floats(window[K - 1]);
      float y[CH];
#pragma unroll
      for (int i = 0; i < CH; ++i) {
        float sum = bias[i];
#pragma unroll
        for (int j = 0; j < K; ++j) sum += w[j][i] * window[j][i];
        y[i] = t + k >= inside ? 0.0f : a.silu ? silu(sum) : sum;
      }
      store(out + (t + k) * y_stride, y);
    }
  }
}

// The inputs after which a next chunk begins: those before position `length`, cut at resets.
extern "C" __global__ void __launch_bounds__(128) window(const __grid_constant__ Args a) {
  i64 at = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= a.b * (K - 1) * a.d) return;
  // Without a window there is nothing to do, and nothing to divide by.
  constexpr int WIDTH = K > 1 ? K - 1 : 1;
  i64 c = at % a.d, i = at / a.d % WIDTH, row = at / a.d / WIDTH;
  i64 len = length(a, row), s = len - (K - 1) + i;
  bool cut = false;
  for (i64 t = s + 1; t < len; ++t) cut |= resets_at(a, row, t);
  float x = 0.0f;
  if (!cut && s >= 0) x = to_float(a.x.row(row * a.l + s)[c]);
  if (!cut && s < 0 && a.initial != nullptr) x = a.initial[(row * (K - 1) + s + K - 1) * a.d + c];
  a.last[at] = x;
}

// Forward and window for one position. A thread reads its whole window before it writes, so `last` may be `initial`.
extern "C" __global__ void __launch_bounds__(128) step(const __grid_constant__ Args a) {
  const u32 across = u32((a.d / CH + 127) / 128);
  const i64 c = i64(blockIdx.x % across * 128 + threadIdx.x) * CH, row = blockIdx.x / across;
  if (c >= a.d) return;
  float w[K][CH], bias[CH], window[K][CH], y[CH];
#pragma unroll
  for (int j = 0; j < K; ++j) input(a, row, j - K + 1, c, window[j]);
  constants(a, c, w, bias);
  const bool inside = length(a, row) > 0, reset = resets_at(a, row, 0);
#pragma unroll
  for (int i = 0; i < CH; ++i) {
    float sum = bias[i];
#pragma unroll
    for (int j = 0; j < K; ++j) {
      if (inside && reset && j + 1 < K) window[j][i] = 0.0f;
      sum += w[j][i] * window[j][i];
    }
    y[i] = !inside ? 0.0f : a.silu ? silu(sum) : sum;
  }
  store(a.y.row(row) + c, y);
#pragma unroll
  for (int j = 0; j + 1 < K; ++j) {
    float* to = a.last + (row * (K - 1) + j) * a.d + c;
    store(to, inside ? window[j + 1] : window[j]);
  }
}

extern "C" __global__ void __launch_bounds__(128, 3) backward(const __grid_constant__ Args a) {
  i64 c = (i64(blockIdx.x) * LANES + threadIdx.x) * CH;
  i64 stretches = (a.l + a.stretch - 1) / a.stretch;
  i64 job = i64(blockIdx.y) * blockDim.y + threadIdx.y;
  if (c >= a.d || job >= a.b * stretches) return;
  i64 row = job / stretches, t0 = job % stretches * a.stretch;
  i64 t1 = t0 + a.stretch < a.l ? t0 + a.stretch : a.l;
  i64 len = length(a, row);
  float w[K][CH], bias[CH], window[K][CH], dw[K][CH], db[CH];
  float sum_dx[K][CH];  // of position t - (K-1) + j while t is at hand
  constants(a, c, w, bias);
#pragma unroll
  for (int i = 0; i < CH; ++i) {
    db[i] = 0.0f;
#pragma unroll
    for (int j = 0; j < K; ++j) window[j][i] = dw[j][i] = sum_dx[j][i] = 0.0f;
  }
#pragma unroll
  for (int j = 1; j < K; ++j) push(a, row, t0 - K + j, c, window);
  // How many positions before t its output reaches back to, up to the last reset.
  int reach = K;
  // From here on, positions count from t0.
  const T* x = a.x.row(row * a.l + t0) + c;
  const T* dy = a.dy.row(row * a.l + t0) + c;
  T* dx = a.dx.row(row * a.l + t0) + c;
  int x_stride = int(a.x.stride), dy_stride = int(a.dy.stride), dx_stride = int(a.dx.stride);
  int count = int(t1 - t0), end = count + K - 1, inside = len - t0 < end ? int(len - t0) : end;
  for (int first = 0; first < end; first += AHEAD / 2) {
    // All loads first, so that their latencies overlap.
    Pack next_x[AHEAD / 2], next_dy[AHEAD / 2];
#pragma unroll
    for (int k = 0; k < AHEAD / 2; ++k) {
      if (first + k < inside) {
        next_x[k].load(x + (first + k) * x_stride);
        next_dy[k].load(dy + (first + k) * dy_stride);
      }
    }
#pragma unroll
    for (int k = 0; k < AHEAD / 2; ++k) {
      int t = first + k;
      if (t >= end) break;
      reach = resets_at(a, row, t0 + t) ? 0 : reach + 1;
#pragma unroll
      for (int j = 0; j + 1 < K; ++j) {
#pragma unroll
        for (int i = 0; i < CH; ++i) sum_dx[j][i] = sum_dx[j + 1][i];
      }
#pragma unroll
      for (int i = 0; i < CH; ++i) sum_dx[K - 1][i] = 0.0f;
      if (t < inside) {
        shift(a, row, t0 + t, window);
        next_x[k].to_floats(window[K - 1]);
        float g[CH];
        next_dy[k].to_floats(g);
#pragma unroll
        for (int i = 0; i < CH; ++i) {
          if (a.silu) {
            float sum = bias[i];
#pragma unroll
            for (int j = 0; j < K; ++j) sum += w[j][i] * window[j][i];
            float s = sigmoid(sum);
            g[i] *= s * (1.0f + sum * (1.0f - s));
          }
          // Beyond the range, only the gradients that its own inputs still receive.
          float own = t < count ? g[i] : 0.0f;
          db[i] += own;
#pragma unroll
          for (int j = 0; j < K; ++j) {
            dw[j][i] += own * window[j][i];
            if (!SEGMENTS || K - 1 - j <= reach) sum_dx[j][i] += w[j][i] * g[i];
          }
        }
      }
      int s = t - (K - 1);
      // Positions before the range belong to the previous range; those before the row belong to the first.
      if (s < 0 && !(t0 == 0 && a.dinitial != nullptr)) continue;
      if (a.dlast != nullptr) {
        i64 entry = t0 + s - (len - (K - 1));
        if (entry >= 0 && t0 + s < len) {
          bool cut = false;
          for (i64 p = t0 + s + 1; p < len; ++p) cut |= resets_at(a, row, p);
          if (!cut) {
#pragma unroll
            for (int i = 0; i < CH; ++i) sum_dx[0][i] += a.dlast[(row * (K - 1) + entry) * a.d + c + i];
          }
        }
      }
      if (s >= 0) {
        store(dx + s * dx_stride, sum_dx[0]);
      } else {
#pragma unroll
        for (int i = 0; i < CH; ++i) a.dinitial[(row * (K - 1) + s + K - 1) * a.d + c + i] = sum_dx[0][i];
      }
    }
  }
  float* partial = a.partial.row(job);
#pragma unroll
  for (int i = 0; i < CH; ++i) {
    partial[a.d * K + c + i] = db[i];
#pragma unroll
    for (int j = 0; j < K; ++j) partial[(c + i) * K + j] = dw[j][i];
  }
}
