// The walk of a head's state over the chunks of a row, for both directions.
//
// A block has WK keys and WV columns of a part of a head's state S, in registers, and a segment of the row's chunks: for each chunk it
// writes S, then S = pass S + Kᵀ V, with keys that are multiplied by what is between them and the chunk's end. Backward it is the state's
// gradient, from the last chunk, of queries and dy. STAGES chunks are loaded or being loaded.
//
// Where rows and heads are too few for the device, a row has several segments: `walk_ends` walks each from a state of zero and leaves the
// last, `walk_starts` makes of these the states before the segments, and `walk` starts there.

#ifndef KEYED
#define KEYS HK
// States that there are, and the one that `walk_back` multiplies its state by: the one before the chunk.
#define SLOTS a.chunks
#define AFTER 0
#define GRADIENTS a.dy
#endif
#define LA (WK + 8)
#define LW (WV + 8)
#define PIECES (HV / WV)

template <bool BACK>
struct WalkStage {
  bf16 k[CHUNK * LA], v[CHUNK * LW], s[BACK ? WK * LW : 8];
#ifdef KEYED
  float pass[WK];
#else
  float sum[CHUNK], write[CHUNK];
  int start[CHUNK];
#endif
};

template <bool BACK, bool ENDS>
__device__ __forceinline__ void walk_segment(const Args& a) {
  WalkStage<BACK>* stages = reinterpret_cast<WalkStage<BACK>*>(shared_memory());
  i64 unit = blockIdx.x;
  int pieces = a.parts * PIECES, piece = int(unit % pieces), tile = int(unit / pieces % (KEYS / WK));
  unit /= i64(pieces) * (KEYS / WK);
  int segment = int(unit % a.segments);
  unit /= a.segments;
  int h = int(unit % a.heads), b = int(unit / a.heads), part = piece / PIECES, side = piece % PIECES * WV;
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, top = warp * 16, row = top + (lane >> 2), column = (lane & 3) * 2;
  bool mine = top < WK;
  i64 len = row_length(a, b), first = b * a.l, all = (len + CHUNK - 1) / CHUNK;
  i64 each = (a.chunks + a.segments - 1) / a.segments, low = segment * each, high = low + each < all ? low + each : all;
  i64 state = (unit * a.keys + tile * WK) * a.columns + part * HV + side;
  // Keys after a.keys are 0.
  int keys = a.keys - tile * WK;
  // Of segments: [b h segments keys values].
  i64 of_segment = ((unit * a.segments + segment) * KEYS + tile * WK) * a.values + part * HV + side;
  const Mat<bf16>& values = BACK ? GRADIENTS : a.v;
  const bf16* v = values.row(first) + h * a.values + part * HV + side;
  i64 of_part = unit * a.parts + part, inside = i64(tile) * WK * HV + side;
  bf16* before = a.before + of_part * SLOTS * KEYS * HV + inside;
  bf16* out = BACK ? a.dafter + of_part * a.chunks * KEYS * HV + inside : before;
#ifdef KEYED
  const bf16* k = a.scaled + (unit * (KEYS / WK) + tile) * a.chunks * CHUNK * WK;
  const float* passes = a.passes + (unit * (KEYS / WK) + tile) * a.chunks * WK;
#else
  const Mat<bf16>& rows = BACK ? a.q : a.k;
  const bf16* k = rows.row(first) + h / (a.heads / a.groups) * KEYS + tile * WK;
  const float* sums = sums_of(a, b, h);
#endif

  auto load = [&](i64 n) {
    if (n < high - low) {
      i64 chunk = BACK ? high - 1 - n : low + n, t0 = chunk * CHUNK;
      WalkStage<BACK>& to = stages[n % STAGES];
#ifdef KEYED
      load_tile<CHUNK, WK, LA>(shared_address(to.k), k + t0 * WK, WK, CHUNK);
      if (threadIdx.x < WK / 4) copy16(shared_address(to.pass + threadIdx.x * 4), passes + chunk * WK + threadIdx.x * 4, true);
#else
      load_tile<CHUNK, WK, LA>(shared_address(to.k), k + t0 * rows.stride, rows.stride, len - t0);
      int i = threadIdx.x;
      if (i < CHUNK / 4) {
        copy16(shared_address(to.sum + 4 * i), sums + t0 + 4 * i, true);
        if (a.starts) copy16(shared_address(to.start + 4 * i), a.starts + i64(b) * a.chunks * CHUNK + t0 + 4 * i, true);
      }
      if (!BACK && a.write.data && i < CHUNK) {
        bool there = t0 + i < len;
        copy4(shared_address(to.write + i), a.write.row(there ? first + t0 + i : first) + h, there);
      }
#endif
      load_tile<CHUNK, WV, LW>(shared_address(to.v), v + t0 * values.stride, values.stride, len - t0);
      if (BACK && !ENDS && a.of_pass) load_tile<WK, WV, LW>(shared_address(to.s), before + (chunk + AFTER) * KEYS * HV, HV, WK);
    }
    commit();
  };
  float s[WV / 8][4];
  clear<WV>(s);
#pragma unroll
  for (int n = 0; n < STAGES - 1; ++n) load(n);
  // Row 8 half + row, columns 8 j + column and the next.
  auto each_pair = [&](auto f) {
    if (!mine) return;
#pragma unroll
    for (int j = 0; j < WV / 8; ++j) {
      f(s[j], row, 8 * j + column), f(s[j] + 2, row + 8, 8 * j + column);
    }
  };
  auto keep = [&](bf16* to) {
    if (!mine) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      u32 packed[WV / 8];
#pragma unroll
      for (int j = 0; j < WV / 8; ++j) packed[j] = pack_bf16(s[j][2 * half], s[j][2 * half + 1]);
      store_row<WV>(to + (row + 8 * half) * HV, packed, true);
    }
  };
  if (!ENDS) {
    const float *whole = BACK ? a.dlast : a.initial, *given = a.segments > 1 ? a.ends + of_segment : whole ? whole + state : nullptr;
    i64 width = a.segments > 1 ? a.values : a.columns;
    if (given) {
      each_pair([&](float* x, int i, int j) {
        if (a.segments > 1 || i < keys) x[0] = given[i64(i) * width + j], x[1] = given[i64(i) * width + j + 1];
      });
    }
  }
  float passed[2] = {1.0f, 1.0f};
  for (i64 n = 0; n < high - low; ++n) {
    i64 chunk = BACK ? high - 1 - n : low + n;
    loaded<STAGES - 2>();
    __syncthreads();
    load(n + STAGES - 1);
    const WalkStage<BACK>& of = stages[n % STAGES];
    if (!ENDS) {
      bf16* to = out + chunk * KEYS * HV;
      keep(to);
    }
    if (!mine) continue;
#ifdef KEYED
    float pass[2] = {of.pass[row], of.pass[row + 8]};
#else
    i64 t0 = chunk * CHUNK;
    int last = int(len - t0 < CHUNK ? len - t0 : CHUNK) - 1, start = a.starts ? of.start[last] : -1;
    float end = of.sum[last], decay = start < t0 ? fast_exp2(end) : 0.0f, pass[2] = {decay, decay};
#endif
    if (BACK && !ENDS && a.of_pass) {
      float sums[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < WV / 8; ++j) {
          u32 x = *reinterpret_cast<const u32*>(of.s + (row + 8 * half) * LW + 8 * j + column);
          sum += s[j][2 * half] * low_bf16(x) + s[j][2 * half + 1] * high_bf16(x);
        }
        sums[half] = sum;
      }
#ifdef KEYED
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = row_sum(sums[half]);
        i64 to = ((unit * pieces + piece) * a.chunks + chunk) * KEYS + tile * WK + row + 8 * half;
        if ((lane & 3) == 0) a.of_pass[to] = sum;
      }
#else
      // [b h pieces tiles chunks warps]
      float sum = decay * warp_sum(sums[0] + sums[1]);
      i64 to = (((unit * pieces + piece) * (KEYS / WK) + tile) * a.chunks + chunk) * (WK / 16) + warp;
      if (lane == 0) a.of_pass[to] = sum;
#endif
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (ENDS) passed[half] *= pass[half];
#pragma unroll
      for (int j = 0; j < WV / 8; ++j) s[j][2 * half] *= pass[half], s[j][2 * half + 1] *= pass[half];
    }
#ifndef KEYED
    // What keys are multiplied by, in each warp's own place.
    __shared__ __align__(8) float weights[WARPS][CHUNK];
#pragma unroll
    for (int at = lane; at < CHUNK; at += 32) {
      float by = BACK ? a.scale * fast_exp2(of.sum[at]) : (a.write.data ? of.write[at] : 1.0f) * fast_exp2(end - of.sum[at]);
      if (BACK ? a.starts && of.start[at] >= t0 : t0 + at < start) by = 0.0f;
      weights[warp][at] = by;
    }
    __syncwarp();
#endif
    u32 left_at = across<LA>(shared_address(of.k)), right_at = down<LW>(shared_address(of.v));
#pragma unroll
    for (int t = 0; t < CHUNK / 16; ++t) {
      u32 left[4];
      load4_transposed(left, left_at + 2 * (t * 16 * LA + top));
#ifndef KEYED
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        float2 by = *reinterpret_cast<const float2*>(weights[warp] + t * 16 + m / 2 * 8 + column);
        left[m] = pack_bf16(by.x * low_bf16(left[m]), by.y * high_bf16(left[m]));
      }
#endif
#pragma unroll
      for (int j = 0; j < WV / 16; ++j) {
        u32 right[4];
        load4_transposed(right, right_at + 2 * (t * 16 * LW + j * 16));
        mma(s[2 * j], left, right[0], right[1]), mma(s[2 * j + 1], left, right[2], right[3]);
      }
    }
  }
  loaded<0>();
  if (ENDS) {
    each_pair([&](float* x, int i, int j) {
      a.ends[of_segment + i64(i) * a.values + j] = x[0], a.ends[of_segment + i64(i) * a.values + j + 1] = x[1];
    });
    if (mine && piece == 0 && (lane & 3) == 0) {
      float* to = a.ends_passes + (unit * a.segments + segment) * KEYS + tile * WK;
      to[row] = passed[0], to[row + 8] = passed[1];
    }
    return;
  }
  // The last segment that has positions, or the first of none, has the last state; backward it is the first.
  bool ends = BACK ? segment == 0 : high == all && (low < all || segment == 0);
  if (!ends) return;
  if (!BACK && SLOTS > a.chunks) {
    bf16* to = before + all * KEYS * HV;
    keep(to);
  }
  float* end = BACK ? a.dinitial : a.last;
  if (!end) return;
  each_pair([&](float* x, int i, int j) {
    if (i < keys) end[state + i64(i) * a.columns + j] = x[0], end[state + i64(i) * a.columns + j + 1] = x[1];
  });
}

// A thread has one element of a state: the states at the ends of segments become those before them.
template <bool BACK>
__device__ __forceinline__ void start_segments(const Args& a) {
  i64 at = i64(blockIdx.x) * THREADS + threadIdx.x, of_head = i64(KEYS) * a.values, head = at / of_head, inside = at % of_head;
  if (head >= i64(a.b) * a.heads) return;
  const float* given = BACK ? a.dlast : a.initial;
  i64 key = inside / a.values;
  float x = given && key < a.keys ? given[(head * a.keys + key) * a.columns + inside % a.values] : 0.0f;
#pragma unroll 4
  for (int n = 0; n < a.segments; ++n) {
    i64 segment = head * a.segments + (BACK ? a.segments - 1 - n : n);
    float* to = a.ends + segment * of_head + inside;
    float end = *to, pass = a.ends_passes[segment * KEYS + key];
    *to = x, x = pass * x + end;
  }
}
