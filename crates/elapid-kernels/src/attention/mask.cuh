// Arguments of attention, and what a position sees.
//
// Letters: t a query's position in its row of the batch, s a key's; both count from the row's first position, and a
// document's first position is its `start`.

// Global positions at most: GLOBALS of cuda.rs.
#define GLOBALS 64
#define NOWHERE 0x3fffffff
#define INF __int_as_float(0x7f800000)

struct Args {
  Mat<T> q, k, v, y, dy, dq, dk, dv;
  // [b heads padded]: log2 of the sum of 2^score, infinite where there is no query; Σ dy y.
  float *lse, *delta;
  const u32* lengths;
  const u8* resets;
  // [b padded], MASK > 0: the first position of each one's document, NOWHERE at padding; the first after it; whether it is a
  // global one.
  i32 *starts, *ends;
  u8* marks;
  // [heads]: logits that take part in the softmax's sum alone; may be absent. Their gradient.
  const float* sink_logits;
  float* dsink_logits;
  float scale, softcap;
  i32 b, l, padded, heads, kv_heads, together;
  // Positions back from t, itself among them, that the window reaches: NOWHERE if all.
  i32 reach;
  // Distances below it are all visible.
  i32 dense;
  i32 causal, window, dilation, strided, sinks, alibi, globals;
  i32 global[GLOBALS];
};

__device__ __forceinline__ int row_length(const Args& a, int b) {
  return a.lengths ? min(int(a.lengths[b]), a.l) : a.l;
}

// What `visible` asks of a row's positions.
struct Row {
  const i32 *starts, *ends;
  const u8* marks;
  __device__ __forceinline__ Row(const Args& a, int b) {
    i64 row = i64(b) * a.padded;
    starts = a.starts + row, ends = a.ends + row, marks = a.marks + row;
  }
};

__device__ __forceinline__ bool is_causal(const Args& a) { return MASK < 2 || a.causal; }

// Whether t sees s. `start` is the start of the document of t.
__device__ __forceinline__ bool visible(const Args& a, const Row& row, int t, int s, int start) {
#if MASK == 0
  return s <= t;
#elif MASK == 1
  return s <= t && s >= start && (t - s < a.reach || s - start < a.sinks);
#else
  if ((a.causal && s > t) || start == NOWHERE || row.starts[s] != start) return false;
  int distance = abs(t - s);
  if (distance < a.dense || s - start < a.sinks) return true;
  if (a.globals && (row.marks[t] || row.marks[s])) return true;
  int steps = distance / a.dilation;
  return (steps < a.window && steps * a.dilation == distance) || (a.strided && distance % a.window == 0);
#endif
}

// Whether all queries t0..=t1 see all keys s0..=s1; `start` is that of t1.
__device__ __forceinline__ bool whole(const Args& a, const Row& row, int t0, int t1, int s0, int s1, int start) {
#if MASK == 0
  return s1 <= t0;
#elif MASK == 1
  return s1 <= t0 && start <= s0 && t1 - s0 < a.dense;
#else
  return (a.causal ? s1 <= t0 : s1 < row.ends[t0]) && start <= s0 && max(t1 - s0, s1 - t0) < a.dense;
#endif
}

// Which (tile, head) a block works on: heads in groups whose keys and values fit into the L2 cache, in a group all heads of a
// tile before the next tile.
struct Place {
  int tile, b, h;
  __device__ __forceinline__ Place(const Args& a, int tiles, int heads) {
    int all = a.b * heads;
    int group = blockIdx.x / (tiles * a.together), rest = blockIdx.x - group * tiles * a.together;
    int first = group * a.together, size = min(a.together, all - first);
    tile = rest / size;
    int head = first + rest - tile * size;
    b = head / heads, h = head - b * heads;
  }
};

// Tiles that may hold something visible: `some` from position `from` on (sinks), then up to `all` from `then` on.
struct Walk {
  int from, some, then, all;
  __device__ __forceinline__ int at(int i, int size) const { return i < some ? from + i * size : then + (i - some) * size; }
};

// Tiles of `size` keys for the queries t0..t1 of row b.
__device__ __forceinline__ Walk keys_of(const Args& a, int b, int t0, int t1, int size) {
  Walk walk;
  t1 = min(t1, row_length(a, b));
  walk.from = walk.some = walk.then = walk.all = 0;
  if (t0 >= t1) return walk;
  int first = 0, end = t1;
#if MASK > 0
  Row row(a, b);
  int start = row.starts[t0];
  first = max(start, t0 - a.reach + 1) / size;
  walk.from = start / size;
  walk.some = a.sinks > 0 ? max(min(first, (min(start + a.sinks, t1) + size - 1) / size) - walk.from, 0) : 0;
  walk.from *= size;
  if (!is_causal(a)) end = min(row.ends[t1 - 1], max(t1 - 1 + a.reach, row.starts[t1 - 1] + a.sinks));
#endif
  walk.then = first * size;
  walk.all = walk.some + (end + size - 1) / size - first;
  return walk;
}

// Tiles of `size` queries for the keys s0..s1 of row b.
__device__ __forceinline__ Walk queries_of(const Args& a, int b, int s0, int s1, int size) {
  Walk walk;
  int length = row_length(a, b);
  s1 = min(s1, length);
  walk.from = walk.some = walk.then = walk.all = 0;
  if (s0 >= s1) return walk;
  int first = s0, end = length;
#if MASK > 0
  Row row(a, b);
  // Only the first document can have begun before these keys, and only the last end after them.
  int start = row.starts[s0];
  end = row.ends[s1 - 1];
  if (s0 >= row.starts[s1 - 1] + a.sinks) end = min(end, s1 - 1 + a.reach);
  if (!is_causal(a)) first = s0 < start + a.sinks ? start : max(start, s0 - a.reach + 1);
#endif
  walk.then = first / size * size;
  walk.all = (end + size - 1) / size - first / size;
  return walk;
}

// Kernels read per-query values by whole tiles, which may be longer than those that wrote them: the last tile's block fills
// the row's padding after its own positions.
__device__ __forceinline__ void fill_padding(const Args& a, float* row, int t1, float x) {
  if (t1 < a.l) return;
  for (int t = t1 + threadIdx.x; t < a.padded; t += blockDim.x) row[t] = x;
}

// What the learned logit of a head adds to a row's sum of 2^(score - top), which is not empty.
__device__ __forceinline__ float of_sink(const Args& a, int h, float top) {
  return a.sink_logits ? fast_exp2(LOG2_E * a.sink_logits[h] - top) : 0.0f;
}

// 2^-(8 (h + 1) / heads), as a factor of scores in powers of two.
__device__ __forceinline__ float alibi_slope(const Args& a, int h) {
  return a.alibi ? LOG2_E * fast_exp2(-8.0f * float(h + 1) / float(a.heads)) : 0.0f;
}

// A score as a power of two, and the slope of the soft cap there.
__device__ __forceinline__ float score(const Args& a, float x, float slope, int distance, float* gradient) {
  x *= a.scale;
  *gradient = 1.0f;
  if (a.softcap > 0.0f) {
    float tanh = 1.0f - 2.0f * fast_rcp(1.0f + fast_exp2(2.0f * LOG2_E * x / a.softcap));
    x = a.softcap * tanh;
    *gradient = 1.0f - tanh * tanh;
  }
  return LOG2_E * x - slope * fabsf(float(distance));
}
