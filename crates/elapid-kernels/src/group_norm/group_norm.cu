// Normalisation of groups of channels, with a gate. T is the dtype of activations; GATE 0 is none, 1 before the norm, 2 after.
//
// LANES threads, a team, own a group of a row and hold it in registers, VECTORS times eight values each: every input is read
// once. A team has the same group of all its rows, so that it sums the parameters' gradients in registers; `across` teams of a
// block are along the groups of a row, the others along rows. LANES = 0 is the form for any width and alignment: a block
// for each group, which reads a row several times.

struct Args {
  Mat<T> x;
  Mat<T> z;             // absent with GATE 0
  const float* weight;  // absent: 1
  const float* bias;    // absent: 0
  Mat<T> y;
  Mat<T> dy;
  Mat<T> dx;
  Mat<T> dz;      // may be absent
  float* partial_weight;  // [gridDim.x d], absent if not wanted
  float* partial_bias;    // [gridDim.x d]
  i64 rows;
  i32 d;
  i32 width;     // channels of a group
  i32 across;    // teams of a block along groups
  i32 weight_step;  // from a group's weight to the next one's: width, or 0 where all share it
  i32 bias_step;
  i32 centred;
  float eps;
};

#define THREADS 256

// silu(z) and its derivative.
__device__ __forceinline__ float2 silu_dsilu(float z) {
  float s = sigmoid(z);
  return make_float2(z * s, s * (1.0f + z * (1.0f - s)));
}

#if LANES == 0

// The sum over a block, the same on every thread.
__device__ __forceinline__ float block_sum(float x, float* shared) {
  x = warp_sum(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int w = 0; w < THREADS / 32; ++w) total += shared[w];
  return total;
}

// u of channel c of the row.
__device__ __forceinline__ float u_at(const Args& a, i64 r, int c) {
  float x = to_float(a.x.row(r)[c]);
#if GATE == 1
  x *= silu(to_float(a.z.row(r)[c]));
#endif
  return x;
}

// The mean, and rstd.
__device__ __forceinline__ float2 statistics(const Args& a, i64 r, int from, float* shared) {
  float mean = 0.0f, squares = 0.0f;
  if (a.centred) {
    for (int c = threadIdx.x; c < a.width; c += THREADS) mean += u_at(a, r, from + c);
    mean = block_sum(mean, shared) / a.width;
  }
  for (int c = threadIdx.x; c < a.width; c += THREADS) {
    float off = u_at(a, r, from + c) - mean;
    squares += off * off;
  }
  return make_float2(mean, rsqrtf(block_sum(squares, shared) / a.width + a.eps));
}

__device__ __forceinline__ float weight_at(const Args& a, int c) {
  return a.weight ? a.weight[i64(blockIdx.y) * a.weight_step + c] : 1.0f;
}
__device__ __forceinline__ float affine(const Args& a, float hat, int c) {
  return hat * weight_at(a, c) + (a.bias ? a.bias[i64(blockIdx.y) * a.bias_step + c] : 0.0f);
}

extern "C" __global__ void __launch_bounds__(THREADS) forward(const __grid_constant__ Args a) {
  __shared__ float shared[THREADS / 32];
  int from = blockIdx.y * a.width;
  for (i64 r = blockIdx.x; r < a.rows; r += gridDim.x) {
    float2 s = statistics(a, r, from, shared);
    for (int c = threadIdx.x; c < a.width; c += THREADS) {
      float n = affine(a, (u_at(a, r, from + c) - s.x) * s.y, c);
#if GATE == 2
      n *= silu(to_float(a.z.row(r)[from + c]));
#endif
      a.y.row(r)[from + c] = from_float<T>(n);
    }
  }
}

// The gradient of û weight + bias.
__device__ __forceinline__ float outer(const Args& a, i64 r, int c) {
  float dy = to_float(a.dy.row(r)[c]);
#if GATE == 2
  dy *= silu(to_float(a.z.row(r)[c]));
#endif
  return dy;
}

// Every block takes some of the rows and writes its part of the parameters' gradients to its row of the partial sums.
extern "C" __global__ void __launch_bounds__(THREADS) backward(const __grid_constant__ Args a) {
  __shared__ float shared[THREADS / 32];
  int from = blockIdx.y * a.width;
  float *dweight = a.partial_weight, *dbias = a.partial_bias;
  if (dweight) dweight += i64(blockIdx.x) * a.d + from;
  if (dbias) dbias += i64(blockIdx.x) * a.d + from;
  for (int c = threadIdx.x; c < a.width; c += THREADS) {
    if (dweight) dweight[c] = 0.0f;
    if (dbias) dbias[c] = 0.0f;
  }
  for (i64 r = blockIdx.x; r < a.rows; r += gridDim.x) {
    float2 s = statistics(a, r, from, shared);
    float total = 0.0f, dot = 0.0f;
    for (int c = threadIdx.x; c < a.width; c += THREADS) {
      float g = outer(a, r, from + c) * weight_at(a, c);
      total += g;
      dot += g * ((u_at(a, r, from + c) - s.x) * s.y);
    }
    float mean_g = a.centred ? block_sum(total, shared) / a.width : 0.0f, mean_dot = block_sum(dot, shared) / a.width;
    for (int c = threadIdx.x; c < a.width; c += THREADS) {
      float dn = outer(a, r, from + c), hat = (u_at(a, r, from + c) - s.x) * s.y;
      float du = s.y * (dn * weight_at(a, c) - mean_g - hat * mean_dot);
#if GATE == 1
      float2 gate = silu_dsilu(to_float(a.z.row(r)[from + c]));
      if (a.dz.data) a.dz.row(r)[from + c] = from_float<T>(du * to_float(a.x.row(r)[from + c]) * gate.y);
      du *= gate.x;
#elif GATE == 2
      float2 gate = silu_dsilu(to_float(a.z.row(r)[from + c]));
      if (a.dz.data) a.dz.row(r)[from + c] = from_float<T>(to_float(a.dy.row(r)[from + c]) * affine(a, hat, c) * gate.y);
#endif
      a.dx.row(r)[from + c] = from_float<T>(du);
      // A thread has the same columns in every row.
      if (dweight) dweight[c] += dn * hat;
      if (dbias) dbias[c] += dn;
    }
  }
}

#else

#define TEAMS (THREADS / LANES)

// The sum over the lanes of a team.
__device__ __forceinline__ float team_sum(float x, float* shared) {
#pragma unroll
  for (int lane = (LANES < 32 ? LANES : 32) / 2; lane > 0; lane >>= 1) x += __shfl_xor_sync(0xffffffffu, x, lane);
  if (LANES <= 32) return x;
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0.0f;
  int first = threadIdx.x / LANES * (LANES / 32);
#pragma unroll
  for (int w = 0; w < LANES / 32; ++w) total += shared[first + w];
  return total;
}

// Eight values of a parameter, or of a constant in its place.
__device__ __forceinline__ void load_or(const float* from, int c, float other, float* x) {
  if (from) {
    load8(from + c, x);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = other;
  }
}

// Which rows and channels a thread has.
struct Place {
  int lane, team, group, from;
  i64 row, step, rounds;
  const float *weight, *bias;
  __device__ __forceinline__ Place(const Args& a) {
    lane = threadIdx.x % LANES, team = threadIdx.x / LANES;
    group = blockIdx.y * a.across + team % a.across;
    from = group * a.width;
    int down = TEAMS / a.across;
    row = i64(blockIdx.x) * down + team / a.across;
    step = i64(gridDim.x) * down;
    rounds = (a.rows + step - 1) / step;
    weight = a.weight ? a.weight + i64(group) * a.weight_step : a.weight;
    bias = a.bias ? a.bias + i64(group) * a.bias_step : a.bias;
  }
};

// u less its mean, from x and z of a row; returns rstd.
__device__ __forceinline__ float centre(
    const Args& a, const Place& place, bool live, float (*u)[8], const float (*z)[8], float* shared) {
  float total = 0.0f, squares = 0.0f;
#pragma unroll
  for (int k = 0; k < VECTORS; ++k) {
    if (!live || (k * LANES + place.lane) * 8 >= a.width) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#if GATE == 1
      u[k][i] *= silu(z[k][i]);
#endif
      total += u[k][i];
    }
  }
  float mean = a.centred ? team_sum(total, shared) / a.width : 0.0f;
#pragma unroll
  for (int k = 0; k < VECTORS; ++k) {
    if (!live || (k * LANES + place.lane) * 8 >= a.width) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      u[k][i] -= mean;
      squares += u[k][i] * u[k][i];
    }
  }
  return rsqrtf(team_sum(squares, shared) / a.width + a.eps);
}

extern "C" __global__ void __launch_bounds__(THREADS) forward(const __grid_constant__ Args a) {
  __shared__ float shared[THREADS / 32];
  Place place(a);
  for (i64 round = 0, r = place.row; round < place.rounds; ++round, r += place.step) {
    bool live = r < a.rows;
    float u[VECTORS][8], z[VECTORS][8];
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      int c = (k * LANES + place.lane) * 8;
      if (!live || c >= a.width) continue;
      load8(a.x.row(r) + place.from + c, u[k]);
#if GATE != 0
      load8(a.z.row(r) + place.from + c, z[k]);
#endif
    }
    float rstd = centre(a, place, live, u, z, shared);
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      int c = (k * LANES + place.lane) * 8;
      if (!live || c >= a.width) continue;
      float w[8], b[8];
      load_or(place.weight, c, 1.0f, w);
      load_or(place.bias, c, 0.0f, b);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        u[k][i] = u[k][i] * rstd * w[i] + b[i];
#if GATE == 2
        u[k][i] *= silu(z[k][i]);
#endif
      }
      store8(a.y.row(r) + place.from + c, u[k]);
    }
  }
}

// Sums the parts of teams with the same group in a fixed order, and writes the block's part of a row.
__device__ __forceinline__ void write_partial(
    const Args& a, const Place& place, const float (*sums)[8], float* parts, float* partial) {
  if (!partial) return;
  __syncthreads();
#pragma unroll
  for (int k = 0; k < VECTORS; ++k) {
    int c = (k * LANES + place.lane) * 8;
    if (c < a.width) store8(parts + place.team * a.width + c, sums[k]);
  }
  __syncthreads();
  int columns = a.across * a.width;
  float* to = partial + i64(blockIdx.x) * a.d + i64(blockIdx.y) * columns;
  for (int c = threadIdx.x; c < columns; c += THREADS) {
    float sum = 0.0f;
    for (int k = 0; k < TEAMS / a.across; ++k) sum += parts[k * columns + c];
    to[c] = sum;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) backward(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) float parts[];  // [TEAMS width]
  __shared__ float shared[THREADS / 32];
  Place place(a);
  float dw[VECTORS][8], db[VECTORS][8];
#pragma unroll
  for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
    for (int i = 0; i < 8; ++i) dw[k][i] = 0.0f, db[k][i] = 0.0f;
  }
  for (i64 round = 0, r = place.row; round < place.rounds; ++round, r += place.step) {
    bool live = r < a.rows;
    float hat[VECTORS][8], z[VECTORS][8], g[VECTORS][8];
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      int c = (k * LANES + place.lane) * 8;
      if (!live || c >= a.width) continue;
      load8(a.x.row(r) + place.from + c, hat[k]);
#if GATE != 0
      load8(a.z.row(r) + place.from + c, z[k]);
#endif
      load8(a.dy.row(r) + place.from + c, g[k]);
    }
    float rstd = centre(a, place, live, hat, z, shared);
    float total = 0.0f, dot = 0.0f;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      int c = (k * LANES + place.lane) * 8;
      if (!live || c >= a.width) continue;
      float w[8];
      load_or(place.weight, c, 1.0f, w);
#if GATE == 2
      float b[8], dz[8];
      load_or(place.bias, c, 0.0f, b);
#endif
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        hat[k][i] *= rstd;
#if GATE == 2
        float2 gate = silu_dsilu(z[k][i]);
        dz[i] = g[k][i] * (hat[k][i] * w[i] + b[i]) * gate.y;
        g[k][i] *= gate.x;
#endif
        dw[k][i] += g[k][i] * hat[k][i];
        db[k][i] += g[k][i];
        g[k][i] *= w[i];
        total += g[k][i];
        dot += g[k][i] * hat[k][i];
      }
#if GATE == 2
      if (a.dz.data) store8(a.dz.row(r) + place.from + c, dz);
#endif
    }
    float mean_g = a.centred ? team_sum(total, shared) / a.width : 0.0f, mean_dot = team_sum(dot, shared) / a.width;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
      int c = (k * LANES + place.lane) * 8;
      if (!live || c >= a.width) continue;
#if GATE == 1
      // x is read again, from a cache: it would take as many registers as û.
      float x[8];
      load8(a.x.row(r) + place.from + c, x);
#endif
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        g[k][i] = rstd * (g[k][i] - mean_g - hat[k][i] * mean_dot);
#if GATE == 1
        float2 gate = silu_dsilu(z[k][i]);
        x[i] *= g[k][i] * gate.y;
        g[k][i] *= gate.x;
#endif
      }
#if GATE == 1
      if (a.dz.data) store8(a.dz.row(r) + place.from + c, x);
#endif
      store8(a.dx.row(r) + place.from + c, g[k]);
    }
  }
  write_partial(a, place, dw, parts, a.partial_weight);
  write_partial(a, place, db, parts, a.partial_bias);
}

#endif
