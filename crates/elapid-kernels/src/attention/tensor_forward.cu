// y and the log-sum-exp of a tile of queries, over tiles of keys (Dao 2023, FlashAttention-2, algorithm 1):
//
//   for each tile of keys: S = Q Kᵀ; top' = max(top, S); P = 2^(S - top'); O = O 2^(top - top') + P V; sum likewise
//   y = O / sum, a learned sink in the sum
//
// A warp owns MT x 16 queries, on Hopper four warps together 64. S, P and O stay in registers: the result of the first product has the layout of the second
// one's left side. K and V are loaded into one of two stages of shared memory while the other is worked on. `top` is raised
// only when a score exceeds it by 2^8 (of f32's 2^127), so that O is seldom rescaled.

#define BM (WARPS * MT * 16)
#define THREADS (WARPS * 32)
#define WIDER (DK > DV ? DK : DV)
#define STAGE (tile_bytes<BN, DK>() + tile_bytes<BN, DV>())

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) forward(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) u8 memory[];
  u8* queries = aligned(memory);
  u8* stages = queries + tile_bytes<BM, WIDER>();
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, c = (lane & 3) * 2;
  int tiles = (a.l + BM - 1) / BM;
  Place place(a, tiles, a.heads);
  int t0 = (tiles - 1 - place.tile) * BM, h = place.h, kv = h / (a.heads / a.kv_heads);
  i64 row = i64(place.b) * a.l;
  Walk walk = keys_of(a, place.b, t0, t0 + BM, BN);
  const bf16 *k = a.k.row(row) + kv * HK, *v = a.v.row(row) + kv * HV;

  clear_padding<BM, HK, DK, THREADS>(queries);
#pragma unroll
  for (int stage = 0; stage < 2; ++stage) {
    clear_padding<BN, HK, DK, THREADS>(stages + stage * STAGE);
    clear_padding<BN, HV, DV, THREADS>(stages + stage * STAGE + tile_bytes<BN, DK>());
  }
  auto load = [&](int s, int stage) {
    u32 to = shared_address(stages) + stage * STAGE;
    load_tile<BN, HK, DK, THREADS>(to, k + s * a.k.stride, a.k.stride, a.l - s);
    load_tile<BN, HV, DV, THREADS>(to + tile_bytes<BN, DK>(), v + s * a.v.stride, a.v.stride, a.l - s);
  };
  u32 q = shared_address(queries);
  load_tile<BM, HK, DK, THREADS>(q, a.q.row(row + t0) + h * HK, a.q.stride, a.l - t0);
  if (walk.all > 0) load(walk.at(0, BN), 0);
  commit();

  // The lane's rows: m x 16 + g and 8 further down.
  int mine = t0 + warp * MT * 16;
  float o[MT][DV / 8][4], top[MT][2], sum[MT][2];
#pragma unroll
  for (int m = 0; m < MT; ++m) {
    top[m][0] = top[m][1] = -INF, sum[m][0] = sum[m][1] = 0.0f;
#pragma unroll
    for (int j = 0; j < DV / 8; ++j) o[m][j][0] = o[m][j][1] = o[m][j][2] = o[m][j][3] = 0.0f;
  }
  Row of_row(a, place.b);
  int start[MT][2], last_start = MASK > 0 ? of_row.starts[mine + MT * 16 - 1] : 0;
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) start[m][half] = MASK > 0 ? of_row.starts[mine + m * 16 + g + half * 8] : 0;
#if SCORES
  float slope = alibi_slope(a, h), factor = 1.0f;
#else
  float factor = a.scale * LOG2_E;
#endif
  Kept<MT, DK> kept;

  for (int i = 0; i < walk.all; ++i) {
    int s0 = walk.at(i, BN);
    loaded();
    __syncthreads();
    if (i + 1 < walk.all) load(walk.at(i + 1, BN), (i + 1) & 1);
    commit();
    if (KEEP && i == 0) kept.load<BM>(q);
    if (is_causal(a) && s0 > mine + MT * 16 - 1) continue;
    u32 stage = shared_address(stages) + (i & 1) * STAGE;
    float s[MT][BN / 8][4];
    product_across<MT, BN, DK, BM, KEEP>(s, q, kept, stage);
    finished<0, MT, BN / 8>(s);
#if SCORES
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int j = 0; j < BN / 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float gradient;
          int t = mine + m * 16 + g + (e >> 1) * 8;
          s[m][j][e] = score(a, s[m][j][e], slope, t - (s0 + j * 8 + c + (e & 1)), &gradient);
        }
#endif
    bool all = whole(a, of_row, mine, mine + MT * 16 - 1, s0, s0 + BN - 1, last_start);
    if (!all) {
#pragma unroll
      for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int j = 0; j < BN / 8; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            int t = mine + m * 16 + g + (e >> 1) * 8, at = s0 + j * 8 + c + (e & 1);
            if (!visible(a, of_row, t, at, start[m][e >> 1])) s[m][j][e] = -INF;
          }
    }

    float most[MT][2];
    bool grew = false;
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x = -INF;
#pragma unroll
        for (int j = 0; j < BN / 8; ++j) x = fmaxf(x, fmaxf(s[m][j][2 * half], s[m][j][2 * half + 1]));
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
        most[m][half] = x * factor;
        grew |= most[m][half] > top[m][half] + 8.0f;
      }
    if (__any_sync(0xffffffffu, grew)) {
#pragma unroll
      for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float before = top[m][half], now = fmaxf(before, most[m][half]);
          // Where nothing was visible so far, there is nothing to rescale.
          float by = before == -INF ? 0.0f : fast_exp2(before - now);
          top[m][half] = now, sum[m][half] *= by;
#pragma unroll
          for (int j = 0; j < DV / 8; ++j) o[m][j][2 * half] *= by, o[m][j][2 * half + 1] *= by;
        }
    }
    u32 p[MT][BN / 16][4];
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float off = top[m][half] == -INF ? 0.0f : top[m][half];
#pragma unroll
        for (int j = 0; j < BN / 8; ++j)
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            s[m][j][e] = fast_exp2(s[m][j][e] * factor - off);
            sum[m][half] += s[m][j][e];
          }
      }
#pragma unroll
      for (int kk = 0; kk < BN / 16; ++kk) as_a(p[m][kk], s[m][2 * kk], s[m][2 * kk + 1]);
    }
    product_down<MT, BN, DV>(o, p, stage + tile_bytes<BN, DK>());
    finished<0, MT, DV / 8>(o);
  }

  float inverse[MT][2];
  float* lse = a.lse + (i64(place.b) * a.heads + h) * a.padded;
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x = sum[m][half];
      x += __shfl_xor_sync(0xffffffffu, x, 1);
      x += __shfl_xor_sync(0xffffffffu, x, 2);
      if (x > 0.0f) x += of_sink(a, h, top[m][half]);
      inverse[m][half] = x > 0.0f ? 1.0f / x : 0.0f;
      int t = mine + m * 16 + g + half * 8;
      if (a.lse && c == 0) lse[t] = x > 0.0f && t < a.l ? top[m][half] + fast_log2(x) : INF;
    }
  if (a.lse) fill_padding(a, lse, t0 + BM, INF);
  // Others may still load or read what lies where this warp stores.
  loaded();
  __syncthreads();
  store_rows<MT, HV, DV>(a.y.row(row + mine) + h * HV, a.y.stride, a.l - mine, queries, o, inverse);
}
