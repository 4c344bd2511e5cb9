// The likeliest id, the loss and the lead of rows of logits. T is the dtype of logits.

struct Answer {
  u32 likeliest;
  float nll;
  float lead;
};

struct Args {
  Mat<T> logits;       // [m v]
  const i32* targets;  // [m]
  Answer* answers;     // [m]
  i64 m;
  i64 v;
};

#define THREADS 256
#define WARPS (THREADS / 32)
// Below every logit; the id of a row without a number is 0.
#define NOTHING __int_as_float(0xff800000)

// The larger of two logits, the first of equals.
__device__ __forceinline__ void larger(float& z, i64& at, float other, i64 place) {
  if (other > z || (other == z && place < at)) z = other, at = place;
}

extern "C" __global__ void __launch_bounds__(THREADS) answer(const __grid_constant__ Args a) {
  __shared__ float tops[WARPS], sums[WARPS], totals[WARPS];
  __shared__ i64 places[WARPS];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (i64 r = blockIdx.x; r < a.m; r += gridDim.x) {
    const T* row = a.logits.row(r);
    float top = NOTHING, total = 0.0f;
    i64 at = a.v;
    for (i64 j = threadIdx.x; j < a.v; j += THREADS) {
      float z = to_float(row[j]);
      total += z;
      if (z > top) top = z, at = j;
    }
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) {
      float other = __shfl_xor_sync(0xffffffffu, top, step);
      i64 place = __shfl_xor_sync(0xffffffffu, at, step);
      larger(top, at, other, place);
      total += __shfl_xor_sync(0xffffffffu, total, step);
    }
    if (lane == 0) tops[warp] = top, places[warp] = at, totals[warp] = total;
    __syncthreads();
    // Every thread reads all, in the same order.
    top = tops[0], at = places[0], total = totals[0];
#pragma unroll
    for (int w = 1; w < WARPS; ++w) {
      larger(top, at, tops[w], places[w]);
      total += totals[w];
    }
    if (at == a.v) at = 0;
    // The sum leaves out the largest: it is the loss if the target is nearly certain.
    float others = 0.0f;
    for (i64 j = threadIdx.x; j < a.v; j += THREADS) {
      if (j != at) others += fast_exp2(LOG2_E * (to_float(row[j]) - top));
    }
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) others += __shfl_xor_sync(0xffffffffu, others, step);
    if (lane == 0) sums[warp] = others;
    __syncthreads();
    if (threadIdx.x == 0) {
      others = sums[0];
#pragma unroll
      for (int w = 1; w < WARPS; ++w) others += sums[w];
      float own = to_float(row[a.targets[r]]);
      // The sum of all logits tells a NaN; a logit may be -inf.
      float nan = isnan(total) ? total : 0.0f;
      a.answers[r] = Answer{u32(at), log1pf(others) + (top - own) + nan, own - total / float(a.v)};
    }
    __syncthreads();
  }
}
