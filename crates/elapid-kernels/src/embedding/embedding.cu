// Rows of a table, and their gradient. T is the format of activations.

struct Args {
  const u32* ids;
  Mat<T> table;
  Mat<T> y;
  Mat<float> partial;
  Mat<float> dtable;
  i64 m;
  i64 d;
  i64 v;
  u32* counts;  // [v], zeros
  u32* starts;  // [v + 1]
  u32* placed;  // [m]
  u32* order;   // [m]
};

// A block looks up a row at a time.
extern "C" __global__ void __launch_bounds__(128) forward(const __grid_constant__ Args a) {
  for (i64 r = blockIdx.x; r < a.m; r += gridDim.x) {
    i64 id = a.ids[r];
    bool known = id < a.v;
    for (i64 c = threadIdx.x; c < a.d; c += blockDim.x) {
      a.y.row(r)[c] = known ? a.table.row(id)[c] : from_float<T>(__int_as_float(0x7fc00000));
    }
  }
}

// Backward: positions are sorted by id, those of one id in their order; blocks then sum stretches of CHUNK of them.

// order[t] = how many positions of the same id came before in time. That varies from run to run; `sort` undoes it.
extern "C" __global__ void __launch_bounds__(256) count(const __grid_constant__ Args a) {
  for (i64 t = i64(blockIdx.x) * 256 + threadIdx.x; t < a.m; t += i64(gridDim.x) * 256) {
    u32 id = a.ids[t];
    if (id < a.v) a.order[t] = atomicAdd(a.counts + id, 1u);
  }
}

// One block: where the positions of each id begin among all; starts[v] is where they end.
extern "C" __global__ void __launch_bounds__(1024) scan(const __grid_constant__ Args a) {
  __shared__ u32 sums[32];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  i64 each = (a.v + 1023) / 1024;
  i64 from = threadIdx.x * each;
  i64 to = from + each < a.v ? from + each : a.v;
  u32 mine = 0;
#pragma unroll 8
  for (i64 id = from; id < to; ++id) mine += a.counts[id];
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
  if (threadIdx.x == 1023) a.starts[a.v] = start + mine;
#pragma unroll 8
  for (i64 id = from; id < to; ++id) {
    a.starts[id] = start;
    start += a.counts[id];
  }
}

// The positions of each id together.
extern "C" __global__ void __launch_bounds__(256) place(const __grid_constant__ Args a) {
  for (i64 t = i64(blockIdx.x) * 256 + threadIdx.x; t < a.m; t += i64(gridDim.x) * 256) {
    u32 id = a.ids[t];
    if (id < a.v) a.placed[a.starts[id] + a.order[t]] = u32(t);
  }
}

// Those of each id in order: the place of each is how many are smaller.
extern "C" __global__ void __launch_bounds__(256) sort(const __grid_constant__ Args a) {
  i64 all = a.starts[a.v];
  for (i64 i = i64(blockIdx.x) * 256 + threadIdx.x; i < all; i += i64(gridDim.x) * 256) {
    u32 t = a.placed[i], id = a.ids[t], begin = a.starts[id], end = a.starts[id + 1], at = begin;
#pragma unroll 8
    for (u32 j = begin; j < end; ++j) at += a.placed[j] < t;
    a.order[at] = t;
  }
}

#define CHUNK 16
#define COLUMNS 8
#define THREADS 128

// Sums a stretch of sorted positions: blockIdx = (stretch, COLUMNS * THREADS columns). A row of the table whose positions
// all lie in it gets its gradient at once. Of a row that began before, row 2 * stretch of `partial` gets the sum; of one
// that begins here and goes on, row 2 * stretch + 1.
extern "C" __global__ void __launch_bounds__(THREADS) backward(const __grid_constant__ Args a) {
  u32 all = a.starts[a.v], from = blockIdx.x * CHUNK;
  u32 to = from + CHUNK < all ? from + CHUNK : all;
  i64 c0 = i64(blockIdx.y) * COLUMNS * THREADS + threadIdx.x;
  if (from >= to) return;
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
  load(t, next);
  for (u32 i = from; i < to; ++i) {
    u32 id = a.ids[t], end = a.starts[id + 1];
#pragma unroll
    for (int k = 0; k < COLUMNS; ++k) sum[k] += next[k];
    if (i + 1 < to) {
      t = a.order[i + 1];
      load(t, next);
    }
    if (i + 1 < to && i + 1 < end) continue;
    bool began = a.starts[id] < from, whole = !began && end <= to;
    float* row = whole ? a.dtable.row(id) : a.partial.row(2 * i64(blockIdx.x) + !began);
#pragma unroll
    for (int k = 0; k < COLUMNS; ++k) {
      i64 c = c0 + k * THREADS;
      if (c < a.d) row[c] = whole ? row[c] + sum[k] : sum[k];
      sum[k] = 0.0f;
    }
  }
}

// dtable += the parts of the row that begins in a stretch and goes on, in order: blockIdx = (stretch, THREADS columns).
extern "C" __global__ void __launch_bounds__(THREADS) join(const __grid_constant__ Args a) {
  u32 all = a.starts[a.v], from = blockIdx.x * CHUNK, to = from + CHUNK;
  i64 c = i64(blockIdx.y) * THREADS + threadIdx.x;
  if (to >= all || c >= a.d) return;
  u32 id = a.ids[a.order[to - 1]], end = a.starts[id + 1];
  if (a.starts[id] < from || end <= to) return;
  float sum = a.partial.row(2 * i64(blockIdx.x) + 1)[c];
  i64 last = (end - 1) / CHUNK;
#pragma unroll 8
  for (i64 chunk = i64(blockIdx.x) + 1; chunk <= last; ++chunk) sum += a.partial.row(2 * chunk)[c];
  a.dtable.row(id)[c] += sum;
}
