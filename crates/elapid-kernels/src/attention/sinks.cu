// The gradient of the learned logits: -Σ p δ over all rows, with p = 2^(sink - lse) and δ = Σ dy y. A block is a head; its threads
// take every 1024th row, and their sums are added in one order. lse is infinite where there is no query.

#define THREADS 1024

extern "C" __global__ void __launch_bounds__(THREADS) sinks(const __grid_constant__ Args a) {
  __shared__ float sums[THREADS / 32];
  int h = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  float sink = LOG2_E * a.sink_logits[h], sum = 0.0f;
  for (int b = 0; b < a.b; ++b) {
    i64 before = (i64(b) * a.heads + h) * a.padded;
    for (int t = threadIdx.x; t < a.l; t += THREADS) sum -= fast_exp2(sink - a.lse[before + t]) * a.delta[before + t];
  }
  sum = warp_sum(sum);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  if (warp != 0) return;
  sum = warp_sum(sums[lane]);
  if (lane == 0) a.dsink_logits[h] += sum;
}
