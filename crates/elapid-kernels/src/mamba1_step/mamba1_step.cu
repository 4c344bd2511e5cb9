// One position of a few rows through a whole Mamba-1 language model, in one launch.
//
// One block a multiprocessor, all resident; every layer has four stages, after each of which all blocks wait for each
// other: norm, in_proj and convolution; x_proj; dt_proj and scan; out_proj and the residual sum. A block makes the same
// outputs of a stage in every launch, so that states and sums stay with it. While it works on one stage it asks the L2 for
// the weights of the next.
//
// Products are of bf16 and sum in f32 on tensor cores: 16 outputs by 8 rows an instruction, the inner dimension divided
// among warps where a block has few outputs, and added up in order. ROWS: 8, 16 or 32, at least `batch`.
//
// What one block writes and another reads goes past the L1 (`__ldcg`), which is not kept coherent.

#define THREADS 512
#define WARPS (THREADS / 32)
#define TILES (ROWS / 8)
#define GROUP 16          // outputs of a product of tensor cores
#define PREFETCH 0x18000  // bytes a block asks for ahead

struct Layer {
  const float* norm;        // [d]
  const bf16* in_proj;      // [2 ed, d]
  const float* conv;        // [ed, k]
  const float* conv_bias;   // [ed], may be absent
  const bf16* x_proj;       // [r + 2 n, ed]
  const bf16* dt_proj;      // [ed, r]
  const float* dt_bias;     // [ed]
  const float* a_log;       // [ed, n]
  const float* skip;        // [ed]
  const bf16* out_proj;     // [d, ed]
  float* conv_state;        // [batch, k - 1, ed]
  float* ssm_state;         // [batch, ed, n]
};

struct Args {
  const Layer* layers;
  const bf16* embedding;  // [v, d]
  const float* norm;      // [d]
  const bf16* head;       // [v, d]
  u32* ids;               // [batch]: read at first, the likeliest next at last
  float* residual;        // [batch, d]
  bf16* u;                // [batch, ed]
  bf16* z;                // [batch, ed]
  float* dbc;             // [batch, r + 2 n]
  bf16* y;                // [batch, ed]
  float* logits;          // [batch, v]
  float2* best;           // [batch, blocks]: the largest logit and, as bits, its token
  u32* arrived;           // [2]: blocks at barriers, and blocks that have finished; 0 between launches
  float eps;
  i32 count;              // layers
  i32 batch;
  i32 d;
  i32 ed;
  i32 n;
  i32 r;
  i32 k;
  i32 v;
};

// Outputs of a stage that a block makes.
struct Part {
  int first, rows;
  __device__ __forceinline__ explicit Part(int outputs) {
    int most = (outputs + int(gridDim.x) - 1) / int(gridDim.x);
    first = min(int(blockIdx.x) * most, outputs);
    rows = min(most, outputs - first);
  }
};

struct Block {
  bf16* x;            // [ROWS, stride]: the right factor
  float* sums;        // [slices, rows of whole groups, ROWS]
  float* scratch;     // [WARPS + 2 * states, ROWS]
  int stride;
};

__device__ __forceinline__ void mma(float* d, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 arrived(const u32* counter) {
  u32 count;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
  return count;
}

// What another block may have written.
__device__ __forceinline__ float load(const bf16* at) {
  return to_float(bf16{__ldcg(reinterpret_cast<const u16*>(at))});
}

// Until all blocks have come here `times` times.
__device__ __forceinline__ void all_blocks(u32* counter, u32 times) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(counter, 1u);
    while (arrived(counter) < times * gridDim.x) {
    }
  }
  __syncthreads();
}

// Asks the L2 for this block's part of a matrix of `outputs` rows of `k`.
__device__ __forceinline__ void prefetch(const bf16* w, int outputs, int k) {
#if __CUDA_ARCH__ >= 900
  Part part(outputs);
  u32 bytes = u32(min(i64(part.rows) * k * 2, i64(PREFETCH))) & ~15u;
  if (threadIdx.x == 0 && bytes > 0) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(w + i64(part.first) * k), "r"(bytes) : "memory");
  }
#endif
}

// How the inner dimension of a product is divided among warps.
__device__ __forceinline__ int slices(int rows) { return max(1, WARPS * GROUP / max(GROUP, (rows + GROUP - 1) / GROUP * GROUP)); }

// This block's outputs of W x, to `sums`; k is a multiple of 8, and x filled up with zeros to one of 32.
__device__ __forceinline__ void product(const Block& s, const bf16* w, Part part, int k) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int groups = (part.rows + GROUP - 1) / GROUP, parts = slices(part.rows), chunks = (k + 31) / 32;
  for (int item = threadIdx.x / 32; item < groups * parts; item += WARPS) {
    const int group = item / parts, slice = item % parts;
    const int row = group * GROUP + g;
    const bool low = row < part.rows, high = row + 8 < part.rows;
    const bf16* at = w + i64(part.first + row) * k + 8 * q;
    const bf16* x = s.x + g * s.stride + 8 * q;
    float sum[TILES][4] = {};
    const int end = (slice + 1) * chunks / parts;
#pragma unroll 4
    for (int c = slice * chunks / parts; c < end; ++c) {
      const bool inside = c * 32 + 8 * q < k;
      uint4 a = make_uint4(0, 0, 0, 0), b = make_uint4(0, 0, 0, 0);
      if (low && inside) a = __ldg(reinterpret_cast<const uint4*>(at + c * 32));
      if (high && inside) b = __ldg(reinterpret_cast<const uint4*>(at + i64(8) * k + c * 32));
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
        // Which of its numbers a thread has does not matter, as long as both factors have the same.
        uint4 f = *reinterpret_cast<const uint4*>(x + t * 8 * s.stride + c * 32);
        mma(sum[t], a.x, b.x, a.y, b.y, f.x, f.y);
        mma(sum[t], a.z, b.z, a.w, b.w, f.z, f.w);
      }
    }
    float* to = s.sums + (slice * groups * GROUP + row) * ROWS + 2 * q;
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
      *reinterpret_cast<float2*>(to + t * 8) = make_float2(sum[t][0], sum[t][1]);
      *reinterpret_cast<float2*>(to + t * 8 + 8 * ROWS) = make_float2(sum[t][2], sum[t][3]);
    }
  }
  __syncthreads();
}

// Output `row` of the block for row `m` of the batch.
__device__ __forceinline__ float output(const Block& s, Part part, int row, int m) {
  const int padded = (part.rows + GROUP - 1) / GROUP * GROUP, parts = slices(part.rows);
  float sum = 0.0f;
  for (int slice = 0; slice < parts; ++slice) sum += s.sums[(slice * padded + row) * ROWS + m];
  return sum;
}

// x = the residual stream times `weight`; its root mean square divides the outputs (`scale`). Reads the embedding first.
__device__ __forceinline__ void normed(const Args& a, const Block& s, const float* weight, bool first) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int each = WARPS;  // warps a row
  while (each > 1 && each * a.batch > WARPS) each /= 2;
  for (int m = warp / each; m < a.batch; m += WARPS / each) {
    float squares = 0.0f;
    const bf16* token = first ? a.embedding + i64(min(a.ids[m], u32(a.v - 1))) * a.d : nullptr;
#pragma unroll 4
    for (int i = (warp % each * 32 + lane) * 4; i < a.d; i += each * 128) {
      float4 h;
      if (first) {
        uint2 p = *reinterpret_cast<const uint2*>(token + i);
        h = make_float4(low_bf16(p.x), high_bf16(p.x), low_bf16(p.y), high_bf16(p.y));
      } else {
        h = __ldcg(reinterpret_cast<const float4*>(a.residual + i64(m) * a.d + i));
      }
      float4 w = __ldg(reinterpret_cast<const float4*>(weight + i));
      squares += h.x * h.x + h.y * h.y + h.z * h.z + h.w * h.w;
      uint2 x = make_uint2(pack_bf16(h.x * w.x, h.y * w.y), pack_bf16(h.z * w.z, h.w * w.w));
      *reinterpret_cast<uint2*>(s.x + m * s.stride + i) = x;
    }
    squares = warp_sum(squares);
    if (lane == 0) s.scratch[warp % each * ROWS + m] = squares;
  }
  __syncthreads();
  // In order, by everyone who needs it.
  for (int m = threadIdx.x; m < a.batch; m += THREADS) {
    float sum = 0.0f;
    for (int j = 0; j < each; ++j) sum += s.scratch[j * ROWS + m];
    s.scratch[m] = rsqrtf(sum / float(a.d) + a.eps);
  }
  __syncthreads();
}

// x = `from`, of `k` numbers a row, a multiple of 32.
__device__ __forceinline__ void fill(const Args& a, const Block& s, const bf16* from, int k) {
#pragma unroll 4
  for (int i = threadIdx.x * 8; i < a.batch * k; i += THREADS * 8) {
    *reinterpret_cast<uint4*>(s.x + i / k * s.stride + i % k) = __ldcg(reinterpret_cast<const uint4*>(from + i));
  }
  __syncthreads();
}

// [x z] = in_proj(norm(residual)); u = silu(conv(x)).
__device__ __forceinline__ void project_in(const Args& a, const Block& s, int index) {
  const Layer& layer = a.layers[index];
  prefetch(layer.x_proj, a.r + 2 * a.n, a.ed);
  prefetch(layer.dt_proj, a.ed, a.r);
  prefetch(layer.out_proj, a.d, a.ed);
  normed(a, s, layer.norm, index == 0);
  const Part part(2 * a.ed);
  product(s, layer.in_proj, part, a.d);
  for (int i = threadIdx.x; i < part.rows * a.batch; i += THREADS) {
    const int row = i % part.rows, m = i / part.rows, c = part.first + row;
    const bf16 xz = from_float<bf16>(s.scratch[m] * output(s, part, row, m));
    if (c >= a.ed) {
      a.z[i64(m) * a.ed + c - a.ed] = xz;
      continue;
    }
    float now = to_float(xz), sum = layer.conv_bias != nullptr ? layer.conv_bias[c] : 0.0f;
    float* window = layer.conv_state + i64(m) * (a.k - 1) * a.ed + c;
    const float* w = layer.conv + i64(c) * a.k;
    for (int j = 0; j + 1 < a.k; ++j) {
      sum += w[j] * window[i64(j) * a.ed];
      window[i64(j) * a.ed] = j + 2 < a.k ? window[i64(j + 1) * a.ed] : now;
    }
    a.u[i64(m) * a.ed + c] = from_float<bf16>(silu(sum + w[a.k - 1] * now));
  }
}

// [Δ B C] = x_proj(u).
__device__ __forceinline__ void project_x(const Args& a, const Block& s, int index) {
  const Layer& layer = a.layers[index];
  if (index + 1 < a.count) prefetch(a.layers[index + 1].in_proj, 2 * a.ed, a.d);
  else prefetch(a.head, a.v, a.d);
  const int columns = a.r + 2 * a.n;
  const Part part(columns);
  if (part.rows == 0) return;
  fill(a, s, a.u, a.ed);
  product(s, layer.x_proj, part, a.ed);
  for (int i = threadIdx.x; i < part.rows * a.batch; i += THREADS) {
    const int row = i % part.rows, m = i / part.rows;
    a.dbc[i64(m) * columns + part.first + row] = to_float(from_float<bf16>(output(s, part, row, m)));
  }
}

// h = exp(Δ A) h + Δ B u, y = (C h + D u) silu(z), with Δ = softplus(dt_proj + bias); four threads a channel.
__device__ __forceinline__ void scan(const Args& a, const Block& s, int index) {
  const Layer& layer = a.layers[index];
  const int columns = a.r + 2 * a.n;
  const Part part(a.ed);
  float* bc = s.scratch;  // [batch, 2 n]
  for (int i = threadIdx.x; i < a.batch * ((a.r + 31) / 32 * 32 + 2 * a.n); i += THREADS) {
    const int padded = (a.r + 31) / 32 * 32, width = padded + 2 * a.n, m = i / width, j = i % width;
    if (j < padded) {
      s.x[m * s.stride + j] = from_float<bf16>(j < a.r ? __ldcg(a.dbc + i64(m) * columns + j) : 0.0f);
    } else {
      bc[m * 2 * a.n + j - padded] = __ldcg(a.dbc + i64(m) * columns + a.r + j - padded);
    }
  }
  __syncthreads();
  product(s, layer.dt_proj, part, a.r);
  const int lane = threadIdx.x % 4;
  for (int i0 = 0; i0 < part.rows * a.batch; i0 += THREADS / 4) {
    const int i = i0 + threadIdx.x / 4;
    const bool live = i < part.rows * a.batch;
    const int row = live ? i % part.rows : 0, m = live ? i / part.rows : 0, c = part.first + row;
    const i64 at = i64(m) * a.ed + c;
    const float dt = softplus(to_float(from_float<bf16>(output(s, part, row, m))) + layer.dt_bias[c]);
    const float u = load(a.u + at);
    float y = 0.0f;
    for (int n = lane * 4; live && n < a.n; n += 16) {
      float4 log = *reinterpret_cast<const float4*>(layer.a_log + i64(c) * a.n + n);
      float4* to = reinterpret_cast<float4*>(layer.ssm_state + at * a.n + n);
      float h[4] = {to->x, to->y, to->z, to->w}, of[4] = {log.x, log.y, log.z, log.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        // A = -exp(A_log)
        float decay = fast_exp2(-LOG2_E * dt * fast_exp2(LOG2_E * of[j]));
        h[j] = decay * h[j] + dt * u * bc[m * 2 * a.n + n + j];
        y += bc[m * 2 * a.n + a.n + n + j] * h[j];
      }
      *to = make_float4(h[0], h[1], h[2], h[3]);
    }
    y += __shfl_xor_sync(0xffffffffu, y, 1);
    y += __shfl_xor_sync(0xffffffffu, y, 2);
    if (live && lane == 0) a.y[at] = from_float<bf16>((y + layer.skip[c] * u) * silu(load(a.z + at)));
  }
}

// residual += out_proj(y).
__device__ __forceinline__ void project_out(const Args& a, const Block& s, int index) {
  const Layer& layer = a.layers[index];
  const Part part(a.d);
  if (part.rows == 0) return;
  fill(a, s, a.y, a.ed);
  product(s, layer.out_proj, part, a.ed);
  for (int i = threadIdx.x; i < part.rows * a.batch; i += THREADS) {
    const int row = i % part.rows, m = i / part.rows;
    const i64 at = i64(m) * a.d + part.first + row;
    float before;
    if (index == 0) {
      before = to_float(a.embedding[i64(min(a.ids[m], u32(a.v - 1))) * a.d + part.first + row]);
    } else {
      before = __ldcg(a.residual + at);
    }
    a.residual[at] = before + to_float(from_float<bf16>(output(s, part, row, m)));
  }
}

// The larger logit, the smaller id of equals.
__device__ __forceinline__ void better(float& x, u32& id, float y, u32 other) {
  if (y > x || (y == x && other < id)) x = y, id = other;
}
__device__ __forceinline__ void best_of_warp(float& x, u32& id) {
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) {
    float y = __shfl_xor_sync(0xffffffffu, x, lane);
    u32 other = __shfl_xor_sync(0xffffffffu, id, lane);
    better(x, id, y, other);
  }
}

// Logits, and the best of each row among this block's.
__device__ __forceinline__ void logits(const Args& a, const Block& s) {
  normed(a, s, a.norm, a.count == 0);
  const Part part(a.v);
  product(s, a.head, part, a.d);
  for (int i = threadIdx.x; i < part.rows * a.batch; i += THREADS) {
    const int row = i % part.rows, m = i / part.rows;
    float logit = s.scratch[m] * output(s, part, row, m);
    a.logits[i64(m) * a.v + part.first + row] = logit;
    // Nobody else reads this sum.
    s.sums[row * ROWS + m] = logit;
  }
  __syncthreads();
  for (int m = threadIdx.x / 32; m < a.batch; m += WARPS) {
    float x = -__int_as_float(0x7f800000);
    u32 id = 0xffffffffu;
    for (int row = threadIdx.x % 32; row < part.rows; row += 32) better(x, id, s.sums[row * ROWS + m], part.first + row);
    best_of_warp(x, id);
    if (threadIdx.x % 32 == 0) a.best[i64(m) * gridDim.x + blockIdx.x] = make_float2(x, __uint_as_float(id));
  }
}

// The best of all blocks: the tokens that the next launch reads.
__device__ __forceinline__ void choose(const Args& a) {
  for (int m = threadIdx.x / 32; m < a.batch; m += WARPS) {
    float x = -__int_as_float(0x7f800000);
    u32 id = 0xffffffffu;
    for (int i = threadIdx.x % 32; i < gridDim.x; i += 32) {
      float2 one = __ldcg(a.best + i64(m) * gridDim.x + i);
      better(x, id, one.x, __float_as_uint(one.y));
    }
    best_of_warp(x, id);
    // Without a number among a row's logits there is no likeliest: an id that no vocabulary has.
    if (threadIdx.x % 32 == 0) a.ids[m] = id;
  }
}

__device__ __forceinline__ Block block_of(const Args& a, char* shared) {
  Block s;
  const int widest = max(max(a.d, a.ed), (a.r + 31) / 32 * 32);
  // 64 bytes off a multiple of 128: what a warp reads at once lies in different banks.
  s.stride = (widest + 63) / 64 * 64 + 32;
  s.scratch = reinterpret_cast<float*>(shared);
  s.sums = s.scratch + (WARPS + 2 * a.n) * ROWS;
  const int rows = max((a.v + int(gridDim.x) - 1) / int(gridDim.x), (2 * a.ed + int(gridDim.x) - 1) / int(gridDim.x));
  s.x = reinterpret_cast<bf16*>(s.sums + max((rows + GROUP - 1) / GROUP, WARPS) * GROUP * ROWS);
  return s;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) step(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) char shared[];
  const Block s = block_of(a, shared);
  u32 times = 0;
  for (int layer = 0; layer < a.count; ++layer) {
    project_in(a, s, layer);
    all_blocks(a.arrived, ++times);
    project_x(a, s, layer);
    all_blocks(a.arrived, ++times);
    scan(a, s, layer);
    all_blocks(a.arrived, ++times);
    project_out(a, s, layer);
    all_blocks(a.arrived, ++times);
  }
  logits(a, s);
  all_blocks(a.arrived, ++times);
  if (blockIdx.x == 0) choose(a);
  if (threadIdx.x == 0 && atomicAdd(a.arrived + 1, 1u) == gridDim.x - 1) a.arrived[0] = a.arrived[1] = 0;
}
