// Positions in documents. A block counts a row, 1024 positions at a time: each thread finds the last reset at or before
// its own, by a maximum over the threads before it. P is the format of positions; BEGINS: whether one is 0 is asked for instead.

struct Args {
  const u64* starts;  // [b]; absent: all 0
  const u8* resets;   // [b l]; absent: none
  P* positions;       // [b l]
  i64 l;
};

#define THREADS 1024

extern "C" __global__ void __launch_bounds__(THREADS) count(const __grid_constant__ Args a) {
  __shared__ i64 lasts[THREADS / 32];
  i64 row = blockIdx.x, before = -1;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  u64 start = a.starts ? a.starts[row] : 0;
  for (i64 first = 0; first < a.l; first += THREADS) {
    i64 t = first + threadIdx.x;
    i64 last = a.resets && t < a.l && a.resets[row * a.l + t] ? t : -1;
#pragma unroll
    for (int back = 1; back < 32; back *= 2) {
      i64 other = __shfl_up_sync(0xffffffffu, last, back);
      if (lane >= back && other > last) last = other;
    }
    if (lane == 31) lasts[warp] = last;
    __syncthreads();
    i64 next = before;
    for (int w = 0; w < THREADS / 32; ++w) {
      if (w == warp && next > last) last = next;
      if (lasts[w] > next) next = lasts[w];
    }
    u64 position = last < 0 ? start + u64(t) : u64(t - last);
#if BEGINS
    position = position == 0;
#endif
    if (t < a.l) a.positions[row * a.l + t] = P(position);
    before = next;
    __syncthreads();
  }
}

struct Advance {
  u64* positions;
  i64 rows;
  u64 most;
};

extern "C" __global__ void __launch_bounds__(THREADS) advance(const __grid_constant__ Advance a) {
  i64 row = i64(blockIdx.x) * THREADS + threadIdx.x;
  if (row < a.rows && a.positions[row] + 1 < a.most) ++a.positions[row];
}
