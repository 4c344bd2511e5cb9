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
    find_starts(a, int(unit - all));
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) walk(const __grid_constant__ Args a) { walk_segment<false, false>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) walk_ends(const __grid_constant__ Args a) { walk_segment<false, true>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) walk_starts(const __grid_constant__ Args a) { start_segments<false>(a); }

struct OutputTiles {
  bf16 q[CHUNK * LK];
  // Of two heads; keys are in the place of the second until there are scores.
  union {
    struct {
      bf16 v[CHUNK * LV], s[HK * LV];
    };
    bf16 k[CHUNK * LK];
  } of[2];
  Chunk chunk[2];
};

extern "C" __global__ void __launch_bounds__(THREADS, 3) outputs(const __grid_constant__ Args a) {
  OutputTiles& tiles = *reinterpret_cast<OutputTiles*>(shared_memory());
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
      load_tile<CHUNK, HV, LV>(shared_address(tiles.of[stage].v), a.v.row(first) + virtual_head * HV, a.v.stride, len - t0);
      i64 state = ((i64(b) * a.heads * a.parts + virtual_head) * a.chunks + chunk) * HK * HV;
      load_tile<HK, HV, LV>(shared_address(tiles.of[stage].s), a.before + state, HV, HK);
      load_chunk(a, &tiles.chunk[stage], b, virtual_head / a.parts, t0, len);
    }
    commit();
  };
  u32 q = shared_address(tiles.q) + warp * 16 * LK * 2;
  load_tile<CHUNK, HK, LK>(shared_address(tiles.q), a.q.row(first) + g * HK, a.q.stride, len - t0);
  u32 keys = shared_address(tiles.of[(from & 1) ^ 1].k);
  load_tile<CHUNK, HK, LK>(keys, a.k.row(first) + g * HK, a.k.stride, len - t0);
  begin_chunk(a, tiles.chunk), begin_chunk(a, tiles.chunk + 1);
  load(from);
  loaded<0>();
  __syncthreads();
  float scores[CHUNK / 8][4];
  clear<CHUNK>(scores);
#pragma unroll
  for (int j = 0; j < CHUNK / 16; ++j) {
    if (j <= warp) product_across<16, HK, LK, LK>(scores + 2 * j, q, keys + j * 32 * LK);
  }
  __syncthreads();
  load(from + 1);

  for (int at = from; at < to; ++at) {
    int stage = at & 1, virtual_head = g * of_group + at, h = virtual_head / a.parts;
    loaded<1>();
    __syncthreads();
    const Chunk& of = tiles.chunk[stage];
    float o[HV / 8][4];
    clear<HV>(o);
    product_down<HV, HK, LK, LV>(o, q, shared_address(tiles.of[stage].s));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int t = row + 8 * half;
      float by = of.start[t] < t0 ? a.scale * fast_exp2(of.sum[t]) : 0.0f;
#pragma unroll
      for (int j = 0; j < HV / 8; ++j) o[j][2 * half] *= by, o[j][2 * half + 1] *= by;
    }
    float x[2][4];
    for_pairs<true>(a, of, t0, [&](int j, int n, int e, int, float by) {
      x[n][e] = by * scores[2 * j + n][e];
      if (n == 0 || e < 3) return;
      u32 p[1][4];
      as_a(p[0], x[0], x[1]);
      product_results<HV, 16, LV>(o, p, shared_address(tiles.of[stage].v) + j * 32 * LV);
    });
    bf16* y = a.y.row(first) + virtual_head * HV;
    Skip skip(a, h, virtual_head % a.parts);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int t = row + 8 * half;
      u32 out[HV / 8];
#pragma unroll
      for (int j = 0; j < HV / 8; ++j) {
        u32 v = *reinterpret_cast<const u32*>(tiles.of[stage].v + t * LV + 8 * j + column);
        float2 by = skip.at(8 * j + column);
        float low = o[j][2 * half] + by.x * low_bf16(v), high = o[j][2 * half + 1] + by.y * high_bf16(v);
        out[j] = t0 + t < len ? pack_bf16(low, high) : 0;
      }
      store_row<HV>(y + t * a.y.stride, out, t0 + t < a.l);
    }
    __syncthreads();
    load(at + 2);
  }
}
