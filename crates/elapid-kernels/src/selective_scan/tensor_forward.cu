// The forward on tensor cores; see tensor.cuh.

// The forward has two kinds of warps, so that the exponentials of the recurrence do not wait for anything else. HELPERS
// prepare tiles and write y; THREADS advance the states. One tile is prepared while another is processed. In shared memory
// four positions form a group; the two rows that eight lanes access at once are in neighbouring groups.
#define HELPERS 128
#define GROUP (4 * ROW + 4)   // numbers of four positions: of channels,
#define GROUP_C (4 * N + 16)  // and of states
#define READY 1               // barriers: a tile is prepared,
#define DONE 3                // and it is walked through; each and the next, for every other tile

// Keeps a pointer to global memory as computed, so that its offset is not added again to every index.
template <typename U>
__device__ __forceinline__ U* whole(U* at) {
  size_t address = __cvta_generic_to_global(at);
  asm volatile("" : "+l"(address));
  return reinterpret_cast<U*>(__cvta_global_to_generic(address));
}

template <int ID>
__device__ __forceinline__ void barrier_sync(int tile) {
  if (tile % 2 == 0) {
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(THREADS + HELPERS) : "memory");
  } else {
    asm volatile("bar.sync %0, %1;" ::"n"(ID + 1), "n"(THREADS + HELPERS) : "memory");
  }
}
template <int ID>
__device__ __forceinline__ void barrier_arrive(int tile) {
  if (tile % 2 == 0) {
    asm volatile("bar.arrive %0, %1;" ::"n"(ID), "n"(THREADS + HELPERS) : "memory");
  } else {
    asm volatile("bar.arrive %0, %1;" ::"n"(ID + 1), "n"(THREADS + HELPERS) : "memory");
  }
}

struct __align__(16) ForwardTile {
  float dt[TILE / 4][GROUP];  // Δ log2 e, four positions of a channel side by side; a gap of two channels after eight
  float dtu[TILE / 4][GROUP], sums[TILE / 4][GROUP];  // Δ u, and C h
  u32 b[TILE / 4][2][N];                              // positions t and t + 2 in a word
  float c[TILE / 4][GROUP_C];                         // states n and n + 8 side by side
  float resets[SEGMENTS ? TILE : 4];                  // added to the exponent: what makes an exponential 0, or 0
};

extern "C" __global__ void __launch_bounds__(THREADS + HELPERS, 3) forward(const __grid_constant__ Args a) {
  __shared__ __align__(16) struct {
    ForwardTile tiles[2];
    float bias[CH], skip[CH];  // of the bias: times log2 e
  } s;
  const Job job(a);
  load_channels(a.delta_bias, a, job, s.bias);
  load_channels(a.skip, a, job, s.skip);
  if (threadIdx.x < CH) s.bias[threadIdx.x] *= LOG2_E;
  __syncthreads();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, g = lane / 4, q = lane % 4;
  const int tiles = int((job.to - job.from + TILE - 1) / TILE);

  if (threadIdx.x >= THREADS) {
    // 8 channels of one position and 4 states of its C; 2 states of two positions of B.
    const int t4 = warp * 2 + g % 2, t1 = g / 2, t_mine = t4 * 4 + t1, c_mine = q * 8;
    const int t_b = warp * 8 + lane / 16 * 4 + lane / 8 % 2, n_b = lane % 8 * 2;
    const bool c_live = job.first + c_mine < a.d;
    const i64 r = job.row * a.l + job.from;
    const bf16* u_at = a.u.row(r + t_mine) + job.first + c_mine;
    const bf16* delta_at = a.delta.row(r + t_mine) + job.first + c_mine;
    const bf16* b_at = a.b.row(r + t_b) + n_b;
    const bf16* c_at = a.c.row(r + t_mine) + q * 2;
    const int u_stride = int(a.u.stride), delta_stride = int(a.delta.stride);
    const int b_stride = int(a.b.stride), c_stride = int(a.c.stride);
    // Real positions, from this thread's on.
    int real = int(job.end - job.from) - t_mine, real_b = real + t_mine - t_b;
    uint4 u, delta;
    u32 b[2], c[2];
    auto load = [&]() {
      u = make_uint4(0, 0, 0, 0), delta = make_uint4(PADDING, PADDING, PADDING, PADDING);
      b[0] = b[1] = c[0] = c[1] = 0;
      if (real > 0 && c_live) {
        u = *reinterpret_cast<const uint4*>(u_at);
        delta = *reinterpret_cast<const uint4*>(delta_at);
      }
      if (real > 0) c[0] = *reinterpret_cast<const u32*>(c_at), c[1] = *reinterpret_cast<const u32*>(c_at + 8);
      if (real_b > 0) b[0] = *reinterpret_cast<const u32*>(b_at);
      if (real_b > 2) b[1] = *reinterpret_cast<const u32*>(ahead_by(b_at, b_stride, 2));
      u_at = ahead_by(u_at, u_stride, TILE), delta_at = ahead_by(delta_at, delta_stride, TILE);
      b_at = ahead_by(b_at, b_stride, TILE), c_at = ahead_by(c_at, c_stride, TILE);
      real -= TILE, real_b -= TILE;
    };
    // Of the tile that is written.
    const bf16* u_done_at = u_at;
    const bf16* z_at = GATED ? a.z.row(r + t_mine) + job.first + c_mine : nullptr;
    bf16* y_at = a.y.row(r + t_mine) + job.first + c_mine;
    const int z_stride = int(a.z.stride), y_stride = int(a.y.stride);
    int real_done = real, left = int(job.to - job.from) - t_mine;
    // Its part of shared memory, double buffered.
    int turn = sizeof(ForwardTile) / sizeof(float);
    float* dt_at = s.tiles[0].dt[t4] + q * 40 + t1;
    float* dtu_at = s.tiles[0].dtu[t4] + t1 * ROW + c_mine;
    u32* b_to = s.tiles[0].b[t_b / 4][t_b % 4] + n_b;
    float* c_to = s.tiles[0].c[t4] + t1 * N + q * 4;
    load();
    // While tile k is prepared, k - 1 is being processed, and k - 2 is done.
    for (int tile = 0; tile < tiles + 2; ++tile) {
      uint4 u_done = make_uint4(0, 0, 0, 0), z_done = u_done;
      float y[8];
      if (tile >= 2) {
        if (real_done > 0 && c_live) {
          u_done = *reinterpret_cast<const uint4*>(u_done_at);
          if (GATED) z_done = *reinterpret_cast<const uint4*>(z_at);
        }
        u_done_at = ahead_by(u_done_at, u_stride, TILE), real_done -= TILE;
        if (GATED) z_at = ahead_by(z_at, z_stride, TILE);
        barrier_sync<DONE>(tile);
      }
      if (tile < tiles) {
        float uu[8], step[8], bb[8];
        widen8(delta, step);
        copy_floats<8>(s.bias + c_mine, bb);
#pragma unroll
        for (int k = 0; k < 8; ++k) step[k] = step[k] * LOG2_E + bb[k];
        if (a.softplus) {
#pragma unroll
          for (int k = 0; k < 8; ++k) {
            // Above 20 it is what it was, and nowhere less.
            step[k] = fmaxf(step[k], fast_log2(1.0f + fast_exp2(fminf(step[k], 20.0f * LOG2_E))));
          }
        } else if (real + TILE <= 0) {
#pragma unroll
          for (int k = 0; k < 8; ++k) step[k] = 0.0f;
        }
#pragma unroll
        for (int k = 0; k < 8; ++k) dt_at[k * 4] = step[k];
        widen8(u, uu);
#pragma unroll
        for (int k = 0; k < 8; ++k) step[k] = rounded(LN_2 * step[k] * uu[k]);
        copy_floats<8>(step, dtu_at);
        *reinterpret_cast<uint2*>(b_to) =
            make_uint2(__byte_perm(b[0], b[1], 0x5410), __byte_perm(b[0], b[1], 0x7632));
        *reinterpret_cast<float4*>(c_to) =
            make_float4(low_bf16(c[0]), low_bf16(c[1]), high_bf16(c[0]), high_bf16(c[1]));
        if (SEGMENTS && warp == 0) {
          i64 t = job.from + i64(tile) * TILE + lane;
          s.tiles[tile % 2].resets[lane] = t < job.end && a.resets[job.row * a.l + t] != 0 ? -1e30f : 0.0f;
        }
      }
      // Before others are put there.
      if (tile >= 2) copy_floats<8>(dtu_at + TILE / 4 * GROUP, y);
      if (tile < tiles) barrier_arrive<READY>(tile);
      load();
      dt_at += turn, dtu_at += turn, b_to += turn, c_to += turn, turn = -turn;
      if (tile < 2) continue;
      if (left > 0 && c_live) {
        float x[8], skip[8];
        copy_floats<8>(s.skip + c_mine, skip);
        widen8(u_done, x);
#pragma unroll
        for (int k = 0; k < 8; ++k) y[k] = UNCUT * y[k] + skip[k] * x[k];
        widen8(z_done, x);
#pragma unroll
        for (int k = 0; k < 8; k += 2) {
          if (GATED) gate2(x + k, y + k);
        }
        store8(y_at, y);
      }
      y_at = ahead_by(y_at, y_stride, TILE), left -= TILE;
    }
    return;
  }

  // A channel; its states are 2 q and 2 q + 1, and those and 8. Rows g and g + 8 of an accumulator have the one pair of
  // columns and the other.
  const int channel = warp * 8 + g, state = 2 * q;
  const i64 d_mine = job.first + channel;
  const bool live = d_mine < a.d;
  // Of a product's four columns the even belong to the first half of the states.
  const u32 even = q % 2 == 0 ? ~0u : 0u, odd = ~even;
  // What makes a number of B of a word, or 0: position j of four is that of lanes j % 2 * 2 and the next.
  u32 take[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) take[j] = q / 2 != j % 2 ? 0x4444 : j < 2 ? 0x1044 : 0x3244;
  float a_mine[4], h[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    i64 at = d_mine * N + state + i % 2 + i / 2 * 8;
    a_mine[i] = live ? a.a[at] : 0.0f;
    h[i] = 0.0f;
    if (!live) continue;
    if (a.starts != nullptr) {
      h[i] = a.starts[(job.row * a.chunks + job.chunk) * a.d * N + at];
    } else if (a.initial != nullptr) {
      h[i] = a.initial[job.row * a.d * N + at];
    }
  }
  // States before every SAVE positions, n and n + 8 in a word: [b tiles d N / 2].
  const i64 saved_first = (job.row * ((a.l + SAVE - 1) / SAVE) + job.from / SAVE) * a.d + d_mine;
  uint2* const saved = whole(reinterpret_cast<uint2*>(a.saved) + saved_first * (N / 4) + q);
  const bool saves = a.saved != nullptr && live;
  const u32 saved_stride = u32(a.d) * (N / 4);
  u32 saved_at = 0;
  int left = int(job.to - job.from);

  for (int tile = 0; tile < tiles; ++tile, left -= TILE) {
    ForwardTile& s_tile = s.tiles[tile % 2];
    const float* dt_at = s_tile.dt[0] + warp * 40 + g * 4;
    const float* dtu_at = s_tile.dtu[0] + q / 2 * ROW + channel;
    const u32* b_at = s_tile.b[0][q / 2] + q % 2 * 8 + g;
    const float* c_at = s_tile.c[0] + g / 2 * N + 2 * (state + g % 2);
    float* sums_at = s_tile.sums[0] + q * ROW + channel;
    barrier_sync<READY>(tile);
    // What four positions need first is read before those that come earlier are done.
    float4 dt_next;
    float dtu_next[2];
    u32 b_next;
    auto read = [&](int t4) {
      dt_next = *reinterpret_cast<const float4*>(dt_at + t4 * GROUP);
      dtu_next[0] = dtu_at[t4 * GROUP], dtu_next[1] = dtu_at[t4 * GROUP + 2 * ROW];
      b_next = b_at[t4 * 2 * N];
    };
    read(0);
#pragma unroll
    for (int t4 = 0; t4 < TILE / 4; ++t4) {
      if (t4 % (SAVE / 4) == 0) {
        if (saves && t4 * 4 < left) {
          saved[saved_at] = make_uint2(pack_bf16(h[0], h[2]), pack_bf16(h[1], h[3]));
        }
        saved_at += saved_stride;
      }
      const float dt[4] = {dt_next.x, dt_next.y, dt_next.z, dt_next.w}, dtus[2] = {dtu_next[0], dtu_next[1]};
      const float2 c = *reinterpret_cast<const float2*>(c_at + t4 * GROUP_C);
      const u32 b = b_next;
      if (t4 + 1 < TILE / 4) read(t4 + 1);
      float resets[4];
      if (SEGMENTS) copy_floats<4>(s_tile.resets + t4 * 4, resets);
      float y;
#pragma unroll
      for (int j2 = 0; j2 < 4; j2 += 2) {
        const float dtu_even = masked(dtus[j2 / 2], even), dtu_odd = masked(dtus[j2 / 2], odd);
#pragma unroll
        for (int j = j2; j < j2 + 2; ++j) {
          float input[4] = {0.0f, 0.0f, 0.0f, 0.0f}, sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
          mma4(input, dtu_even, dtu_odd, __uint_as_float(__byte_perm(b, 0, take[j])));
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float power = SEGMENTS ? dt[j] * a_mine[i] + resets[j] : dt[j] * a_mine[i];
            h[i] = fast_exp2(power) * h[i] + input[i];
          }
          // The product with C of all four positions, of which one is wanted.
          mma8(sums, h, c.x, c.y);
          if (j == 0 || q == j) y = sums[0] + sums[3];
        }
      }
      sums_at[t4 * GROUP] = y;
    }
    barrier_arrive<DONE>(tile);
  }
  if (blockIdx.y + 1 == gridDim.y && live) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a.last[(job.row * a.d + d_mine) * N + state + i % 2 + i / 2 * 8] = h[i];
  }
}
