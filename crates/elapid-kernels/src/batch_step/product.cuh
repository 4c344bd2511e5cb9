// Products of a few rows, Y [rows, outputs] = X [rows, k] W [outputs, k]ᵀ, at the rate at which weights can be read.
//
// A block makes TILE outputs of all rows (ROWS: 32, 64 or 128, at least as many as there are). It walks the columns in slices of
// 64 through a ring of STAGES in shared memory, filled by asynchronous copies. Where there are few tiles, SPLITS blocks of a
// cluster share the columns and add their sums through each other's shared memory, in order: each finishes some of the rows.
// Weights are copied before the previous launch has ended.
//
// Outputs are rows and the batch columns of the tensor cores' tiles. On Hopper, two groups of four warps have all 64 outputs of a tile
// by half of the rows each (wgmma, both factors from shared memory: reading them by warps, twice to four times, is slower than
// memory). Elsewhere a warp has WO outputs by WB rows (m16n8k16).

#if __CUDA_ARCH__ < 900
// There are no clusters: this form is never launched.
#undef SPLITS
#define SPLITS 1
#endif

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define WGMMA 1
#else
#define WGMMA 0
#endif

#define COLS 64
#define WARPS 8
#define THREADS (WARPS * 32)
#define STAGE ((TILE + ROWS) * COLS * 2)    // bytes
#define MINE (ROWS / SPLITS)                // rows that a block finishes
#define PITCH (TILE + 4)                    // of sums in shared memory
#define SUMS (ROWS * PITCH * 4)
#define RING (STAGES * STAGE)
// Where a factor for each row lies in shared memory. Not static: tiles must be aligned.
#define FACTORS(shared) reinterpret_cast<float*>((shared) + (RING > SUMS ? RING : SUMS))

__device__ __forceinline__ u32 address(const void* shared) { return u32(__cvta_generic_to_shared(shared)); }
__device__ __forceinline__ void copy16(u32 to, const void* from, bool there) {
  const int size = there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(size) : "memory");
}
__device__ __forceinline__ void ldmatrix4(u32 at, u32* r) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
__device__ __forceinline__ void mma(float* d, const u32* a, const u32* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#if WGMMA
#define WO 64
#define WB (ROWS / 2)
// A tile of shared memory, rows of 128 bytes with permuted parts (`place`), as the tensor cores read them.
__device__ __forceinline__ u64 descriptor(u32 at) {
  return u64((at & 0x3ffffu) >> 4) | u64(1) << 16 | u64(1024 >> 4) << 32 | u64(1) << 62;
}
#define D4(d) "+f"((d)[0]), "+f"((d)[1]), "+f"((d)[2]), "+f"((d)[3])
// d [64 outputs, 16, 32 or 64 rows] += a b, over 16 columns.
template <int ROWS_OF_B>
__device__ __forceinline__ void wgmma(float (*d)[4], u64 a, u64 b);
template <>
__device__ __forceinline__ void wgmma<16>(float (*d)[4], u64 a, u64 b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, 1, 1, 1, 0, 0;"
      : D4(d[0]), D4(d[1]) : "l"(a), "l"(b));
}
template <>
__device__ __forceinline__ void wgmma<32>(float (*d)[4], u64 a, u64 b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, %16, %17, 1, 1, 1, 0, 0;"
      : D4(d[0]), D4(d[1]), D4(d[2]), D4(d[3]) : "l"(a), "l"(b));
}
template <>
__device__ __forceinline__ void wgmma<64>(float (*d)[4], u64 a, u64 b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, 1, 1, 1, 0, 0;"
      : D4(d[0]), D4(d[1]), D4(d[2]), D4(d[3]), D4(d[4]), D4(d[5]), D4(d[6]), D4(d[7]) : "l"(a), "l"(b));
}
#else
#define WO (TILE * ROWS >= 4096 ? 32 : 16)  // of TILE
#define ACROSS (TILE / WO)                  // warps across outputs
#define WB (ROWS * ACROSS / WARPS)          // of ROWS
#endif

// Where the 16-byte part `part` of a row of a slice lies: parts are permuted so that eight rows hit different banks.
__device__ __forceinline__ int place(int row, int part) { return row * COLS * 2 + ((part ^ (row & 7)) << 4); }

// Rows of a slice, `count` of them in memory, `stride` elements apart; the others are zeros.
template <int COUNT>
__device__ __forceinline__ void copy_slice(u32 to, const bf16* from, i64 stride, int count, int k, int col0) {
#pragma unroll
  for (int i = 0; i < COUNT * 8 / THREADS; ++i) {
    const int j = i * THREADS + threadIdx.x, row = j / 8, part = j % 8;
    const bool there = row < count && col0 + part * 8 < k;
    copy16(to + place(row, part), there ? from + row * stride + col0 + part * 8 : from, there);
  }
}

#if SPLITS > 1
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ float4 load_of_rank(u32 at, int rank) {
  u32 there;
  float4 x;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(there) : "memory");
  return x;
}
#endif

// The sums of tile blockIdx.x: `use(row, output, four sums)` for rows that this block finishes, TILE / 4 lanes after each other
// having one row; also for rows and outputs that do not exist. `begin()` may read what the previous launch wrote; what it leaves
// in shared memory can be read in `use`.
template <typename Begin, typename Use>
__device__ __forceinline__ void product(
    char* shared, const bf16* x, i64 stride, const bf16* w, int rows, int outputs, int k, Begin begin, Use use
) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = blockIdx.x * TILE, split = SPLITS > 1 ? blockIdx.y : 0;
  const int slices = (k + COLS - 1) / COLS, each = (slices + SPLITS - 1) / SPLITS;
  const int start = min(split * each, slices), count = min(each, slices - start);
  const int tile = min(TILE, outputs - first);
  w += i64(first) * k;
  const u32 ring = address(shared);
  auto weights = [&](int i) {
    if (i < count) copy_slice<TILE>(ring + i % STAGES * STAGE, w, k, tile, k, (start + i) * COLS);
  };
  auto inputs = [&](int i) {
    if (i < count) copy_slice<ROWS>(ring + i % STAGES * STAGE + TILE * COLS * 2, x, stride, rows, k, (start + i) * COLS);
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
#pragma unroll
  for (int i = 0; i < STAGES - 1; ++i) weights(i);
  wait_for_previous();
  let_next_start();
#pragma unroll
  for (int i = 0; i < STAGES - 1; ++i) inputs(i);
  begin();

#if WGMMA
  const int o0 = warp % 4 * 16, b0 = warp / 4 * WB;
  float sum[1][WB / 8][4] = {};
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
    // The tensor cores have read the slice whose place is filled next, and see this thread's copies of the one that they read next.
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    weights(i + STAGES - 1);
    inputs(i + STAGES - 1);
    const u32 at = ring + i % STAGES * STAGE, xs = at + TILE * COLS * 2 + b0 * COLS * 2;
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int j = 0; j < COLS / 16; ++j) wgmma<WB>(sum[0], descriptor(at + j * 32), descriptor(xs + j * 32));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int t = 0; t < WB / 8; ++t) asm volatile("" : D4(sum[0][t]));
#define OUTPUTS 1
#else
  const int o0 = warp % ACROSS * WO, b0 = warp / ACROSS * WB;
  float sum[WO / 16][WB / 8][4] = {};
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
    __syncthreads();
    weights(i + STAGES - 1);
    inputs(i + STAGES - 1);
    const u32 at = ring + i % STAGES * STAGE, xs = at + TILE * COLS * 2;
#pragma unroll
    for (int j = 0; j < COLS / 16; ++j) {
      u32 a[WO / 16][4], b[WB / 16][4];
#pragma unroll
      for (int o = 0; o < WO / 16; ++o) ldmatrix4(at + place(o0 + o * 16 + lane % 16, j * 2 + lane / 16), a[o]);
#pragma unroll
      for (int t = 0; t < WB / 16; ++t) {
        ldmatrix4(xs + place(b0 + t * 16 + lane % 8 + lane / 16 * 8, j * 2 + lane / 8 % 2), b[t]);
      }
#pragma unroll
      for (int o = 0; o < WO / 16; ++o) {
#pragma unroll
        for (int t = 0; t < WB / 8; ++t) mma(sum[o][t], a[o], b[t / 2] + t % 2 * 2);
      }
    }
  }
#define OUTPUTS (WO / 16)
#endif
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();
  float* sums = reinterpret_cast<float*>(shared);  // [ROWS, PITCH]
#pragma unroll
  for (int o = 0; o < OUTPUTS; ++o) {
#pragma unroll
    for (int t = 0; t < WB / 8; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int output = o0 + o * 16 + lane / 4 + i / 2 * 8, row = b0 + t * 8 + lane % 4 * 2 + i % 2;
        sums[row * PITCH + output] = sum[o][t][i];
      }
    }
  }
#if SPLITS > 1
  cluster_sync();
#else
  __syncthreads();
#endif
#pragma unroll 1
  for (int i = threadIdx.x; i < MINE * (TILE / 4); i += THREADS) {
    const int row = split * MINE + i / (TILE / 4), output = i % (TILE / 4) * 4;
    float4 all = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#if SPLITS > 1
#pragma unroll
    for (int r = 0; r < SPLITS; ++r) {
      const float4 one = load_of_rank(address(sums + row * PITCH + output), r);
      all.x += one.x, all.y += one.y, all.z += one.z, all.w += one.w;
    }
#else
    all = *reinterpret_cast<const float4*>(sums + row * PITCH + output);
#endif
    use(row, first + output, all);
  }
#if SPLITS > 1
  cluster_sync();
#endif
}
