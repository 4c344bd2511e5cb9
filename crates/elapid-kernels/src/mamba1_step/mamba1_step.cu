// One position of a few rows through a whole Mamba-1 language model, in one launch.
//
// One block per multiprocessor, all resident. Every layer has four stages, each followed by a barrier over all blocks: norm,
// in_proj and convolution; x_proj; dt_proj and scan; out_proj and the residual sum. A block computes the same outputs of a
// stage in every launch, so states and sums stay with it.
//
// A step reads all weights, and this must never wait for the barriers. So a dedicated warp copies the block's weights to a
// ring in shared memory, in the order in which the stages use them and as far ahead as there is room, while the others wait.
// (Before sm_90 there are no such copies: weights are loaded when needed.) What is left is latency, and for small models it
// is most of the step. A load from memory queues behind all these copies, so another warp prefetches small parameters and
// states a layer ahead, and they are read between arriving at a barrier and waiting for it. Waiting invalidates the L1, so
// what a stage needs twice is kept in shared memory. The stages share one loop with one product in it, which keeps the code
// short.
//
// Products are bf16 with f32 sums on tensor cores, 16 outputs by 8 rows per instruction. A piece of weights is 16 outputs by
// up to 512 columns; a team of warps works on it, other teams on other pieces, and their results are added in order. A piece
// has gaps between its rows, so that a warp's reads hit different banks. ROWS: 8, 16 or 32, at least `batch`.
//
// Data written by one block and read by another bypasses the L1 (`__ldcg`), which is not coherent.

#define TILES (ROWS / 8)
#define GROUP 16                // outputs of a piece at most
#define COLS 512                // its columns at most
#define PAD 64                  // bytes between its rows
#define TEAM 4                  // warps that work on it
#define GROUPS (32 / ROWS)      // of outputs that are made before they are added up

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
  i32 shared;             // bytes of shared memory
};

// Matrices of a layer, in the order of its stages, and that of the vocabulary.
enum Matrix { IN, X, DT, OUT, HEAD, MATRICES };
__device__ __forceinline__ int outputs_of(const Args& a, int matrix) {
  switch (matrix) {
    case IN: return 2 * a.ed;
    case X: return a.r + 2 * a.n;
    case DT: return a.ed;
    case OUT: return a.d;
    default: return a.v;
  }
}
__device__ __forceinline__ int columns_of(const Args& a, int matrix) {
  return matrix == X || matrix == OUT ? a.ed : matrix == DT ? a.r : a.d;
}

// Shared memory.
struct Block {
  Ring ring;
  float* scratch;  // [WARPS + 2 n, ROWS]
  float* sums;     // [WARPS, GROUPS GROUP, batch]: of a product, by warp; [CONSUMERS] pairs at least
  Part* parts;     // [MATRICES + 1]: this block's outputs; the last only fills up to 16 bytes
  Layer* layers;   // [2]: this layer's addresses and the next one's
  float* norm;     // [d]: weights of the next norm
  float* conv;     // [outputs of in_proj, batch]: what earlier positions add to the convolution
  float* tap;      // [outputs of in_proj]: what multiplies the current position
  float* dt;       // [outputs of dt_proj, batch]: Δ before softplus
  float* dt_bias;  // [outputs of dt_proj]
  float* skip;     // [outputs of dt_proj]
  float* residual; // [outputs of out_proj, batch]: this block's part of the residual stream
  bf16* x;         // [batch, stride]: the right factor
  int stride;
  __device__ __forceinline__ Block(const Args& a, char* shared);
  // Its outputs of in_proj that are convolved.
  __device__ __forceinline__ Part convolved(const Args& a) const {
    return Part{parts[IN].first, min(parts[IN].rows, a.ed - parts[IN].first)};
  }
};

__device__ __forceinline__ Block::Block(const Args& a, char* shared) {
  parts = reinterpret_cast<Part*>(ring.begin(shared));
  layers = reinterpret_cast<Layer*>(parts + MATRICES + 1);
  scratch = reinterpret_cast<float*>(layers + 2);
  sums = scratch + (WARPS + 2 * a.n) * ROWS;
  norm = sums + WARPS * GROUPS * GROUP * a.batch;
  conv = norm + a.d;
  tap = conv + most(2 * a.ed) * a.batch;
  dt = tap + most(2 * a.ed);
  dt_bias = dt + most(a.ed) * a.batch;
  skip = dt_bias + most(a.ed);
  residual = skip + most(a.ed);
  char* end = reinterpret_cast<char*>(residual + most(a.d) * a.batch);
  x = reinterpret_cast<bf16*>(shared + (end - shared + 127) / 128 * 128);
  const int widest = max(max(a.d, a.ed), (a.r + 31) / 32 * 32);
  // 64 bytes off a multiple of 128, as rows of a piece.
  stride = (widest + 63) / 64 * 64 + 32;
  ring.at = reinterpret_cast<char*>(x) + (a.batch * stride * 2 + 127) / 128 * 128;
  ring.room = int(shared + a.shared - ring.at) / 128 * 128;
}

__device__ __forceinline__ void mma(float* d, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Reads data that another block may have written.
__device__ __forceinline__ float load(const bf16* at) {
  return to_float(bf16{__ldcg(reinterpret_cast<const u16*>(at))});
}

// Bytes from a row of a piece to the next.
__device__ __forceinline__ int pitch(int cols) { return cols * 2 + PAD; }

#if RING
// The block's weights from first to last: for each matrix, for each group of outputs, its columns in pieces.
struct Schedule {
  int pieces[MATRICES], layer;  // of a matrix, and of all of a layer
  __device__ __forceinline__ Schedule(const Args& a, const Block& s) {
#pragma unroll
    for (int i = 0; i < MATRICES; ++i) {
      pieces[i] = (s.parts[i].rows + GROUP - 1) / GROUP * ((columns_of(a, i) + COLS - 1) / COLS);
    }
    layer = pieces[IN] + pieces[X] + pieces[DT] + pieces[OUT];
  }
  __device__ __forceinline__ int count(const Args& a) const { return a.count * layer + pieces[HEAD]; }
};
struct Piece {
  const bf16* from;
  int k, rows, cols;
  __device__ __forceinline__ Piece(const Args& a, const Block& s, const Schedule& of, int index) {
    const int l = of.layer > 0 ? min(index / of.layer, a.count) : a.count;
    int i = index - l * of.layer, matrix = HEAD;
    if (l < a.count) {
      matrix = IN;
      if (i >= of.pieces[IN]) i -= of.pieces[IN], matrix = X;
      if (matrix == X && i >= of.pieces[X]) i -= of.pieces[X], matrix = DT;
      if (matrix == DT && i >= of.pieces[DT]) i -= of.pieces[DT], matrix = OUT;
    }
    k = columns_of(a, matrix);
    const Part part = s.parts[matrix];
    const int across = (k + COLS - 1) / COLS, row = i / across * GROUP, col = i % across * COLS;
    rows = min(GROUP, part.rows - row), cols = min(COLS, k - col);
    const bf16* w = a.head;
    if (l < a.count) {
      const Layer& layer = a.layers[l];
      w = matrix == IN ? layer.in_proj : matrix == X ? layer.x_proj : matrix == DT ? layer.dt_proj : layer.out_proj;
    }
    from = w + i64(part.first + row) * k + col;
  }
};

// The warp after the computing warps: copies pieces to the ring as soon as there is room. Lanes look ahead for one piece
// each.
__device__ __forceinline__ void fetch(const Args& a, const Block& s) {
  const u32 all = 0xffffffffu;
  const int lane = threadIdx.x % 32;
  const Schedule schedule(a, s);
  const u32 count = schedule.count(a);
  Filler filler;
  Piece piece(a, s, schedule, lane);
  for (u32 first = 0; first < count; first += 32) {
    const Piece next(a, s, schedule, first + 32 + lane);
    const u32 end = min(count, first + 32);
#pragma unroll 1
    for (u32 i = first; i < end; ++i) {
      const int rows = __shfl_sync(all, piece.rows, i - first), cols = __shfl_sync(all, piece.cols, i - first);
      const i64 stride = __shfl_sync(all, piece.k, i - first);
      const bf16* from = reinterpret_cast<const bf16*>(__shfl_sync(all, reinterpret_cast<u64>(piece.from), i - first));
      const int to = filler.place(s.ring, rows * pitch(cols), rows * cols * 2);
      if (lane < rows) filler.copy(s.ring, to + lane * pitch(cols), from + lane * stride, cols * 2);
    }
    piece = next;
  }
}
#endif

// This block's outputs of W x, each passed to `use(row, m, sum)` with m = threadIdx.x % ROWS; x is zero-padded to a multiple
// of 32.
template <typename Use>
__device__ __forceinline__ void product(
    const Args& a, const Block& s, Pieces& pieces, const bf16* w, Part part, int k, Use use
) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, q = lane % 4, first = warp % TEAM * 32 + 8 * q, m = threadIdx.x % ROWS;
#pragma unroll 1
  for (int base = 0; base < part.rows; base += GROUPS * GROUP) {
    const int end = min(part.rows, base + GROUPS * GROUP);
    float* to = s.sums + (warp * GROUPS * GROUP + g) * a.batch;
#pragma unroll 1
    for (int row0 = base; row0 < end; row0 += GROUP) {
      const int rows = min(GROUP, end - row0);
      float sum[TILES][4] = {};
#pragma unroll 1
      for (int col0 = 0; col0 < k; col0 += COLS) {
        if (pieces.count++ % (WARPS / TEAM) != warp / TEAM) continue;
        const int cols = min(COLS, k - col0);
#if RING
        const int step = pitch(cols);
        const char* piece = pieces.last(s.ring);
#else
        const i64 step = k * 2;
        const char* piece = reinterpret_cast<const char*>(w + i64(part.first + row0) * k + col0);
#endif
        const char* at = piece + g * step + first * 2;
        const bf16* x = s.x + col0 + first;
#pragma unroll (ROWS > 16 ? 1 : 4)
        for (int slice = 0; slice < COLS; slice += TEAM * 32) {
          if (slice + first - 8 * q >= cols) break;
          const bool inside = slice + first < cols;
          uint4 low = make_uint4(0, 0, 0, 0), high = low;
          if (g < rows && inside) low = *reinterpret_cast<const uint4*>(at + slice * 2);
          if (g + 8 < rows && inside) high = *reinterpret_cast<const uint4*>(at + 8 * step + slice * 2);
#pragma unroll
          for (int t = 0; t < TILES; ++t) {
            // Columns of rows that are not there come to nothing that is read. Which of its numbers a thread has does not
            // matter, as long as both factors have the same.
            uint4 f = *reinterpret_cast<const uint4*>(x + min(t * 8 + g, a.batch - 1) * s.stride + slice);
            mma(sum[t], low.x, high.x, low.y, high.y, f.x, f.y);
            mma(sum[t], low.z, high.z, low.w, high.w, f.z, f.w);
          }
        }
#if RING
        pieces.done(s.ring);
#endif
      }
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = t * 8 + 2 * q + i;
          if (column < a.batch) to[column] = sum[t][i], to[8 * a.batch + column] = sum[t][2 + i];
        }
      }
      to += GROUP * a.batch;
    }
    sync();
    if (m < a.batch) {
#pragma unroll 1
      for (int row = base + threadIdx.x / ROWS; row < end; row += CONSUMERS / ROWS) {
        const float* from = s.sums + (row - base) * a.batch + m;
        float all = 0.0f;
#pragma unroll
        for (int i = 0; i < WARPS; ++i) all += from[i * GROUPS * GROUP * a.batch];
        use(row, m, all);
      }
    }
    if (end < part.rows) sync();
  }
}

// Warps that share a row of the batch.
__device__ __forceinline__ int warps_a_row(int batch) {
  int each = WARPS;
  while (each > 1 && each * batch > WARPS) each /= 2;
  return each;
}

// x = the residual stream times the weights in `s.norm`; what the outputs of row threadIdx.x % ROWS are multiplied by. Reads
// the embedding first.
__device__ __forceinline__ float norm(const Args& a, const Block& s, bool first) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, each = warps_a_row(a.batch);
#pragma unroll 1
  for (int m = warp / each; m < a.batch; m += WARPS / each) {
    float squares = 0.0f;
    const bf16* token = first ? a.embedding + i64(min(a.ids[m], u32(a.v - 1))) * a.d : nullptr;
#pragma unroll 2
    for (int i = (warp % each * 32 + lane) * 4; i < a.d; i += each * 128) {
      float4 h;
      if (first) {
        uint2 p = *reinterpret_cast<const uint2*>(token + i);
        h = make_float4(low_bf16(p.x), high_bf16(p.x), low_bf16(p.y), high_bf16(p.y));
      } else {
        h = __ldcg(reinterpret_cast<const float4*>(a.residual + m * a.d + i));
      }
      float4 w = *reinterpret_cast<const float4*>(s.norm + i);
      squares += h.x * h.x + h.y * h.y + h.z * h.z + h.w * h.w;
      uint2 x = make_uint2(pack_bf16(h.x * w.x, h.y * w.y), pack_bf16(h.z * w.z, h.w * w.w));
      *reinterpret_cast<uint2*>(s.x + m * s.stride + i) = x;
    }
    squares = warp_sum(squares);
    if (lane == 0) s.scratch[warp % each * ROWS + m] = squares;
  }
  sync();
  float sum = 0.0f;
#pragma unroll 4
  for (int j = 0; j < each; ++j) sum += s.scratch[j * ROWS + threadIdx.x % ROWS];
  return rsqrtf(sum / float(a.d) + a.eps);
}

// x = `from`, of `k` numbers a row, a multiple of 32.
__device__ __forceinline__ void fill(const Args& a, const Block& s, const bf16* from, int k) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, each = warps_a_row(a.batch);
#pragma unroll 1
  for (int m = warp / each; m < a.batch; m += WARPS / each) {
#pragma unroll 2
    for (int i = (warp % each * 32 + lane) * 8; i < k; i += each * 256) {
      *reinterpret_cast<uint4*>(s.x + m * s.stride + i) = __ldcg(reinterpret_cast<const uint4*>(from + m * k + i));
    }
  }
  sync();
}

// Inputs of the scan that no other block writes: this thread's first states, and A_log.
__device__ __forceinline__ void states_ahead(const Args& a, const Block& s, const Layer& layer, float4& log, float4& h) {
  const Part part = s.parts[DT];
#pragma unroll 1
  for (int i = other(); i >= 0 && i < part.rows; i += OTHERS) {
    s.dt_bias[i] = layer.dt_bias[part.first + i], s.skip[i] = layer.skip[part.first + i];
  }
  const int i = threadIdx.x / 4, n = threadIdx.x % 4 * 4;
  if (i >= part.rows * a.batch || n >= a.n) return;
  const int m = a.batch == 1 ? 0 : i / part.rows, c = part.first + i - m * part.rows;
  log = *reinterpret_cast<const float4*>(layer.a_log + c * a.n + n);
  h = *reinterpret_cast<const float4*>(layer.ssm_state + (m * a.ed + c) * a.n + n);
}

// x = Δ before its projection; B and C to the scratch, [batch, 2 n].
__device__ __forceinline__ void fill_delta(const Args& a, const Block& s) {
  const int columns = a.r + 2 * a.n, padded = (a.r + 31) / 32 * 32, width = padded + 2 * a.n;
#pragma unroll 1
  for (int i = threadIdx.x; i < a.batch * width; i += CONSUMERS) {
    const int m = a.batch == 1 ? 0 : i / width, j = i - m * width;
    const float* from = a.dbc + m * columns;
    if (j < padded) {
      s.x[m * s.stride + j] = from_float<bf16>(j < a.r ? __ldcg(from + j) : 0.0f);
    } else {
      s.scratch[m * 2 * a.n + j - padded] = __ldcg(from + a.r + j - padded);
    }
  }
  sync();
}

// h = exp(Δ A) h + Δ B u, y = (C h + D u) silu(z), with Δ = softplus of what `s.dt` holds; four threads a channel. What is
// this thread's own of the first round is given.
__device__ __forceinline__ void scan(
    const Args& a, const Block& s, const Layer& layer, float own_u, float own_z, float4 own_log, float4 own_h
) {
  const Part part = s.parts[DT];
  const int lane = threadIdx.x % 4;
#pragma unroll 1
  for (int i0 = 0; i0 < part.rows * a.batch; i0 += CONSUMERS / 4) {
    const int i = i0 + threadIdx.x / 4;
    const bool live = i < part.rows * a.batch;
    const int m = live && a.batch > 1 ? i / part.rows : 0, row = live ? i - m * part.rows : 0, c = part.first + row;
    const int at = m * a.ed + c;
    const float u = i0 == 0 ? own_u : load(a.u + at), z = i0 == 0 ? own_z : load(a.z + at);
    const float dt = softplus(s.dt[row * a.batch + m]);
    const float* b = s.scratch + m * 2 * a.n;
    float y = 0.0f;
#pragma unroll 1
    for (int n = lane * 4; live && n < a.n; n += 16) {
      const bool known = i0 == 0 && n == lane * 4;
      float4* to = reinterpret_cast<float4*>(layer.ssm_state + at * a.n + n);
      float4 log = known ? own_log : *reinterpret_cast<const float4*>(layer.a_log + c * a.n + n);
      float4 before = known ? own_h : *to;
      float h[4] = {before.x, before.y, before.z, before.w}, of[4] = {log.x, log.y, log.z, log.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        // A = -exp(A_log)
        float decay = fast_exp2(-LOG2_E * dt * fast_exp2(LOG2_E * of[j]));
        h[j] = decay * h[j] + dt * u * b[n + j];
        y += b[a.n + n + j] * h[j];
      }
      *to = make_float4(h[0], h[1], h[2], h[3]);
    }
    y += __shfl_xor_sync(0xffffffffu, y, 1);
    y += __shfl_xor_sync(0xffffffffu, y, 2);
    if (live && lane == 0) a.y[at] = from_float<bf16>((y + s.skip[row] * u) * silu(z));
  }
}

// The epilogue of a stage's product: for output `row` of the block and row `m` of the batch.
struct Output {
  const Args& a;
  const Block& s;
  const Layer& of;
  int first, layer, stage;
  float scale;  // of what is normed

  __device__ __forceinline__ void logit(int row, int m, float sum, float& best, u32& best_id) const {
    const float x = scale * sum;
    a.logits[m * a.v + first + row] = x;
    better(best, best_id, x, u32(first + row));
  }

  __device__ __forceinline__ void keep(int row, int m, float sum) const {
    const int c = first + row;
    const bf16 rounded = from_float<bf16>(stage == IN ? scale * sum : sum);
    const float now = to_float(rounded);
    if (stage == IN) {
      // [x z] = in_proj(norm(residual)); u = silu(conv(x)).
      if (c >= a.ed) {
        a.z[m * a.ed + c - a.ed] = rounded;
        return;
      }
      a.u[m * a.ed + c] = from_float<bf16>(silu(s.conv[row * a.batch + m] + s.tap[row] * now));
      if (a.k > 1) of.conv_state[(m * (a.k - 1) + a.k - 2) * a.ed + c] = now;
    } else if (stage == X) {
      a.dbc[m * (a.r + 2 * a.n) + c] = now;
    } else if (stage == DT) {
      s.dt[row * a.batch + m] = now + s.dt_bias[row];
    } else {
      // A block's part of the residual stream is also in shared memory.
      float& residual = s.residual[row * a.batch + m];
      if (layer == 0) residual = to_float(a.embedding[i64(min(a.ids[m], u32(a.v - 1))) * a.d + c]);
      residual += now;
      a.residual[m * a.d + c] = residual;
    }
  }
};

// The best of each row among this block's, of what every thread has seen of row threadIdx.x % ROWS.
__device__ __forceinline__ void best_of_block(const Args& a, const Block& s, float x, u32 id) {
  sync();
  float2* all = reinterpret_cast<float2*>(s.sums);  // [CONSUMERS]
  all[threadIdx.x] = make_float2(x, __uint_as_float(id));
  sync();
#pragma unroll 1
  for (int m = threadIdx.x / 32; m < a.batch; m += WARPS) {
    x = -__int_as_float(0x7f800000), id = 0xffffffffu;
#pragma unroll 1
    for (int i = threadIdx.x % 32; i < CONSUMERS / ROWS; i += 32) {
      float2 one = all[i * ROWS + m];
      better(x, id, one.x, __float_as_uint(one.y));
    }
    best_of_warp(x, id);
    if (threadIdx.x % 32 == 0) a.best[m * gridDim.x + blockIdx.x] = make_float2(x, __uint_as_float(id));
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) step(const __grid_constant__ Args a) {
  extern __shared__ __align__(128) char shared[];
  const Block s(a, shared);
  if (threadIdx.x < MATRICES) s.parts[threadIdx.x] = part_of(outputs_of(a, threadIdx.x));
#if RING
  if (threadIdx.x == 0) prepare(s.ring, TEAM);
#endif
  __syncthreads();
  if (threadIdx.x >= CONSUMERS + 32) {
    ask_ahead(a.layers, a.count, [&](const Layer& layer) {
      ask_for(a, layer, a.batch, s.convolved(a), s.parts[DT]);
    });
    return;
  }
  if (threadIdx.x >= CONSUMERS) {
#if RING
    fetch(a, s);
#endif
    return;
  }
  Blocks blocks{a.arrived};
  Pieces pieces;
  // This layer's addresses are loaded before it begins, the next one's soon after.
  auto addresses = [&](int layer) {
    if (threadIdx.x < sizeof(Layer) / 8 && layer < a.count) {
      reinterpret_cast<u64*>(s.layers + layer % 2)[threadIdx.x] = reinterpret_cast<const u64*>(a.layers + layer)[threadIdx.x];
    }
  };
  addresses(0);
  sync();
  int layer = 0, stage = a.count > 0 ? IN : HEAD;
  float4 log = make_float4(0.0f, 0.0f, 0.0f, 0.0f), h = log;
  float best = -__int_as_float(0x7f800000);
  u32 best_id = 0xffffffffu;
#pragma unroll 1
  while (true) {
    const Layer& of = s.layers[layer % 2];
    if (stage == IN || stage == HEAD) read_ahead(s.norm, stage == IN ? of.norm : a.norm, a.d);
    if (stage == IN) {
      convolve(a, of, a.batch, s.convolved(a), s.conv, s.tap);
      addresses(layer + 1);
    } else if (stage == DT) {
      states_ahead(a, s, of, log, h);
    }
    blocks.wait();
    const Part part = s.parts[stage];
    if (part.rows > 0) {
      float scale = 0.0f, u = 0.0f, z = 0.0f;
      if (stage == IN || stage == HEAD) {
        scale = norm(a, s, layer == 0 && (stage == IN || a.count == 0));
      } else if (stage == DT) {
        // Of the first round of the scan, while the product is computed.
        const int i = min(int(threadIdx.x) / 4, part.rows * a.batch - 1), m = a.batch == 1 ? 0 : i / part.rows;
        const int at = m * a.ed + part.first + i - m * part.rows;
        u = load(a.u + at), z = load(a.z + at);
        fill_delta(a, s);
      } else {
        fill(a, s, stage == X ? a.u : a.y, a.ed);
      }
#if RING
      const bf16* weights = nullptr;
#else
      const bf16* weights = stage == HEAD ? a.head
                          : stage == IN   ? of.in_proj
                          : stage == X    ? of.x_proj
                          : stage == DT   ? of.dt_proj
                                          : of.out_proj;
#endif
      const Output output{a, s, of, part.first, layer, stage, scale};
      product(a, s, pieces, weights, part, columns_of(a, stage), [&](int row, int m, float sum) {
        if (stage == HEAD) {
          output.logit(row, m, sum, best, best_id);
        } else {
          output.keep(row, m, sum);
        }
      });
      if (stage == DT) {
        sync();
        scan(a, s, of, u, z, log, h);
      }
    }
    if (stage == HEAD) break;
    blocks.arrive();
    // Not `bar.arrive`: arriving twice before the prefetching warp has come would complete its barrier without it.
    if (stage == IN && layer + 1 < a.count) layer_begun();
    if (stage != OUT) {
      ++stage;
    } else if (++layer < a.count) {
      stage = IN;
    } else {
      stage = HEAD;
    }
  }
  best_of_block(a, s, best, best_id);
  blocks.arrive();
  if (blockIdx.x == 0) {
    blocks.wait();
    choose(a.best, a.batch, a.ids);
  }
  leave(a.arrived);
}
