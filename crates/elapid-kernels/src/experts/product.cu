// One product over the sorted rows of all experts. T is the dtype of activations.
//
// FORM 0: c_r = W_e a_r, W_e [cols depth]: the forward. FORM 1: c_r = W_eᵀ a_r, W_e [depth cols]: the gradient of the input. Both
// have `depth` terms a sum. FORM 2: C_e += Σ_r a_rᵀ b_r, [m cols]: the gradient of W_e, with as many terms as e has rows.
//
// TENSOR: bf16 on tensor cores. Tiles of 128 by BN of the output, 64 terms at a time, in STAGES buffers that are filled ahead
// by asynchronous copies. Otherwise plain sums in f32.

struct Args {
  Mat<T> a, b, c;
  Mat<float> sum;  // FORM 2: C
  const u32* starts;  // [experts + 1]
  i64 depth, cols, m;
  u32 experts, tiles;  // FORM 0 and 1: tiles of rows, at most
};

// The tile of rows that a block works on.
struct Tile {
  u32 e, from, to;
  i64 col;
};

// Tiles in an order in which blocks that run together read few rows and few columns: eight tiles of rows, all their columns.
__device__ __forceinline__ bool tile_of(const Args& a, u32 size, u32 columns, Tile* tile) {
  u32 across = u32((a.cols + columns - 1) / columns);
  u32 group = blockIdx.x / (8 * across), rest = blockIdx.x - group * 8 * across;
  u32 first = group * 8, high = a.tiles - first < 8 ? a.tiles - first : 8;
  u32 down = first + rest % high;
  tile->col = i64(rest / high) * columns;
  for (u32 e = 0; e < a.experts; ++e) {
    u32 from = a.starts[e], to = a.starts[e + 1], tiles = (to - from + size - 1) / size;
    if (down < tiles) {
      tile->e = e;
      tile->from = from + down * size;
      tile->to = tile->from + size < to ? tile->from + size : to;
      return true;
    }
    down -= tiles;
  }
  return false;
}

#if TENSOR

#define BM 128
#define BK 64
// Columns of a warp, of which four are side by side.
#define WN (BN / 4)
#define THREADS 256

// 16 bytes from global to shared memory, zeros if they are not there.
__device__ __forceinline__ void copy16(u32 to, const void* from, bool there) {
  int size = there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(size) : "memory");
}
__device__ __forceinline__ void four_matrices(u32 (&x)[4], u32 from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(from));
}
__device__ __forceinline__ void four_transposed(u32 (&x)[4], u32 from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(from));
}
__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A tile of rows of 64 terms, or of terms of so many rows or columns of the output; 16 bytes are a chunk. Chunks are swapped by
// the row's number, so that eight rows lie in different banks.
template <int CHUNKS>
__device__ __forceinline__ u32 place(u32 row, u32 chunk) {
  return (row * CHUNKS + (chunk ^ (row & 7))) * 16;
}

#define BYTES_A (BM * BK * 2)
#define BYTES_B (BN * BK * 2)

// A tile of ROWS rows of 64 terms: rows `from` to `to`, terms from `term` on.
template <int ROWS>
__device__ __forceinline__ void load_rows(u32 to_shared, const Mat<T>& x, i64 from, i64 to, i64 term, i64 depth) {
#pragma unroll
  for (int i = 0; i < ROWS * 8 / THREADS; ++i) {
    u32 at = threadIdx.x + i * THREADS, row = at / 8, chunk = at % 8;
    bool there = from + row < to && term + chunk * 8 < depth;
    copy16(to_shared + place<8>(row, chunk), x.row(there ? from + row : 0) + (there ? term + chunk * 8 : 0), there);
  }
}
// A tile of 64 terms of COLS columns: terms `term` to `end`, columns from `col` on.
template <int COLS>
__device__ __forceinline__ void load_terms(u32 to_shared, const Mat<T>& x, i64 term, i64 end, i64 col, i64 cols) {
  constexpr int CHUNKS = COLS / 8;
#pragma unroll
  for (int i = 0; i < BK * CHUNKS / THREADS; ++i) {
    u32 at = threadIdx.x + i * THREADS, row = at / CHUNKS, chunk = at % CHUNKS;
    bool there = term + row < end && col + chunk * 8 < cols;
    copy16(to_shared + place<CHUNKS>(row, chunk), x.row(there ? term + row : 0) + (there ? col + chunk * 8 : 0), there);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BN == 128 ? 2 : 1) product(const __grid_constant__ Args a) {
  extern __shared__ __align__(128) u8 memory[];
  u32 shared = u32(__cvta_generic_to_shared(memory));
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const u32 row0 = warp / 4 * 64, col0 = warp % 4 * WN;
#if FORM == 2
  u32 e = blockIdx.z;
  i64 first = i64(blockIdx.y) * BM, col = i64(blockIdx.x) * BN;
  i64 begin = a.starts[e], end = a.starts[e + 1];
  if (begin == end) return;
#else
  Tile tile;
  if (!tile_of(a, BM, BN, &tile)) return;
  i64 first = tile.from, col = tile.col, begin = 0, end = a.depth;
#endif
  auto load = [&](i64 term, u32 stage) {
    u32 to = shared + stage * (BYTES_A + BYTES_B);
    if (term < end) {
#if FORM == 2
      load_terms<BM>(to, a.a, term, end, first, a.m);
      load_terms<BN>(to + BYTES_A, a.b, term, end, col, a.cols);
#else
      load_rows<BM>(to, a.a, first, tile.to, term, a.depth);
#if FORM == 0
      i64 w = i64(tile.e) * a.cols;
      load_rows<BN>(to + BYTES_A, a.b, w + col, w + a.cols, term, a.depth);
#else
      i64 w = i64(tile.e) * a.depth;
      load_terms<BN>(to + BYTES_A, a.b, w + term, w + a.depth, col, a.cols);
#endif
#endif
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  float c[4][WN / 8][4] = {};
#pragma unroll
  for (int stage = 0; stage < STAGES - 1; ++stage) load(begin + stage * BK, stage);
  u32 stage = 0;
  for (i64 term = begin; term < end; term += BK) {
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
    __syncthreads();
    load(term + (STAGES - 1) * BK, stage == 0 ? STAGES - 1 : stage - 1);
    u32 of_a = shared + stage * (BYTES_A + BYTES_B), of_b = of_a + BYTES_A;
#pragma unroll
    for (int k = 0; k < BK / 16; ++k) {
      u32 x[4][4], w[WN / 16][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        u32 row = row0 + i * 16;
#if FORM == 2
        four_transposed(x[i], of_a + place<BM / 8>(k * 16 + lane % 8 + lane / 16 * 8, (row + lane / 8 % 2 * 8) / 8));
#else
        four_matrices(x[i], of_a + place<8>(row + lane % 16, k * 2 + lane / 16));
#endif
      }
#pragma unroll
      for (int j = 0; j < WN / 16; ++j) {
        u32 at = col0 + j * 16;
#if FORM == 0
        four_matrices(w[j], of_b + place<8>(at + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
#else
        four_transposed(w[j], of_b + place<BN / 8>(k * 16 + lane % 16, at / 8 + lane / 16));
#endif
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < WN / 8; ++j) multiply(c[i][j], x[i], w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1]);
      }
    }
    stage = stage + 1 == STAGES ? 0 : stage + 1;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      i64 r = first + row0 + i * 16 + half * 8 + lane / 4;
#if FORM == 2
      if (r >= a.m) continue;
      float* to = a.sum.row(i64(e) * a.m + r);
#else
      if (r >= tile.to) continue;
      T* to = a.c.row(r);
#endif
#pragma unroll
      for (int j = 0; j < WN / 8; ++j) {
        i64 at = col + col0 + j * 8 + lane % 4 * 2;
        if (at >= a.cols) continue;
        float x = c[i][j][half * 2], y = c[i][j][half * 2 + 1];
#if FORM == 2
        float2* sum = reinterpret_cast<float2*>(to + at);
        float2 before = *sum;
        *sum = make_float2(before.x + x, before.y + y);
#else
        *reinterpret_cast<u32*>(to + at) = pack_bf16(x, y);
#endif
      }
    }
  }
}

#else

#define SIDE 64
#define BK 16
#define THREADS 256

extern "C" __global__ void __launch_bounds__(THREADS) product(const __grid_constant__ Args a) {
  __shared__ float xs[BK][SIDE + 1], ws[BK][SIDE + 1];
#if FORM == 2
  u32 e = blockIdx.z;
  i64 first = i64(blockIdx.y) * SIDE, col = i64(blockIdx.x) * SIDE;
  i64 begin = a.starts[e], end = a.starts[e + 1], last = a.m;
  if (begin == end) return;
#else
  Tile tile;
  if (!tile_of(a, SIDE, SIDE, &tile)) return;
  i64 first = tile.from, col = tile.col, begin = 0, end = a.depth, last = tile.to;
#endif
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  float c[4][4] = {};
  for (i64 term = begin; term < end; term += BK) {
    for (int i = threadIdx.x; i < BK * SIDE; i += THREADS) {
      // Neighbouring threads read neighbouring elements.
#if FORM == 2
      int k = i / SIDE, s = i % SIDE;
      bool there = term + k < end;
      xs[k][s] = there && first + s < last ? to_float(a.a.row(term + k)[first + s]) : 0.0f;
      ws[k][s] = there && col + s < a.cols ? to_float(a.b.row(term + k)[col + s]) : 0.0f;
#else
      int k = i % BK, s = i / BK;
      bool there = term + k < end;
      xs[k][s] = there && first + s < last ? to_float(a.a.row(first + s)[term + k]) : 0.0f;
#if FORM == 0
      ws[k][s] = there && col + s < a.cols ? to_float(a.b.row(i64(tile.e) * a.cols + col + s)[term + k]) : 0.0f;
#else
      k = i / SIDE, s = i % SIDE;
      there = term + k < end;
      ws[k][s] = there && col + s < a.cols ? to_float(a.b.row(i64(tile.e) * a.depth + term + k)[col + s]) : 0.0f;
#endif
#endif
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < BK; ++k) {
      float x[4], w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = xs[k][ty + 16 * i], w[i] = ws[k][tx + 16 * i];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) c[i][j] += x[i] * w[j];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    i64 r = first + ty + 16 * i;
    if (r >= last) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      i64 at = col + tx + 16 * j;
      if (at >= a.cols) continue;
#if FORM == 2
      a.sum.row(i64(e) * a.m + r)[at] += c[i][j];
#else
      a.c.row(r)[at] = from_float<T>(c[i][j]);
#endif
    }
  }
}

#endif
