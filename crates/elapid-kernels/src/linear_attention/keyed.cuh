// Linear attention on tensor cores, for a decay of each key (Yang et al. 2023, arXiv 2312.06635, section 4.3): chunks of CHUNK positions
// in sub-chunks of SUB, one for each warp.
//
// KEYS: columns of a key, a multiple of 16; those from a.keys on are 0. HK: columns of a tile of keys, at most 64, of which there are
// TILES. HV: columns of a value in a part.
//
// c is the sum of log2 g over a sub-chunk up to and with a position. A query is multiplied by what is between its sub-chunk's begin and
// itself, a key by what is between itself and the begin of the query's sub-chunk: both at most 1. Pairs of one sub-chunk are summed one by
// one in f32; but scores of its second eight positions with its first eight are products too, by the sum at the border in between.
//
// Decays of a head, or none, are taken as those of each key, where there are a bonus, a normaliser or wide keys.

#define KEYED
#define SUB 16
#define SUBS (CHUNK / SUB)
#define TILES (KEYS / HK)
#define LQ (KEYS + 8)
#define LC (HK + 4)
// Of a head: states before every chunk and after the last. `walk_back` multiplies its state by the one after the chunk.
#define SLOTS (a.chunks + 1)
#define AFTER 1
#define GRADIENTS a.dr

// Of a tile of keys: c, and its last value in each sub-chunk.
struct Decays {
  float sums[CHUNK * LC], totals[SUBS * HK];
};
struct Positions {
  float write[CHUNK];
  int start[CHUNK];
#if NORM
  // The gradient of what the normaliser divides by.
  float grad[CHUNK];
#endif
};

// What a block works on: a tile of `tiles` of a chunk of a head.
struct Place {
  int b, h, g, tile;
  i64 chunk, t0, len, first;
  __device__ __forceinline__ Place(const Args& a, int tiles) {
    i64 unit = blockIdx.x;
    tile = int(unit % tiles), unit /= tiles;
    h = int(unit % a.heads), unit /= a.heads;
    chunk = unit % a.chunks, b = int(unit / a.chunks);
    g = h / (a.heads / a.groups), t0 = chunk * CHUNK, len = row_length(a, b), first = b * a.l + t0;
  }
  __device__ __forceinline__ i64 head(const Args& a) const { return i64(b) * a.heads + h; }
  __device__ __forceinline__ int last() const { return int(len - t0 < CHUNK ? len - t0 : CHUNK) - 1; }
};

__device__ __forceinline__ void load_positions(const Args& a, const Place& at, Positions* to) {
  if (threadIdx.x < CHUNK) {
    int i = threadIdx.x;
    bool there = at.t0 + i < at.len;
    to->write[i] = there ? write_weight(a, at.first + i, at.h) : 0.0f;
    to->start[i] = there ? start_of(a, at.b, at.t0 + i) : 0x3fffffff;
#if NORM
    to->grad[i] = there && a.ddivisors ? a.ddivisors[at.head(a) * a.l + at.t0 + i] : 0.0f;
#endif
  }
}
__device__ __forceinline__ void load_decays(const Args& a, const Place& at, int tile, Decays* to) {
  for (int i = threadIdx.x; i < SUBS * HK; i += THREADS) {
    int key = i % HK, sub = i / HK;
    float x[SUB], sum = 0.0f;
#pragma unroll
    for (int r = 0; r < SUB; ++r) {
      int t = sub * SUB + r;
      bool there = at.t0 + t < at.len && (!BY_KEY || tile * HK + key < a.keys);
      x[r] = there ? LOG2_E * log_decay(a, at.first + t, at.h, tile * HK + key) : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < SUB; ++r) sum += x[r], to->sums[(sub * SUB + r) * LC + key] = sum;
    to->totals[i] = sum;
  }
}

// c of a position and two or four keys; with a bonus, queries are read before the position's decay.
template <bool READ>
__device__ __forceinline__ float2 sums2(const float* sums, int t, int key) {
  if (READ && BONUS) {
    if (t % SUB == 0) return float2{0.0f, 0.0f};
    --t;
  }
  return *reinterpret_cast<const float2*>(sums + t * LC + key);
}
template <bool READ>
__device__ __forceinline__ void sums4(const float* sums, int t, int key, float* x) {
  bool none = READ && BONUS && t % SUB == 0;
  if (READ && BONUS && !none) --t;
  float4 y = *reinterpret_cast<const float4*>(sums + t * LC + key);
  x[0] = none ? 0.0f : y.x, x[1] = none ? 0.0f : y.y, x[2] = none ? 0.0f : y.z, x[3] = none ? 0.0f : y.w;
}
__device__ __forceinline__ void widen4(const bf16* from, float* x) {
  uint2 y = *reinterpret_cast<const uint2*>(from);
  x[0] = low_bf16(y.x), x[1] = high_bf16(y.x), x[2] = low_bf16(y.y), x[3] = high_bf16(y.y);
}
__device__ __forceinline__ float2 pair_at(const float* from) { return *reinterpret_cast<const float2*>(from); }
__device__ __forceinline__ u32 word_at(const bf16* from) { return *reinterpret_cast<const u32*>(from); }
__device__ __forceinline__ u32 scaled(u32 x, float low, float high) {
  return pack_bf16(fast_exp2(low) * low_bf16(x), fast_exp2(high) * high_bf16(x));
}

// Writes keys times w and the decay up to the chunk's end (or queries times scale and the decay from its begin), 0 where a document ends in
// between, and the decay of the chunk: for `walk`.
template <bool QUERIES>
__device__ __forceinline__ void prepare(const Args& a) {
  __shared__ __align__(16) Decays of;
  __shared__ __align__(16) float ahead[SUBS * HK];
  __shared__ Positions positions;
  Place at(a, TILES);
  if (at.t0 >= at.len) return;
  load_positions(a, at, &positions);
  load_decays(a, at, at.tile, &of);
  __syncthreads();
  i64 place = (at.head(a) * TILES + at.tile) * a.chunks + at.chunk;
  int last = at.last(), start = positions.start[last];
  const bf16* from = (QUERIES ? a.q : a.k).row(at.first) + at.g * KEYS + at.tile * HK;
  i64 stride = QUERIES ? a.q.stride : a.k.stride;
  bf16* to = a.scaled + place * CHUNK * HK;
  // Of each sub-chunk, what is between it and the chunk's border.
  for (int key = threadIdx.x; key < HK; key += THREADS) {
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < SUBS; ++n) {
      int sub = QUERIES ? n : SUBS - 1 - n;
      float total = of.totals[sub * HK + key];
      ahead[sub * HK + key] = QUERIES ? sum : sum + total, sum += total;
    }
    a.passes[place * HK + key] = start < at.t0 ? fast_exp2(sum) : 0.0f;
  }
  __syncthreads();
#pragma unroll 2
  for (int i = threadIdx.x; i < CHUNK * HK / 8; i += THREADS) {
    int t = i / (HK / 8), key = i % (HK / 8) * 8;
    bool there = t <= last && (QUERIES ? positions.start[t] < at.t0 : at.t0 + t >= start);
    float by = there ? QUERIES ? a.scale : positions.write[t] : 0.0f, x[8], sum[8], border[8];
    widen8(there ? *reinterpret_cast<const uint4*>(from + t * stride + key) : uint4{0, 0, 0, 0}, x);
    sums4<QUERIES>(of.sums, t, key, sum), sums4<QUERIES>(of.sums, t, key + 4, sum + 4);
    load8(ahead + t / SUB * HK + key, border);
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] *= by * fast_exp2(QUERIES ? border[j] + sum[j] : border[j] - sum[j]);
    store8(to + t * HK + key, x);
  }
#if NORM
  for (int key = threadIdx.x; key < HK; key += THREADS) {
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < SUBS; ++n) sum += of.totals[n * HK + key];
    // What the chunk adds to the normaliser's column, or to its gradient.
    float added = 0.0f, passed = 0.0f;
    for (int t = 0; t <= last; ++t) {
      if (t % SUB == 0 && t > 0) passed += of.totals[(t / SUB - 1) * HK + key];
      bool there = QUERIES ? positions.start[t] < at.t0 : at.t0 + t >= start;
      float own = of.sums[t * LC + key], read = !BONUS ? own : t % SUB > 0 ? of.sums[(t - 1) * LC + key] : 0.0f;
      float by = QUERIES ? a.scale * positions.grad[t] * fast_exp2(passed + read)
                         : positions.write[t] * fast_exp2(sum - passed - own);
      added += there ? by * to_float(from[t * stride + key]) : 0.0f;
    }
    (QUERIES ? a.dz : a.z)[((at.head(a) * TILES + at.tile) * (a.chunks + 1) + at.chunk) * HK + key] = added;
  }
#endif
}

// A thread walks the normaliser's column of one key, or its gradient.
template <bool BACK>
__device__ __forceinline__ void walk_column(const Args& a) {
  i64 at = i64(blockIdx.x) * THREADS + threadIdx.x, key = at % KEYS, head = at / KEYS, tile = key / HK;
  int b = int(head / a.heads);
  if (b >= a.b) return;
  i64 chunks = (row_length(a, b) + CHUNK - 1) / CHUNK, unit = head * TILES + tile;
  const float *given = BACK ? a.dlast : a.initial, *passes = a.passes + unit * a.chunks * HK + key % HK;
  float* z = (BACK ? a.dz : a.z) + unit * (a.chunks + 1) * HK + key % HK;
  i64 state = (head * a.keys + key) * a.columns + a.values;
  float x = given && key < a.keys ? given[state] : 0.0f;
#pragma unroll 4
  for (i64 n = 0; n < chunks; ++n) {
    i64 chunk = BACK ? chunks - 1 - n : n;
    float added = z[chunk * HK], pass = passes[chunk * HK];
    z[chunk * HK] = x, x = pass * x + added;
  }
  if (!BACK) z[chunks * HK] = x;
  float* end = BACK ? a.dinitial : a.last;
  if (end && key < a.keys) end[state] = x;
}

// Adds the scores of a tile of keys: of the warp's rows with the columns of the sub-chunks `n` away. Rows are queries and columns keys
// before them, or the reverse. Then multiplies the rows by the decay from the chunk's begin (or up to its end), in place.
template <bool QUERIES>
__device__ __forceinline__ void add_scores(float (*scores)[2][4], bf16* rows, const bf16* columns, const Decays& of) {
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = warp * SUB + (lane >> 2), pair = (lane & 3) * 2;
#pragma unroll 2
  for (int i = 0; i < HK; i += 4) {
    float x[2][4], own[2][4];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      widen4(rows + (row + 8 * r) * LQ + i, x[r]);
      sums4<QUERIES>(of.sums, row + 8 * r, i, own[r]);
    }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      int half = m / 2, c = warp * SUB + 8 * half + pair + m % 2;
      float y[4], sum[4];
      widen4(columns + c * LK + i, y);
      sums4<!QUERIES>(of.sums, c, i, sum);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float by = fast_exp2(QUERIES ? own[half][j] - sum[j] : sum[j] - own[half][j]);
        scores[0][half][2 * half + m % 2] += x[half][j] * y[j] * by;
      }
    }
  }
  __syncwarp();
#pragma unroll 2
  for (int k = 0; k < HK / 16; ++k) {
    int i = 16 * k + pair;
    u32 left[4], raw[4];
    float2 by[4], beyond[2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      int t = row + m % 2 * 8, key = i + m / 2 * 8;
      raw[m] = word_at(rows + t * LQ + key), by[m] = sums2<QUERIES>(of.sums, t, key);
      if (!QUERIES) {
        float2 total = pair_at(of.totals + warp * HK + key);
        by[m].x = total.x - by[m].x, by[m].y = total.y - by[m].y;
      }
      left[m] = scaled(raw[m], by[m].x, by[m].y);
    }
    // The second eight queries of the sub-chunk with the first eight keys, by the sum at the border in between.
    u32 near[4] = {0, 0, 0, 0}, others[2];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      int key = i + 8 * m, c = warp * SUB + (QUERIES ? 0 : 8) + (lane >> 2);
      float2 border = pair_at(of.sums + (warp * SUB + 7) * LC + key), total = pair_at(of.totals + warp * HK + key);
      float2 mine = by[2 * m + QUERIES], sum = sums2<!QUERIES>(of.sums, c, key);
      if (QUERIES) {
        mine.x -= border.x, mine.y -= border.y, sum.x = border.x - sum.x, sum.y = border.y - sum.y;
      } else {
        mine.x += border.x - total.x, mine.y += border.y - total.y, sum.x -= border.x, sum.y -= border.y;
      }
      near[2 * m + QUERIES] = scaled(raw[2 * m + QUERIES], mine.x, mine.y);
      others[m] = scaled(word_at(columns + c * LK + key), sum.x, sum.y);
    }
    mma(scores[0][QUERIES ? 0 : 1], near, others[0], others[1]);
#pragma unroll
    for (int n = 1; n < SUBS; ++n) {
      int sub = QUERIES ? warp - n : warp + n;
      if (sub < 0 || sub >= SUBS) continue;
      float2 total[2] = {pair_at(of.totals + sub * HK + i), pair_at(of.totals + sub * HK + i + 8)};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int c = sub * SUB + 8 * half + (lane >> 2);
        u32 right[2];
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          float2 sum = sums2<!QUERIES>(of.sums, c, i + 8 * m);
          if (QUERIES) sum.x = total[m].x - sum.x, sum.y = total[m].y - sum.y;
          right[m] = scaled(word_at(columns + c * LK + i + 8 * m), sum.x + beyond[m].x, sum.y + beyond[m].y);
        }
        mma(scores[n][half], left, right[0], right[1]);
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) beyond[m].x += total[m].x, beyond[m].y += total[m].y;
    }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      u32* to = reinterpret_cast<u32*>(rows + (row + m % 2 * 8) * LQ + i + m / 2 * 8);
      *to = scaled(raw[m], by[m].x + beyond[m / 2].x, by[m].y + beyond[m / 2].y);
    }
  }
}

struct AnswerTiles {
  bf16 rows[CHUNK * LQ], columns[CHUNK * LK];
  Decays decays;
  bf16 v[CHUNK * LV], s[KEYS * LV];
  Positions positions;
};

// A block has a chunk of a head. Queries: y = scale (exp(c) Q S + scores V). Keys: dv = w (exp(c_end - c) K dS + scale scoresᵀ dy).
template <bool QUERIES>
__device__ __forceinline__ void answer(const Args& a) {
  AnswerTiles& tiles = *reinterpret_cast<AnswerTiles*>(shared_memory());
  Place at(a, 1);
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = warp * SUB + (lane >> 2), column = (lane & 3) * 2;
  const Mat<bf16>&rows = QUERIES ? a.q : a.k, &columns = QUERIES ? a.k : a.q, &values = QUERIES ? a.v : a.dr;
  const Mat<bf16>& out = QUERIES ? a.y : a.dv;
  bf16* to = out.row(at.first) + at.h * a.values;
  float* dskip = !QUERIES && a.dskip_rows ? a.dskip_rows + ((at.b * a.chunks + at.chunk) * a.heads + at.h) * a.values : nullptr;
  if (at.t0 >= at.len) {
    for (int i = threadIdx.x; i < CHUNK * a.values; i += THREADS) {
      if (at.t0 + i / a.values < a.l) to[i / a.values * out.stride + i % a.values] = bf16{0};
    }
    for (int i = threadIdx.x; dskip && i < a.values; i += THREADS) dskip[i] = 0.0f;
    return;
  }
  i64 there = at.len - at.t0, slots = QUERIES ? a.chunks + 1 : a.chunks;
  auto load_part = [&](int part) {
    load_tile<CHUNK, HV, LV>(shared_address(tiles.v), values.row(at.first) + at.h * a.values + part * HV, values.stride, there);
    const bf16* state = (QUERIES ? a.before : a.dafter) + ((at.head(a) * a.parts + part) * slots + at.chunk) * KEYS * HV;
    load_tile<KEYS, HV, LV>(shared_address(tiles.s), state, HV, KEYS);
    commit();
  };
  load_tile<CHUNK, KEYS, LQ>(shared_address(tiles.rows), rows.row(at.first) + at.g * KEYS, rows.stride, there);
  load_positions(a, at, &tiles.positions);
  float scores[SUBS][2][4], own[2] = {0.0f, 0.0f};
#pragma unroll
  for (int n = 0; n < SUBS; ++n) clear<16>(scores[n]);
  for (int tile = 0; tile < TILES; ++tile) {
    if (tile > 0) __syncthreads();
    const bf16* from = columns.row(at.first) + at.g * KEYS + tile * HK;
    load_tile<CHUNK, HK, LK>(shared_address(tiles.columns), from, columns.stride, there);
    commit();
    if (tile == 0) load_part(0);
    load_decays(a, at, tile, &tiles.decays);
    if (tile == 0) loaded<1>();
    else loaded<0>();
    __syncthreads();
#if BONUS
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int t = row + 8 * half;
      for (int key = lane & 3; key < HK && tile * HK + key < a.keys; key += 4) {
        float u = a.bonus[at.h * a.keys + tile * HK + key];
        own[half] += u * to_float(tiles.rows[t * LQ + tile * HK + key]) * to_float(tiles.columns[t * LK + key]);
      }
    }
    __syncwarp();
#endif
    add_scores<QUERIES>(scores, tiles.rows + tile * HK, tiles.columns, tiles.decays);
  }
  const Positions& of = tiles.positions;
  int last = at.last();
  float by[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int t = row + 8 * half;
    own[half] = row_sum(own[half]);
    if (QUERIES) by[half] = of.start[t] < at.t0 ? a.scale : 0.0f;
    else by[half] = t <= last && at.t0 + t >= of.start[last] ? of.write[t] : 0.0f;
  }
  u32 p[SUBS][4];
#pragma unroll
  for (int n = 0; n < SUBS; ++n) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      int half = i / 4, e = i % 4, mine = row + e / 2 * 8;
      int other = (QUERIES ? warp - n : warp + n) * SUB + 8 * half + column + e % 2;
      int t = QUERIES ? mine : other, s = QUERIES ? other : mine;
      bool there = t < CHUNK && s >= 0 && s <= t;
      t = there ? t : 0, s = there ? s : 0;
      bool seen = there && at.t0 + s >= of.start[t];
      float x = BONUS && n == 0 && s == t ? own[e / 2] : scores[n][half][e];
      scores[n][half][e] = seen ? a.scale * of.write[s] * x : 0.0f;
    }
    as_a(p[n], scores[n][0], scores[n][1]);
  }
  float inverse[2] = {1.0f, 1.0f};
#if NORM
  if (QUERIES) {
    const float* z = a.z + (at.head(a) * TILES * (a.chunks + 1) + at.chunk) * HK;
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float from_state = 0.0f, sum = 0.0f;
      for (int key = lane & 3; key < KEYS; key += 4) {
        from_state += to_float(tiles.rows[(row + 8 * half) * LQ + key]) * z[key / HK * (a.chunks + 1) * HK + key % HK];
      }
#pragma unroll
      for (int n = 0; n < SUBS; ++n) {
        sum += scores[n][0][2 * half] + scores[n][0][2 * half + 1] + scores[n][1][2 * half] + scores[n][1][2 * half + 1];
      }
      float divisor = row_sum(sum + by[half] * from_state) + a.eps;
      inverse[half] = 1.0f / divisor;
      i64 t = at.t0 + row + 8 * half;
      if (a.divisors && (lane & 3) == 0 && t < at.len) a.divisors[at.head(a) * a.l + t] = divisor;
    }
  }
#endif
  for (int part = 0; part < a.parts; ++part) {
    if (part > 0) {
      __syncthreads();
      load_part(part);
    }
    loaded<0>();
    __syncthreads();
    float o[HV / 8][4];
    clear<HV>(o);
    product_down<HV, KEYS, LQ, LV>(o, shared_address(tiles.rows) + warp * SUB * LQ * 2, shared_address(tiles.s));
#pragma unroll
    for (int j = 0; j < HV / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) o[j][e] *= by[e / 2];
#pragma unroll
    for (int n = 0; n < SUBS; ++n) {
      int sub = QUERIES ? warp - n : warp + n;
      if (sub >= 0 && sub < SUBS) product_results<HV, 16, LV>(o, &p[n], shared_address(tiles.v) + sub * SUB * LV * 2);
    }
    Skip skip(a, at.h, part);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int t = row + 8 * half;
      const bf16* dy = NORM && !QUERIES && t <= last ? a.dy.row(at.first + t) + at.h * a.values + part * HV : tiles.v + t * LV;
      u32 x[HV / 8];
#pragma unroll
      for (int j = 0; j < HV / 8; ++j) {
        int c = 8 * j + column;
        u32 v = word_at(dy + c);
        float2 weight = skip.at(c);
        float low = o[j][2 * half] * inverse[half] + weight.x * low_bf16(v);
        float high = o[j][2 * half + 1] * inverse[half] + weight.y * high_bf16(v);
        x[j] = t <= last ? pack_bf16(low, high) : 0;
      }
      store_row<HV>(to + t * out.stride + part * HV, x, at.t0 + t < a.l);
    }
    if (dskip && threadIdx.x < HV) {
      const bf16* v = a.v.row(at.first) + at.h * a.values + part * HV + threadIdx.x;
      float sum = 0.0f;
      for (int t = 0; t <= last; ++t) {
        bf16 dy = NORM ? a.dy.row(at.first + t)[at.h * a.values + part * HV + threadIdx.x] : tiles.v[t * LV + threadIdx.x];
        sum += to_float(dy) * to_float(v[t * a.v.stride]);
      }
      dskip[part * HV + threadIdx.x] = sum;
    }
  }
}
