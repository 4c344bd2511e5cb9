// Where the document of each position begins and ends, from lengths and resets. A block is a row of the batch; it goes over
// the positions forwards for the starts, then backwards for the ends, THREADS at a time.

#define THREADS 1024

// The largest value up to each thread (forwards), or the smallest from each thread on.
template <bool FORWARDS>
__device__ __forceinline__ int scan(int x, int* shared) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    int other = FORWARDS ? __shfl_up_sync(0xffffffffu, x, step) : __shfl_down_sync(0xffffffffu, x, step);
    if (FORWARDS ? lane >= step : lane + step < 32) x = FORWARDS ? max(x, other) : min(x, other);
  }
  if (lane == (FORWARDS ? 31 : 0)) shared[warp] = x;
  __syncthreads();
  for (int i = 0; i < THREADS / 32; ++i) {
    if (FORWARDS ? i < warp : i > warp) x = FORWARDS ? max(x, shared[i]) : min(x, shared[i]);
  }
  __syncthreads();
  return x;
}

extern "C" __global__ void __launch_bounds__(THREADS) documents(const __grid_constant__ Args a) {
  __shared__ int shared[THREADS / 32];
  __shared__ int carried;
  int b = blockIdx.x, length = row_length(a, b), me = threadIdx.x;
  const u8* resets = a.resets ? a.resets + i64(b) * a.l : nullptr;
  i64 row = i64(b) * a.padded;
  int before = 0;
  for (int t0 = 0; t0 < a.padded; t0 += THREADS) {
    int t = t0 + me;
    int start = max(before, scan<true>(resets && t < length && resets[t] ? t : 0, shared));
    if (t < a.padded) {
      a.starts[row + t] = t < length ? start : NOWHERE;
      bool mark = false;
      for (int i = 0; i < a.globals; ++i) mark |= a.global[i] == t - start;
      a.marks[row + t] = mark;
    }
    if (me == THREADS - 1) carried = start;
    __syncthreads();
    before = carried;
  }
  int after = length;
  for (int t0 = (a.padded - 1) / THREADS * THREADS; t0 >= 0; t0 -= THREADS) {
    // The end of t is the next reset after it.
    int t = t0 + me;
    int end = min(after, scan<false>(resets && t + 1 < length && resets[t + 1] ? t + 1 : length, shared));
    if (t < a.padded) a.ends[row + t] = end;
    if (me == 0) carried = end;
    __syncthreads();
    after = carried;
  }
}
