// Shared by all kernels of the scan. NP: states per channel, with padding.

struct Args {
  Mat<T> u;
  Mat<T> delta;
  const float* delta_bias;  // [d], may be absent
  const float* a;           // [d n]
  Mat<T> b;
  Mat<T> c;
  const float* skip;     // [d], may be absent
  Mat<T> z;              // may be absent
  const float* initial;  // [b d n], may be absent
  const u32* lengths;
  const u8* resets;
  Mat<T> y;
  float* last;    // [b d n]
  float* saved;   // states before every few positions, may be absent
  float* starts;  // [b chunks d NP]: states before chunks, or their gradients behind them; absent for one chunk
  float* ends;    // [b chunks d NP]: what a chunk makes of a state of zeros
  float* decays;  // [b chunks d NP]: what a chunk multiplies a state by
  Mat<T> dy;
  const float* dlast;  // [b d n], may be absent
  Mat<T> du;
  Mat<T> ddelta;
  Mat<T> db;
  Mat<T> dc;
  Mat<T> dz;               // may be absent
  float* dinitial;         // [b d n], may be absent
  Mat<float> partial_a;    // [b chunks, d n]
  Mat<float> partial_d;    // [b chunks, 2 d]: of the bias of delta, then of D
  float* partial_bc;       // [groups, b l, 2 NP]
  float* da;               // [d n], added to
  float* dbias;            // [d], added to; may be absent
  float* dskip;            // [d], added to; may be absent
  i64 batch;
  i64 l;
  i64 d;
  i64 chunk;
  i64 chunks;
  i32 n;
  i32 softplus;
};

// Discretisation: Ā and, except for exp-euler, the factor of B u.
__device__ __forceinline__ float decay(float dt, float a2) {
  if (RULE < 2) return fast_exp2(RULE == 0 ? dt * a2 : LOG2_E * dt * a2);
  float half = 0.5f * dt * a2;
  return (1.0f + half) / (1.0f - half);
}
__device__ __forceinline__ float weight(float dt, float a2) {
  if (RULE == 1) {
    float x = dt * a2;
    return fabsf(x) < 1e-6f ? dt : expm1f(x) / a2;
  }
  return dt / (1.0f - 0.5f * dt * a2);
}
