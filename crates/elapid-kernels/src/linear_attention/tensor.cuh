// Linear attention on tensor cores, for a decay of the head: chunks of CHUNK positions.
//
// HK: columns of a key, a multiple of 16, at most 128. HV: columns of a value that a block has, a multiple of 16, at most 64; a wider
// value is several `parts`, which count as heads with the same decay.
//
// Tiles have rows of 8 more elements than a multiple of 16: eight rows 16 bytes wide then begin in different banks.

#define CHUNK 64
#define THREADS 128
#define WARPS 4
#define LK (HK + 8)
#define LV (HV + 8)

__device__ __forceinline__ u8* shared_memory() {
  extern __shared__ __align__(16) u8 memory[];
  return memory;
}
__device__ __forceinline__ u32 shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }

// D += A B: A 16 x 16, B 16 x 8.
__device__ __forceinline__ void mma(float* d, const u32* a, u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void load4(u32* r, u32 from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from));
}
__device__ __forceinline__ void load4_transposed(u32* r, u32 from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from));
}
// 16 bytes from global memory; zeros if they are not `there`.
__device__ __forceinline__ void copy16(u32 to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
// 4 bytes from global memory; zero if they are not `there`.
__device__ __forceinline__ void copy4(u32 to, const void* from, bool there) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(there ? 4 : 0) : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for the copies of this thread but the last N groups.
template <int N>
__device__ __forceinline__ void loaded() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// A lane's address of a 16 x 16 block at the corner of a tile with rows of L: `down` as A of that shape, or (transposed) as B whose rows
// are those of the tile; `across` as B whose columns are the tile's rows, or (transposed) as A whose columns are.
template <int L>
__device__ __forceinline__ u32 down(u32 tile) {
  int lane = threadIdx.x & 31;
  return tile + 2 * ((lane & 15) * L + (lane >> 4) * 8);
}
template <int L>
__device__ __forceinline__ u32 across(u32 tile) {
  int lane = threadIdx.x & 31;
  return tile + 2 * (((lane >> 4) * 8 + (lane & 7)) * L + ((lane >> 3) & 1) * 8);
}

// Begins to load ROWS rows of W columns, of which `valid` are there.
template <int ROWS, int W, int L>
__device__ __forceinline__ void load_tile(u32 to, const bf16* from, i64 stride, i64 valid) {
  constexpr int OF_ROW = W / 8, ALL = ROWS * OF_ROW;
  if constexpr (THREADS % OF_ROW == 0 && ALL % THREADS == 0) {
    constexpr int STEP = THREADS / OF_ROW;
    int r = threadIdx.x / OF_ROW, c = threadIdx.x % OF_ROW, left = valid < ROWS ? int(valid) : ROWS;
    const bf16* at = from + r * stride + c * 8;
    to += 2 * (r * L + c * 8);
#pragma unroll
    for (int n = 0; n < ALL / THREADS; ++n) {
      bool there = r + n * STEP < left;
      copy16(to + 2 * n * STEP * L, there ? at : from, there);
      at += STEP * stride;
    }
  } else {
#pragma unroll 4
    for (int i = threadIdx.x; i < ALL; i += THREADS) {
      int r = i / OF_ROW, c = i - r * OF_ROW;
      copy16(to + 2 * (r * L + c * 8), from + (r < valid ? r : 0) * stride + c * 8, r < valid);
    }
  }
}

// Two neighbouring 16 x 8 results as A of the next product.
__device__ __forceinline__ void as_a(u32* a, const float* left, const float* right) {
  a[0] = pack_bf16(left[0], left[1]), a[1] = pack_bf16(left[2], left[3]);
  a[2] = pack_bf16(right[0], right[1]), a[3] = pack_bf16(right[2], right[3]);
}

// out (16 rows, N columns) += A B over K: A's rows are those of a tile, B's columns the rows of another.
template <int N, int K, int LA, int LB>
__device__ __forceinline__ void product_across(float (*out)[4], u32 a, u32 b) {
  a = down<LA>(a), b = across<LB>(b);
#pragma unroll
  for (int k = 0; k < K / 16; ++k) {
    u32 left[4];
    load4(left, a + 32 * k);
#pragma unroll
    for (int j = 0; j < N / 16; ++j) {
      u32 right[4];
      load4(right, b + 2 * (j * 16 * LB + k * 16));
      mma(out[2 * j], left, right[0], right[1]), mma(out[2 * j + 1], left, right[2], right[3]);
    }
  }
}
// out (16 rows, N columns) += A B over K: A's rows are those of a tile, B's rows too.
template <int N, int K, int LA, int LB>
__device__ __forceinline__ void product_down(float (*out)[4], u32 a, u32 b) {
  a = down<LA>(a), b = down<LB>(b);
#pragma unroll
  for (int k = 0; k < K / 16; ++k) {
    u32 left[4];
    load4(left, a + 32 * k);
#pragma unroll
    for (int j = 0; j < N / 16; ++j) {
      u32 right[4];
      load4_transposed(right, b + 2 * (k * 16 * LB + j * 16));
      mma(out[2 * j], left, right[0], right[1]), mma(out[2 * j + 1], left, right[2], right[3]);
    }
  }
}
// The same with A of results.
template <int N, int K, int LB>
__device__ __forceinline__ void product_results(float (*out)[4], const u32 (*a)[4], u32 b) {
  b = down<LB>(b);
#pragma unroll
  for (int k = 0; k < K / 16; ++k)
#pragma unroll
    for (int j = 0; j < N / 16; ++j) {
      u32 right[4];
      load4_transposed(right, b + 2 * (k * 16 * LB + j * 16));
      mma(out[2 * j], a[k], right[0], right[1]), mma(out[2 * j + 1], a[k], right[2], right[3]);
    }
}
template <int N>
__device__ __forceinline__ void clear(float (*x)[4]) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) x[j][0] = x[j][1] = x[j][2] = x[j][3] = 0.0f;
}

// Sum over the four lanes of a row.
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Stores a row of N columns of which each of its four lanes has the pair `column` of every eight, in pieces of 16 bytes (of 8 at the end of
// a width that is no multiple of 32), if it is `there`.
template <int N>
__device__ __forceinline__ void store_row(bf16* to, u32* x, bool there) {
  int lane = threadIdx.x & 3;
  auto swap = [&](u32& low, u32& high, int by) {
    bool second = lane & by;
    u32 other = __shfl_xor_sync(0xffffffffu, second ? low : high, by);
    low = second ? other : low, high = second ? high : other;
  };
#pragma unroll
  for (int j = 0; j + 4 <= N / 8; j += 4) {
    u32* y = x + j;
    swap(y[0], y[1], 1), swap(y[2], y[3], 1), swap(y[0], y[2], 2), swap(y[1], y[3], 2);
    if (there) *reinterpret_cast<uint4*>(to + 8 * (j + lane)) = make_uint4(y[0], y[1], y[2], y[3]);
  }
  if (N % 32 == 16) {
    u32* y = x + N / 8 - 2;
    swap(y[0], y[1], 1);
    if (there) *reinterpret_cast<uint2*>(to + N - 16 + (lane & 1) * 8 + (lane >> 1) * 4) = make_uint2(y[0], y[1]);
  }
}

// The weight of the skip of a part of a value.
struct Skip {
  const float* channels;
  float all;
  __device__ __forceinline__ Skip(const Args& a, int h, int part) {
    channels = a.skip && a.skip_channels ? a.skip + h * a.values + part * HV : nullptr;
    all = a.skip && !a.skip_channels ? a.skip[h] : 0.0f;
  }
  __device__ __forceinline__ float2 at(int column) const {
    return channels ? float2{channels[column], channels[column + 1]} : float2{all, all};
  }
};

// log2 of the decay from the chunk's begin up to each position.
__device__ __forceinline__ const float* sums_of(const Args& a, int b, int h) {
  return a.sums + (i64(b) * a.heads + h) * a.chunks * CHUNK;
}
// The first position of t's document, -1 if that began before the row.
__device__ __forceinline__ int start_of(const Args& a, int b, i64 t) {
  return a.starts ? a.starts[i64(b) * a.chunks * CHUNK + t] : -1;
}

// Per position of a chunk, in shared memory. Positions after the row have a weight of 0; their sum is the chunk's last.
struct __align__(16) Chunk {
  float sum[CHUNK], write[CHUNK];
  int start[CHUNK];
};
// What is the same for all chunks.
__device__ __forceinline__ void begin_chunk(const Args& a, Chunk* to) {
  if (threadIdx.x < CHUNK) {
    if (!a.write.data) to->write[threadIdx.x] = 1.0f;
    if (!a.starts) to->start[threadIdx.x] = -1;
  }
}
__device__ __forceinline__ void load_chunk(const Args& a, Chunk* to, int b, int h, i64 t0, i64 len) {
  int i = threadIdx.x;
  if (i < CHUNK / 4) {
    copy16(shared_address(to->sum + 4 * i), sums_of(a, b, h) + t0 + 4 * i, true);
    if (a.starts) copy16(shared_address(to->start + 4 * i), a.starts + i64(b) * a.chunks * CHUNK + t0 + 4 * i, true);
  }
  if (a.write.data && i < CHUNK) {
    bool there = t0 + i < len;
    copy4(shared_address(to->write + i), a.write.row(b * a.l + (there ? t0 + i : 0)) + h, there);
  }
}

// Calls `f` for the pairs of the warp's rows, of sub-chunk `warp`, with columns of the sub-chunks before it (rows are queries) or after it
// (rows are keys), and of its own: f(j, n, e, column, x), with element e of the tile 2 j + n of a product of 16 rows. x is scale times the
// decay in between, of queries times w; 0 for what is not seen. For other sub-chunks the decay is split at the border of the warp's own, so
// that each factor is at most 1.
template <bool QUERIES, class F>
__device__ __forceinline__ void for_pairs(const Args& a, const Chunk& of, i64 t0, F f) {
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = warp * 16 + (lane >> 2), pair = (lane & 3) * 2;
  auto power = [](float x) { return DECAY == 0 ? 1.0f : fast_exp2(x); };
  float base = QUERIES ? (warp > 0 ? of.sum[warp * 16 - 1] : 0.0f) : of.sum[warp * 16 + 15], mine[2], by[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    mine[half] = of.sum[row + 8 * half];
    by[half] = a.scale * power(QUERIES ? mine[half] - base : base - mine[half]);
  }
#pragma unroll
  for (int j = 0; j < CHUNK / 16; ++j) {
    if (QUERIES ? j > warp : j < warp) continue;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      int at = j * 16 + n * 8 + pair;
      float2 sum = *reinterpret_cast<const float2*>(of.sum + at);
      float x[4];
      if (j == warp) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          int t = row + e / 2 * 8, other = at + e % 2;
          float y = QUERIES ? mine[e / 2] - (e % 2 ? sum.y : sum.x) : (e % 2 ? sum.y : sum.x) - mine[e / 2];
          x[e] = (QUERIES ? other <= t : t <= other) ? a.scale * power(y) : 0.0f;
        }
      } else {
        float low = power(QUERIES ? base - sum.x : sum.x - base), high = power(QUERIES ? base - sum.y : sum.y - base);
        x[0] = by[0] * low, x[1] = by[0] * high, x[2] = by[1] * low, x[3] = by[1] * high;
      }
      if (QUERIES) {
        float2 w = *reinterpret_cast<const float2*>(of.write + at);
        x[0] *= w.x, x[1] *= w.y, x[2] *= w.x, x[3] *= w.y;
      }
      if (a.starts) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          int t = row + e / 2 * 8, other = at + e % 2;
          if (QUERIES ? t0 + other < of.start[t] : t0 + t < of.start[other]) x[e] = 0.0f;
        }
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) f(j, n, e, at + e % 2, x[e]);
    }
  }
}

// The starts of a row's positions, by a warp.
__device__ __forceinline__ void find_starts(const Args& a, int b) {
  int lane = threadIdx.x & 31, start = -1;
  for (i64 t = lane; t < a.chunks * CHUNK; t += 32) {
    int mine = t < a.l && is_reset(a, b * a.l + t) ? int(t) : -1;
#pragma unroll
    for (int by = 1; by < 32; by *= 2) {
      int other = __shfl_up_sync(0xffffffffu, mine, by);
      if (lane >= by && other > mine) mine = other;
    }
    if (start > mine) mine = start;
    a.starts[i64(b) * a.chunks * CHUNK + t] = mine;
    start = __shfl_sync(0xffffffffu, mine, 31);
  }
}

// Adds a warp's sum of the shares of chunks: `count` columns from `column` of rows `width` wide.
__device__ __forceinline__ void add_shares(const Args& a, float* to, const float* rows, i64 width, int column, int count) {
  float sum = 0.0f;
  for (i64 i = threadIdx.x & 31; i < a.shares * count; i += 32) sum += rows[i / count * width + column + i % count];
  sum = warp_sum(sum);
  if ((threadIdx.x & 31) == 0) *to += sum;
}
// `each` shares of a head where skip has one weight for it.
__device__ __forceinline__ void add_skips(const Args& a, int unit, int each) {
  i64 values = i64(a.heads) * a.values;
  if (!a.dskip) return;
  if (a.skip_channels && unit < values) add_shares(a, a.dskip + unit, a.dskip_rows, values, unit, 1);
  if (!a.skip_channels && unit < a.heads) add_shares(a, a.dskip + unit, a.dskip_rows, i64(a.heads) * each, unit * each, each);
}
