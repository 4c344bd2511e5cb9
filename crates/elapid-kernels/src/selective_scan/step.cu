// One position of every row: LANES of a warp share a channel, and read neighbouring states by VEC. A thread has the same
// states of BATCH rows, so that A is read once for them and their loads wait for memory together.
//
// T: format of activations. RULE: 0 exp-euler, 1 zero-order hold, 2 bilinear.
//
// A thread reads all its states before it writes one, and nobody else has them: `last` may be `initial`.

#define THREADS 128
#define BATCH 4

__device__ __forceinline__ void load_states(const float* from, float* x) {
  if constexpr (VEC == 4) {
    *reinterpret_cast<float4*>(x) = *reinterpret_cast<const float4*>(from);
  } else {
    x[0] = *from;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 5) step(const __grid_constant__ Args a) {
  const u32 across = u32((a.d * LANES + THREADS - 1) / THREADS);
  const i64 c0 = i64(blockIdx.x % across * THREADS + threadIdx.x) / LANES, row0 = i64(blockIdx.x / across) * BATCH;
  const int lane = threadIdx.x % LANES;
  const bool live = c0 < a.d;
  const i64 c = live ? c0 : 0;
  float dt[BATCH], u[BATCH], y[BATCH];
  bool there[BATCH], inside[BATCH], fresh[BATCH];
#pragma unroll
  for (int i = 0; i < BATCH; ++i) {
    i64 row = row0 + i;
    there[i] = live && row < a.batch;
    if (!there[i]) row = 0;
    inside[i] = a.lengths == nullptr || a.lengths[row] > 0;
    fresh[i] = a.resets != nullptr && a.resets[row] != 0;
    dt[i] = to_float(a.delta.row(row)[c]);
    u[i] = to_float(a.u.row(row)[c]);
    y[i] = 0.0f;
  }
  const float bias = a.delta_bias != nullptr ? a.delta_bias[c] : 0.0f;
#pragma unroll
  for (int i = 0; i < BATCH; ++i) dt[i] = a.softplus ? softplus(dt[i] + bias) : dt[i] + bias;
  for (int n0 = lane * VEC; n0 < a.n; n0 += LANES * VEC) {
    float h[BATCH][VEC], an[VEC];
    load_states(a.a + c * a.n + n0, an);
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
#pragma unroll
      for (int k = 0; k < VEC; ++k) h[i][k] = 0.0f;
      if (there[i] && a.initial != nullptr) load_states(a.initial + ((row0 + i) * a.d + c) * a.n + n0, h[i]);
    }
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      if (!there[i]) continue;
      const i64 row = row0 + i;
      if (inside[i]) {
#pragma unroll
        for (int k = 0; k < VEC; ++k) {
          float through = decay(dt[i], RULE == 0 ? LOG2_E * an[k] : an[k]) * (fresh[i] ? 0.0f : h[i][k]);
          h[i][k] = through + (RULE == 0 ? dt[i] : weight(dt[i], an[k])) * u[i] * to_float(a.b.row(row)[n0 + k]);
          y[i] += to_float(a.c.row(row)[n0 + k]) * h[i][k];
        }
      }
      float* to = a.last + (row * a.d + c) * a.n + n0;
      if constexpr (VEC == 4) {
        *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(h[i]);
      } else {
        *to = h[i][0];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < BATCH; ++i) {
#pragma unroll
    for (int m = 1; m < LANES; m *= 2) y[i] += __shfl_xor_sync(0xffffffffu, y[i], m);
    if (lane != 0 || !there[i]) continue;
    const i64 row = row0 + i;
    if (a.skip != nullptr) y[i] += a.skip[c] * u[i];
    if (a.z.data != nullptr) y[i] *= silu(to_float(a.z.row(row)[c]));
    a.y.row(row)[c] = from_float<T>(inside[i] ? y[i] : 0.0f);
  }
}
