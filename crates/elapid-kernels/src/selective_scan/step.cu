// One position of every row: LANES of a warp share a channel, and read neighbouring states by VEC.
//
// T: format of activations. RULE: 0 exp-euler, 1 zero-order hold, 2 bilinear.

#define THREADS 128

extern "C" __global__ void __launch_bounds__(THREADS) step(const __grid_constant__ Args a) {
  const i64 i = (i64(blockIdx.x) * THREADS + threadIdx.x) / LANES;
  const int lane = threadIdx.x % LANES;
  const bool live = i < a.batch * a.d;
  const i64 row = live ? i / a.d : 0, c = live ? i % a.d : 0;
  const bool inside = a.lengths == nullptr || a.lengths[row] > 0, fresh = a.resets != nullptr && a.resets[row] != 0;
  float raw = to_float(a.delta.row(row)[c]) + (a.delta_bias != nullptr ? a.delta_bias[c] : 0.0f);
  float dt = a.softplus ? softplus(raw) : raw, u = to_float(a.u.row(row)[c]), y = 0.0f;
  const float* before = a.initial != nullptr ? a.initial + i * a.n : nullptr;
#pragma unroll 4
  for (int n0 = lane * VEC; n0 < a.n; n0 += LANES * VEC) {
    if (!live) continue;
    float h[VEC], an[VEC];
#pragma unroll
    for (int k = 0; k < VEC; ++k) h[k] = 0.0f;
    if constexpr (VEC == 4) {
      *reinterpret_cast<float4*>(an) = *reinterpret_cast<const float4*>(a.a + c * a.n + n0);
      if (before != nullptr) *reinterpret_cast<float4*>(h) = *reinterpret_cast<const float4*>(before + n0);
    } else {
      an[0] = a.a[c * a.n + n0];
      if (before != nullptr) h[0] = before[n0];
    }
    if (inside) {
#pragma unroll
      for (int k = 0; k < VEC; ++k) {
        float through = decay(dt, RULE == 0 ? LOG2_E * an[k] : an[k]) * (fresh ? 0.0f : h[k]);
        h[k] = through + (RULE == 0 ? dt : weight(dt, an[k])) * u * to_float(a.b.row(row)[n0 + k]);
        y += to_float(a.c.row(row)[n0 + k]) * h[k];
      }
    }
    if constexpr (VEC == 4) {
      *reinterpret_cast<float4*>(a.last + i * a.n + n0) = *reinterpret_cast<const float4*>(h);
    } else {
      a.last[i * a.n + n0] = h[0];
    }
  }
#pragma unroll
  for (int m = 1; m < LANES; m *= 2) y += __shfl_xor_sync(0xffffffffu, y, m);
  if (lane != 0 || !live) return;
  if (a.skip != nullptr) y += a.skip[c] * u;
  if (a.z.data != nullptr) y *= silu(to_float(a.z.row(row)[c]));
  a.y.row(row)[c] = from_float<T>(inside ? y : 0.0f);
}
