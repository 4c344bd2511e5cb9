// One position of every row: LANES of a warp share a channel, and read neighbouring states in vectors of VEC. A thread has
// the same states of BATCH rows, so A is read once for them. All loads are issued before any result is used.
//
// T: dtype of activations. RULE: 0 exp-euler, 1 zero-order hold, 2 bilinear. VEC is 4 if states, B and C are aligned.
//
// A thread reads all its states before it writes one, and no other thread uses them, so `last` may be `initial`.

#define THREADS 128
#define BATCH 4

__device__ __forceinline__ void load(const float* from, float* x) {
  if constexpr (VEC == 4) {
    *reinterpret_cast<float4*>(x) = *reinterpret_cast<const float4*>(from);
  } else {
    x[0] = *from;
  }
}

// VEC values as they are in memory.
struct Pack {
  T x[VEC];
  __device__ __forceinline__ void load(const T* from) {
    if constexpr (VEC == 4 && sizeof(T) == 2) {
      *reinterpret_cast<uint2*>(x) = *reinterpret_cast<const uint2*>(from);
    } else if constexpr (VEC == 4) {
      *reinterpret_cast<float4*>(x) = *reinterpret_cast<const float4*>(from);
    } else {
      x[0] = *from;
    }
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, sizeof(T) == 2 && RULE == 0 ? 5 : 4) step(const __grid_constant__ Args a) {
  const u32 across = u32((a.d * LANES + THREADS - 1) / THREADS);
  const i64 c0 = i64(blockIdx.x % across * THREADS + threadIdx.x) / LANES, row0 = i64(blockIdx.x / across) * BATCH;
  const int lane = threadIdx.x % LANES;
  const bool live = c0 < a.d;
  const i64 c = live ? c0 : 0;
  i64 rows[BATCH];
  bool there[BATCH];
#pragma unroll
  for (int i = 0; i < BATCH; ++i) {
    there[i] = live && row0 + i < a.batch;
    rows[i] = there[i] ? row0 + i : 0;
  }

  float h[BATCH][VEC], an[VEC];
  alignas(16) Pack b[BATCH], cs[BATCH];
  auto ask = [&](int n0) {
    const float* states = a.initial + c * a.n + n0;
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
#pragma unroll
      for (int k = 0; k < VEC; ++k) h[i][k] = 0.0f;
      if (there[i] && a.initial != nullptr) load(states + rows[i] * a.d * a.n, h[i]);
    }
    load(a.a + c * a.n + n0, an);
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      b[i].load(a.b.row(rows[i]) + n0);
      cs[i].load(a.c.row(rows[i]) + n0);
    }
  };
  int n0 = lane * VEC;
  if (n0 < a.n) ask(n0);

  T raw_dt[BATCH], raw_u[BATCH], raw_z[BATCH];
  bool inside[BATCH], fresh[BATCH];
#pragma unroll
  for (int i = 0; i < BATCH; ++i) {
    raw_dt[i] = a.delta.row(rows[i])[c];
    raw_u[i] = a.u.row(rows[i])[c];
    raw_z[i] = a.z.data != nullptr ? a.z.row(rows[i])[c] : T{};
    inside[i] = a.lengths == nullptr || a.lengths[rows[i]] > 0;
    fresh[i] = a.resets != nullptr && a.resets[rows[i]] != 0;
  }
  const float bias = a.delta_bias != nullptr ? a.delta_bias[c] : 0.0f, skip = a.skip != nullptr ? a.skip[c] : 0.0f;

  float dt[BATCH], u[BATCH], y[BATCH];
#pragma unroll
  for (int i = 0; i < BATCH; ++i) {
    u[i] = to_float(raw_u[i]);
    dt[i] = to_float(raw_dt[i]) + bias;
    if (a.softplus) dt[i] = softplus(dt[i]);
    y[i] = 0.0f;
  }
  while (n0 < a.n) {
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      if (inside[i]) {
#pragma unroll
        for (int k = 0; k < VEC; ++k) {
          float through = decay(dt[i], RULE == 0 ? LOG2_E * an[k] : an[k]) * (fresh[i] ? 0.0f : h[i][k]);
          h[i][k] = through + (RULE == 0 ? dt[i] : weight(dt[i], an[k])) * u[i] * to_float(b[i].x[k]);
          y[i] += to_float(cs[i].x[k]) * h[i][k];
        }
      }
      if (!there[i]) continue;
      float* to = a.last + (rows[i] * a.d + c) * a.n + n0;
      if constexpr (VEC == 4) {
        *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(h[i]);
      } else {
        *to = h[i][0];
      }
    }
    n0 += LANES * VEC;
    if (n0 < a.n) ask(n0);
  }
#pragma unroll
  for (int i = 0; i < BATCH; ++i) {
#pragma unroll
    for (int m = 1; m < LANES; m *= 2) y[i] += __shfl_xor_sync(0xffffffffu, y[i], m);
    if (lane != 0 || !there[i]) continue;
    y[i] += skip * u[i];
    if (a.z.data != nullptr) y[i] *= silu(to_float(raw_z[i]));
    a.y.row(rows[i])[c] = from_float<T>(inside[i] ? y[i] : 0.0f);
  }
}
