// One position of linear attention without a normaliser: the state is read and written once, by rows of TILE neighbouring columns. A
// block has TILE columns of a head; its threads share the keys, eight in turn, and join their sums at the end.

#define TILE 64
#define PARTS 4
#define THREADS (TILE * PARTS)
#define AT_ONCE 8
// The widest key.
#define MOST 288

extern "C" __global__ void __launch_bounds__(THREADS) step(const __grid_constant__ Args a) {
  __shared__ float q[MOST], k[MOST], g[MOST], u[MOST], sums[PARTS][TILE];
  let_next_start();
  wait_for_previous();
  int tiles = (a.values + TILE - 1) / TILE, unit = blockIdx.x;
  int tile = unit % tiles, h = unit / tiles % a.heads, b = unit / tiles / a.heads, group = h / (a.heads / a.groups);
  int column = threadIdx.x % TILE, part = threadIdx.x / TILE, c = tile * TILE + column;
  bool in = c < a.values;
  i64 row = i64(b) * a.l;
  if (row_length(a, b) < 1) {
    if (part == 0 && in) a.y.row(row)[h * a.values + c] = from_float<T>(0.0f);
    return;
  }
  float w = write_weight(a, row, h);
  for (int i = threadIdx.x; i < a.keys; i += THREADS) {
    q[i] = a.scale * to_float(a.q.row(row)[group * a.keys + i]);
    k[i] = w * to_float(a.k.row(row)[group * a.keys + i]);
    g[i] = gate(log_decay(a, row, h, i));
    u[i] = BONUS ? a.bonus[h * a.keys + i] : 0.0f;
  }
  __syncthreads();
  bool fresh = is_reset(a, row);
  float v = in ? to_float(a.v.row(row)[h * a.values + c]) : 0.0f, sum = 0.0f;
  i64 state = (i64(b) * a.heads + h) * a.keys * a.columns + c;
  for (int first = part * AT_ONCE; first < a.keys; first += PARTS * AT_ONCE) {
    float s[AT_ONCE];
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) {
      bool there = in && first + j < a.keys && !fresh;
      s[j] = there ? a.initial[state + i64(first + j) * a.columns] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) {
      int i = first + j;
      if (i >= a.keys) break;
      float kv = k[i] * v, next = g[i] * s[j] + kv;
      sum += q[i] * (BONUS ? s[j] + u[i] * kv : next);
      if (in) a.last[state + i64(i) * a.columns] = next;
    }
  }
  sums[part][column] = sum;
  __syncthreads();
  if (part != 0 || !in) return;
  float y = skip_weight(a, h, c) * v;
#pragma unroll
  for (int p = 0; p < PARTS; ++p) y += sums[p][column];
  a.y.row(row)[h * a.values + c] = from_float<T>(y);
}
