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
#define OF_QUERIES (tile_bytes<BM, DK>() + tile_bytes<BM, DV>())
#define STAGE (OF_QUERIES + (HOPPER ? (12 * BM + 1023) / 1024 * 1024 : 12 * BM))

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) backward_keys(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) u8 memory[];
  u8* keys = aligned(memory);
  u8* values = keys + tile_bytes<BN, DK>();
  u8* stages = values + tile_bytes<BN, DV>();
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, c = (lane & 3) * 2;
  int tiles = (a.l + BN - 1) / BN;
  Place place(a, tiles, a.kv_heads);
  int s0 = place.tile * BN, kv = place.h, group = a.heads / a.kv_heads;
  i64 row = i64(place.b) * a.l;
  Walk walk = queries_of(a, place.b, s0, s0 + BN, BM);

  clear_padding<BN, HK, DK, THREADS>(keys);
  clear_padding<BN, HV, DV, THREADS>(values);
#pragma unroll
  for (int stage = 0; stage < 2; ++stage) {
    clear_padding<BM, HK, DK, THREADS>(stages + stage * STAGE);
    clear_padding<BM, HV, DV, THREADS>(stages + stage * STAGE + tile_bytes<BM, DK>());
  }
  auto load = [&](int h, int t0, int stage) {
    u32 to = shared_address(stages) + stage * STAGE;
    load_tile<BM, HK, DK, THREADS>(to, a.q.row(row + t0) + h * HK, a.q.stride, a.l - t0);
    load_tile<BM, HV, DV, THREADS>(to + tile_bytes<BM, DK>(), a.dy.row(row + t0) + h * HV, a.dy.stride, a.l - t0);
    to += OF_QUERIES;
    i64 at = (i64(place.b) * a.heads + h) * a.padded + t0;
    load_row<BM, THREADS>(to, a.lse + at);
    load_row<BM, THREADS>(to + 4 * BM, a.delta + at);
#if MASK > 0
    load_row<BM, THREADS>(to + 8 * BM, a.starts + i64(place.b) * a.padded + t0);
#endif
  };
  u32 k = shared_address(keys), v = shared_address(values);
  load_tile<BN, HK, DK, THREADS>(k, a.k.row(row + s0) + kv * HK, a.k.stride, a.l - s0);
  load_tile<BN, HV, DV, THREADS>(v, a.v.row(row + s0) + kv * HV, a.v.stride, a.l - s0);
  if (walk.all > 0) load(kv * group, walk.at(0, BM), 0);
  commit();

  int mine = s0 + warp * MT * 16;
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
  Kept<MT, DK> kept_k;
  Kept<MT, DV> kept_v;

  int head = 0, tile = 0, count = group * walk.all;
  for (int i = 0; i < count; ++i) {
    int t0 = walk.at(tile, BM);
#if SCORES
    float slope = alibi_slope(a, kv * group + head);
#endif
    if (++tile == walk.all) tile = 0, ++head;
    loaded();
    __syncthreads();
    if (i + 1 < count) load(kv * group + head, walk.at(tile, BM), (i + 1) & 1);
    commit();
    if (KEEP && i == 0) kept_k.load<BN>(k), kept_v.load<BN>(v);
    if (is_causal(a) && t0 + BM - 1 < mine) continue;
    u8* stage = stages + (i & 1) * STAGE;
    u32 q = shared_address(stage), dy = q + tile_bytes<BM, DK>();
    const float* lse = reinterpret_cast<const float*>(stage + OF_QUERIES) + c;
    float s[MT][BM / 8][4];
    product_across<MT, BM, DK, BN, KEEP>(s, k, kept_k, q);
#if GRADS & 1
    float dp[MT][BM / 8][4];
#if HOPPER
    // Beside the exponentials.
    product_across<MT, BM, DV, BN, KEEP>(dp, v, kept_v, dy);
#endif
#endif
    finished<HOPPER, MT, BM / 8>(s);
    const i32* starts = reinterpret_cast<const i32*>(stage + OF_QUERIES + 8 * BM);
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
    product_down<MT, BM, DV>(dv, p, dy);
#endif
#if GRADS & 1
    u32 ds[MT][BM / 16][4];
#if HOPPER
    finished<1, MT, BM / 8>(dp);
#else
    product_across<MT, BM, DV, BN, KEEP>(dp, v, kept_v, dy);
#endif
#pragma unroll
    for (int j = 0; j < BM / 8; ++j) {
      float2 off = *reinterpret_cast<const float2*>(lse + BM + j * 8);
#pragma unroll
      for (int m = 0; m < MT; ++m) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[m][j][e] *= dp[m][j][e] - (e & 1 ? off.y : off.x);
        ds[m][j / 2][j % 2 * 2] = pack_bf16(s[m][j][0], s[m][j][1]);
        ds[m][j / 2][j % 2 * 2 + 1] = pack_bf16(s[m][j][2], s[m][j][3]);
      }
    }
    product_down<MT, BM, DK>(dk, ds, q);
    finished<0, MT, DK / 8>(dk);
#endif
#if GRADS & 2
    finished<0, MT, DV / 8>(dv);
#endif
  }
  // Others may still load what lies where this warp stores.
  loaded();
  __syncthreads();
  float factors[MT][2];
#if GRADS & 1
#pragma unroll
  for (int m = 0; m < MT; ++m) factors[m][0] = factors[m][1] = a.scale;
  store_rows<MT, HK, DK>(a.dk.row(row + mine) + kv * HK, a.dk.stride, a.l - mine, keys, dk, factors);
#endif
#if GRADS & 2
#pragma unroll
  for (int m = 0; m < MT; ++m) factors[m][0] = factors[m][1] = 1.0f;
  store_rows<MT, HV, DV>(a.dv.row(row + mine) + kv * HV, a.dv.stride, a.l - mine, values, dv, factors);
#endif
}
