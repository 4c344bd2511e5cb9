// What both kernels of a step share: a block's part of the keys, and how parts are put together.
//
// A block has HB heads of queries of one head of keys and values of one row, and a run of its pages. It leaves the largest
// score, the sum of 2^(score - largest) and the values weighed so, in `partial`; the last block of a row and its heads puts
// the parts together.

#define HEADS_OF(a) ((a).heads / (a).kv_heads)
// A head's values, then the largest score and the sum; the next begins at a multiple of 16 bytes.
#define PART ((HV + 2 + 3) / 4 * 4)

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

// y of the block's heads from all parts. A thread has WIDE columns of a head.
#define WIDE (HV % 4 == 0 ? 4 : 1)

template <int THREADS>
__device__ __forceinline__ void put_together(const Step& s, const Part& part) {
  constexpr int ITEMS = HV / WIDE;
  int all = part.heads(s.a) * ITEMS, first = part.first_head(s.a);
  for (int i = threadIdx.x; i < all; i += THREADS) {
    int h = i / ITEMS, c = (i - h * ITEMS) * WIDE;
    const float* parts = part.part(s, h, 0);
    float top = -INF, sum = 0.0f, x[WIDE];
#pragma unroll
    for (int e = 0; e < WIDE; ++e) x[e] = 0.0f;
    // Eight parts at a time, so that as many reads are under way.
    for (int from = 0; from < part.active; from += 8) {
      float tops[8], sums[8], values[8][WIDE];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float* one = parts + (from + j) * PART;
        bool there = from + j < part.active;
        tops[j] = there ? one[HV] : -INF, sums[j] = there ? one[HV + 1] : 0.0f;
        if (WIDE == 4) {
          float4 four = there ? *reinterpret_cast<const float4*>(one + c) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
          values[j][0] = four.x, values[j][1 % WIDE] = four.y, values[j][2 % WIDE] = four.z, values[j][3 % WIDE] = four.w;
        } else {
          values[j][0] = there ? one[c] : 0.0f;
        }
      }
      float now = top;
#pragma unroll
      for (int j = 0; j < 8; ++j) now = fmaxf(now, tops[j]);
      float off = now == -INF ? 0.0f : now, by = fast_exp2(top - off);
      top = now, sum *= by;
#pragma unroll
      for (int e = 0; e < WIDE; ++e) x[e] *= by;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float weight = fast_exp2(tops[j] - off);
        sum += weight * sums[j];
#pragma unroll
        for (int e = 0; e < WIDE; ++e) x[e] += weight * values[j][e];
      }
    }
    if (sum > 0.0f) sum += of_sink(s.a, first + h, top);
    float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
    T* y = s.a.y.row(part.row) + (first + h) * HV + c;
#pragma unroll
    for (int e = 0; e < WIDE; ++e) y[e] = from_float<T>(x[e] * inverse);
    if (s.a.lse && c == 0) {
      s.a.lse[i64(part.row) * s.a.heads + first + h] = sum > 0.0f ? top + fast_log2(sum) : INF;
    }
  }
}
