// The forward on tensor cores, in three launches (Dao and Gu 2024, section 6):
//
//   sums     c, the sums of log g over each chunk; where documents begin
//   walk     a block has a head: for each chunk, writes S; S = exp(c_end) S + Kᵀ (w exp(c_end - c) V)
//   outputs  a block has a chunk and heads of a group: scores = Q Kᵀ once; for each head y = exp(c) Q S + (scores ∘ mask) V
//
// Sums are f32; S is rounded to bf16 where outputs read it, not where it is carried on.

// A warp has a head's chunk, or finds the starts of a row.
extern "C" __global__ void __launch_bounds__(THREADS) sums(const __grid_constant__ Args a) {
  i64 unit = i64(blockIdx.x) * WARPS + (threadIdx.x >> 5), all = i64(a.b) * a.heads * a.chunks;
  int lane = threadIdx.x & 31;
  if (unit < all) {
    i64 chunk = unit % a.chunks, head = unit / a.chunks;
    i64 t0 = chunk * CHUNK + 2 * lane;
    float x[2] = {0.0f, 0.0f};
#if DECAY > 0
    int h = int(head % a.heads), b = int(head / a.heads);
    i64 len = row_length(a, b);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (t0 + i >= len) continue;
      x[i] = LOG2_E * (DECAY == 1 ? a.constant[h] : to_float(a.decay.row(b * a.l + t0 + i)[h]));
    }
#endif
    float sum = x[0] + x[1];
#pragma unroll
    for (int by = 1; by < 32; by *= 2) {
      float other = __shfl_up_sync(0xffffffffu, sum, by);
      if (lane >= by) sum += other;
    }
    float* to = a.sums + head * a.chunks * CHUNK + t0;
    to[0] = sum - x[1], to[1] = sum;
  } else if (a.starts && unit < all + a.b) {
    int b = int(unit - all), start = -1;
    for (i64 t = lane; t < a.chunks * CHUNK; t += 32) {
      int mine = t < a.l && is_reset(a, b * a.l + t) ? int(t) : -1;
#pragma unroll
      for (int by = 1; by < 32; by *= 2) {
        int other = __shfl_up_sync(0xffffffffu, mine, by);
        if (lane >= by && other > mine) mine = other;
      }
      if (start > mine) mine = start;
      a.starts[i64(b) * a.chunks * CHUNK + t] = mine;
      start = __shfl_sync(0xffffffffu, mine, 31);
    }
  }
}

struct WalkTiles {
  bf16 k[2][CHUNK * LK], v[2][CHUNK * LV];
  Chunk chunk[2];
};

extern "C" __global__ void __launch_bounds__(THREADS) walk(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) u8 memory[];
  WalkTiles& tiles = *reinterpret_cast<WalkTiles*>(memory);
  int part = blockIdx.x % a.parts, unit = blockIdx.x / a.parts, h = unit % a.heads, b = unit / a.heads;
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = lane >> 2, column = (lane & 3) * 2;
  int g = h / (a.heads / a.groups);
  i64 len = row_length(a, b), first = b * a.l, state = (i64(b) * a.heads + h) * HK * a.values + part * HV;
  const bf16 *k = a.k.row(first) + g * HK, *v = a.v.row(first) + h * a.values + part * HV;
  bf16* before = a.before + (i64(unit) * a.parts + part) * a.chunks * HK * HV;

  float s[MT][HV / 8][4];
  // The lane's element e of tile j: row 16 (warp MT + m) + row + 8 (e / 2), column 8 j + column + e % 2.
  auto each = [&](auto f) {
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      int top = (warp * MT + m) * 16 + row;
      if (top - row >= HK) continue;
#pragma unroll
      for (int j = 0; j < HV / 8; ++j) {
        f(s[m][j], top, 8 * j + column), f(s[m][j] + 2, top + 8, 8 * j + column);
      }
    }
  };
#pragma unroll
  for (int m = 0; m < MT; ++m) clear<HV>(s[m]);
  if (a.initial) {
    each([&](float* x, int i, int j) {
      x[0] = a.initial[state + i64(i) * a.values + j], x[1] = a.initial[state + i64(i) * a.values + j + 1];
    });
  }
  auto load = [&](i64 chunk) {
    i64 t0 = chunk * CHUNK;
    if (t0 < len) {
      load_tile<CHUNK, HK, LK>(shared_address(tiles.k[chunk & 1]), k + t0 * a.k.stride, a.k.stride, len - t0);
      load_tile<CHUNK, HV, LV>(shared_address(tiles.v[chunk & 1]), v + t0 * a.v.stride, a.v.stride, len - t0);
      load_chunk(a, &tiles.chunk[chunk & 1], b, h, t0, len);
    }
    commit();
  };
  load(0);
  for (i64 chunk = 0; chunk * CHUNK < len; ++chunk) {
    i64 t0 = chunk * CHUNK;
    load(chunk + 1);
    each([&](float* x, int i, int j) {
      *reinterpret_cast<u32*>(before + chunk * HK * HV + i * HV + j) = pack_bf16(x[0], x[1]);
    });
    loaded<1>();
    __syncthreads();
    const Chunk& of = tiles.chunk[chunk & 1];
    int last = int(len - t0 < CHUNK ? len - t0 : CHUNK) - 1, start = of.start[last];
    float end = of.sum[last];
    // V times w exp(c_end - c), in place.
    bf16* values = tiles.v[chunk & 1];
    for (int i = threadIdx.x; i < CHUNK * HV / 2; i += THREADS) {
      int r = i / (HV / 2), c = i - r * (HV / 2) ;
      float by = r <= last && t0 + r >= start ? of.write[r] * fast_exp2(end - of.sum[r]) : 0.0f;
      u32* at = reinterpret_cast<u32*>(values + r * LV + 2 * c);
      *at = pack_bf16(by * low_bf16(*at), by * high_bf16(*at));
    }
    __syncthreads();
    float decay = start < t0 ? fast_exp2(end) : 0.0f;
    u32 left_at = across<LK>(shared_address(tiles.k[chunk & 1])), right_at = down<LV>(shared_address(values));
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      int top = (warp * MT + m) * 16;
      if (top >= HK) continue;
#pragma unroll
      for (int j = 0; j < HV / 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[m][j][e] *= decay;
#pragma unroll
      for (int t = 0; t < CHUNK / 16; ++t) {
        u32 left[4];
        load4_transposed(left, left_at + 2 * (t * 16 * LK + top));
#pragma unroll
        for (int j = 0; j < HV / 16; ++j) {
          u32 right[4];
          load4_transposed(right, right_at + 2 * (t * 16 * LV + j * 16));
          mma(s[m][2 * j], left, right[0], right[1]), mma(s[m][2 * j + 1], left, right[2], right[3]);
        }
      }
    }
    if (a.states && ((t0 + CHUNK) % SEGMENT == 0 || t0 + CHUNK >= len)) {
      i64 segments = (a.l + SEGMENT - 1) / SEGMENT;
      float* to = a.states + (i64(b) * a.heads + h) * segments * HK * a.values + t0 / SEGMENT * HK * a.values + part * HV;
      each([&](float* x, int i, int j) { to[i64(i) * a.values + j] = x[0], to[i64(i) * a.values + j + 1] = x[1]; });
    }
    __syncthreads();
  }
  loaded<0>();
  each([&](float* x, int i, int j) {
    a.last[state + i64(i) * a.values + j] = x[0], a.last[state + i64(i) * a.values + j + 1] = x[1];
  });
}

struct OutputTiles {
  bf16 q[CHUNK * LK], k[CHUNK * LK], v[2][CHUNK * LV], s[2][HK * LV];
  Chunk chunk[2];
};

extern "C" __global__ void __launch_bounds__(THREADS) outputs(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) u8 memory[];
  OutputTiles& tiles = *reinterpret_cast<OutputTiles*>(memory);
  // Heads of a group times parts, `together` for each block.
  int of_group = a.heads / a.groups * a.parts, blocks = (of_group + a.together - 1) / a.together;
  i64 unit = blockIdx.x;
  int block = int(unit % blocks), g = int(unit / blocks % a.groups);
  unit /= i64(blocks) * a.groups;
  i64 chunk = unit % a.chunks, t0 = chunk * CHUNK;
  int b = int(unit / a.chunks), warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  int row = warp * 16 + (lane >> 2), column = (lane & 3) * 2;
  i64 len = row_length(a, b), first = b * a.l + t0;
  int from = block * a.together, to = from + a.together < of_group ? from + a.together : of_group;
  if (t0 >= len) {
    for (int at = from; at < to; ++at) {
      bf16* y = a.y.row(first) + (g * of_group + at) * HV;
      for (int i = threadIdx.x; i < CHUNK * HV; i += THREADS) {
        if (t0 + i / HV < a.l) y[i / HV * a.y.stride + i % HV] = bf16{0};
      }
    }
    return;
  }
  auto load = [&](int at) {
    if (at < to) {
      int stage = at & 1, virtual_head = g * of_group + at;
      load_tile<CHUNK, HV, LV>(shared_address(tiles.v[stage]), a.v.row(first) + virtual_head * HV, a.v.stride, len - t0);
      i64 state = ((i64(b) * a.heads * a.parts + virtual_head) * a.chunks + chunk) * HK * HV;
      load_tile<HK, HV, LV>(shared_address(tiles.s[stage]), a.before + state, HV, HK);
      load_chunk(a, &tiles.chunk[stage], b, virtual_head / a.parts, t0, len);
    }
    commit();
  };
  u32 q = shared_address(tiles.q) + warp * 16 * LK * 2;
  load_tile<CHUNK, HK, LK>(shared_address(tiles.q), a.q.row(first) + g * HK, a.q.stride, len - t0);
  load_tile<CHUNK, HK, LK>(shared_address(tiles.k), a.k.row(first) + g * HK, a.k.stride, len - t0);
  load(from);
  load(from + 1);
  loaded<1>();
  __syncthreads();
  float scores[CHUNK / 8][4];
  clear<CHUNK>(scores);
  product_across<CHUNK, HK, LK, LK>(scores, q, shared_address(tiles.k));

  for (int at = from; at < to; ++at) {
    int stage = at & 1, virtual_head = g * of_group + at, h = virtual_head / a.parts;
    loaded<1>();
    __syncthreads();
    const Chunk& of = tiles.chunk[stage];
    float o[HV / 8][4];
    clear<HV>(o);
    product_down<HV, HK, LK, LV>(o, q, shared_address(tiles.s[stage]));
    float sum[2];
    int start[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int t = row + 8 * half;
      sum[half] = of.sum[t], start[half] = of.start[t];
      float by = start[half] < t0 ? a.scale * fast_exp2(sum[half]) : 0.0f;
#pragma unroll
      for (int j = 0; j < HV / 8; ++j) o[j][2 * half] *= by, o[j][2 * half + 1] *= by;
    }
    u32 p[CHUNK / 16][4];
#pragma unroll
    for (int j = 0; j < CHUNK / 16; ++j) {
      float x[2][4];
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          int t = row + e / 2 * 8, s = j * 16 + n * 8 + column + e % 2;
          bool seen = s <= t && t0 + s >= start[e / 2];
          float by = seen ? a.scale * of.write[s] * fast_exp2(sum[e / 2] - of.sum[s]) : 0.0f;
          x[n][e] = by * scores[2 * j + n][e];
        }
      as_a(p[j], x[0], x[1]);
    }
    product_results<HV, CHUNK, LV>(o, p, shared_address(tiles.v[stage]));
    bf16* y = a.y.row(first) + virtual_head * HV;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int t = row + 8 * half;
      if (t0 + t >= a.l) continue;
#pragma unroll
      for (int j = 0; j < HV / 8; ++j) {
        int c = 8 * j + column, channel = virtual_head % a.parts * HV + c;
        u32 v = *reinterpret_cast<const u32*>(tiles.v[stage] + t * LV + c);
        float low = o[j][2 * half] + skip_weight(a, h, channel) * low_bf16(v);
        float high = o[j][2 * half + 1] + skip_weight(a, h, channel + 1) * high_bf16(v);
        bool there = t0 + t < len;
        *reinterpret_cast<u32*>(y + t * a.y.stride + c) = there ? pack_bf16(low, high) : 0;
      }
    }
    __syncthreads();
    load(at + 2);
  }
}
