// Matrix products of four warps on Hopper's tensor cores (wgmma, bf16 with f32 sums), and tiles in shared memory: what
// `tensor.cuh` has for one warp. Results lie in registers as there, 16 rows a warp.
//
// A tile is panels of 64 columns: rows of 128 bytes whose 16-byte parts are permuted by the row's last three bits, as the
// tensor cores read them (128-byte swizzle). Products run beside the code that issued them until `finished`.

#define DK HK
#define DV HV
#define HOPPER 1
// Elsewhere these kernels are compiled to see that they are correct C++, and never launched.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HAS_WGMMA 1
#else
#define HAS_WGMMA 0
#endif

template <int ROWS, int D>
__device__ constexpr int tile_bytes() { return ROWS * D * 2; }

__device__ __forceinline__ u32 shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }
// The first byte that a tile may begin at: patterns repeat every 1024.
__device__ __forceinline__ u8* aligned(u8* p) { return p + (-shared_address(p) & 1023u); }

// Where a tile of shared memory lies: eight rows are 1024 bytes; `panel` bytes from a panel to the next, which are read only
// of tiles whose rows are the sum's dimension.
__device__ __forceinline__ u64 descriptor(u32 tile, u32 panel) {
  return u64((tile & 0x3ffffu) >> 4) | u64(panel >> 4) << 16 | u64(1024 >> 4) << 32 | u64(1) << 62;
}

#define D4(d) "+f"((d)[0]), "+f"((d)[1]), "+f"((d)[2]), "+f"((d)[3])

// D (64 x N) = A B, or += if `keep`: A from shared memory, B's rows being columns of D.
__device__ __forceinline__ void wgmma64(float (*d)[4], u64 a, u64 b, int keep) {
#if HAS_WGMMA
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %34, 0;"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, p, 1, 1, 0, 0;}"
      : D4(d[0]), D4(d[1]), D4(d[2]), D4(d[3]), D4(d[4]), D4(d[5]), D4(d[6]), D4(d[7])
      : "l"(a), "l"(b), "r"(keep));
#endif
}
__device__ __forceinline__ void wgmma128(float (*d)[4], u64 a, u64 b, int keep) {
#if HAS_WGMMA
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %66, 0;"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, 0, 0;}"
      : D4(d[0]), D4(d[1]), D4(d[2]), D4(d[3]), D4(d[4]), D4(d[5]), D4(d[6]), D4(d[7]), D4(d[8]), D4(d[9]),
        D4(d[10]), D4(d[11]), D4(d[12]), D4(d[13]), D4(d[14]), D4(d[15])
      : "l"(a), "l"(b), "r"(keep));
#endif
}
// A from registers, B's rows being the sum's dimension.
__device__ __forceinline__ void wgmma64(float (*d)[4], const u32* a, u64 b, int keep) {
#if HAS_WGMMA
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %37, 0;"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, 1;}"
      : D4(d[0]), D4(d[1]), D4(d[2]), D4(d[3]), D4(d[4]), D4(d[5]), D4(d[6]), D4(d[7])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
#endif
}
__device__ __forceinline__ void wgmma128(float (*d)[4], const u32* a, u64 b, int keep) {
#if HAS_WGMMA
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %69, 0;"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, 1;}"
      : D4(d[0]), D4(d[1]), D4(d[2]), D4(d[3]), D4(d[4]), D4(d[5]), D4(d[6]), D4(d[7]), D4(d[8]), D4(d[9]),
        D4(d[10]), D4(d[11]), D4(d[12]), D4(d[13]), D4(d[14]), D4(d[15])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
#endif
}

__device__ __forceinline__ void begin_products() {
#if HAS_WGMMA
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void end_products() {
#if HAS_WGMMA
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Waits until at most LEFT of the last products are under way; what `d` holds is read after it.
template <int LEFT, int M, int N>
__device__ __forceinline__ void finished(float (*d)[N][4]) {
#if HAS_WGMMA
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
#endif
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int j = 0; j < N; ++j) asm volatile("" : D4(d[m][j])::"memory");
}

// 16 bytes from global memory; zeros if they are not `there`.
__device__ __forceinline__ void copy16(u32 to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0));
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all copies of this thread; after the next barrier the tensor cores see those of all threads.
__device__ __forceinline__ void loaded() {
  asm volatile("cp.async.wait_group 0;" ::: "memory");
#if HAS_WGMMA
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Begins to load ROWS rows of a head H wide, of which `valid` are there.
template <int ROWS, int H, int D, int THREADS>
__device__ __forceinline__ void load_tile(u32 to, const bf16* from, i64 stride, int valid) {
  constexpr int CHUNKS = H / 8, ALL = ROWS * CHUNKS;
#pragma unroll
  for (int i0 = 0; i0 < ALL; i0 += THREADS) {
    int i = i0 + threadIdx.x;
    int r = i / CHUNKS, c = i - r * CHUNKS;
    u32 at = to + (c / 8) * (ROWS * 128) + r * 128 + ((c ^ r) & 7) * 16;
    if (ALL % THREADS == 0 || i < ALL) copy16(at, from + r * stride + c * 8, r < valid);
  }
}
// N floats or integers.
template <int N, int THREADS>
__device__ __forceinline__ void load_row(u32 to, const void* from) {
  if (threadIdx.x < N / 4) copy16(to + 16 * threadIdx.x, reinterpret_cast<const u8*>(from) + 16 * threadIdx.x, true);
}
// Heads have all columns.
template <int ROWS, int H, int D, int THREADS>
__device__ __forceinline__ void clear_padding(u8*) {}

// Two neighbouring 16 x 8 results as A of the next product.
__device__ __forceinline__ void as_a(u32* a, const float* left, const float* right) {
  a[0] = pack_bf16(left[0], left[1]), a[1] = pack_bf16(left[2], left[3]);
  a[2] = pack_bf16(right[0], right[1]), a[3] = pack_bf16(right[2], right[3]);
}

// What a warp keeps of its rows: nothing, the tensor cores read them from shared memory.
template <int M, int D>
struct Kept {
  template <int ROWS>
  __device__ __forceinline__ void load(u32) {}
};

// S (64 rows of the four warps, N columns) = A B over D elements: A the rows of a tile of ROWS_A, B a tile of N rows.
template <int M, int N, int D, int ROWS_A, bool KEPT>
__device__ __forceinline__ void product_across(float (*s)[N / 8][4], u32 a, const Kept<M, D>&, u32 b) {
  static_assert(M == 1 && (N == 64 || N == 128) && (D == 64 || D == 128), "sizes that are written out above");
  a += (threadIdx.x >> 7) * 64 * 128;
  begin_products();
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    u32 step = (k % 4) * 32;
    u64 left = descriptor(a + (k / 4) * ROWS_A * 128 + step, 16), right = descriptor(b + (k / 4) * N * 128 + step, 16);
    if (N == 64) wgmma64(s[0], left, right, k > 0);
    if (N == 128) wgmma128(s[0], left, right, k > 0);
  }
  end_products();
}

// O (D columns) += P B, with P (K columns) from results, and B's rows being P's columns.
template <int M, int K, int D>
__device__ __forceinline__ void product_down(float (*o)[D / 8][4], const u32 (*p)[K / 16][4], u32 b) {
  begin_products();
#pragma unroll
  for (int k = 0; k < K / 16; ++k) {
    u64 right = descriptor(b + k * 2048, K * 128);
    if (D == 64) wgmma64(o[0], p[0][k], right, 1);
    if (D == 128) wgmma128(o[0], p[0][k], right, 1);
  }
  end_products();
}

// A warp's 16 rows of `factor` times a result of D columns, through shared memory of its own from `tile` on, to memory;
// `valid` rows are there.
template <int M, int H, int D>
__device__ __forceinline__ void store_rows(bf16* to, i64 stride, int valid, u8* tile, float (*o)[D / 8][4],
                                           const float (*factor)[2]) {
  int lane = threadIdx.x & 31, g = lane >> 2, c = (lane & 3) * 2;
  u8* rows = tile + (threadIdx.x >> 5) * 16 * D * 2;
  __syncwarp();
#pragma unroll
  for (int j = 0; j < D / 8; ++j) {
    // Parts of 16 bytes permuted, against conflicts of banks.
    u8* at = rows + g * D * 2 + (j ^ g) * 16 + c * 2;
    float low = factor[0][0], high = factor[0][1];
    *reinterpret_cast<u32*>(at) = pack_bf16(o[0][j][0] * low, o[0][j][1] * low);
    *reinterpret_cast<u32*>(at + 8 * D * 2) = pack_bf16(o[0][j][2] * high, o[0][j][3] * high);
  }
  __syncwarp();
  constexpr int CHUNKS = H / 8;
#pragma unroll
  for (int i0 = 0; i0 < 16 * CHUNKS; i0 += 32) {
    int i = i0 + lane, r = i / CHUNKS, chunk = i - r * CHUNKS;
    if (r < valid) {
      const u8* from = rows + r * D * 2 + (chunk ^ (r & 7)) * 16;
      *reinterpret_cast<uint4*>(to + r * stride + chunk * 8) = *reinterpret_cast<const uint4*>(from);
    }
  }
}
