// dq of a tile of queries, over tiles of keys, and Σ dy y for the kernel over keys:
//
//   delta = Σ dy y
//   for each tile of keys: P = 2^(scores - lse); dS = P (dY Vᵀ - delta); dQ += dS K
//   dq = scale dQ
//
// As in the forward a warp owns MT x 16 queries, with all results in registers. The kernel over keys computes S and dY Vᵀ
// again: seven products where a single kernel for all gradients needs five, but no sums over blocks, so that the result does
// not depend on their order.

#define BM (WARPS * MT * 16)
#define THREADS (WARPS * 32)
#define STAGE (tile_bytes<BN, DK>() + tile_bytes<BN, DV>())

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) backward_queries(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) u8 memory[];
  u8* queries = aligned(memory);
  u8* dys = queries + tile_bytes<BM, DK>();
  u8* stages = dys + tile_bytes<BM, DV>();
  __shared__ float deltas[BM];
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, c = (lane & 3) * 2;
  int tiles = (a.l + BM - 1) / BM;
  Place place(a, tiles, a.heads);
  int t0 = (tiles - 1 - place.tile) * BM, h = place.h, kv = h / (a.heads / a.kv_heads);
  i64 row = i64(place.b) * a.l;
  Walk walk = keys_of(a, place.b, t0, t0 + BM, BN);
  const bf16 *k = a.k.row(row) + kv * HK, *v = a.v.row(row) + kv * HV;

  clear_padding<BM, HK, DK, THREADS>(queries);
  clear_padding<BM, HV, DV, THREADS>(dys);
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
  u32 q = shared_address(queries), dy = shared_address(dys);
  load_tile<BM, HK, DK, THREADS>(q, a.q.row(row + t0) + h * HK, a.q.stride, a.l - t0);
  load_tile<BM, HV, DV, THREADS>(dy, a.dy.row(row + t0) + h * HV, a.dy.stride, a.l - t0);
  if (walk.all > 0) load(walk.at(0, BN), 0);
  commit();

  // THREADS / BM neighbouring threads for a query.
  i64 rows_before = (i64(place.b) * a.heads + h) * a.padded;
  {
    constexpr int SHARE = THREADS / BM;
    int r = threadIdx.x / SHARE, part = threadIdx.x % SHARE;
    float x = 0.0f;
    if (t0 + r < a.l) {
      const bf16 *y = a.y.row(row + t0 + r) + h * HV, *dy = a.dy.row(row + t0 + r) + h * HV;
#pragma unroll
      for (int chunk = 0; chunk < HV / 8; ++chunk) {
        if (chunk % SHARE != part) continue;
        float left[8], right[8];
        load8(y + chunk * 8, left), load8(dy + chunk * 8, right);
#pragma unroll
        for (int e = 0; e < 8; ++e) x += left[e] * right[e];
      }
    }
    if (SHARE == 2) x += __shfl_xor_sync(0xffffffffu, x, 1);
    if (part == 0) deltas[r] = x, a.delta[rows_before + t0 + r] = x;
    fill_padding(a, a.delta + rows_before, t0 + BM, 0.0f);
  }
  __syncthreads();

  int mine = t0 + warp * MT * 16;
  float dq[MT][DK / 8][4], lse[MT][2], delta[MT][2];
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int j = 0; j < DK / 8; ++j) dq[m][j][0] = dq[m][j][1] = dq[m][j][2] = dq[m][j][3] = 0.0f;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int r = m * 16 + g + half * 8;
      lse[m][half] = a.lse[rows_before + mine + r];
      delta[m][half] = deltas[warp * MT * 16 + r];
    }
  }
  Row of_row(a, place.b);
  int start[MT][2], last_start = MASK > 0 ? of_row.starts[mine + MT * 16 - 1] : 0;
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) start[m][half] = MASK > 0 ? of_row.starts[mine + m * 16 + g + half * 8] : 0;
#if SCORES
  float slope = alibi_slope(a, h);
#else
  float factor = a.scale * LOG2_E;
#endif
  Kept<MT, DK> kept_q;
  Kept<MT, DV> kept_dy;

  for (int i = 0; i < walk.all; ++i) {
    int s0 = walk.at(i, BN);
    loaded();
    __syncthreads();
    if (i + 1 < walk.all) load(walk.at(i + 1, BN), (i + 1) & 1);
    commit();
    if (KEEP && i == 0) kept_q.load<BM>(q), kept_dy.load<BM>(dy);
    if (is_causal(a) && s0 > mine + MT * 16 - 1) continue;
    u32 stage = shared_address(stages) + (i & 1) * STAGE;
    float s[MT][BN / 8][4], dp[MT][BN / 8][4];
    product_across<MT, BN, DK, BM, KEEP>(s, q, kept_q, stage);
#if HOPPER
    // Beside the exponentials.
    product_across<MT, BN, DV, BM, KEEP>(dp, dy, kept_dy, stage + tile_bytes<BN, DK>());
#endif
    finished<HOPPER, MT, BN / 8>(s);
    bool all = whole(a, of_row, mine, mine + MT * 16 - 1, s0, s0 + BN - 1, last_start);
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int j = 0; j < BN / 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
#if SCORES
          float gradient;
          int t = mine + m * 16 + g + (e >> 1) * 8;
          float x = score(a, s[m][j][e], slope, t - (s0 + j * 8 + c + (e & 1)), &gradient);
          s[m][j][e] = gradient * fast_exp2(x - lse[m][e >> 1]);
#else
          s[m][j][e] = fast_exp2(s[m][j][e] * factor - lse[m][e >> 1]);
#endif
        }
    if (!all) {
#pragma unroll
      for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int j = 0; j < BN / 8; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            int t = mine + m * 16 + g + (e >> 1) * 8, at = s0 + j * 8 + c + (e & 1);
            if (!visible(a, of_row, t, at, start[m][e >> 1])) s[m][j][e] = 0.0f;
          }
    }
#if HOPPER
    finished<0, MT, BN / 8>(dp);
#else
    product_across<MT, BN, DV, BM, KEEP>(dp, dy, kept_dy, stage + tile_bytes<BN, DK>());
#endif
    u32 ds[MT][BN / 16][4];
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
      for (int j = 0; j < BN / 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[m][j][e] *= dp[m][j][e] - delta[m][e >> 1];
#pragma unroll
      for (int kk = 0; kk < BN / 16; ++kk) as_a(ds[m][kk], s[m][2 * kk], s[m][2 * kk + 1]);
    }
    product_down<MT, BN, DK>(dq, ds, stage);
    finished<0, MT, DK / 8>(dq);
  }
  // Others may still load what lies where this warp stores.
  loaded();
  __syncthreads();
  float scale[MT][2];
#pragma unroll
  for (int m = 0; m < MT; ++m) scale[m][0] = scale[m][1] = a.scale;
  store_rows<MT, HK, DK>(a.dq.row(row + mine) + h * HK, a.dq.stride, a.l - mine, queries, dq, scale);
}
