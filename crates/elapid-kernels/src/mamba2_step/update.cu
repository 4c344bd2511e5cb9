// The states of Mamba-2 for one position of many rows: h = exp(Δ A) h + Δ B x, y = C h + D x, gated by silu(z). A block has one
// head of one row, whose states it reads and writes once; they are read before the previous launch has ended, which does not
// write them.

#define QUADS (P / 4)
#define SLOTS (UPDATERS / QUADS)
#define EACH ((N + SLOTS - 1) / SLOTS)

struct Update {
  const bf16* packed;       // [rows, 2 ed + 2 g n + h]: z, x, B, C, Δ before its bias; convolved
  const float* dt_bias;     // [h]
  const float* a_log;       // [h]
  const float* skip;        // [h], or [ed]
  const float* gated_norm;  // [ed], absent if there is none
  S* states;                // [rows, h, n, p]
  bf16* y;                  // [rows, ed]
  float* squares;           // [h, rows]
  float dt_min;
  float dt_max;
  i32 rows;
  i32 h;
  i32 g;
  i32 skips;
  i32 norm_first;
};

__device__ __forceinline__ float4 load4(const float* from) { return __ldcs(reinterpret_cast<const float4*>(from)); }
__device__ __forceinline__ void store4(float* to, float4 x) { __stcs(reinterpret_cast<float4*>(to), x); }
__device__ __forceinline__ float4 load4(const bf16* from) {
  const uint2 p = __ldcs(reinterpret_cast<const uint2*>(from));
  return make_float4(low_bf16(p.x), high_bf16(p.x), low_bf16(p.y), high_bf16(p.y));
}
__device__ __forceinline__ void store4(bf16* to, float4 x) {
  __stcs(reinterpret_cast<uint2*>(to), make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w)));
}

extern "C" __global__ void __launch_bounds__(UPDATERS) update(const __grid_constant__ Update a) {
  __shared__ float4 sums[UPDATERS];
  __shared__ float b[N], c[N], parts[2];
  const int head = blockIdx.x, row = blockIdx.y, ed = a.h * P, width = 2 * ed + 2 * a.g * N + a.h;
  const int quad = threadIdx.x % QUADS, slot = threadIdx.x / QUADS;
  S* const states = a.states + (i64(row) * a.h + head) * N * P + quad * 4;
  float4 h[EACH];
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const int n = slot + i * SLOTS;
    if (n < N) h[i] = load4(states + n * P);
  }
  const float bias = a.dt_bias[head], log = -LOG2_E * fast_exp2(LOG2_E * a.a_log[head]);
  wait_for_previous();
  let_next_start();
  const bf16* packed = a.packed + i64(row) * width;
  const int group = head / (a.h / a.g);
  for (int i = threadIdx.x; i < N; i += UPDATERS) {
    b[i] = to_float(packed[2 * ed + group * N + i]), c[i] = to_float(packed[2 * ed + (a.g + group) * N + i]);
  }
  const float dt = fminf(fmaxf(softplus(to_float(packed[width - a.h + head]) + bias), a.dt_min), a.dt_max);
  const float decay = fast_exp2(dt * log);
  const uint2 raw = *reinterpret_cast<const uint2*>(packed + ed + head * P + quad * 4);
  const float4 u = make_float4(dt * low_bf16(raw.x), dt * high_bf16(raw.x), dt * low_bf16(raw.y), dt * high_bf16(raw.y));
  __syncthreads();
  float4 y = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const int n = slot + i * SLOTS;
    if (n >= N) break;
    const float in = b[n], out = c[n];
    h[i].x = decay * h[i].x + in * u.x, h[i].y = decay * h[i].y + in * u.y;
    h[i].z = decay * h[i].z + in * u.z, h[i].w = decay * h[i].w + in * u.w;
    y.x += out * h[i].x, y.y += out * h[i].y, y.z += out * h[i].z, y.w += out * h[i].w;
    store4(states + n * P, h[i]);
  }
  sums[threadIdx.x] = y;
  __syncthreads();
  float squares = 0.0f;
  if (threadIdx.x < P) {
    const int i = threadIdx.x, channel = head * P + i;
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < SLOTS; ++j) sum += reinterpret_cast<const float*>(sums)[j * P + i];
    const float x = to_float(packed[ed + channel]), z = to_float(packed[channel]);
    const float whole = to_float(from_float<bf16>(sum + a.skip[a.skips == ed ? channel : head] * x)), gated = whole * silu(z);
    const float divided = a.norm_first ? whole : gated;
    squares = divided * divided;
    const float gain = a.gated_norm != nullptr ? a.gated_norm[channel] : 1.0f;
    a.y[i64(row) * ed + channel] = from_float<bf16>(gated * gain);
  }
  if (threadIdx.x < 64) {
    squares = warp_sum(squares);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = squares;
  }
  __syncthreads();
  if (threadIdx.x == 0) a.squares[head * a.rows + row] = parts[0] + parts[1];
}
