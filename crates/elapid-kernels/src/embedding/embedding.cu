// Rows of a table, and their gradient. T is the dtype of activations.

struct Args {
  const u32* ids;
  Mat<T> table;
  Mat<T> y;
  Mat<float> partial;
  Mat<float> dtable;
  i64 m;
  i64 d;
  i64 v;
  u32* counts;      // [256, stretches]
  u32* bounds;      // [2, v + 1]: where the positions of each id begin and end
  const u32* from;  // [m] positions, sorted by lower digits; null: as they come
  u32* order;       // [m] positions, sorted
  u32 shift;        // of the digit that a pass sorts by
  u32 digits;       // that there can be
  u32 chunk;        // positions that a block sums
};

// A block looks up one row at a time; for short rows, a warp does.
extern "C" __global__ void __launch_bounds__(128) forward(const __grid_constant__ Args a) {
  const u32 across = a.d < 512 ? 32 : 128, down = 128 / across;
  for (i64 r = i64(blockIdx.x) * down + threadIdx.x / across; r < a.m; r += i64(gridDim.x) * down) {
    i64 id = a.ids[r];
    bool known = id < a.v;
    for (i64 c = threadIdx.x % across; c < a.d; c += across) {
      a.y.row(r)[c] = known ? a.table.row(id)[c] : from_float<T>(__int_as_float(0x7fc00000));
    }
  }
}

// Backward: a stable radix sort of positions by id; blocks then sum chunks of them. How often an id occurs does not matter.
// Ids outside the table come last, as id v.

#define DIGITS 256
#define STRETCH 2048

__device__ __forceinline__ u32 key(const Args& a, u32 t) {
  u32 id = a.ids[t];
  return id < a.v ? id : u32(a.v);
}

__device__ __forceinline__ u32 digit(const Args& a, u32 t) { return key(a, t) >> a.shift & (DIGITS - 1); }

// How often each digit occurs in a range.
extern "C" __global__ void __launch_bounds__(DIGITS) count(const __grid_constant__ Args a) {
  __shared__ u32 counts[DIGITS];
  counts[threadIdx.x] = 0;
  __syncthreads();
  i64 begin = i64(blockIdx.x) * STRETCH;
  for (i64 i = begin + threadIdx.x; i < begin + STRETCH && i < a.m; i += DIGITS) {
    atomicAdd(counts + digit(a, a.from != nullptr ? a.from[i] : u32(i)), 1u);
  }
  __syncthreads();
  a.counts[i64(threadIdx.x) * gridDim.x + blockIdx.x] = counts[threadIdx.x];
}

// One block: where the positions of each digit begin, in the order of the ranges.
extern "C" __global__ void __launch_bounds__(1024) scan(const __grid_constant__ Args a) {
  __shared__ u32 sums[32];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  i64 all = (a.m + STRETCH - 1) / STRETCH * a.digits, each = (all + 1023) / 1024;
  i64 from = threadIdx.x * each;
  i64 to = from + each < all ? from + each : all;
  u32 mine = 0;
#pragma unroll 8
  for (i64 i = from; i < to; ++i) mine += a.counts[i];
  u32 sum = mine;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    u32 left = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += left;
  }
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  u32 start = sum - mine;
  for (int w = 0; w < warp; ++w) start += sums[w];
#pragma unroll 8
  for (i64 i = from; i < to; ++i) {
    u32 here = a.counts[i];
    a.counts[i] = start;
    start += here;
  }
}

// Moves the positions of a range to their places, keeping the order within a digit.
extern "C" __global__ void __launch_bounds__(DIGITS) place(const __grid_constant__ Args a) {
  constexpr int WARPS = DIGITS / 32;
  __shared__ u32 next[DIGITS], counts[WARPS][DIGITS];
  const int mine = threadIdx.x, lane = mine % 32, warp = mine / 32;
  next[mine] = a.counts[i64(mine) * gridDim.x + blockIdx.x];
#pragma unroll
  for (int w = 0; w < WARPS; ++w) counts[w][mine] = 0;
  __syncthreads();
  i64 begin = i64(blockIdx.x) * STRETCH;
  for (i64 i = begin + mine; i < begin + STRETCH + mine; i += DIGITS) {
    bool there = i < a.m;
    u32 t = !there ? 0 : a.from != nullptr ? a.from[i] : u32(i);
    u32 d = there ? digit(a, t) : DIGITS;
    u32 same = __match_any_sync(0xffffffffu, d), before = __popc(same & ((1u << lane) - 1));
    if (there && before == 0) counts[warp][d] = __popc(same);
    __syncthreads();
    if (there) {
      u32 at = next[d] + before;
      for (int w = 0; w < warp; ++w) at += counts[w][d];
      a.order[at] = t;
    }
    __syncthreads();
    u32 all = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      all += counts[w][mine];
      counts[w][mine] = 0;
    }
    next[mine] += all;
    __syncthreads();
  }
}

// Where the positions of each id begin and end; nothing is written for ids without one.
extern "C" __global__ void __launch_bounds__(256) bound(const __grid_constant__ Args a) {
  i64 i = i64(blockIdx.x) * 256 + threadIdx.x;
  if (i >= a.m) return;
  u32 id = key(a, a.order[i]);
  if (i == 0 || key(a, a.order[i - 1]) != id) a.bounds[id] = u32(i);
  if (i + 1 == a.m || key(a, a.order[i + 1]) != id) a.bounds[a.v + 1 + id] = u32(i) + 1;
}

#define COLUMNS 8
#define THREADS 128

// Sums a chunk of sorted positions: blockIdx = (chunk, COLUMNS * THREADS columns). A row of the table whose positions are
// all in this chunk gets its gradient directly. The sum of a row that began in an earlier chunk goes to row 2 * chunk of
// `partial`; that of a row that begins here and continues, to row 2 * chunk + 1.
extern "C" __global__ void __launch_bounds__(THREADS) backward(const __grid_constant__ Args a) {
  u32 all = u32(a.m), from = blockIdx.x * a.chunk;
  u32 to = from + a.chunk < all ? from + a.chunk : all;
  i64 c0 = i64(blockIdx.y) * COLUMNS * THREADS + threadIdx.x;
  if (c0 >= a.d) return;
  auto load = [&](u32 t, float* x) {
    const T* dy = a.y.row(t);
#pragma unroll
    for (int k = 0; k < COLUMNS; ++k) {
      i64 c = c0 + k * THREADS;
      x[k] = c < a.d ? to_float(dy[c]) : 0.0f;
    }
  };
  float sum[COLUMNS] = {}, next[COLUMNS];
  u32 t = a.order[from];
  u32 id = key(a, t), begin = a.bounds[id], end = a.bounds[a.v + 1 + id];
  load(t, next);
  for (u32 i = from; i < to && id < a.v; ++i) {
#pragma unroll
    for (int k = 0; k < COLUMNS; ++k) sum[k] += next[k];
    if (i + 1 < to) {
      t = a.order[i + 1];
      load(t, next);
    }
    if (i + 1 < to && i + 1 < end) continue;
    bool began = begin < from, whole = !began && end <= to;
    float* row = whole ? a.dtable.row(id) : a.partial.row(2 * i64(blockIdx.x) + !began);
#pragma unroll
    for (int k = 0; k < COLUMNS; ++k) {
      i64 c = c0 + k * THREADS;
      if (c < a.d) row[c] = whole ? row[c] + sum[k] : sum[k];
      sum[k] = 0.0f;
    }
    id = key(a, t), begin = a.bounds[id], end = a.bounds[a.v + 1 + id];
  }
}

// dtable += the parts of a row that begins in a chunk and continues, in order: blockIdx = (chunk, THREADS columns).
extern "C" __global__ void __launch_bounds__(THREADS) join(const __grid_constant__ Args a) {
  u32 all = u32(a.m), from = blockIdx.x * a.chunk, to = from + a.chunk;
  i64 c = i64(blockIdx.y) * THREADS + threadIdx.x;
  if (to >= all || c >= a.d) return;
  u32 id = key(a, a.order[to - 1]), end = a.bounds[a.v + 1 + id];
  if (id >= a.v || a.bounds[id] < from || end <= to) return;
  float sum = a.partial.row(2 * i64(blockIdx.x) + 1)[c];
  i64 last = (end - 1) / a.chunk;
#pragma unroll 16
  for (i64 chunk = i64(blockIdx.x) + 1; chunk <= last; ++chunk) sum += a.partial.row(2 * chunk)[c];
  a.dtable.row(id)[c] += sum;
}
