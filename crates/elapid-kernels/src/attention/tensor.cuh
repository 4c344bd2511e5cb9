// Matrix products of a warp on tensor cores (mma.sync, bf16 with f32 sums), and tiles in shared memory.
//
// A tile has rows of W + 8 elements, W the width of a head rounded up to 16: eight rows 16 bytes wide then begin in different
// banks, and every address of a fragment is one of a lane plus a constant. Columns that the head does not have are zeros.

#define DK ((HK + 15) / 16 * 16)
#define DV ((HV + 15) / 16 * 16)
#define HOPPER 0

template <int ROWS, int D>
__device__ constexpr int tile_bytes() { return ROWS * (D + 8) * 2; }
__device__ __forceinline__ u8* aligned(u8* p) { return p; }

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

// A lane's address of the 16 x 16 block at the corner of a tile D wide: as A, or as B whose rows are the sum's dimension
// (transposed); as B whose rows are columns of the result.
template <int D>
__device__ __forceinline__ u32 lane_down(u32 tile) {
  int lane = threadIdx.x & 31;
  return tile + 2 * ((lane & 15) * (D + 8) + (lane >> 4) * 8);
}
template <int D>
__device__ __forceinline__ u32 lane_across(u32 tile) {
  int lane = threadIdx.x & 31;
  return tile + 2 * (((lane >> 4) * 8 + (lane & 7)) * (D + 8) + ((lane >> 3) & 1) * 8);
}

// 16 bytes from global memory; zeros if they are not `there`.
__device__ __forceinline__ void copy16(u32 to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0));
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all copies of this thread.
__device__ __forceinline__ void loaded() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

// Begins to load ROWS rows of a head H wide, of which `valid` are there.
template <int ROWS, int H, int D, int THREADS>
__device__ __forceinline__ void load_tile(u32 to, const bf16* from, i64 stride, int valid) {
  constexpr int CHUNKS = H / 8, ALL = ROWS * CHUNKS;
#pragma unroll
  for (int i0 = 0; i0 < ALL; i0 += THREADS) {
    int i = i0 + threadIdx.x;
    int r = i / CHUNKS, c = i - r * CHUNKS;
    if (ALL % THREADS == 0 || i < ALL) copy16(to + 2 * (r * (D + 8) + c * 8), from + r * stride + c * 8, r < valid);
  }
}
// N floats or integers.
template <int N, int THREADS>
__device__ __forceinline__ void load_row(u32 to, const void* from) {
  if (threadIdx.x < N / 4) copy16(to + 16 * threadIdx.x, reinterpret_cast<const u8*>(from) + 16 * threadIdx.x, true);
}
// Zeros in the columns that the head does not have.
template <int ROWS, int H, int D, int THREADS>
__device__ __forceinline__ void clear_padding(u8* tile) {
  if (H % 16 != 0) {
    for (int r = threadIdx.x; r < ROWS; r += THREADS) {
      *reinterpret_cast<uint4*>(tile + (r * (D + 8) + H) * 2) = make_uint4(0, 0, 0, 0);
    }
  }
}

// Two neighbouring 16 x 8 results as A of the next product.
__device__ __forceinline__ void as_a(u32* a, const float* left, const float* right) {
  a[0] = pack_bf16(left[0], left[1]), a[1] = pack_bf16(left[2], left[3]);
  a[2] = pack_bf16(right[0], right[1]), a[3] = pack_bf16(right[2], right[3]);
}

// The warp's 16 M rows of a tile, in registers.
template <int M, int D>
struct Kept {
  u32 parts[D / 16][M][4];
  template <int ROWS>
  __device__ __forceinline__ void load(u32 tile) {
    u32 from = lane_down<D>(tile + (threadIdx.x >> 5) * tile_bytes<16 * M, D>());
#pragma unroll
    for (int k = 0; k < D / 16; ++k)
#pragma unroll
      for (int m = 0; m < M; ++m) load4(parts[k][m], from + 2 * (m * 16 * (D + 8) + k * 16));
  }
};

// S (16 M rows, N columns) = A B over D elements: A the warp's rows of a tile, or what was kept of them, B a tile of N rows.
template <int M, int N, int D, int ROWS_A, bool KEPT>
__device__ __forceinline__ void product_across(float (*s)[N / 8][4], u32 a, const Kept<M, D>& kept, u32 b) {
  a = lane_down<D>(a + (threadIdx.x >> 5) * tile_bytes<16 * M, D>()), b = lane_across<D>(b);
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int j = 0; j < N / 8; ++j) s[m][j][0] = s[m][j][1] = s[m][j][2] = s[m][j][3] = 0.0f;
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    u32 left[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m) {
      if (KEPT) {
#pragma unroll
        for (int i = 0; i < 4; ++i) left[m][i] = kept.parts[k][m][i];
      } else {
        load4(left[m], a + 2 * (m * 16 * (D + 8) + k * 16));
      }
    }
#pragma unroll
    for (int j = 0; j < N / 16; ++j) {
      u32 right[4];
      load4(right, b + 2 * (j * 16 * (D + 8) + k * 16));
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma(s[m][2 * j], left[m], right[0], right[1]);
        mma(s[m][2 * j + 1], left[m], right[2], right[3]);
      }
    }
  }
}

// O (16 M rows, D columns) += P B, with P (K columns) from results, and B's rows being P's columns.
template <int M, int K, int D>
__device__ __forceinline__ void product_down(float (*o)[D / 8][4], const u32 (*p)[K / 16][4], u32 b) {
  b = lane_down<D>(b);
#pragma unroll
  for (int k = 0; k < K / 16; ++k) {
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {
      u32 right[4];
      load4_transposed(right, b + 2 * (k * 16 * (D + 8) + j * 16));
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma(o[m][2 * j], p[m][k], right[0], right[1]);
        mma(o[m][2 * j + 1], p[m][k], right[2], right[3]);
      }
    }
  }
}

// Here products are finished when they were computed.
template <int LEFT, int M, int N>
__device__ __forceinline__ void finished(float (*)[N][4]) {}

// A warp's 16 M rows of `factor` times a result, H of D columns, through its own rows of a tile to memory; `valid` rows are
// there.
template <int M, int H, int D>
__device__ __forceinline__ void store_rows(bf16* to, i64 stride, int valid, u8* tile, float (*o)[D / 8][4],
                                           const float (*factor)[2]) {
  int lane = threadIdx.x & 31, g = lane >> 2, c = (lane & 3) * 2;
  bf16* rows = reinterpret_cast<bf16*>(tile) + (threadIdx.x >> 5) * 16 * M * (D + 8);
  __syncwarp();
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      bf16* at = rows + (m * 16 + g) * (D + 8) + j * 8 + c;
      float low = factor[m][0], high = factor[m][1];
      *reinterpret_cast<u32*>(at) = pack_bf16(o[m][j][0] * low, o[m][j][1] * low);
      *reinterpret_cast<u32*>(at + 8 * (D + 8)) = pack_bf16(o[m][j][2] * high, o[m][j][3] * high);
    }
  __syncwarp();
  constexpr int CHUNKS = H / 8;
#pragma unroll
  for (int i0 = 0; i0 < M * 16 * CHUNKS; i0 += 32) {
    int i = i0 + lane, r = i / CHUNKS, chunk = i - r * CHUNKS;
    if (i < M * 16 * CHUNKS && r < valid) {
      *reinterpret_cast<uint4*>(to + r * stride + chunk * 8) = *reinterpret_cast<uint4*>(rows + r * (D + 8) + chunk * 8);
    }
  }
}
