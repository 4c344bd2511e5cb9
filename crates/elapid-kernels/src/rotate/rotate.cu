// Rotary positions. T is the dtype; HALVES: pairs are columns i and i + half of a head, else 2 i and 2 i + 1. VECTOR: 16
// bytes of bf16 at a time.
//
// For `tile` rows at a time:
//   table[row][pair] = factor (cos, sin) of position * frequency    all threads, then a barrier
//   for every row, head and pair: rotate the two columns by the table
//
// An angle is counted in turns: position * turns in f64, of which only the fraction is left. A sine in f64 would cost more
// than the memory traffic on devices with few f64 units, and an angle in f32 is wrong far out.

struct Args {
  Mat<T> x;
  Mat<T> y;  // may be x
  const u64* positions;
  i64 rows;
  i32 heads;
  i32 dim;
  i32 half;   // pairs of a head
  i32 first;  // of these the first of this launch, ...
  i32 count;  // ... and how many
  i32 tile;
  i32 rest;  // columns at the end of a head to copy
  float factor;
  float sign;
  i32 grows;
  double centre;
  u64 last;           // later positions are rotated as this one
  double turns[256];  // per position, from pair `first` on
  float growth[256];  // log2 of what a pair grows by per position
};

#define THREADS 256

#if VECTOR
#define PAIRS_OF_A_STEP (HALVES ? 8 : 4)
#else
#define PAIRS_OF_A_STEP 1
#endif

__device__ __forceinline__ void rotate_pair(float2 by, float& a, float& b) {
  float old = a;
  a = old * by.x - b * by.y;
  b = old * by.y + b * by.x;
}

// Pairs p.. of a head that begins at these columns.
__device__ __forceinline__ void rotate_step(const Args& a, const T* x, T* y, int p, const float2* table) {
#if VECTOR && HALVES
  float low[8], high[8];
  load8(x + a.first + p, low);
  load8(x + a.half + a.first + p, high);
#pragma unroll
  for (int i = 0; i < 8; ++i) rotate_pair(table[p + i], low[i], high[i]);
  store8(y + a.first + p, low);
  store8(y + a.half + a.first + p, high);
#elif VECTOR
  float both[8];
  load8(x + 2 * (a.first + p), both);
#pragma unroll
  for (int i = 0; i < 4; ++i) rotate_pair(table[p + i], both[2 * i], both[2 * i + 1]);
  store8(y + 2 * (a.first + p), both);
#else
  int from = HALVES ? a.first + p : 2 * (a.first + p), to = HALVES ? from + a.half : from + 1;
  float low = to_float(x[from]), high = to_float(x[to]);
  rotate_pair(table[p], low, high);
  y[from] = from_float<T>(low);
  y[to] = from_float<T>(high);
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS) rotate(const __grid_constant__ Args a) {
  let_next_start();
  wait_for_previous();
  extern __shared__ float2 table[];  // [tile count]
  __shared__ double turns[256];
  __shared__ float growth[256];
  for (int p = threadIdx.x; p < a.count; p += THREADS) turns[p] = a.turns[p], growth[p] = a.growth[p];
  int steps_of_a_head = a.count / PAIRS_OF_A_STEP, steps = a.heads * steps_of_a_head;
  for (i64 first = i64(blockIdx.x) * a.tile; first < a.rows; first += i64(gridDim.x) * a.tile) {
    int rows = int(a.rows - first < a.tile ? a.rows - first : a.tile);
    __syncthreads();
    for (int i = threadIdx.x; i < rows * a.count; i += THREADS) {
      int r = i / a.count;
      u64 position = a.positions[first + r] < a.last ? a.positions[first + r] : a.last;
      double angle = double(position) * turns[i - r * a.count];
      float sine, cosine, factor = a.factor;
      sincospif(2.0f * float(angle - rint(angle)), &sine, &cosine);
      if (a.grows) factor *= exp2f(growth[i - r * a.count] * float(double(position) - a.centre));
      table[i] = make_float2(factor * cosine, a.sign * factor * sine);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < rows * steps; i += THREADS) {
      int r = i / steps, step = i - r * steps, head = step / steps_of_a_head;
      int p = (step - head * steps_of_a_head) * PAIRS_OF_A_STEP;
      i64 at = i64(head) * a.dim;
      rotate_step(a, a.x.row(first + r) + at, a.y.row(first + r) + at, p, table + r * a.count);
    }
    if (a.rest == 0) continue;
    // Columns that are not rotated.
    int width = a.heads * a.rest, begin = a.dim - a.rest;
    for (int i = threadIdx.x; i < rows * width; i += THREADS) {
      int r = i / width, c = i - r * width, head = c / a.rest;
      i64 at = i64(head) * a.dim + begin + (c - head * a.rest);
      a.y.row(first + r)[at] = a.x.row(first + r)[at];
    }
  }
}
