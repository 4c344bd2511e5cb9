// y = x factor where a word of Philox4x32-10 reaches the threshold, else 0. The word is a function of the key, the number of
// the sample and the place in it. T is the dtype; VECTOR: eight elements at a time, for aligned rows whose length is a multiple
// of eight: two counters.

struct Args {
  Mat<T> x;
  Mat<T> y;
  const u64* first;  // the number of the first sample
  u64 key;
  i64 rows;
  i64 cols;
  i64 l;  // rows of a sample
  u32 threshold;
  float factor;
  i32 by_sample;
};

extern "C" __global__ void __launch_bounds__(256) forward(const __grid_constant__ Args a) {
  u64 first = *a.first;
  for (i64 r = i64(blockIdx.y) * blockDim.y + threadIdx.y; r < a.rows; r += i64(gridDim.y) * blockDim.y) {
    u64 sample = first + u64(r / a.l);
    u64 before = u64(r % a.l) * u64(a.cols);
    bool whole = a.by_sample && philox(a.key, sample, 0).x >= a.threshold;
#if VECTOR
    for (i64 c = (i64(blockIdx.x) * blockDim.x + threadIdx.x) * 8; c < a.cols; c += i64(gridDim.x) * blockDim.x * 8) {
      float x[8];
      load8(a.x.row(r) + c, x);
      bool kept[8];
      if (a.by_sample) {
#pragma unroll
        for (int i = 0; i < 8; ++i) kept[i] = whole;
      } else {
        u64 group = (before + u64(c)) / 4;
        uint4 low = philox(a.key, sample, group), high = philox(a.key, sample, group + 1);
        kept[0] = low.x >= a.threshold, kept[1] = low.y >= a.threshold;
        kept[2] = low.z >= a.threshold, kept[3] = low.w >= a.threshold;
        kept[4] = high.x >= a.threshold, kept[5] = high.y >= a.threshold;
        kept[6] = high.z >= a.threshold, kept[7] = high.w >= a.threshold;
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = kept[i] ? a.factor * x[i] : 0.0f;
      store8(a.y.row(r) + c, x);
    }
#else
    for (i64 c = i64(blockIdx.x) * blockDim.x + threadIdx.x; c < a.cols; c += i64(gridDim.x) * blockDim.x) {
      bool kept = whole;
      if (!a.by_sample) {
        u64 at = before + u64(c);
        uint4 four = philox(a.key, sample, at / 4);
        u32 word = (at & 2) ? ((at & 1) ? four.w : four.z) : ((at & 1) ? four.y : four.x);
        kept = word >= a.threshold;
      }
      float x = to_float(a.x.row(r)[c]);
      a.y.row(r)[c] = from_float<T>(kept ? a.factor * x : 0.0f);
    }
#endif
  }
}
