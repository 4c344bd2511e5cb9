// y = x Wᵀ + bias of M rows at most, in bf16 with f32 sums: bound by reading W once.
//
// A block has a run of rows of W, and each of its WARPS warps an eighth of their columns, which go through DEPTH stages of
// shared memory that only it reads; its part of x stays in registers. The parts of a sum are added in the order of the warps.
// W is read before the launch before has ended: no launch that lets others begin writes weights.

#define WARPS 8
#define THREADS (WARPS * 32)
// Elements of a row of W that a warp has, LOADS x 32 lanes x 8.
#define SLICE (LOADS * 256)
// Rows whose sums are added over the lanes together.
#define GROUP 8

struct Args {
  Mat<bf16> x;
  Mat<bf16> w;
  const float* bias;
  Mat<Y> y;
  i32 rows, n, k, each;  // rows of x; rows and columns of W; rows of W of a block
};

__device__ __forceinline__ void copy16(u32 to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0));
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void loaded_but() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

extern "C" __global__ void __launch_bounds__(THREADS, 2) few_rows(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) u8 memory[];
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  let_next_start();
  int first = blockIdx.x * a.each, count = min(a.each, a.n - first);
  u8* stages = memory + warp * DEPTH * SLICE * 2;
  float* sums = reinterpret_cast<float*>(memory + WARPS * DEPTH * SLICE * 2);  // [WARPS][each][M]
  int begin = warp * SLICE + lane * 8;
  auto load = [&](int r) {
    if (r < count) {
      u32 to = u32(__cvta_generic_to_shared(stages + (r % DEPTH) * SLICE * 2 + lane * 16));
      const bf16* from = a.w.row(first + r) + begin;
#pragma unroll
      for (int j = 0; j < LOADS; ++j) copy16(to + j * 512, from + j * 256, begin + j * 256 < a.k);
    }
    commit();
  };
#pragma unroll
  for (int r = 0; r < DEPTH - 1; ++r) load(r);
  wait_for_previous();
  uint4 x[M][LOADS];
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int j = 0; j < LOADS; ++j) {
      bool there = m < a.rows && begin + j * 256 < a.k;
      x[m][j] = there ? *reinterpret_cast<const uint4*>(a.x.row(m) + begin + j * 256) : make_uint4(0, 0, 0, 0);
    }
  for (int r0 = 0; r0 < count; r0 += GROUP) {
    float sum[GROUP][M];
#pragma unroll
    for (int i = 0; i < GROUP; ++i) {
      int r = r0 + i;
#pragma unroll
      for (int m = 0; m < M; ++m) sum[i][m] = 0.0f;
      // Uniform over the block: rows beyond the last are not loaded and not stored.
      if (r >= count) continue;
      load(r + DEPTH - 1);
      loaded_but<DEPTH - 1>();
      __syncwarp();
      const uint4* from = reinterpret_cast<const uint4*>(stages + (r % DEPTH) * SLICE * 2) + lane;
#pragma unroll
      for (int j = 0; j < LOADS; ++j) {
        float w[8];
        widen8(from[j * 32], w);
#pragma unroll
        for (int m = 0; m < M; ++m) {
          float part[8];
          widen8(x[m][j], part);
#pragma unroll
          for (int e = 0; e < 8; ++e) sum[i][m] += w[e] * part[e];
        }
      }
      __syncwarp();
    }
    // Row i ends in the lanes 4 i to 4 i + 3.
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float all[GROUP];
#pragma unroll
      for (int i = 0; i < GROUP; ++i) all[i] = sum[i][m];
#pragma unroll
      for (int half = GROUP / 2, step = 16; half > 0; half /= 2, step /= 2) {
        bool upper = lane & step;
#pragma unroll
        for (int i = 0; i < half; ++i) {
          float given = upper ? all[i] : all[i + half], kept = upper ? all[i + half] : all[i];
          all[i] = kept + __shfl_xor_sync(0xffffffffu, given, step);
        }
      }
      float total = all[0] + __shfl_xor_sync(0xffffffffu, all[0], 2);
      total += __shfl_xor_sync(0xffffffffu, total, 1);
      int r = r0 + lane / 4;
      if (lane % 4 == 0 && r < count) sums[(warp * a.each + r) * M + m] = total;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count * M; i += THREADS) {
    int r = i / M, m = i - r * M;
    if (m >= a.rows) continue;
    float total = a.bias ? a.bias[first + r] : 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) total += sums[(w * a.each + r) * M + m];
    a.y.row(m)[first + r] = from_float<Y>(total);
  }
}
