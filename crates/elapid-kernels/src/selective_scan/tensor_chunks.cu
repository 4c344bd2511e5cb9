// The states between chunks, with which the tensor-core kernels begin in the middle of a sequence; see tensor.cuh.

// A chunk's final state from zeros (FORWARD), or the gradient at its beginning from a zero gradient at its end, and the
// factor of a non-zero one: starting from the far end of the chunk, Σ (product of the Ā in between) Δ_t B_t u_t, or C_t g_t,
// until the products vanish. A thread has four states of one channel.
template <bool FORWARD>
__device__ __forceinline__ void ends(const Args& a) {
  __shared__ __align__(16) float2 steps[TILE][CH];  // Δ, and Δ u or g
  __shared__ __align__(16) float factors[TILE][N];  // B or C
  __shared__ float bias[CH];
  __shared__ u8 resets[TILE];
  const Job job(a, FORWARD ? 0 : 1);
  const int channel = threadIdx.x / 4, state = threadIdx.x % 4 * 4;
  const bool live = job.first + channel < a.d;
  load_channels(a.delta_bias, a, job, bias);
  float a2[4], sum[4], product[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a2[i] = live ? LOG2_E * a.a[(job.first + channel) * N + state + i] : 0.0f;
    sum[i] = 0.0f, product[i] = 1.0f;
  }
  const int tiles = int((job.to - job.from + TILE - 1) / TILE);
  const int t_mine = threadIdx.x / 4, c_mine = threadIdx.x % 4 * 8;
  const bool c_live = job.first + c_mine < a.d, gated = GATED && !FORWARD;
  uint4 x, delta, z = make_uint4(0, 0, 0, 0);
  uint2 factor;
  auto load = [&](int tile) {
    i64 t = job.from + i64(FORWARD ? tiles - 1 - tile : tile) * TILE + t_mine, r = job.row * a.l + t;
    x = make_uint4(0, 0, 0, 0), delta = make_uint4(PADDING, PADDING, PADDING, PADDING), factor = make_uint2(0, 0);
    if (tile >= tiles || t >= job.end) return;
    factor = *reinterpret_cast<const uint2*>((FORWARD ? a.b : a.c).row(r) + state);
    if (!c_live) return;
    x = *reinterpret_cast<const uint4*>((FORWARD ? a.u : a.dy).row(r) + job.first + c_mine);
    delta = *reinterpret_cast<const uint4*>(a.delta.row(r) + job.first + c_mine);
    if (gated) z = *reinterpret_cast<const uint4*>(a.z.row(r) + job.first + c_mine);
  };
  load(0);
  __syncthreads();
  for (int tile = 0; tile < tiles; ++tile) {
    i64 t0 = job.from + i64(FORWARD ? tiles - 1 - tile : tile) * TILE;
    float xx[8], raw[8], dt[8], zz[8];
    widen8(x, xx);
    widen8(delta, raw);
    widen8(z, zz);
#pragma unroll
    for (int k = 0; k < 8; ++k) raw[k] += bias[c_mine + k];
    step_sizes<8>(a, raw, t0 + t_mine < job.end, dt);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      steps[t_mine][c_mine + k] = make_float2(dt[k], FORWARD ? dt[k] * xx[k] : gated ? silu(zz[k]) * xx[k] : xx[k]);
    }
    widen4(factor, xx);
    copy_floats<4>(xx, factors[t_mine] + state);
    if (SEGMENTS && threadIdx.x < TILE) {
      i64 t = t0 + threadIdx.x;
      resets[threadIdx.x] = t < job.end && a.resets[job.row * a.l + t] != 0;
    }
    __syncthreads();
    load(tile + 1);
#pragma unroll 8
    for (int k = 0; k < TILE; ++k) {
      int t = FORWARD ? TILE - 1 - k : k;
      float2 step = steps[t][channel];
      float f[4];
      copy_floats<4>(factors[t] + state, f);
      bool reset = SEGMENTS && resets[t];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float decay = reset ? 0.0f : fast_exp2(step.x * a2[i]);
        if (!FORWARD) product[i] *= decay;
        sum[i] += product[i] * (step.y * f[i]);
        if (FORWARD) product[i] *= decay;
      }
    }
    float most = fmaxf(fmaxf(fabsf(product[0]), fabsf(product[1])), fmaxf(fabsf(product[2]), fabsf(product[3])));
    if (__syncthreads_or(live && !(most < 0x1p-64f)) == 0) break;
  }
  if (!live) return;
  i64 at = ((job.row * a.chunks + job.chunk) * a.d + job.first + channel) * N + state;
  copy_floats<4>(sum, a.ends + at);
  copy_floats<4>(product, a.decays + at);
}
// For all chunks but the last, and for all but the first.
extern "C" __global__ void __launch_bounds__(THREADS) forward_ends(const __grid_constant__ Args a) { ends<true>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) backward_ends(const __grid_constant__ Args a) { ends<false>(a); }

// The states before all chunks, one after another; with REVERSE the gradients after them, from the last.
template <bool REVERSE>
__device__ __forceinline__ void chain(const Args& a, const float* first) {
  const i64 at = i64(blockIdx.x) * THREADS + threadIdx.x, size = a.d * N;
  if (at >= a.batch * size) return;
  const i64 row = at / size;
  float h = first != nullptr ? first[at] : 0.0f;
#pragma unroll 4
  for (i64 k = 0; k < a.chunks; ++k) {
    i64 i = (row * a.chunks + (REVERSE ? a.chunks - 1 - k : k)) * size + at % size;
    a.starts[i] = h;
    if (k + 1 < a.chunks) h = a.decays[i] * h + a.ends[i];
  }
}
extern "C" __global__ void __launch_bounds__(THREADS) chain_forward(const __grid_constant__ Args a) {
  chain<false>(a, a.initial);
}
extern "C" __global__ void __launch_bounds__(THREADS) chain_backward(const __grid_constant__ Args a) {
  chain<true>(a, a.dlast);
}
