// The backward on tensor cores. dS is the gradient of the state, dr = dy that of what is read, p = exp(c), e = exp(c_end - c), 0 where
// a document ends in between:
//
//   walk_back   a block has a head: for each chunk from the last, writes dS; dS = exp(c_end) dS + Qᵀ (scale p dr)
//   queries     dscores = dr Vᵀ;   dq = scale (p dr Sᵀ + (dscores ∘ mask w) K)
//   keys        dv = w e K dS + (scores ∘ mask w)ᵀ dr;   dk = w (e V dSᵀ + (dscores ∘ mask)ᵀ scale Q)
//   decays      the gradient of log g_r: of pairs s < r <= t of a chunk, of t >= r with S, of s < r with dS, of S with dS
//   parameters  sums for skip and a constant decay
//
// A block of queries and keys has a chunk and `together` heads of a group, whose dq and dk it sums in registers.

extern "C" __global__ void __launch_bounds__(THREADS) walk_back(const __grid_constant__ Args a) { walk_segment<true, false>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) walk_back_ends(const __grid_constant__ Args a) { walk_segment<true, true>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) walk_back_starts(const __grid_constant__ Args a) { start_segments<true>(a); }

// Of one head or of two: a block of one head has no second.
struct GradientTiles {
  bf16 q[CHUNK * LK], k[CHUNK * LK];
  struct {
    bf16 v[CHUNK * LV], dy[CHUNK * LV], s[HK * LV];
    Chunk chunk;
  } of[2];
};

// What a block of `queries` and `keys` works on.
struct Job {
  int blocks, block, g, b, from, to, of_group;
  i64 chunk, t0, len, first;
  __device__ __forceinline__ Job(const Args& a) {
    of_group = a.heads / a.groups * a.parts, blocks = (of_group + a.together - 1) / a.together;
    i64 unit = blockIdx.x;
    block = int(unit % blocks), g = int(unit / blocks % a.groups), unit /= i64(blocks) * a.groups;
    chunk = unit % a.chunks, t0 = chunk * CHUNK, b = int(unit / a.chunks);
    len = row_length(a, b), first = b * a.l + t0;
    from = block * a.together, to = from + a.together < of_group ? from + a.together : of_group;
  }
  __device__ __forceinline__ int head(int at) const { return g * of_group + at; }
  // Of a value for each position of a head, and of a state.
  __device__ __forceinline__ i64 position(const Args& a, int at) const {
    return ((i64(b) * a.heads * a.parts + head(at)) * a.chunks + chunk) * CHUNK;
  }
  __device__ __forceinline__ void load(const Args& a, GradientTiles& tiles, const bf16* states, int at) const {
    if (at < to) {
      int stage = (at - from) & 1;
      load_tile<CHUNK, HV, LV>(shared_address(tiles.of[stage].v), a.v.row(first) + head(at) * HV, a.v.stride, len - t0);
      load_tile<CHUNK, HV, LV>(shared_address(tiles.of[stage].dy), a.dy.row(first) + head(at) * HV, a.dy.stride, len - t0);
      load_tile<HK, HV, LV>(shared_address(tiles.of[stage].s), states + position(a, at) / CHUNK * HK * HV, HV, HK);
      load_chunk(a, &tiles.of[stage].chunk, b, head(at) / a.parts, t0, len);
    }
    commit();
  }
  __device__ __forceinline__ void begin(const Args& a, GradientTiles& tiles, const bf16* states) const {
    load_tile<CHUNK, HK, LK>(shared_address(tiles.q), a.q.row(first) + g * HK, a.q.stride, len - t0);
    load_tile<CHUNK, HK, LK>(shared_address(tiles.k), a.k.row(first) + g * HK, a.k.stride, len - t0);
    begin_chunk(a, &tiles.of[0].chunk);
    if (to - from > 1) begin_chunk(a, &tiles.of[1].chunk);
    load(a, tiles, states, from), load(a, tiles, states, from + 1);
    loaded<1>();
    __syncthreads();
  }
  // A row's gradient of q or k: of the group where a block has all of it, else a share.
  __device__ __forceinline__ void store(const Args& a, const Mat<bf16>& whole, float* shares, int t, int half, float (*x)[4]) const {
    int column = (threadIdx.x & 3) * 2;
    bool zero = t0 + t >= len;
    if (blocks == 1) {
      u32 out[HK / 8];
#pragma unroll
      for (int j = 0; j < HK / 8; ++j) out[j] = zero ? 0 : pack_bf16(x[j][2 * half], x[j][2 * half + 1]);
      store_row<HK>(whole.row(first + t) + g * HK, out, t0 + t < a.l);
    } else if (t0 + t < a.l) {
      float* to = shares + ((first + t) * a.groups * blocks + g * blocks + block) * HK + column;
#pragma unroll
      for (int j = 0; j < HK / 8; ++j) {
        *reinterpret_cast<float2*>(to + 8 * j) = zero ? float2{0.0f, 0.0f} : float2{x[j][2 * half], x[j][2 * half + 1]};
      }
    }
  }
};

// 16 rows of values as A; their product with 16 rows of others.
__device__ __forceinline__ void load_left(u32 (*left)[4], u32 from) {
#pragma unroll
  for (int c = 0; c < HV / 16; ++c) load4(left[c], down<LV>(from) + 32 * c);
}
__device__ __forceinline__ void product_left(float (*out)[4], const u32 (*left)[4], u32 rows) {
#pragma unroll
  for (int c = 0; c < HV / 16; ++c) {
    u32 right[4];
    load4(right, across<LV>(rows) + 32 * c);
    mma(out[0], left[c], right[0], right[1]), mma(out[1], left[c], right[2], right[3]);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) queries(const __grid_constant__ Args a) {
  GradientTiles& tiles = *reinterpret_cast<GradientTiles*>(shared_memory());
  Job job(a);
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = warp * 16 + (lane >> 2), column = (lane & 3) * 2;
  // all: dscores with their decays, summed over heads.
  float dq[HK / 8][4], scores[CHUNK / 8][4], all[CHUNK / 8][4];
  clear<HK>(dq), clear<CHUNK>(scores), clear<CHUNK>(all);
  if (job.t0 < job.len) {
    job.begin(a, tiles, a.before);
    if (DECAY > 0) {
#pragma unroll
      for (int j = 0; j < CHUNK / 16; ++j) {
        if (j > warp) continue;
        product_across<16, HK, LK, LK>(scores + 2 * j, shared_address(tiles.q) + warp * 32 * LK, shared_address(tiles.k) + j * 32 * LK);
      }
    }
  }
  for (int at = job.from; at < job.to && job.t0 < job.len; ++at) {
    int stage = (at - job.from) & 1;
    loaded<1>();
    __syncthreads();
    const Chunk& of = tiles.of[stage].chunk;
    u32 dy = shared_address(tiles.of[stage].dy) + warp * 32 * LV;
    float by[2], decay[2] = {0.0f, 0.0f};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int t = row + 8 * half;
      by[half] = of.start[t] < job.t0 ? a.scale * fast_exp2(of.sum[t]) : 0.0f;
    }
    u32 left[HV / 16][4];
    load_left(left, dy);
    // From the state, 16 keys at a time.
    u32 right_at = across<LV>(shared_address(tiles.of[stage].s));
#pragma unroll
    for (int j = 0; j < HK / 16; ++j) {
      float x[2][4];
      clear<16>(x);
#pragma unroll
      for (int c = 0; c < HV / 16; ++c) {
        u32 right[4];
        load4(right, right_at + 2 * (j * 16 * LV + c * 16));
        mma(x[0], left[c], right[0], right[1]), mma(x[1], left[c], right[2], right[3]);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float low = by[half] * x[n][2 * half], high = by[half] * x[n][2 * half + 1];
          dq[2 * j + n][2 * half] += low, dq[2 * j + n][2 * half + 1] += high;
          if (DECAY > 0) {
            u32 q = *reinterpret_cast<const u32*>(tiles.q + (row + 8 * half) * LK + j * 16 + n * 8 + column);
            decay[half] += low * low_bf16(q) + high * high_bf16(q);
          }
        }
    }
    float dscores[CHUNK / 8][4];
    clear<CHUNK>(dscores);
#pragma unroll
    for (int j = 0; j < CHUNK / 16; ++j) {
      if (j <= warp) product_left(dscores + 2 * j, left, shared_address(tiles.of[stage].v) + j * 32 * LV);
    }
    for_pairs<true>(a, of, job.t0, [&](int j, int n, int e, int s, float x) {
      x *= dscores[2 * j + n][e];
      all[2 * j + n][e] += x;
      if (DECAY > 0) decay[e / 2] += s < row + e / 2 * 8 ? x * scores[2 * j + n][e] : 0.0f;
    });
    if (DECAY > 0 && a.of_queries) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x = row_sum(decay[half]);
        if ((lane & 3) == 0) a.of_queries[job.position(a, at) + row + 8 * half] = x;
      }
    }
    __syncthreads();
    job.load(a, tiles, a.before, at + 2);
  }
  loaded<0>();
#pragma unroll
  for (int j = 0; j < CHUNK / 16; ++j) {
    if (j > warp || job.t0 >= job.len) continue;
    u32 p[1][4];
    as_a(p[0], all[2 * j], all[2 * j + 1]);
    product_results<HK, 16, LK>(dq, p, shared_address(tiles.k) + j * 32 * LK);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) job.store(a, a.dq, a.dq_heads, row + 8 * half, half, dq);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) keys(const __grid_constant__ Args a) {
  GradientTiles& tiles = *reinterpret_cast<GradientTiles*>(shared_memory());
  Job job(a);
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = warp * 16 + (lane >> 2), column = (lane & 3) * 2;
  float dk[HK / 8][4], scores[CHUNK / 8][4], all[CHUNK / 8][4];
  clear<HK>(dk), clear<CHUNK>(scores), clear<CHUNK>(all);
  bool some = job.t0 < job.len;
  u32 k = shared_address(tiles.k) + warp * 32 * LK;
  if (some) {
    job.begin(a, tiles, a.dafter);
#pragma unroll
    for (int j = 0; j < CHUNK / 16; ++j) {
      if (j >= warp) product_across<16, HK, LK, LK>(scores + 2 * j, k, shared_address(tiles.q) + j * 32 * LK);
    }
  }
  int last = int(job.len - job.t0 < CHUNK ? job.len - job.t0 : CHUNK) - 1;
  for (int at = job.from; at < job.to; ++at) {
    int stage = (at - job.from) & 1, h = job.head(at) / a.parts;
    float dv[HV / 8][4];
    clear<HV>(dv);
    // The sum of dy v.
    float skips = 0.0f;
    const Chunk& of = tiles.of[stage].chunk;
    if (some) {
      loaded<1>();
      __syncthreads();
      // by: w e of the two rows.
      float write[2], by[2], pairs[2] = {0.0f, 0.0f}, own[2] = {0.0f, 0.0f}, inter[2] = {0.0f, 0.0f};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int s = row + 8 * half;
        write[half] = of.write[s];
        by[half] = s <= last && job.t0 + s >= of.start[last] ? fast_exp2(of.sum[last] - of.sum[s]) : 0.0f;
      }
      u32 left[HV / 16][4];
      load_left(left, shared_address(tiles.of[stage].v) + warp * 32 * LV);
      product_down<HV, HK, LK, LV>(dv, k, shared_address(tiles.of[stage].s));
#pragma unroll
      for (int j = 0; j < HV / 8; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float &low = dv[j][2 * half], &high = dv[j][2 * half + 1];
          u32 v = *reinterpret_cast<const u32*>(tiles.of[stage].v + (row + 8 * half) * LV + 8 * j + column);
          low *= by[half], high *= by[half];
          inter[half] += low * low_bf16(v) + high * high_bf16(v);
          low *= write[half], high *= write[half];
        }
      float dscores[CHUNK / 8][4];
      clear<CHUNK>(dscores);
      u32 dy = shared_address(tiles.of[stage].dy);
#pragma unroll
      for (int j = 0; j < CHUNK / 16; ++j) {
        if (j >= warp) product_left(dscores + 2 * j, left, dy + j * 32 * LV);
      }
      // From the state's gradient, of values times w and the decay up to the chunk's end.
#pragma unroll
      for (int c = 0; c < HV / 16; ++c)
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          float weight = write[m & 1] * by[m & 1];
          left[c][m] = pack_bf16(weight * low_bf16(left[c][m]), weight * high_bf16(left[c][m]));
        }
#pragma unroll
      for (int j = 0; j < HK / 16; ++j) product_left(dk + 2 * j, left, shared_address(tiles.of[stage].s) + j * 32 * LV);
      float p[2][4];
      for_pairs<false>(a, of, job.t0, [&](int j, int n, int e, int t, float x) {
        float score = scores[2 * j + n][e] * x, both = dscores[2 * j + n][e] * score;
        bool same = row + e / 2 * 8 == t;
        own[e / 2] += same ? both : 0.0f, pairs[e / 2] += same ? 0.0f : both;
        skips += same ? dscores[2 * j + n][e] : 0.0f;
        p[n][e] = write[e / 2] * score, all[2 * j + n][e] += write[e / 2] * x * dscores[2 * j + n][e];
        if (n == 0 || e < 3) return;
        u32 left[1][4];
        as_a(left[0], p[0], p[1]);
        product_results<HV, 16, LV>(dv, left, dy + j * 32 * LV);
      });
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x = row_sum(pairs[half]), y = row_sum(own[half]), z = row_sum(inter[half]);
        i64 to = job.position(a, at) + row + 8 * half;
        if ((lane & 3) == 0) {
          if (a.of_keys) a.of_keys[to] = write[half] * x, a.of_inter[to] = write[half] * z;
          if (a.of_write) a.of_write[to] = x + y + z;
        }
      }
    }
    bf16* to = a.dv.row(job.first) + job.head(at) * HV;
    Skip skip(a, h, job.head(at) % a.parts);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int s = row + 8 * half;
      u32 out[HV / 8];
#pragma unroll
      for (int j = 0; j < HV / 8; ++j) {
        u32 dy = some ? *reinterpret_cast<const u32*>(tiles.of[stage].dy + s * LV + 8 * j + column) : 0;
        float2 by = skip.at(8 * j + column);
        float low = dv[j][2 * half] + by.x * low_bf16(dy), high = dv[j][2 * half + 1] + by.y * high_bf16(dy);
        out[j] = job.t0 + s < job.len ? pack_bf16(low, high) : 0;
      }
      store_row<HV>(to + s * a.dv.stride, out, job.t0 + s < a.l);
    }
    if (a.dskip_rows && a.skip_channels && threadIdx.x < HV) {
      float dskip = 0.0f;
      for (int t = 0; t < CHUNK && some; ++t) {
        dskip += to_float(tiles.of[stage].dy[t * LV + threadIdx.x]) * to_float(tiles.of[stage].v[t * LV + threadIdx.x]);
      }
      a.dskip_rows[(job.b * a.chunks + job.chunk) * a.heads * a.values + job.head(at) * HV + threadIdx.x] = dskip;
    }
    if (a.dskip_rows && !a.skip_channels) {
      float sum = warp_sum(skips);
      i64 to = ((job.b * a.chunks + job.chunk) * a.heads * a.parts + job.head(at)) * WARPS + warp;
      if (lane == 0) a.dskip_rows[to] = sum;
    }
    if (!some) continue;
    __syncthreads();
    job.load(a, tiles, a.dafter, at + 2);
  }
  loaded<0>();
#pragma unroll
  for (int j = 0; j < CHUNK / 16; ++j) {
    if (j < warp || !some) continue;
    u32 p[1][4];
    as_a(p[0], all[2 * j], all[2 * j + 1]);
    product_results<HK, 16, LK>(dk, p, shared_address(tiles.q) + j * 32 * LK);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) job.store(a, a.dk, a.dk_heads, row + 8 * half, half, dk);
}

// dw and the gradient of the decay; a warp has a chunk of a head, a lane two positions.
extern "C" __global__ void __launch_bounds__(THREADS) decays(const __grid_constant__ Args a) {
  i64 unit = i64(blockIdx.x) * WARPS + (threadIdx.x >> 5), chunk = unit % a.chunks, head = unit / a.chunks;
  if (head >= i64(a.b) * a.heads) return;
  int lane = threadIdx.x & 31, h = int(head % a.heads), b = int(head / a.heads);
  i64 t0 = chunk * CHUNK + 2 * lane, len = row_length(a, b);
  float all[2] = {0.0f, 0.0f}, inter[2] = {0.0f, 0.0f}, dwrite[2] = {0.0f, 0.0f}, pass = 0.0f;
  for (int part = 0; part < a.parts && chunk * CHUNK < len; ++part) {
    i64 at = ((head * a.parts + part) * a.chunks + chunk) * CHUNK + 2 * lane;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (t0 + i >= len) continue;
      if (DECAY > 0 && a.of_queries) all[i] += a.of_queries[at + i] - a.of_keys[at + i], inter[i] += a.of_inter[at + i];
      if (a.of_write) dwrite[i] += a.of_write[at + i];
    }
  }
  if (DECAY > 0 && a.of_pass && chunk * CHUNK < len) {
    constexpr int shares = WK / 16;
    int blocks = a.parts * PIECES * (KEYS / WK);
    for (int i = lane; i < blocks * shares; i += 32) {
      pass += a.of_pass[((head * blocks + i / shares) * a.chunks + chunk) * shares + i % shares];
    }
    pass = warp_sum(pass);
  }
  // From r on; before r.
  float from = all[0] + all[1], before = inter[0] + inter[1];
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    float x = __shfl_down_sync(0xffffffffu, from, by), y = __shfl_up_sync(0xffffffffu, before, by);
    if (lane + by < 32) from += x;
    if (lane >= by) before += y;
  }
  before -= inter[0] + inter[1];
  float ddecay[2] = {from + before + pass, from - all[0] + before + inter[0] + pass}, sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    i64 row = b * a.l + t0 + i;
    bool there = t0 + i < len;
    if (!there || is_reset(a, row)) ddecay[i] = 0.0f;
    sum += ddecay[i];
    if (t0 + i >= a.l) continue;
    if (DECAY == 2 && a.ddecay.data) a.ddecay.row(row)[h] = from_float<D>(ddecay[i]);
    if (a.dwrite.data) a.dwrite.row(row)[h] = there ? dwrite[i] : 0.0f;
  }
  sum = warp_sum(sum);
  if (lane == 0 && a.dconstant_rows) a.dconstant_rows[(b * a.chunks + chunk) * a.heads + h] = sum;
}

// Sums of the shares of chunks: a warp has one element.
extern "C" __global__ void __launch_bounds__(THREADS) parameters(const __grid_constant__ Args a) {
  int unit = blockIdx.x * WARPS + (threadIdx.x >> 5);
  if (a.dconstant && unit < a.heads) add_shares(a, a.dconstant + unit, a.dconstant_rows, a.heads, unit, 1);
  add_skips(a, unit, a.parts * WARPS);
}

// Adds the shares of blocks of a group.
extern "C" __global__ void __launch_bounds__(THREADS) join_blocks(const __grid_constant__ Args a) {
  int of_group = a.heads / a.groups * a.parts, blocks = (of_group + a.together - 1) / a.together;
  i64 at = i64(blockIdx.x) * THREADS + threadIdx.x, width = i64(a.groups) * HK, row = at / width;
  if (row >= a.b * a.l) return;
  int column = int(at % width), g = column / HK, i = column % HK;
  float dq = 0.0f, dk = 0.0f;
  for (int block = 0; block < blocks; ++block) {
    i64 share = (row * a.groups * blocks + g * blocks + block) * HK + i;
    dq += a.dq_heads[share], dk += a.dk_heads[share];
  }
  a.dq.row(row)[column] = from_float<T>(dq), a.dk.row(row)[column] = from_float<T>(dk);
}
