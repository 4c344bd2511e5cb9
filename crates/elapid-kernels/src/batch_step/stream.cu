// The residual stream of a batch, and what goes into it and comes out of it: the embedding, products back into the stream, the head.
//
// A norm's product with its row's factor comes after the product with a matrix. So whoever writes the stream also writes what
// the next product reads, the stream times the weights of the next norm, and the squares that its factor is made of, a sum
// for each tile.

struct Stream {
  float* residual;      // [rows, d]
  bf16* x;              // [rows, d]: it times the weights of the next norm
  float* squares;       // [tiles, rows]
  const float* norm;    // [d]: those weights
  i32 rows;
  i32 d;
  i32 tiles;
};

struct Embed {
  Stream to;
  const bf16* embedding;  // [v, d]
  const u32* ids;         // [rows]
  i32 v;
};
// A block per row.
extern "C" __global__ void __launch_bounds__(256) embed(const __grid_constant__ Embed a) {
  __shared__ float parts[8];
  wait_for_previous();
  let_next_start();
  const Stream& s = a.to;
  const int row = blockIdx.x;
  const bf16* from = a.embedding + i64(min(a.ids[row], u32(a.v - 1))) * s.d;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < s.d; i += 256) {
    const float r = to_float(from[i]);
    squares += r * r;
    s.residual[i64(row) * s.d + i] = r;
    s.x[i64(row) * s.d + i] = from_float<bf16>(r * s.norm[i]);
  }
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = squares;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < 8; ++i) squares += parts[i];
    s.squares[row] = squares;
    for (int i = 1; i < s.tiles; ++i) s.squares[i64(i) * s.rows + row] = 0.0f;
  }
}

// The factors of rows whose squares are sums of `parts`: 1 / sqrt(mean + eps).
__device__ __forceinline__ void factors(float* to, const float* squares, int parts, int rows, int over, float eps) {
  for (int row = threadIdx.x; row < rows; row += blockDim.x) {
    float sum = 0.0f;
#pragma unroll 4
    for (int i = 0; i < parts; ++i) sum += squares[i64(i) * rows + row];
    to[row] = rsqrtf(sum / float(over) + eps);
  }
}

#ifdef TILE
#if SPLITS > 1
#define CLUSTER __cluster_dims__(1, SPLITS, 1)
#else
#define CLUSTER
#endif
#define LANES (TILE / 4)  // that have a row's outputs

__device__ __forceinline__ float round_bf16(float x) { return to_float(from_float<bf16>(x)); }

struct Output {
  Stream to;
  const bf16* y;         // [rows, k]
  const bf16* w;         // [d, k]
  const float* squares;  // [parts, rows]: of what a norm would have divided; absent if there is none
  float eps;
  i32 k;
  i32 parts;
};
// residual += W y, divided by the norm of y's row.
extern "C" __global__ void CLUSTER __launch_bounds__(THREADS) output(const __grid_constant__ Output a) {
  extern __shared__ __align__(1024) char shared[];
  float* const scales = FACTORS(shared);  // [ROWS]
  const Stream& s = a.to;
  auto begin = [&]() {
    if (a.squares != nullptr) factors(scales, a.squares, a.parts, s.rows, a.k, a.eps);
  };
  product(shared, a.y, a.k, a.w, s.rows, s.d, a.k, begin, [&](int row, int output, float4 sum) {
    const bool there = row < s.rows && output < s.d;
    float squares = 0.0f;
    const i64 at = i64(row) * s.d + output;
    if (there) {
      const float scale = a.squares != nullptr ? scales[row] : 1.0f;
      float4 r = *reinterpret_cast<const float4*>(s.residual + at);
      r.x += round_bf16(scale * sum.x), r.y += round_bf16(scale * sum.y);
      r.z += round_bf16(scale * sum.z), r.w += round_bf16(scale * sum.w);
      *reinterpret_cast<float4*>(s.residual + at) = r;
      const float4 w = *reinterpret_cast<const float4*>(s.norm + output);
      *reinterpret_cast<uint2*>(s.x + at) = make_uint2(pack_bf16(r.x * w.x, r.y * w.y), pack_bf16(r.z * w.z, r.w * w.w));
      squares = r.x * r.x + r.y * r.y + (r.z * r.z + r.w * r.w);
    }
#pragma unroll
    for (int lane = LANES / 2; lane > 0; lane >>= 1) squares += __shfl_xor_sync(0xffffffffu, squares, lane);
    if (threadIdx.x % LANES == 0 && row < s.rows) s.squares[i64(blockIdx.x) * s.rows + row] = squares;
  });
}

// The larger logit, the smaller id of equals.
__device__ __forceinline__ void better(float& x, u32& id, float y, u32 other) {
  if (y > x || (y == x && other < id)) x = y, id = other;
}

struct Head {
  const bf16* x;         // [rows, d]: normed, but for the factors of rows
  const bf16* w;         // [v, d]
  const float* squares;  // [parts, rows]
  float* logits;         // [rows, v]
  float2* best;          // [rows, tiles]: the largest logit and, as bits, its token
  float eps;
  i32 rows;
  i32 d;
  i32 v;
  i32 parts;
};
extern "C" __global__ void CLUSTER __launch_bounds__(THREADS) head(const __grid_constant__ Head a) {
  extern __shared__ __align__(1024) char shared[];
  float* const scales = FACTORS(shared);  // [ROWS]
  auto begin = [&]() { factors(scales, a.squares, a.parts, a.rows, a.d, a.eps); };
  product(shared, a.x, a.d, a.w, a.rows, a.v, a.d, begin, [&](int row, int output, float4 sum) {
    const float scale = row < a.rows ? scales[row] : 0.0f, all[4] = {sum.x, sum.y, sum.z, sum.w};
    float best = -__int_as_float(0x7f800000);
    u32 id = 0xffffffffu;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (row >= a.rows || output + i >= a.v) continue;
      const float x = scale * all[i];
      a.logits[i64(row) * a.v + output + i] = x;
      better(best, id, x, u32(output + i));
    }
#pragma unroll
    for (int lane = LANES / 2; lane > 0; lane >>= 1) {
      const float x = __shfl_xor_sync(0xffffffffu, best, lane);
      const u32 other = __shfl_xor_sync(0xffffffffu, id, lane);
      better(best, id, x, other);
    }
    if (threadIdx.x % LANES == 0 && row < a.rows) {
      a.best[i64(row) * gridDim.x + blockIdx.x] = make_float2(best, __uint_as_float(id));
    }
  });
}

struct Choose {
  const float2* best;  // [rows, tiles]
  u32* ids;            // [rows]
  i32 tiles;
};
// A warp per row. If all logits of a row are NaN there is no most likely token: an id outside every vocabulary.
extern "C" __global__ void __launch_bounds__(32) choose(const __grid_constant__ Choose a) {
  wait_for_previous();
  let_next_start();
  float best = -__int_as_float(0x7f800000);
  u32 id = 0xffffffffu;
  for (int i = threadIdx.x; i < a.tiles; i += 32) {
    const float2 one = a.best[i64(blockIdx.x) * a.tiles + i];
    better(best, id, one.x, __float_as_uint(one.y));
  }
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) {
    const float x = __shfl_xor_sync(0xffffffffu, best, lane);
    const u32 other = __shfl_xor_sync(0xffffffffu, id, lane);
    better(best, id, x, other);
  }
  if (threadIdx.x == 0) a.ids[blockIdx.x] = id;
}

struct Input {
  const bf16* x;           // [rows, d]: normed, but for the factors of rows
  const bf16* w;           // [outputs, d]
  const float* squares;    // [parts, rows]
  const float* conv;       // [channels, taps]
  const float* conv_bias;  // [channels], may be absent
  float* conv_state;       // [rows, taps - 1, channels]
  bf16* packed;            // [rows, outputs]
  float eps;
  i32 rows;
  i32 d;
  i32 outputs;
  i32 first;               // outputs before those of the convolution
  i32 channels;            // of the convolution
  i32 taps;
  i32 parts;
};
// A layer's first product, and the causal convolution and SiLU of some of its outputs; its window moves on.
extern "C" __global__ void CLUSTER __launch_bounds__(THREADS) input(const __grid_constant__ Input a) {
  extern __shared__ __align__(1024) char shared[];
  float* const scales = FACTORS(shared);  // [ROWS]
  auto begin = [&]() { factors(scales, a.squares, a.parts, a.rows, a.d, a.eps); };
  product(shared, a.x, a.d, a.w, a.rows, a.outputs, a.d, begin, [&](int row, int output, float4 sum) {
    if (row >= a.rows || output >= a.outputs) return;
    const float scale = scales[row];
    float y[4] = {round_bf16(scale * sum.x), round_bf16(scale * sum.y), round_bf16(scale * sum.z), round_bf16(scale * sum.w)};
    const int c = output - a.first;
    if (c >= 0 && c < a.channels) {
      float all[4] = {};
      if (a.conv_bias != nullptr) {
        const float4 bias = *reinterpret_cast<const float4*>(a.conv_bias + c);
        all[0] = bias.x, all[1] = bias.y, all[2] = bias.z, all[3] = bias.w;
      }
      float* window = a.conv_state + i64(row) * (a.taps - 1) * a.channels + c;
      const float* w = a.conv + i64(c) * a.taps;
#pragma unroll 3
      for (int j = 0; j + 1 < a.taps; ++j) {
        const float4 x = *reinterpret_cast<const float4*>(window + i64(j) * a.channels);
        all[0] += w[j] * x.x, all[1] += w[a.taps + j] * x.y;
        all[2] += w[2 * a.taps + j] * x.z, all[3] += w[3 * a.taps + j] * x.w;
        if (j > 0) *reinterpret_cast<float4*>(window + i64(j - 1) * a.channels) = x;
      }
      if (a.taps > 1) {
        *reinterpret_cast<float4*>(window + i64(a.taps - 2) * a.channels) = make_float4(y[0], y[1], y[2], y[3]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) y[i] = silu(all[i] + w[i * a.taps + a.taps - 1] * y[i]);
    }
    *reinterpret_cast<uint2*>(a.packed + i64(row) * a.outputs + output) = make_uint2(pack_bf16(y[0], y[1]), pack_bf16(y[2], y[3]));
  });
}
#endif
