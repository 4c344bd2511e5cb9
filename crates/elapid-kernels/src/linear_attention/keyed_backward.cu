// The backward on tensor cores for a decay of each key: with a normaliser `divide`, `prepare_queries`, `walk_back`, with a normaliser
// `walk_sums_back`, `values` for dv, `gradients` for dq, dk and the gradient of the decay, and sums of shares.

extern "C" __global__ void __launch_bounds__(THREADS) prepare_queries(const __grid_constant__ Args a) { prepare<true>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) walk_back(const __grid_constant__ Args a) { walk_segment<true, false>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) walk_back_ends(const __grid_constant__ Args a) { walk_segment<true, true>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) walk_back_starts(const __grid_constant__ Args a) { start_segments<true>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) values(const __grid_constant__ Args a) { answer<false>(a); }

extern "C" __global__ void __launch_bounds__(THREADS) walk_sums_back(const __grid_constant__ Args a) { walk_column<true>(a); }

// dr, and the gradient of what the normaliser divides by; a warp has one head of a position.
extern "C" __global__ void __launch_bounds__(THREADS) divide(const __grid_constant__ Args a) {
  i64 unit = i64(blockIdx.x) * WARPS + (threadIdx.x >> 5), row = unit / a.heads, t = row % a.l;
  int h = int(unit % a.heads), lane = threadIdx.x & 31, b = int(row / a.l);
  if (row >= a.b * a.l || t >= row_length(a, b)) return;
  i64 at = (i64(b) * a.heads + h) * a.l + t;
  float sum = 0.0f, inverse = 1.0f / a.divisors[at];
  for (int j = lane; j < a.values; j += 32) {
    int column = h * a.values + j;
    float y = to_float(a.y.row(row)[column]) - skip_weight(a, h, j) * to_float(a.v.row(row)[column]);
    float dy = to_float(a.dy.row(row)[column]);
    sum += dy * y;
    a.dr.row(row)[column] = from_float<T>(dy * inverse);
  }
  sum = warp_sum(sum);
  if (lane == 0) a.ddivisors[at] = -sum * inverse;
}

struct GradientTiles {
  // Queries times the decay from their sub-chunk's begin, keys times w and the decay up to their sub-chunk's end; then dscores of
  // pairs of a sub-chunk.
  union {
    struct {
      bf16 q[CHUNK * LK], k[CHUNK * LK];
    };
    float pairs[SUBS][SUB * SUB];
  };
  Decays decays;
  // Then dq and dk without the pairs of a sub-chunk.
  union {
    struct {
      bf16 v[CHUNK * LV], dy[CHUNK * LV], s[HK * LV], ds[HK * LV];
    };
    struct {
      float dq[CHUNK * LC], dk[CHUNK * LC];
    };
  };
  Positions positions;
  // Of each sub-chunk: the decay; what passes to the sub-chunks before; shares of parameters.
  float passes[SUBS * HK], carry[SUBS * 32], shares[2][SUBS * 32];
};

// out (16 rows) = out exp(total of the sub-chunk) + dscores X, X the sub-chunk's scaled keys or queries.
__device__ __forceinline__ void further(float (*out)[4], const float* passes, const float (*dscores)[4], u32 x) {
  int column = (threadIdx.x & 3) * 2;
#pragma unroll
  for (int j = 0; j < HK / 8; ++j) {
    float2 by = pair_at(passes + 8 * j + column);
    out[j][0] *= by.x, out[j][1] *= by.y, out[j][2] *= by.x, out[j][3] *= by.y;
  }
  u32 p[1][4];
  as_a(p[0], dscores[0], dscores[1]);
  product_results<HK, 16, LK>(out, p, x);
}

// The rest of `gradients`, a lane with a key and a warp with a sub-chunk: pairs of the sub-chunk in f32, and the gradient of the decay,
// which is the sum of q dq - k dk from a position on, up to where its document ends, and what passes the chunk's end.
__device__ __forceinline__ void finish(const Args& a, const Place& at, GradientTiles& tiles) {
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, r0 = warp * SUB, last = at.last();
  bool whole = a.heads == a.groups;
  const Positions& of = tiles.positions;
  const float *pairs = tiles.pairs[warp], *write = of.write + r0;
  const int* start = of.start + r0;
  i64 row0 = at.first + r0, t0 = at.t0 + r0;
  // Whether a document begins in a sub-chunk.
  auto begins = [&](int sub) {
    int end = sub * SUB + SUB - 1 < last ? sub * SUB + SUB - 1 : last;
    return end >= sub * SUB && of.start[end] >= at.t0 + sub * SUB;
  };
  int end = r0 + SUB - 1 < last ? r0 + SUB - 1 : last, last_start = end >= r0 ? of.start[end] : -1;
  float dwrite = 0.0f, ddecay = 0.0f;
  for (int base = 0; base < HK; base += 32) {
    if (base > 0) __syncthreads();
    bool mine = base + lane < HK && at.tile * HK + base + lane < a.keys;
    int key = mine ? base + lane : 0, column = at.tile * HK + key, parameter = at.h * a.keys + column;
    const bf16 *q_from = a.q.row(row0) + at.g * KEYS + column, *k_from = a.k.row(row0) + at.g * KEYS + column;
    float q[SUB], k[SUB], c[SUB], dq[SUB], dk[SUB], found[SUB];
    const bf16 *q_at = q_from, *k_at = k_from;
#pragma unroll
    for (int r = 0; r < SUB; ++r) {
      bool there = r0 + r <= last;
      q[r] = there ? to_float(*q_at) : 0.0f;
      k[r] = there ? write[r] * to_float(*k_at) : 0.0f;
      q_at += a.q.stride, k_at += a.k.stride;
      int place = (r0 + r) * LC + key;
      c[r] = tiles.decays.sums[place], dq[r] = tiles.dq[place], dk[r] = tiles.dk[place];
    }
#pragma unroll
    for (int t = 0; t < SUB; ++t) {
      float read = BONUS ? (t > 0 ? c[t > 0 ? t - 1 : 0] : 0.0f) : c[t];
#pragma unroll
      for (int n = 0; n <= t / 4; ++n) {
        float4 four = *reinterpret_cast<const float4*>(pairs + t * SUB + 4 * n);
        float x[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          int s = 4 * n + i;
          if (s > t || (BONUS && s == t)) continue;
          if (s < t) x[i] *= fast_exp2(read - c[s]);
          dq[t] += x[i] * k[s], dk[s] += x[i] * q[t];
        }
      }
    }
    float sum = 0.0f, constant = 0.0f, dbonus = 0.0f;
#pragma unroll
    for (int r = SUB - 1; r >= 0; --r) {
      float reads = q[r] * dq[r];
      sum += (BONUS ? 0.0f : reads) - k[r] * dk[r], found[r] = sum;
      if (BONUS) sum += reads;
      if (start[r] == t0 + r) found[r] = sum = 0.0f;
    }
    tiles.carry[threadIdx.x] = sum;
#if BONUS
    float u = a.bonus[parameter];
#pragma unroll
    for (int r = 0; r < SUB; ++r) {
      float own = pairs[r * SUB + r];
      dq[r] += u * k[r] * own, dk[r] += u * q[r] * own, dbonus += q[r] * k[r] * own;
    }
#endif
    if (whole) {
      bf16 *to_dq = a.dq.row(row0) + at.g * a.keys + column, *to_dk = a.dk.row(row0) + at.g * a.keys + column;
#pragma unroll
      for (int r = 0; r < SUB; ++r) {
        bool there = r0 + r <= last;
        if (mine && t0 + r < a.l) {
          *to_dq = from_float<T>(there ? dq[r] : 0.0f), *to_dk = from_float<T>(there ? write[r] * dk[r] : 0.0f);
        }
        to_dq += a.dq.stride, to_dk += a.dk.stride;
      }
    } else {
      i64 share = (row0 * a.heads + at.h) * a.keys + column, step = i64(a.heads) * a.keys;
#pragma unroll
      for (int r = 0; r < SUB; ++r, share += step) {
        if (mine && t0 + r < a.l) a.dq_heads[share] = dq[r], a.dk_heads[share] = dk[r];
      }
    }
    if (a.of_write) {
#pragma unroll
      for (int r = 0; r < SUB; ++r) {
        float x = warp_sum(mine && r0 + r <= last ? to_float(k_from[r * a.k.stride]) * dk[r] : 0.0f);
        if (lane == r) dwrite += x;
      }
    }
    __syncthreads();
    float carry = 0.0f;
    if (a.of_pass) {
#if NORM
      i64 place = ((at.head(a) * TILES + at.tile) * (a.chunks + 1) + at.chunk) * HK + key;
      carry = a.z[place + HK] * a.dz[place];
#endif
      int pieces = a.parts * PIECES;
      for (int i = 0; i < pieces; ++i) carry += a.of_pass[((at.head(a) * pieces + i) * a.chunks + at.chunk) * KEYS + column];
    }
    for (int sub = SUBS - 1; sub > warp; --sub) carry = (begins(sub) ? 0.0f : carry) + tiles.carry[sub * 32 + lane];
    D* to_ddecay = DECAY == 4 && a.ddecay.data ? a.ddecay.row(row0) + parameter : nullptr;
#pragma unroll
    for (int r = 0; r < SUB; ++r) {
      bool there = r0 + r <= last && start[r] != t0 + r;
      float x = there ? found[r] + (last_start <= t0 + r ? carry : 0.0f) : 0.0f;
      constant += x;
      if (DECAY == 4 && to_ddecay) {
        if (mine && t0 + r < a.l) *to_ddecay = from_float<D>(x);
        to_ddecay += a.ddecay.stride;
      }
      if (DECAY == 2 && a.of_queries) {
        float of_head = warp_sum(mine ? x : 0.0f);
        if (lane == r) ddecay += of_head;
      }
    }
    if (!a.dconstant_rows && !a.dbonus_rows) continue;
    tiles.shares[0][threadIdx.x] = constant, tiles.shares[1][threadIdx.x] = dbonus;
    __syncthreads();
    if (warp > 0 || !mine) continue;
    constant = dbonus = 0.0f;
#pragma unroll
    for (int sub = 0; sub < SUBS; ++sub) {
      constant += tiles.shares[0][sub * 32 + lane], dbonus += tiles.shares[1][sub * 32 + lane];
    }
    i64 share = (at.b * a.chunks + at.chunk) * a.heads * a.keys + parameter;
    if (a.dconstant_rows) a.dconstant_rows[share] = constant;
    if (a.dbonus_rows) a.dbonus_rows[share] = dbonus;
  }
  i64 position = ((at.head(a) * TILES + at.tile) * a.chunks + at.chunk) * CHUNK + r0 + lane;
  if (a.of_write && lane < SUB) a.of_write[position] = dwrite;
  if (DECAY == 2 && a.of_queries && lane < SUB) a.of_queries[position] = ddecay;
}

// A chunk after the row's length.
__device__ __forceinline__ void finish_none(const Args& a, const Place& at) {
  for (int i = threadIdx.x; i < CHUNK * HK; i += THREADS) {
    int t = i / HK, column = at.tile * HK + i % HK, parameter = at.h * a.keys + column;
    if (at.t0 + t >= a.l || column >= a.keys) continue;
    if (a.heads == a.groups) {
      a.dq.row(at.first + t)[at.g * a.keys + column] = from_float<T>(0.0f);
      a.dk.row(at.first + t)[at.g * a.keys + column] = from_float<T>(0.0f);
    }
    if (DECAY == 4 && a.ddecay.data) a.ddecay.row(at.first + t)[parameter] = from_float<D>(0.0f);
    i64 share = (at.b * a.chunks + at.chunk) * a.heads * a.keys + parameter;
    if (t == 0 && a.dconstant_rows) a.dconstant_rows[share] = 0.0f;
    if (t == 0 && a.dbonus_rows) a.dbonus_rows[share] = 0.0f;
  }
}

// A block has a tile of keys of a chunk of a head; a warp a sub-chunk, as queries and as keys.
extern "C" __global__ void __launch_bounds__(THREADS, 3) gradients(const __grid_constant__ Args a) {
  GradientTiles& tiles = *reinterpret_cast<GradientTiles*>(shared_memory());
  Place at(a, TILES);
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = warp * SUB + (lane >> 2), column = (lane & 3) * 2;
  if (at.t0 >= at.len) return finish_none(a, at);
  int key0 = at.tile * HK, last = at.last();
  const Positions& of = tiles.positions;
  i64 there = at.len - at.t0;
  auto load_part = [&](int part) {
    int from = at.h * a.values + part * HV;
    load_tile<CHUNK, HV, LV>(shared_address(tiles.v), a.v.row(at.first) + from, a.v.stride, there);
    load_tile<CHUNK, HV, LV>(shared_address(tiles.dy), a.dr.row(at.first) + from, a.dr.stride, there);
    i64 of_part = at.head(a) * a.parts + part, inside = i64(key0) * HV;
    const bf16* before = a.before + (of_part * (a.chunks + 1) + at.chunk) * KEYS * HV + inside;
    load_tile<HK, HV, LV>(shared_address(tiles.s), before, HV, HK);
    load_tile<HK, HV, LV>(shared_address(tiles.ds), a.dafter + (of_part * a.chunks + at.chunk) * KEYS * HV + inside, HV, HK);
    commit();
  };
  load_tile<CHUNK, HK, LK>(shared_address(tiles.q), a.q.row(at.first) + at.g * KEYS + key0, a.q.stride, there);
  load_tile<CHUNK, HK, LK>(shared_address(tiles.k), a.k.row(at.first) + at.g * KEYS + key0, a.k.stride, there);
  commit();
  load_part(0);
  load_positions(a, at, &tiles.positions);
  load_decays(a, at, at.tile, &tiles.decays);
  loaded<1>();
  __syncthreads();
  const Decays& decays = tiles.decays;
  for (int i = threadIdx.x; i < SUBS * HK; i += THREADS) tiles.passes[i] = fast_exp2(decays.totals[i]);
  for (int i = threadIdx.x; i < CHUNK * HK / 8; i += THREADS) {
    int t = i / (HK / 8), key = i % (HK / 8) * 8;
    float q[8], k[8], sum[8], total[8], w = of.write[t];
    load8(tiles.q + t * LK + key, q), load8(tiles.k + t * LK + key, k);
    sums4<true>(decays.sums, t, key, sum), sums4<true>(decays.sums, t, key + 4, sum + 4);
#pragma unroll
    for (int j = 0; j < 8; ++j) q[j] *= fast_exp2(sum[j]);
    sums4<false>(decays.sums, t, key, sum), sums4<false>(decays.sums, t, key + 4, sum + 4);
    load8(decays.totals + t / SUB * HK + key, total);
#pragma unroll
    for (int j = 0; j < 8; ++j) k[j] *= w * fast_exp2(total[j] - sum[j]);
    store8(tiles.q + t * LK + key, q), store8(tiles.k + t * LK + key, k);
  }
  // dscores of the warp's queries with keys n sub-chunks before, and of its keys with queries n after.
  float of_queries[SUBS][2][4], of_keys[SUBS][2][4], dq[HK / 8][4], dk[HK / 8][4];
#pragma unroll
  for (int n = 0; n < SUBS; ++n) clear<16>(of_queries[n]), clear<16>(of_keys[n]);
  clear<HK>(dq), clear<HK>(dk);
  u32 v = shared_address(tiles.v), dy = shared_address(tiles.dy), mine = warp * SUB * LV * 2;
  for (int part = 0; part < a.parts; ++part) {
    if (part > 0) {
      __syncthreads();
      load_part(part);
    }
    loaded<0>();
    __syncthreads();
    product_across<HK, HV, LV, LV>(dq, dy + mine, shared_address(tiles.s));
    product_across<HK, HV, LV, LV>(dk, v + mine, shared_address(tiles.ds));
#pragma unroll
    for (int n = 0; n < SUBS; ++n) {
      if (n <= warp) product_across<16, HV, LV, LV>(of_queries[n], dy + mine, v + (warp - n) * SUB * LV * 2);
      if (n > 0 && warp + n < SUBS) product_across<16, HV, LV, LV>(of_keys[n], v + mine, dy + (warp + n) * SUB * LV * 2);
    }
  }
#if NORM
  i64 column_at = ((at.head(a) * TILES + at.tile) * (a.chunks + 1) + at.chunk) * HK;
#pragma unroll
  for (int j = 0; j < HK / 8; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      int key = 8 * j + column + e % 2;
      dq[j][e] += of.grad[row + e / 2 * 8] * a.z[column_at + key], dk[j][e] += a.dz[column_at + key];
    }
#pragma unroll
  for (int n = 0; n < SUBS; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        int later = (warp + n) * SUB + 8 * half + column + e % 2;
        of_queries[n][half][e] += of.grad[row + e / 2 * 8], of_keys[n][half][e] += later < CHUNK ? of.grad[later] : 0.0f;
      }
#endif
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    int t = row + e / 2 * 8;
    bool reads = of.start[t] < at.t0, reaches = t <= last && at.t0 + t >= of.start[last];
#pragma unroll
    for (int j = 0; j < HK / 8; ++j) dq[j][e] = reads ? a.scale * dq[j][e] : 0.0f, dk[j][e] = reaches ? dk[j][e] : 0.0f;
#pragma unroll
    for (int n = 0; n < SUBS; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int inside = 8 * half + column + e % 2, s = (warp - n) * SUB + inside, later = (warp + n) * SUB + inside;
        bool seen = s >= 0 && s <= t && at.t0 + s >= of.start[t];
        bool read = later < CHUNK && at.t0 + t >= of.start[later < CHUNK ? later : 0];
        of_queries[n][half][e] = seen ? a.scale * of_queries[n][half][e] : 0.0f;
        of_keys[n][half][e] = read ? a.scale * of_keys[n][half][e] : 0.0f;
      }
  }
#pragma unroll
  for (int n = SUBS - 1; n > 0; --n) {
    if (n <= warp) {
      int sub = warp - n;
      further(dq, tiles.passes + sub * HK, of_queries[n], shared_address(tiles.k) + sub * SUB * LK * 2);
    }
    if (warp + n < SUBS) {
      int sub = warp + n;
      further(dk, tiles.passes + sub * HK, of_keys[n], shared_address(tiles.q) + sub * SUB * LK * 2);
    }
  }
  __syncthreads();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int t = row + 8 * half;
#pragma unroll
    for (int j = 0; j < HK / 8; ++j) {
      int key = 8 * j + column;
      float2 read = sums2<true>(decays.sums, t, key), sum = sums2<false>(decays.sums, t, key);
      float2 total = pair_at(decays.totals + warp * HK + key);
      float *to_dq = tiles.dq + t * LC + key, *to_dk = tiles.dk + t * LC + key;
      to_dq[0] = dq[j][2 * half] * fast_exp2(read.x), to_dq[1] = dq[j][2 * half + 1] * fast_exp2(read.y);
      to_dk[0] = dk[j][2 * half] * fast_exp2(total.x - sum.x), to_dk[1] = dk[j][2 * half + 1] * fast_exp2(total.y - sum.y);
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    int t = (lane >> 2) + i % 4 / 2 * 8, s = i / 4 * 8 + column + i % 2;
    tiles.pairs[warp][t * SUB + s] = of_queries[0][i / 4][i % 4];
  }
  __syncwarp();
  finish(a, at, tiles);
}

// dw and the gradient of a decay that varies by head: a thread has one head of a position.
extern "C" __global__ void __launch_bounds__(THREADS) writes(const __grid_constant__ Args a) {
  i64 i = i64(blockIdx.x) * THREADS + threadIdx.x, row = i / a.heads, t = row % a.l;
  int h = int(i % a.heads), b = int(row / a.l);
  if (row >= a.b * a.l) return;
  float dwrite = 0.0f, ddecay = 0.0f;
  for (int tile = 0; tile < TILES && t < row_length(a, b); ++tile) {
    i64 at = ((i64(b) * a.heads + h) * TILES + tile) * a.chunks * CHUNK + t;
    if (a.of_write) dwrite += a.of_write[at];
    if (DECAY == 2 && a.of_queries) ddecay += a.of_queries[at];
  }
  if (a.dwrite.data) a.dwrite.row(row)[h] = dwrite;
  if (DECAY == 2 && a.ddecay.data) a.ddecay.row(row)[h] = from_float<D>(ddecay);
}

// Sums of the shares of chunks: a warp has one element.
extern "C" __global__ void __launch_bounds__(THREADS) parameters(const __grid_constant__ Args a) {
  int unit = blockIdx.x * WARPS + (threadIdx.x >> 5);
  i64 keys = i64(a.heads) * a.keys;
  if (a.dconstant && BY_KEY && unit < keys) add_shares(a, a.dconstant + unit, a.dconstant_rows, keys, unit, 1);
  if (a.dconstant && !BY_KEY && unit < a.heads) {
    add_shares(a, a.dconstant + unit, a.dconstant_rows, keys, unit * a.keys, a.keys);
  }
  if (a.dbonus && unit < keys) add_shares(a, a.dbonus + unit, a.dbonus_rows, keys, unit, 1);
  add_skips(a, unit, a.values);
}
