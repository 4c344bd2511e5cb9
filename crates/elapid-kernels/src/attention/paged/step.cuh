// What both kernels of a step share: a block's part of the keys, and how parts are put together.
//
// A block has HB heads of queries of one head of keys and values of one row, and a run of its pages. It leaves the largest
// score, the sum of 2^(score - largest) and the values weighed so, in `partial`; the last block of a row and its heads puts
// the parts together.

#define HEADS_OF(a) ((a).heads / (a).kv_heads)
#define PART (HV + 2)

struct Step {
  Args a;  // q, k and v of one position per row, y; `reach` and the like of the mask
  Table keys, values;
  const u64* positions;  // [rows]: of what is read now
  float* partial;        // [rows heads splits PART]
  u32* done;             // [rows kv_heads blocks]
  i32 splits, blocks;    // blocks: of HB heads
};

// Whether position t sees s <= t.
__device__ __forceinline__ bool sees(const Args& a, int t, int s) {
  int distance = t - s;
  if (distance < a.dense || s < a.sinks) return true;
#if MASK == 2
  for (int i = 0; i < a.globals; ++i) {
    if (a.global[i] == s || a.global[i] == t) return true;
  }
  int steps = distance / a.dilation;
  return (steps < a.window && steps * a.dilation == distance) || (a.strided && distance % a.window == 0);
#else
  return distance < a.reach;
#endif
}

// The pages that a block reads: `some` from page 0 on (sinks), then from page `then` on; of them those from `from` to `to`.
struct Part {
  int row, kv, block, split, t, some, then, from, to, active;
  __device__ __forceinline__ Part(const Step& s) {
    split = blockIdx.x, row = blockIdx.z;
    kv = blockIdx.y / s.blocks, block = blockIdx.y - kv * s.blocks;
    t = int(min(s.positions[row], u64(NOWHERE)));
    int pages = t / PAGE + 1;
    if (s.keys.grows) pages = min(pages, s.keys.sinks + s.keys.ring);
    then = s.keys.grows ? 0 : max(t - s.a.reach + 1, 0) / PAGE;
    some = s.keys.grows ? 0 : min(s.keys.sinks, then);
    int all = some + pages - then, each = (all + s.splits - 1) / s.splits;
    active = (all + each - 1) / each;
    from = split * each, to = min(from + each, all);
  }
  __device__ __forceinline__ int page(int i) const { return i < some ? i : then + i - some; }
  __device__ __forceinline__ int first_head(const Args& a) const { return kv * HEADS_OF(a) + block * HB; }
  __device__ __forceinline__ int heads(const Args& a) const { return min(HB, HEADS_OF(a) - block * HB); }
  __device__ __forceinline__ float* part(const Step& s, int head, int split) const {
    return s.partial + ((i64(row) * s.a.heads + first_head(s.a) + head) * s.splits + split) * PART;
  }
};

// The key and value of this position into their pages, by the threads from `first` on, `count` of them.
__device__ __forceinline__ void append(const Step& s, const Part& part, int first, int count) {
  u64 keys = s.keys.page(part.row, part.t / PAGE), values = s.values.page(part.row, part.t / PAGE);
  if (!keys || !values) return;
  i64 slot = i64(part.kv) * PAGE + part.t % PAGE;
  const T *k = s.a.k.row(part.row) + part.kv * HK, *v = s.a.v.row(part.row) + part.kv * HV;
  for (int i = int(threadIdx.x) - first; i < HK; i += count) reinterpret_cast<T*>(keys)[slot * HK + i] = k[i];
  for (int i = int(threadIdx.x) - first; i < HV; i += count) reinterpret_cast<T*>(values)[slot * HV + i] = v[i];
}

// After a block has written its parts: whether it was the last of its row and heads.
__device__ __forceinline__ bool is_last(const Step& s, const Part& part) {
  __shared__ u32 before;
  __threadfence();
  __syncthreads();
  u32* done = s.done + (i64(part.row) * s.a.kv_heads + part.kv) * s.blocks + part.block;
  if (threadIdx.x == 0) before = atomicAdd(done, 1u);
  __syncthreads();
  if (before != u32(part.active - 1)) return false;
  if (threadIdx.x == 0) *done = 0;
  __threadfence();
  return true;
}

// y of the block's heads from all parts, a head per warp; `weights` has room for a float for each part and warp.
template <int THREADS>
__device__ __forceinline__ void put_together(const Step& s, const Part& part, float* weights) {
  int heads = part.heads(s.a), first = part.first_head(s.a), lane = threadIdx.x & 31;
  weights += (threadIdx.x >> 5) * s.splits;
  for (int h = threadIdx.x >> 5; h < heads; h += THREADS / 32) {
    const float* parts = part.part(s, h, 0);
    float top = -INF, sum = 0.0f;
    for (int i = lane; i < part.active; i += 32) top = fmaxf(top, parts[i * PART + HV]);
    top = warp_max(top);
    float off = top == -INF ? 0.0f : top;
    __syncwarp();
    for (int i = lane; i < part.active; i += 32) {
      weights[i] = fast_exp2(parts[i * PART + HV] - off);
      sum += weights[i] * parts[i * PART + HV + 1];
    }
    sum = warp_sum(sum);
    __syncwarp();
    float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
    T* y = s.a.y.row(part.row) + (first + h) * HV;
    for (int c = lane; c < HV; c += 32) {
      float x = 0.0f;
#pragma unroll 8
      for (int i = 0; i < part.active; ++i) x += weights[i] * parts[i * PART + c];
      y[c] = from_float<T>(x * inverse);
    }
    if (s.a.lse && lane == 0) {
      s.a.lse[i64(part.row) * s.a.heads + first + h] = sum > 0.0f ? top + fast_log2(sum) : INF;
    }
  }
}
