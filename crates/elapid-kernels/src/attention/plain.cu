// Attention without tensor cores, for f32 and for bf16 heads of odd widths or places: the algorithms of tensor_forward.cu,
// tensor_queries.cu and tensor_keys.cu, with all sums in f32.
//
// Eight neighbouring threads share ROWS rows of the block's tile. Of a tile of scores a thread has COLUMNS columns, and of a
// result the head's columns, each eight apart; scores go through shared memory to the other seven.

#define TILE (HK > 128 || HV > 128 ? 16 : 32)
#define THREADS 128
#define ROWS (TILE / 16)
#define COLUMNS (TILE / 8)
// Odd, so that neighbouring rows begin in different banks.
#define LK (HK | 1)
#define LV (HV | 1)
#define LS (TILE + 1)
#define OF_HEAD(H) ((H + 7) / 8)

// Rows of a head to shared memory; zeros from `valid` on.
template <int H, int STRIDE>
__device__ __forceinline__ void load_tile(float* to, const T* from, i64 stride, int valid) {
  for (int i = threadIdx.x; i < TILE * H; i += THREADS) {
    int r = i / H, c = i - r * H;
    to[r * STRIDE + c] = r < valid ? to_float(from[r * stride + c]) : 0.0f;
  }
}

// Products of this thread's rows of `left` with its columns, rows of `right`.
template <int H, int STRIDE>
__device__ __forceinline__ void products(float (*s)[COLUMNS], const float* left, const float* right) {
#pragma unroll
  for (int i = 0; i < ROWS; ++i)
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) s[i][j] = 0.0f;
  for (int d = 0; d < H; ++d) {
    float x[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) x[i] = left[i * STRIDE + d];
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
      float y = right[j * 8 * STRIDE + d];
#pragma unroll
      for (int i = 0; i < ROWS; ++i) s[i][j] += x[i] * y;
    }
  }
}

// This thread's rows and columns of `scores` times `right`, added to `o`.
template <int H, int STRIDE>
__device__ __forceinline__ void add_products(float (*o)[OF_HEAD(H)], const float* scores, const float* right) {
  for (int s = 0; s < TILE; ++s) {
    float p[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) p[i] = scores[i * LS + s];
#pragma unroll
    for (int j = 0; j < OF_HEAD(H); ++j) {
      if (H % 8 != 0 && j * 8 + (threadIdx.x & 7) >= H) continue;
      float x = right[s * STRIDE + j * 8];
#pragma unroll
      for (int i = 0; i < ROWS; ++i) o[i][j] += p[i] * x;
    }
  }
}

template <int H>
__device__ __forceinline__ void store(T* to, i64 stride, int valid, const float (*o)[OF_HEAD(H)], const float* factor) {
#pragma unroll
  for (int i = 0; i < ROWS; ++i)
#pragma unroll
    for (int j = 0; j < OF_HEAD(H); ++j) {
      int c = j * 8 + (threadIdx.x & 7);
      if (i < valid && c < H) to[i * stride + c] = from_float<T>(o[i][j] * factor[i]);
    }
}

template <int H>
__device__ __forceinline__ void clear(float (*o)[OF_HEAD(H)]) {
#pragma unroll
  for (int i = 0; i < ROWS; ++i)
#pragma unroll
    for (int j = 0; j < OF_HEAD(H); ++j) o[i][j] = 0.0f;
}

__device__ __forceinline__ float sum8(float x) {
#pragma unroll
  for (int lane = 1; lane < 8; lane *= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}

__device__ __forceinline__ int start_of(const Args& a, int b, int t) {
#if MASK > 0
  return a.starts[i64(b) * a.padded + t];
#else
  return 0;
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS) forward(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) float memory[];
  float *q = memory, *k = q + TILE * LK, *v = k + TILE * LK, *p = v + TILE * LV;
  int tiles = (a.l + TILE - 1) / TILE;
  Place place(a, tiles, a.heads);
  int b = place.b, t0 = (tiles - 1 - place.tile) * TILE, h = place.h, kv = h / (a.heads / a.kv_heads);
  i64 row = i64(b) * a.l;
  Walk walk = keys_of(a, b, t0, t0 + TILE, TILE);
  int mine = threadIdx.x / 8 * ROWS, c = threadIdx.x & 7;
  float slope = alibi_slope(a, h), o[ROWS][OF_HEAD(HV)], top[ROWS], sum[ROWS];
  int start[ROWS];
  clear<HV>(o);
#pragma unroll
  for (int i = 0; i < ROWS; ++i) top[i] = -INF, sum[i] = 0.0f, start[i] = start_of(a, b, t0 + mine + i);
  load_tile<HK, LK>(q, a.q.row(row + t0) + h * HK, a.q.stride, a.l - t0);

  for (int n = 0; n < walk.all; ++n) {
    int s0 = walk.at(n, TILE);
    __syncthreads();
    load_tile<HK, LK>(k, a.k.row(row + s0) + kv * HK, a.k.stride, a.l - s0);
    load_tile<HV, LV>(v, a.v.row(row + s0) + kv * HV, a.v.stride, a.l - s0);
    __syncthreads();
    float s[ROWS][COLUMNS];
    products<HK, LK>(s, q + mine * LK, k + c * LK);
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      int t = t0 + mine + i;
      float most = top[i], gradient;
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) {
        int at = s0 + j * 8 + c;
        bool seen = visible(a, Row(a, b), t, at, start[i]);
        s[i][j] = seen ? score(a, s[i][j], slope, t - at, &gradient) : -INF;
        most = fmaxf(most, s[i][j]);
      }
#pragma unroll
      for (int lane = 1; lane < 8; lane *= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, lane));
      // Where nothing was visible so far, everything is 0.
      float off = most == -INF ? 0.0f : most, by = fast_exp2(top[i] - off);
      top[i] = most, sum[i] *= by;
#pragma unroll
      for (int j = 0; j < OF_HEAD(HV); ++j) o[i][j] *= by;
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) {
        float x = fast_exp2(s[i][j] - off);
        p[(mine + i) * LS + j * 8 + c] = x, sum[i] += x;
      }
    }
    __syncwarp();
    add_products<HV, LV>(o, p + mine * LS, v + c);
  }
  float inverse[ROWS];
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    float x = sum8(sum[i]);
    if (x > 0.0f) x += of_sink(a, h, top[i]);
    int t = t0 + mine + i;
    inverse[i] = x > 0.0f ? 1.0f / x : 0.0f;
    if (a.lse && c == 0) {
      a.lse[(i64(b) * a.heads + h) * a.padded + t] = x > 0.0f && t < a.l ? top[i] + fast_log2(x) : INF;
    }
  }
  if (a.lse) fill_padding(a, a.lse + (i64(b) * a.heads + h) * a.padded, t0 + TILE, INF);
  store<HV>(a.y.row(row + t0 + mine) + h * HV, a.y.stride, a.l - t0 - mine, o, inverse);
}

extern "C" __global__ void __launch_bounds__(THREADS) backward_queries(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) float memory[];
  float *q = memory, *dy = q + TILE * LK, *k = dy + TILE * LV, *v = k + TILE * LK, *ds = v + TILE * LV;
  int tiles = (a.l + TILE - 1) / TILE;
  Place place(a, tiles, a.heads);
  int b = place.b, t0 = (tiles - 1 - place.tile) * TILE, h = place.h, kv = h / (a.heads / a.kv_heads);
  i64 row = i64(b) * a.l, before = (i64(b) * a.heads + h) * a.padded;
  Walk walk = keys_of(a, b, t0, t0 + TILE, TILE);
  int mine = threadIdx.x / 8 * ROWS, c = threadIdx.x & 7;
  float slope = alibi_slope(a, h), dq[ROWS][OF_HEAD(HK)], lse[ROWS], delta[ROWS], scale[ROWS];
  int start[ROWS];
  clear<HK>(dq);
  load_tile<HK, LK>(q, a.q.row(row + t0) + h * HK, a.q.stride, a.l - t0);
  load_tile<HV, LV>(dy, a.dy.row(row + t0) + h * HV, a.dy.stride, a.l - t0);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    int t = t0 + mine + i;
    float x = 0.0f;
    for (int j = c; j < HV && t < a.l; j += 8) x += dy[(mine + i) * LV + j] * to_float(a.y.row(row + t)[h * HV + j]);
    delta[i] = sum8(x), lse[i] = a.lse[before + t], scale[i] = a.scale, start[i] = start_of(a, b, t);
    if (c == 0) a.delta[before + t] = delta[i];
  }
  fill_padding(a, a.delta + before, t0 + TILE, 0.0f);

  for (int n = 0; n < walk.all; ++n) {
    int s0 = walk.at(n, TILE);
    __syncthreads();
    load_tile<HK, LK>(k, a.k.row(row + s0) + kv * HK, a.k.stride, a.l - s0);
    load_tile<HV, LV>(v, a.v.row(row + s0) + kv * HV, a.v.stride, a.l - s0);
    __syncthreads();
    float s[ROWS][COLUMNS], dp[ROWS][COLUMNS];
    products<HK, LK>(s, q + mine * LK, k + c * LK);
    products<HV, LV>(dp, dy + mine * LV, v + c * LV);
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) {
        int t = t0 + mine + i, at = s0 + j * 8 + c;
        bool seen = visible(a, Row(a, b), t, at, start[i]);
        float gradient, x = fast_exp2(score(a, s[i][j], slope, t - at, &gradient) - lse[i]);
        ds[(mine + i) * LS + j * 8 + c] = seen ? x * gradient * (dp[i][j] - delta[i]) : 0.0f;
      }
    __syncwarp();
    add_products<HK, LK>(dq, ds + mine * LS, k + c);
  }
  store<HK>(a.dq.row(row + t0 + mine) + h * HK, a.dq.stride, a.l - t0 - mine, dq, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS) backward_keys(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) float memory[];
  float *k = memory, *v = k + TILE * LK, *q = v + TILE * LV, *dy = q + TILE * LK, *ds = dy + TILE * LV;
  float* p = ds + TILE * LS;
  int tiles = (a.l + TILE - 1) / TILE;
  Place place(a, tiles, a.kv_heads);
  int b = place.b, s0 = place.tile * TILE, kv = place.h, group = a.heads / a.kv_heads;
  i64 row = i64(b) * a.l;
  Walk walk = queries_of(a, b, s0, s0 + TILE, TILE);
  int mine = threadIdx.x / 8 * ROWS, c = threadIdx.x & 7;
  float dk[ROWS][OF_HEAD(HK)], dv[ROWS][OF_HEAD(HV)], scale[ROWS], one[ROWS];
  clear<HK>(dk), clear<HV>(dv);
#pragma unroll
  for (int i = 0; i < ROWS; ++i) scale[i] = a.scale, one[i] = 1.0f;
  load_tile<HK, LK>(k, a.k.row(row + s0) + kv * HK, a.k.stride, a.l - s0);
  load_tile<HV, LV>(v, a.v.row(row + s0) + kv * HV, a.v.stride, a.l - s0);

  for (int h = kv * group; h < kv * group + group; ++h) {
    float slope = alibi_slope(a, h);
    i64 before = (i64(b) * a.heads + h) * a.padded;
    for (int n = 0; n < walk.all; ++n) {
      int t0 = walk.at(n, TILE);
      __syncthreads();
      load_tile<HK, LK>(q, a.q.row(row + t0) + h * HK, a.q.stride, a.l - t0);
      load_tile<HV, LV>(dy, a.dy.row(row + t0) + h * HV, a.dy.stride, a.l - t0);
      __syncthreads();
      float s[ROWS][COLUMNS], dp[ROWS][COLUMNS];
      products<HK, LK>(s, k + mine * LK, q + c * LK);
      products<HV, LV>(dp, v + mine * LV, dy + c * LV);
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) {
        int t = t0 + j * 8 + c, start = start_of(a, b, t);
        float lse = a.lse[before + t], delta = a.delta[before + t];
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
          int at = s0 + mine + i;
          bool seen = visible(a, Row(a, b), t, at, start);
          float gradient, x = fast_exp2(score(a, s[i][j], slope, t - at, &gradient) - lse);
          p[(mine + i) * LS + j * 8 + c] = seen ? x : 0.0f;
          ds[(mine + i) * LS + j * 8 + c] = seen ? x * gradient * (dp[i][j] - delta) : 0.0f;
        }
      }
      __syncwarp();
      add_products<HV, LV>(dv, p + mine * LS, dy + c);
      add_products<HK, LK>(dk, ds + mine * LS, q + c);
    }
  }
  T *to_k = a.dk.row(row + s0 + mine) + kv * HK, *to_v = a.dv.row(row + s0 + mine) + kv * HV;
  store<HK>(to_k, a.dk.stride, a.l - s0 - mine, dk, scale);
  store<HV>(to_v, a.dv.stride, a.l - s0 - mine, dv, one);
}
