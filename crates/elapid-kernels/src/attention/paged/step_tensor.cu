// A step on tensor cores. A warp has 16 positions of every page, in STAGES stages of shared memory that only it reads:
//
//   S = K Qᵀ: positions x heads;  P = 2^(S - top);  Oᵀ = Vᵀ P: values x heads
//
// so that queries fill the narrow side of the products: HB heads. A lane has the same two heads in S and in O.

#define THREADS 128
#define NT (HB / 8)
#define SLICE (tile_bytes<16, DK>() + tile_bytes<16, DV>())

// Eight by eight values of 16 bits, row by row over the warp, transposed.
__device__ __forceinline__ u32 transposed(u32 x) {
  u32 y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}
template <int N>
__device__ __forceinline__ void loaded_but() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

extern "C" __global__ void __launch_bounds__(THREADS) step(const __grid_constant__ Step s) {
  extern __shared__ __align__(16) u8 memory[];
  const Args& a = s.a;
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, c = (lane & 3) * 2;
  let_next_start();
  wait_for_previous();
  Part part(s);
  if (part.split >= part.active) return;
  int heads = part.heads(a), first = part.first_head(a), t = part.t;
  u32 stages = shared_address(memory) + warp * STAGES * SLICE;

  // Queries as the right side: a lane has elements of head g.
  u32 q[NT][DK / 16][2];
#pragma unroll
  for (int n = 0; n < NT; ++n)
#pragma unroll
    for (int k = 0; k < DK / 16; ++k)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int head = n * 8 + g, at = k * 16 + half * 8 + c;
        const bf16* from = a.q.row(part.row) + (first + head) * HK + at;
        q[n][k][half] = head < heads && at < HK ? *reinterpret_cast<const u32*>(from) : 0u;
      }
  int last = t / PAGE;
  if (part.page(part.to - 1) == last && t % PAGE / 16 == warp) {
    append(s, part, warp * 32, 32);
    __threadfence();
    __syncwarp();
  }
  // A lane keeps the addresses of one of 32 pages; a bit of `missing` is a page that is not there.
  u64 next_keys = 0, next_values = 0;
  u32 missing = 0;
  auto load = [&](int i) {
    if (i < part.to) {
      int of_lanes = (i - part.from) & 31;
      if (of_lanes == 0) {
        int page = part.page(min(i + lane, part.to - 1));
        next_keys = s.keys.page(part.row, page), next_values = s.values.page(part.row, page);
      }
      u64 keys = __shfl_sync(0xffffffffu, next_keys, of_lanes), values = __shfl_sync(0xffffffffu, next_values, of_lanes);
      int valid = t + 1 - part.page(i) * PAGE - warp * 16;
      u32 bit = 1u << of_lanes;
      missing = keys && values ? missing & ~bit : missing | bit;
      if (missing & bit) valid = 0;
      i64 slot = i64(part.kv) * PAGE + warp * 16;
      u32 to = stages + (i - part.from) % STAGES * SLICE;
      const bf16 *k = reinterpret_cast<const bf16*>(keys) + slot * HK, *v = reinterpret_cast<const bf16*>(values) + slot * HV;
#pragma unroll
      for (int j = lane; j < 16 * (DK / 8); j += 32) {
        int r = j / (DK / 8), chunk = j % (DK / 8);
        copy16(to + 2 * (r * (DK + 8) + chunk * 8), k + r * HK + chunk * 8, r < valid && chunk * 8 < HK);
      }
      to += tile_bytes<16, DK>();
#pragma unroll
      for (int j = lane; j < 16 * (DV / 8); j += 32) {
        int r = j / (DV / 8), chunk = j % (DV / 8);
        copy16(to + 2 * (r * (DV + 8) + chunk * 8), v + r * HV + chunk * 8, r < valid && chunk * 8 < HV);
      }
    }
    commit();
  };
#pragma unroll
  for (int i = 0; i < STAGES - 1; ++i) load(part.from + i);

  float o[DV / 16][NT][4], top[NT][2], sum[NT][2], slope[NT][2];
#pragma unroll
  for (int n = 0; n < NT; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      top[n][e] = -INF, sum[n][e] = 0.0f;
      slope[n][e] = SCORES ? alibi_slope(a, first + n * 8 + c + e) : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < DV / 16; ++j) o[j][n][0] = o[j][n][1] = o[j][n][2] = o[j][n][3] = 0.0f;
  }

  for (int i = part.from; i < part.to; ++i) {
    load(i + STAGES - 1);
    loaded_but<STAGES - 1>();
    __syncwarp();
    int page = part.page(i), s0 = page * PAGE + warp * 16;
    bool there = !(missing >> ((i - part.from) & 31) & 1);
    u32 keys = stages + (i - part.from) % STAGES * SLICE, values = keys + tile_bytes<16, DK>();
    if (s0 <= t && there) {
      float x[NT][4];
#pragma unroll
      for (int n = 0; n < NT; ++n) x[n][0] = x[n][1] = x[n][2] = x[n][3] = 0.0f;
      u32 down = lane_down<DK>(keys), across = lane_across<DV>(values);
#pragma unroll
      for (int k = 0; k < DK / 16; ++k) {
        u32 left[4];
        load4(left, down + 2 * (k * 16));
#pragma unroll
        for (int n = 0; n < NT; ++n) mma(x[n], left, q[n][k][0], q[n][k][1]);
      }
      u32 p[NT][2];
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        float most[2] = {-INF, -INF};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          int at = s0 + g + (e >> 1) * 8;
#if SCORES
          float gradient;
          x[n][e] = score(a, x[n][e], slope[n][e & 1], t - at, &gradient);
#else
          x[n][e] *= a.scale * LOG2_E;
#endif
          if (at > t || !sees(a, t, at)) x[n][e] = -INF;
          most[e & 1] = fmaxf(most[e & 1], x[n][e]);
        }
        float by[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
#pragma unroll
          for (int other = 4; other < 32; other *= 2) most[e] = fmaxf(most[e], __shfl_xor_sync(0xffffffffu, most[e], other));
          float now = fmaxf(top[n][e], most[e]), off = now == -INF ? 0.0f : now;
          by[e] = fast_exp2(top[n][e] - off), top[n][e] = now, sum[n][e] *= by[e];
          x[n][e] = fast_exp2(x[n][e] - off), x[n][e + 2] = fast_exp2(x[n][e + 2] - off);
          sum[n][e] += x[n][e] + x[n][e + 2];
        }
#pragma unroll
        for (int j = 0; j < DV / 16; ++j) o[j][n][0] *= by[0], o[j][n][1] *= by[1], o[j][n][2] *= by[0], o[j][n][3] *= by[1];
        p[n][0] = transposed(pack_bf16(x[n][0], x[n][1])), p[n][1] = transposed(pack_bf16(x[n][2], x[n][3]));
      }
#pragma unroll
      for (int j = 0; j < DV / 16; ++j) {
        u32 left[4];
        load4_transposed(left, across + 2 * (j * 16));
#pragma unroll
        for (int n = 0; n < NT; ++n) mma(o[j][n], left, p[n][0], p[n][1]);
      }
    }
    __syncwarp();
  }

  // The four warps' parts into one, in the order of the warps.
  loaded();
  __syncthreads();
  float* parts = reinterpret_cast<float*>(memory);
#pragma unroll
  for (int n = 0; n < NT; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
#pragma unroll
      for (int other = 4; other < 32; other *= 2) sum[n][e] += __shfl_xor_sync(0xffffffffu, sum[n][e], other);
      float* mine = parts + (warp * HB + n * 8 + c + e) * (DV + 2);
#pragma unroll
      for (int j = 0; j < DV / 16; ++j) mine[j * 16 + g] = o[j][n][e], mine[j * 16 + 8 + g] = o[j][n][e + 2];
      if (g == 0) mine[DV] = top[n][e], mine[DV + 1] = sum[n][e];
    }
  __syncthreads();
  for (int i = threadIdx.x; i < heads * (HV + 2); i += THREADS) {
    int h = i / (HV + 2), col = i - h * (HV + 2);
    float most = -INF, x = 0.0f;
#pragma unroll
    for (int w = 0; w < 4; ++w) most = fmaxf(most, parts[(w * HB + h) * (DV + 2) + DV]);
    float off = most == -INF ? 0.0f : most;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float* one = parts + (w * HB + h) * (DV + 2);
      x += fast_exp2(one[DV] - off) * one[col < HV ? col : DV + 1];
    }
    part.part(s, h, part.split)[col] = col == HV ? most : x;
  }
  if (is_last(s, part)) put_together<THREADS>(s, part);
}
