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
  i64 part;
  i64 parts;
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

// Sum of the gradients at positions `from..to` whose id is `id`, in order, for columns c + k * blockDim.x. Threads look
// for the id among 32 * WARPS positions at a time and share what they found.
#define WARPS 4
#define COLUMNS 8

__device__ __forceinline__ void gather(const Args& a, i64 id, i64 from, i64 to, i64 c0, float* sum, u32* masks) {
  for (i64 at = from; at < to; at += 32 * WARPS) {
    // Most stretches of positions do not have the id at all: look at eight groups at once.
    if ((at - from) % (8 * 32 * WARPS) == 0) {
      bool any = false;
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        i64 t = at + k * 32 * WARPS + threadIdx.x;
        any |= t < to && a.ids[t] == u32(id);
      }
      if (!__syncthreads_or(any)) {
        at += 7 * 32 * WARPS;
        continue;
      }
    }
    i64 mine = at + threadIdx.x;
    u32 mask = __ballot_sync(0xffffffffu, mine < to && a.ids[mine] == u32(id));
    __syncthreads();
    if (threadIdx.x % 32 == 0) masks[threadIdx.x / 32] = mask;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      for (u32 left = masks[w]; left != 0; left &= left - 1) {
        const T* dy = a.y.row(at + 32 * w + __ffs(left) - 1);
#pragma unroll
        for (int k = 0; k < COLUMNS; ++k) {
          i64 c = c0 + threadIdx.x + k * 32 * WARPS;
          if (c < a.d) sum[k] += to_float(dy[c]);
        }
      }
    }
  }
}

// A block owns one row of the table and one part of the positions: blockIdx = (row, part). With one part the sum goes
// to the gradient at once, else to `partial`, [parts v d].
extern "C" __global__ void __launch_bounds__(32 * WARPS) backward(const __grid_constant__ Args a) {
  __shared__ u32 masks[WARPS];
  i64 id = blockIdx.x;
  i64 from = blockIdx.y * a.part;
  i64 to = from + a.part < a.m ? from + a.part : a.m;
  for (i64 c0 = 0; c0 < a.d; c0 += COLUMNS * 32 * WARPS) {
    float sum[COLUMNS] = {};
    gather(a, id, from, to, c0, sum, masks);
#pragma unroll
    for (int k = 0; k < COLUMNS; ++k) {
      i64 c = c0 + threadIdx.x + k * 32 * WARPS;
      if (c >= a.d) continue;
      if (a.parts == 1) {
        if (sum[k] != 0.0f) a.dtable.row(id)[c] += sum[k];
      } else {
        a.partial.row(blockIdx.y * a.v + id)[c] = sum[k];
      }
    }
  }
}

// dtable += the parts, in order.
extern "C" __global__ void __launch_bounds__(128) join(const __grid_constant__ Args a) {
  i64 id = blockIdx.x;
  for (i64 c = threadIdx.x; c < a.d; c += blockDim.x) {
    float sum = 0.0f;
    for (i64 part = 0; part < a.parts; ++part) sum += a.partial.row(part * a.v + id)[c];
    a.dtable.row(id)[c] += sum;
  }
}
