// dk and dv of a tile of keys, over the query heads that they serve and tiles of queries, in this order:
//
//   for each tile of queries: Pᵀ = 2^(K Qᵀ scores - lse); dV += Pᵀ dY; dSᵀ = Pᵀ (V dYᵀ - delta); dK += dSᵀ Q
//   dk = scale dK, dv = dV
//
// A warp owns MT x 16 keys. S is computed transposed, so that Pᵀ and dSᵀ are left sides of the next products as they are.
// GRADS tells which gradients: 1 is dk, 2 is dv, 3 both; heads wider than 128 leave registers for one at a time.

#define BN (WARPS * MT * 16)
#define THREADS (WARPS * 32)
// Queries, dy, and for each query the log-sum-exp, delta, and where its document starts.
#define STAGE (2 * BM * (LK + LV) + 12 * BM)

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) backward_keys(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) u8 memory[];
  bf16* keys = reinterpret_cast<bf16*>(memory);
  bf16* values = keys + BN * LK;
  u8* stages = reinterpret_cast<u8*>(values + BN * LV);
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, c = (lane & 3) * 2;
  int tiles = (a.l + BN - 1) / BN;
  Place place(a, tiles, a.kv_heads);
  int s0 = place.tile * BN, kv = place.h, group = a.heads / a.kv_heads;
  i64 row = i64(place.b) * a.l;
  Walk walk = queries_of(a, place.b, s0, s0 + BN, BM);

  clear_padding<BN, HK, LK, THREADS>(keys);
  clear_padding<BN, HV, LV, THREADS>(values);
#pragma unroll
  for (int stage = 0; stage < 2; ++stage) {
    bf16* q = reinterpret_cast<bf16*>(stages + stage * STAGE);
    clear_padding<BM, HK, LK, THREADS>(q);
    clear_padding<BM, HV, LV, THREADS>(q + BM * LK);
  }
  auto load = [&](int h, int t0, int stage) {
    u32 to = shared_address(stages) + stage * STAGE;
    load_tile<BM, HK, LK, THREADS>(to, a.q.row(row + t0) + h * HK, a.q.stride, a.l - t0);
    to += 2 * BM * LK;
    load_tile<BM, HV, LV, THREADS>(to, a.dy.row(row + t0) + h * HV, a.dy.stride, a.l - t0);
    to += 2 * BM * LV;
    i64 at = (i64(place.b) * a.heads + h) * a.padded + t0;
    load_row<BM, THREADS>(to, a.lse + at);
    load_row<BM, THREADS>(to + 4 * BM, a.delta + at);
#if MASK > 0
    load_row<BM, THREADS>(to + 8 * BM, a.starts + i64(place.b) * a.padded + t0);
#endif
  };
  load_tile<BN, HK, LK, THREADS>(shared_address(keys), a.k.row(row + s0) + kv * HK, a.k.stride, a.l - s0);
  load_tile<BN, HV, LV, THREADS>(shared_address(values), a.v.row(row + s0) + kv * HV, a.v.stride, a.l - s0);
  if (walk.all > 0) load(kv * group, walk.at(0, BM), 0);
  commit();

  int mine = s0 + warp * MT * 16;
  u32 k = lane_down(shared_address(keys + warp * MT * 16 * LK), LK);
  u32 v = lane_down(shared_address(values + warp * MT * 16 * LV), LV);
#if GRADS & 1
  float dk[MT][DK / 8][4];
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int j = 0; j < DK / 8; ++j) dk[m][j][0] = dk[m][j][1] = dk[m][j][2] = dk[m][j][3] = 0.0f;
#endif
#if GRADS & 2
  float dv[MT][DV / 8][4];
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int j = 0; j < DV / 8; ++j) dv[m][j][0] = dv[m][j][1] = dv[m][j][2] = dv[m][j][3] = 0.0f;
#endif
  Row of_row(a, place.b);
#if !SCORES
  float factor = a.scale * LOG2_E;
#endif
  u32 kept_k[DK / 16][MT][4], kept_v[DV / 16][MT][4];

  int head = 0, tile = 0, count = group * walk.all;
  for (int i = 0; i < count; ++i) {
    int t0 = walk.at(tile, BM);
#if SCORES
    float slope = alibi_slope(a, kv * group + head);
#endif
    if (++tile == walk.all) tile = 0, ++head;
    wait<0>();
    __syncthreads();
    if (i + 1 < count) load(kv * group + head, walk.at(tile, BM), (i + 1) & 1);
    commit();
    if (KEEP && i == 0) {
#pragma unroll
      for (int m = 0; m < MT; ++m) {
#pragma unroll
        for (int kk = 0; kk < DK / 16; ++kk) load4(kept_k[kk][m], k + 2 * (m * 16 * LK + kk * 16));
#pragma unroll
        for (int kk = 0; kk < DV / 16; ++kk) load4(kept_v[kk][m], v + 2 * (m * 16 * LV + kk * 16));
      }
    }
    if (is_causal(a) && t0 + BM - 1 < mine) continue;
    u8* stage = stages + (i & 1) * STAGE;
    u32 q = shared_address(stage), dy = q + 2 * BM * LK;
    const float* lse = reinterpret_cast<const float*>(stage + 2 * BM * (LK + LV)) + c;
    float s[MT][BM / 8][4];
    product_across<MT, BM, DK, LK, LK, KEEP>(s, k, kept_k, lane_across(q, LK));
    const i32* starts = reinterpret_cast<const i32*>(stage + 2 * BM * (LK + LV) + 8 * BM);
    int last_start = MASK > 0 ? starts[BM - 1] : 0;
    bool all = whole(a, of_row, t0, t0 + BM - 1, mine, mine + MT * 16 - 1, last_start);
    u32 p[MT][BM / 16][4];
#pragma unroll
    for (int j = 0; j < BM / 8; ++j) {
      float2 off = *reinterpret_cast<const float2*>(lse + j * 8);
#pragma unroll
      for (int m = 0; m < MT; ++m) {
#if SCORES
        float gradient[4];
#endif
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float x = s[m][j][e];
#if SCORES
          int t = t0 + j * 8 + c + (e & 1), at = mine + m * 16 + g + (e >> 1) * 8;
          s[m][j][e] = fast_exp2(score(a, x, slope, t - at, &gradient[e]) - (e & 1 ? off.y : off.x));
#else
          s[m][j][e] = fast_exp2(x * factor - (e & 1 ? off.y : off.x));
#endif
        }
        if (!all) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            int t = t0 + j * 8 + c + (e & 1), at = mine + m * 16 + g + (e >> 1) * 8;
            if (!visible(a, of_row, t, at, MASK > 0 ? starts[j * 8 + c + (e & 1)] : 0)) s[m][j][e] = 0.0f;
          }
        }
        p[m][j / 2][j % 2 * 2] = pack_bf16(s[m][j][0], s[m][j][1]);
        p[m][j / 2][j % 2 * 2 + 1] = pack_bf16(s[m][j][2], s[m][j][3]);
#if SCORES
#pragma unroll
        for (int e = 0; e < 4; ++e) s[m][j][e] *= gradient[e];
#endif
      }
    }
#if GRADS & 2
    product_down<MT, BM, DV, LV>(dv, p, lane_down(dy, LV));
#endif
#if GRADS & 1
    float dp[MT][BM / 8][4];
    product_across<MT, BM, DV, LV, LV, KEEP>(dp, v, kept_v, lane_across(dy, LV));
#pragma unroll
    for (int j = 0; j < BM / 8; ++j) {
      float2 off = *reinterpret_cast<const float2*>(lse + BM + j * 8);
#pragma unroll
      for (int m = 0; m < MT; ++m) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[m][j][e] *= dp[m][j][e] - (e & 1 ? off.y : off.x);
        p[m][j / 2][j % 2 * 2] = pack_bf16(s[m][j][0], s[m][j][1]);
        p[m][j / 2][j % 2 * 2 + 1] = pack_bf16(s[m][j][2], s[m][j][3]);
      }
    }
    product_down<MT, BM, DK, LK>(dk, p, lane_down(q, LK));
#endif
  }
  // Others may still load what lies where this warp stores.
  wait<0>();
  __syncthreads();
  float factors[MT][2];
#if GRADS & 1
#pragma unroll
  for (int m = 0; m < MT; ++m) factors[m][0] = factors[m][1] = a.scale;
  bf16* own_k = keys + warp * MT * 16 * LK;
  store_rows<MT, HK, DK, LK>(a.dk.row(row + mine) + kv * HK, a.dk.stride, a.l - mine, own_k, dk, factors);
#endif
#if GRADS & 2
#pragma unroll
  for (int m = 0; m < MT; ++m) factors[m][0] = factors[m][1] = 1.0f;
  bf16* own_v = values + warp * MT * 16 * LV;
  store_rows<MT, HV, DV, LV>(a.dv.row(row + mine) + kv * HV, a.dv.stride, a.l - mine, own_v, dv, factors);
#endif
}
