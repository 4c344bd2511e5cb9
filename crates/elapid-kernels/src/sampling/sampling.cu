// The likeliest token of every row. T is the format of logits.

struct Args {
  Mat<T> logits;
  u32* ids;
  i64 v;
};

#define THREADS 1024

// The larger logit, the smaller id of equals.
__device__ __forceinline__ void better(float& x, u32& id, float y, u32 other) {
  if (y > x || (y == x && other < id)) x = y, id = other;
}

// A block a row.
extern "C" __global__ void __launch_bounds__(THREADS) greedy(const __grid_constant__ Args a) {
  __shared__ float best[32];
  __shared__ u32 who[32];
  const T* row = a.logits.row(blockIdx.x);
  float x = -__int_as_float(0x7f800000);
  u32 id = 0xffffffffu;
  for (i64 j = threadIdx.x; j < a.v; j += THREADS) better(x, id, to_float(row[j]), u32(j));
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) {
    float y = __shfl_xor_sync(0xffffffffu, x, lane);
    u32 other = __shfl_xor_sync(0xffffffffu, id, lane);
    better(x, id, y, other);
  }
  if (threadIdx.x % 32 == 0) best[threadIdx.x / 32] = x, who[threadIdx.x / 32] = id;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < THREADS / 32; ++w) better(x, id, best[w], who[w]);
  // Without a finite logit there is no likeliest token: an id that no vocabulary has.
  a.ids[blockIdx.x] = id;
}
