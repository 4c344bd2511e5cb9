// The selective scan of bf16 activations with 16 states and Ā = exp(Δ A), on tensor cores.
//
// What bounds a scan on a multiprocessor is, in this order, what shared memory can deliver, instructions, exponentials.
// B_t u_t, C_t g_t, C_t h_t and the sums over channels are products of small matrices, and one instruction of a warp
// does each of them for 128 states:
//
// - A warp's states are an accumulator of `mma`, four numbers a thread: thread 4 g + q has rows g and g + 8 of columns
//   2 q and 2 q + 1. In backward rows are states and columns channels. In forward columns are states: rows g and g + 8
//   are one channel, with the first half of its states and the second.
// - (Δ u) B' of a position is a product over k of which only its own k is not 0. Both factors of some positions are
//   loaded at once, and one of them is masked.
// - What has been accumulated can be the left factor of a product. Elements 0 and 1 then count as rows g and g + 8 of
//   column q, though they are columns 2 q and 2 q + 1 of row g. The right factor has a column for each of the two: of
//   the product, what pairs the wrong ones is left alone.
//
// Factors are cut to the 10 bits of mantissa of tf32. B and C have 8; Δ u is rounded first, g in backward too. States and
// their gradients are cut where they are summed, not where they are carried on: the errors are below those of bf16.
//
// GATED: whether there is a z. SEGMENTS: whether there are resets.

#define THREADS 128
#define CH 32
#define N 16
#define TILE 32
#define SAVE 8
// Relative to the mean of a number whose last 13 bits are cut off.
#define UNCUT 1.000352f

// What a block works on: 32 channels of one chunk of one sequence.
struct Job {
  i64 row, chunk, from, to, end, first;  // end: of the positions that are not padding
  __device__ __forceinline__ Job(const Args& a, int first_chunk = 0) {
    row = blockIdx.z;
    chunk = blockIdx.y + first_chunk;
    from = chunk * a.chunk;
    to = from + a.chunk < a.l ? from + a.chunk : a.l;
    i64 len = a.lengths == nullptr || a.lengths[row] > a.l ? a.l : a.lengths[row];
    end = to < len ? to : len;
    first = i64(blockIdx.x) * CH;
  }
};

// d += a b; a is 16 x 4 or 16 x 8.
__device__ __forceinline__ void mma4(float* d, float a0, float a1, float b0) {
  asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(b0)));
}
__device__ __forceinline__ void mma8(float* d, const float* a, float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
// 16 bytes of global memory to shared, or zeros; done after `copies_done`.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool there) {
  u32 at = u32(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copies_done() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ __forceinline__ float masked(float x, u32 mask) { return __uint_as_float(__float_as_uint(x) & mask); }
// Nearest number of tf32, but for the bits that `mma` does not read.
__device__ __forceinline__ float rounded(float x) { return __uint_as_float(__float_as_uint(x) + 0x1000u); }
__device__ __forceinline__ float nearest(float x) { return masked(rounded(x), 0xffffe000u); }

__device__ __forceinline__ void widen8(uint4 p, float* x) {
  x[0] = low_bf16(p.x), x[1] = high_bf16(p.x), x[2] = low_bf16(p.y), x[3] = high_bf16(p.y);
  x[4] = low_bf16(p.z), x[5] = high_bf16(p.z), x[6] = low_bf16(p.w), x[7] = high_bf16(p.w);
}
__device__ __forceinline__ void widen4(uint2 p, float* x) {
  x[0] = low_bf16(p.x), x[1] = high_bf16(p.x), x[2] = low_bf16(p.y), x[3] = high_bf16(p.y);
}
template <int K>
__device__ __forceinline__ void copy_floats(const float* from, float* to) {
#pragma unroll
  for (int i = 0; i < K; i += 4) *reinterpret_cast<float4*>(to + i) = *reinterpret_cast<const float4*>(from + i);
}

// `rows` rows on; one multiply-add.
template <typename U>
__device__ __forceinline__ U* ahead_by(U* at, int stride, int rows) { return at + i64(stride) * rows; }

// All bits where k = q is j; 1 where the column is 2 j or 2 j + 1.
struct Masks {
  u32 k[4];
  float column[4];
  __device__ __forceinline__ Masks(int g, int q) {
#pragma unroll
    for (int j = 0; j < 4; ++j) k[j] = q == j ? ~0u : 0u, column[j] = g / 2 == j ? 1.0f : 0.0f;
  }
};

// The gate's argument, moved off 0: what it multiplies must be found again in y, which is kept anyway.
// No number of bf16 cancels what is added.
__device__ __forceinline__ float not_zero(float z) { return z + 0x1.01p-60f; }

// Two outputs times silu(z): one reciprocal for both, exponents bounded so that their product is.
__device__ __forceinline__ void gate2(const float* z, float* y) {
  float z0 = not_zero(z[0]), z1 = not_zero(z[1]);
  float under0 = 1.0f + fast_exp2(fminf(-LOG2_E * z0, 60.0f)), under1 = 1.0f + fast_exp2(fminf(-LOG2_E * z1, 60.0f));
  float one = fast_rcp(under0 * under1);
  y[0] *= z0 * (under1 * one), y[1] *= z1 * (under0 * one);
}

// Vectors of a channel, 0 where absent.
__device__ __forceinline__ void load_channels(const float* from, const Args& a, const Job& job, float* to) {
  if (threadIdx.x < CH) {
    i64 at = job.first + threadIdx.x;
    to[threadIdx.x] = from != nullptr && at < a.d ? from[at] : 0.0f;
  }
}

// Δ of K channels of one position; 0 in padding, where no state changes. Where softplus is taken, `raw` is PADDING there.
#define PADDING 0xf149f149u  // two bf16 of about -1e30
template <int K>
__device__ __forceinline__ void step_sizes(const Args& a, const float* raw, bool inside, float* dt) {
  if (a.softplus) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      // Above 20 it is `raw`, and nowhere less.
      dt[k] = fmaxf(raw[k], LN_2 * fast_log2(1.0f + fast_exp2(LOG2_E * fminf(raw[k], 20.0f))));
    }
  } else {
#pragma unroll
    for (int k = 0; k < K; ++k) dt[k] = inside ? raw[k] : 0.0f;
  }
}

// Rows of shared memory, in numbers: wide enough that what a warp reads at once lies in different banks.
#define ROW 40    // of channels
#define ROW_N 24  // of states

// Forward has two kinds of warps, lest the exponentials of the recurrence wait for anything else. HELPERS prepare tiles
// and write y, THREADS walk along with states. One tile is prepared while another is walked through. In shared memory
// four positions are a group; the two rows that eight lanes touch at once are in groups side by side.
#define HELPERS 128
#define GROUP (4 * ROW + 4)   // numbers of four positions: of channels,
#define GROUP_C (4 * N + 16)  // and of states
#define READY 1               // barriers: a tile is prepared,
#define DONE 3                // and it is walked through; each and the next, for every other tile

// Keeps a pointer to global memory as it is: what it was made of is not added anew to every index.
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
    // Positions that are not padding, from this thread's on.
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
    // What it puts into shared memory, in one tile and the other by turns.
    int turn = sizeof(ForwardTile) / sizeof(float);
    float* dt_at = s.tiles[0].dt[t4] + q * 40 + t1;
    float* dtu_at = s.tiles[0].dtu[t4] + t1 * ROW + c_mine;
    u32* b_to = s.tiles[0].b[t_b / 4][t_b % 4] + n_b;
    float* c_to = s.tiles[0].c[t4] + t1 * N + q * 4;
    load();
    // While tile k is prepared, k - 1 is walked through, and k - 2 has been.
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

#define BACK 16  // positions of a tile of backward; it is done in two parts of SAVE
#define ROW_QR 72
#define ROW_BC 40

extern "C" __global__ void __launch_bounds__(THREADS, 3) backward(const __grid_constant__ Args a) {
  __shared__ __align__(16) struct {
    // As they came; `both` are B and C.
    bf16 u[BACK][CH], delta[BACK][CH], z[BACK][CH], y[BACK][CH], dy[BACK][CH], both[BACK][2 * N];
    // Of this tile and the next: states before each part, n and n + 8 in a word.
    u32 before[2][BACK / SAVE][CH][N / 2];
    float dt[BACK][ROW], dtu[BACK][ROW], g[BACK][ROW];  // Δ, Δ u, gradient of C h + D u
    float b[BACK][ROW_N], c[BACK][ROW_N];               // states n and n + 8 side by side
    float sums[BACK][ROW_QR];                           // over states, of what becomes du, and of what becomes dΔ
    float sums_bc[THREADS / 32][BACK][ROW_BC];          // over a warp's channels: dB and dC of states n and n + 8
    float bias[CH], skip[CH];
    u8 resets[BACK];
  } s;
  const Job job(a);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int mine = warp * 8 + 2 * q;  // this thread's channels: two; its states are g and g + 8
  const bool live = job.first + mine < a.d;
  const Masks masks(g, q);
  // Rows 2 q and 2 q + 1 of a product take their lane's two values.
  float unit[4] = {g == 2 * q ? 1.0f : 0.0f, 0.0f, g == 2 * q + 1 ? 1.0f : 0.0f, 0.0f};
  // By way of memory, so that the compiler keeps them together.
  copy_floats<4>(unit, s.dt[0] + threadIdx.x * 4);
  __syncthreads();
  copy_floats<4>(s.dt[0] + threadIdx.x * 4, unit);
  load_channels(a.delta_bias, a, job, s.bias);
  load_channels(a.skip, a, job, s.skip);

  // Element 2 r + c: state g + 8 r, channel c.
  float a2[4], dh[4], da[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    i64 at = (job.first + mine + i % 2) * N + g + i / 2 * 8;
    a2[i] = live ? LOG2_E * a.a[at] : 0.0f;
    dh[i] = da[i] = 0.0f;
    if (!live) continue;
    if (a.starts != nullptr) {
      dh[i] = a.starts[(job.row * a.chunks + job.chunk) * a.d * N + at];
    } else if (a.dlast != nullptr) {
      dh[i] = a.dlast[job.row * a.d * N + at];
    }
  }

  const int tiles = int((job.to - job.from + BACK - 1) / BACK);
  const i64 t_last = job.from + i64(tiles - 1) * BACK;
  // Copies: 8 channels of one position of three matrices a thread.
  const int t_copied = threadIdx.x % 64 / 4, part = threadIdx.x % 4, side = threadIdx.x / 64;
  const i64 r_copied = job.row * a.l + t_last + t_copied;
  const bf16* from0 = (side == 0 ? a.u : a.delta).row(r_copied) + job.first + part * 8;
  const bf16* from1 = side == 1 ? a.dy.row(r_copied) + job.first + part * 8
                      : GATED   ? a.z.row(r_copied) + job.first + part * 8
                                : nullptr;
  const bf16* from2 = side == 1  ? (part < 2 ? a.b.row(r_copied) : a.c.row(r_copied)) + part % 2 * 8
                      : GATED    ? a.y.row(r_copied) + job.first + part * 8
                                 : nullptr;
  const int stride0 = int(side == 0 ? a.u.stride : a.delta.stride), stride1 = int(side == 0 ? a.z.stride : a.dy.stride);
  const int stride2 = int(side == 0 ? a.y.stride : part < 2 ? a.b.stride : a.c.stride);
  int real_copied = int(job.end - t_last) - t_copied;
  const bool copied_live = job.first + part * 8 < a.d;
  // And 8 states of a channel before one of the parts.
  const int saved_stride = int(a.d * (N / 2));
  const bool saved_live = job.first + threadIdx.x % 64 / 2 < a.d;
  const u32* saved_at = reinterpret_cast<const u32*>(a.saved) + job.first * (N / 2) + threadIdx.x % 64 * 4 +
                        (job.row * ((a.l + SAVE - 1) / SAVE) + t_last / SAVE + side) * saved_stride;
  int saved_left = int(job.to - t_last);
  auto fetch = [&](int tile) {
    bool inside = real_copied > 0, there = inside && copied_live;
    copy_async((side == 0 ? s.u : s.delta)[t_copied] + part * 8, from0, there);
    if (GATED || side == 1) copy_async((side == 0 ? s.z : s.dy)[t_copied] + part * 8, from1, there);
    if (GATED || side == 1) {
      copy_async((side == 0 ? s.y : s.both)[t_copied] + part * 8, from2, side == 0 ? there : inside);
    }
    from0 = ahead_by(from0, stride0, -BACK), from1 = ahead_by(from1, stride1, -BACK);
    from2 = ahead_by(from2, stride2, -BACK), real_copied += BACK;
    copy_async(&s.before[tile % 2][side][0][0] + threadIdx.x % 64 * 4, saved_at, saved_live && side * SAVE < saved_left);
    saved_at = ahead_by(saved_at, saved_stride, -(BACK / SAVE)), saved_left += BACK;
  };

  // Everything else of activations: 4 channels of one position.
  const int t_mine = threadIdx.x / 8, c_mine = threadIdx.x % 8 * 4;
  const bool c_live = job.first + c_mine < a.d;
  const i64 r = job.row * a.l + t_last + t_mine;
  bf16* du_at = a.du.row(r) + job.first + c_mine;
  bf16* ddelta_at = a.ddelta.row(r) + job.first + c_mine;
  bf16* dz_at = GATED ? a.dz.row(r) + job.first + c_mine : nullptr;
  const int du_stride = int(a.du.stride), ddelta_stride = int(a.ddelta.stride), dz_stride = int(a.dz.stride);
  float* partial_at =
      a.partial_bc + ((i64(blockIdx.x) * a.batch + job.row) * a.l + t_last + t_mine) * (2 * N) + threadIdx.x % 8 * 4;
  int left = int(job.to - t_last), real = int(job.end - t_last);
  float sum_bias[4] = {0.0f, 0.0f, 0.0f, 0.0f}, sum_skip[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  uint2 u_now;

  auto prepare = [&]() {
    float uu[4], raw[4], bb[4], dt[4], gg[4];
    u_now = *reinterpret_cast<const uint2*>(s.u[t_mine] + c_mine);
    widen4(u_now, uu);
    widen4(*reinterpret_cast<const uint2*>(s.delta[t_mine] + c_mine), raw);
    widen4(*reinterpret_cast<const uint2*>(s.dy[t_mine] + c_mine), gg);
    copy_floats<4>(s.bias + c_mine, bb);
    bool inside = t_mine < real;
#pragma unroll
    for (int k = 0; k < 4; ++k) raw[k] += bb[k];
    if (real < BACK && !inside) raw[0] = raw[1] = raw[2] = raw[3] = -1e30f;
    step_sizes<4>(a, raw, inside, dt);
    copy_floats<4>(dt, s.dt[t_mine] + c_mine);
#pragma unroll
    for (int k = 0; k < 4; ++k) dt[k] = rounded(dt[k] * uu[k]);
    copy_floats<4>(dt, s.dtu[t_mine] + c_mine);
    if (GATED) {
      float zz[4], dz[4];
      widen4(*reinterpret_cast<const uint2*>(s.z[t_mine] + c_mine), zz);
      widen4(*reinterpret_cast<const uint2*>(s.y[t_mine] + c_mine), dz);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        // y silu'(z) / silu(z).
        float z = not_zero(zz[k]), sig = sigmoid(z);
        dz[k] *= gg[k] * (fast_rcp(z) + (1.0f - sig));
        gg[k] *= z * sig;
      }
      if (t_mine < left && c_live) {
        *reinterpret_cast<uint2*>(dz_at) = make_uint2(pack_bf16(dz[0], dz[1]), pack_bf16(dz[2], dz[3]));
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) sum_skip[k] += gg[k] * uu[k], gg[k] = nearest(gg[k]);
    copy_floats<4>(gg, s.g[t_mine] + c_mine);
    {
      // Half of the threads B, half C: states n, n + 1, n + 8 and n + 9.
      int n = threadIdx.x % 4 * 2;
      const u32* from = reinterpret_cast<const u32*>(s.both[t_mine] + threadIdx.x % 8 / 4 * N + n);
      float x[4] = {low_bf16(from[0]), low_bf16(from[4]), high_bf16(from[0]), high_bf16(from[4])};
      copy_floats<4>(x, (threadIdx.x % 8 < 4 ? s.b : s.c)[t_mine] + 2 * n);
    }
    if (SEGMENTS && threadIdx.x < BACK) {
      s.resets[threadIdx.x] = int(threadIdx.x) < real && a.resets[job.row * a.l + job.to - left + threadIdx.x] != 0;
    }
  };

  fetch(tiles - 1);
  copies_done();
  __syncthreads();
  prepare();
  for (int tile = tiles - 1;; --tile) {
    __syncthreads();
    if (tile > 0) fetch(tile - 1);

#pragma unroll 1
    for (int at = SAVE; at >= 0; at -= SAVE) {
      if (at < left) {
        const float* dt_at = s.dt[at] + mine;
        const float* dtu_k = s.dtu[at + q] + warp * 8 + g;
        const float* g_k = s.g[at + q] + warp * 8 + g;
        const float* dtu_column = s.dtu[at + g / 2] + mine + g % 2;
        const float* g_column = s.g[at + g / 2] + mine + g % 2;
        const float* b_k = s.b[at + q] + 2 * g;
        const float* c_k = s.c[at + q] + 2 * g;
        const float* b_at = s.b[at] + 2 * g;
        // The states once more.
        float h[SAVE][4], e[SAVE][4], sum_c[SAVE / 4][2];
        const u32 first0 = s.before[tile % 2][at / SAVE][mine][g], first1 = s.before[tile % 2][at / SAVE][mine + 1][g];
        const float h_before[4] = {low_bf16(first0), low_bf16(first1), high_bf16(first0), high_bf16(first1)};
#pragma unroll
        for (int t4 = 0; t4 < SAVE; t4 += 4) {
          float2 b_any = *reinterpret_cast<const float2*>(b_k + t4 * ROW_N);
          float dtu_any = dtu_k[t4 * ROW], gs = g_column[t4 * ROW];
          float c0[4] = {0.0f, 0.0f, 0.0f, 0.0f}, c8[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
          for (int t = t4; t < t4 + 4; ++t) {
            float2 step = *reinterpret_cast<const float2*>(dt_at + t * ROW);
            bool reset = SEGMENTS && s.resets[at + t];
            // Apart from what it is added to, so that one position need not wait for the product of the one before.
            h[t][0] = h[t][1] = h[t][2] = h[t][3] = 0.0f;
            mma4(h[t], b_any.x, b_any.y, masked(dtu_any, masks.k[t - t4]));
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              e[t][i] = fast_exp2((i % 2 ? step.y : step.x) * a2[i]);
              if (reset) e[t][i] = 0.0f;
              h[t][i] += e[t][i] * (t == 0 ? h_before[i] : h[t == 0 ? 0 : t - 1][i]);
            }
            float g_now = gs * masks.column[t - t4];
            mma4(c0, h[t][0], h[t][1], g_now);
            mma4(c8, h[t][2], h[t][3], g_now);
          }
          sum_c[t4 / 4][0] = c0[0] + c0[3], sum_c[t4 / 4][1] = c8[0] + c8[3];
        }
        // The gradients, backwards.
#pragma unroll
        for (int t4 = SAVE - 4; t4 >= 0; t4 -= 4) {
          float2 c_any = *reinterpret_cast<const float2*>(c_k + t4 * ROW_N);
          float g_any = g_k[t4 * ROW], dtus = dtu_column[t4 * ROW];
          float b0[4] = {0.0f, 0.0f, 0.0f, 0.0f}, b8[4] = {0.0f, 0.0f, 0.0f, 0.0f};
          float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
          for (int j = 3; j >= 0; --j) {
            int t = t4 + j;
            float2 step = *reinterpret_cast<const float2*>(dt_at + t * ROW);
            float2 b = *reinterpret_cast<const float2*>(b_at + t * ROW_N);
            mma4(dh, c_any.x, c_any.y, masked(g_any, masks.k[j]));
            float dtu_now = dtus * masks.column[j];
            mma4(b0, dh[0], dh[1], dtu_now);
            mma4(b8, dh[2], dh[3], dtu_now);
            float q0 = dh[0] * b.x + dh[2] * b.y, q1 = dh[1] * b.x + dh[3] * b.y, w[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              dh[i] *= e[t][i];
              w[i] = dh[i] * (t == 0 ? h_before[i] : h[t == 0 ? 0 : t - 1][i]);
              da[i] += w[i] * (i % 2 ? step.y : step.x);
            }
            float r0 = w[0] * a2[0] + w[2] * a2[2], r1 = w[1] * a2[1] + w[3] * a2[3];
            // Over the lanes g: first to columns, then over these.
            float all_q[4] = {0.0f, 0.0f, 0.0f, 0.0f}, all_r[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            mma8(all_q, unit, q0, q1);
            mma8(all_r, unit, r0, r1);
            mma4(sum, all_q[0] + all_q[1], all_r[0] + all_r[1], masks.column[j]);
          }
          *reinterpret_cast<float2*>(s.sums[at + t4 + q] + 2 * (warp * 8 + g)) = make_float2(sum[0], sum[2]);
          float4 sums_bc = make_float4(b0[0] + b0[3], sum_c[t4 / 4][0], b8[0] + b8[3], sum_c[t4 / 4][1]);
          *reinterpret_cast<float4*>(s.sums_bc[warp][at + t4 + q] + 4 * g) = sums_bc;
        }
      }
    }
    copies_done();
    __syncthreads();

    if (t_mine < left) {
      float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f}, other[4];
#pragma unroll
      for (int w = 0; w < THREADS / 32; ++w) {
        copy_floats<4>(s.sums_bc[w][t_mine] + threadIdx.x % 8 * 4, other);
#pragma unroll
        for (int k = 0; k < 4; ++k) sum[k] += other[k];
      }
      copy_floats<4>(sum, partial_at);
      if (c_live) {
        float qr[8], dt[4], gg[4], skip[4], uu[4], du[4], ddelta[4];
        copy_floats<8>(s.sums[t_mine] + 2 * c_mine, qr);
        copy_floats<4>(s.dt[t_mine] + c_mine, dt);
        copy_floats<4>(s.g[t_mine] + c_mine, gg);
        copy_floats<4>(s.skip + c_mine, skip);
        widen4(u_now, uu);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          du[k] = dt[k] * qr[2 * k] + skip[k] * gg[k];
          float slope = a.softplus ? 1.0f - fast_exp2(-LOG2_E * dt[k]) : t_mine < real ? 1.0f : 0.0f;
          ddelta[k] = (qr[2 * k] * uu[k] + LN_2 * qr[2 * k + 1]) * slope;
          sum_bias[k] += ddelta[k];
        }
        *reinterpret_cast<uint2*>(du_at) = make_uint2(pack_bf16(du[0], du[1]), pack_bf16(du[2], du[3]));
        *reinterpret_cast<uint2*>(ddelta_at) =
            make_uint2(pack_bf16(ddelta[0], ddelta[1]), pack_bf16(ddelta[2], ddelta[3]));
      }
    }
    if (tile == 0) break;
    du_at = ahead_by(du_at, du_stride, -BACK), ddelta_at = ahead_by(ddelta_at, ddelta_stride, -BACK);
    if (GATED) dz_at = ahead_by(dz_at, dz_stride, -BACK);
    partial_at -= BACK * 2 * N;
    left += BACK, real += BACK;
    prepare();
  }

  const i64 chunk = job.row * a.chunks + job.chunk;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    i64 at = (job.first + mine + i % 2) * N + g + i / 2 * 8;
    if (!live) continue;
    a.partial_a.row(chunk)[at] = da[i];
    if (a.dinitial != nullptr && job.chunk == 0) a.dinitial[job.row * a.d * N + at] = dh[i];
  }
  // Over the positions of a tile: each channel's sums by one thread, in order.
  __syncthreads();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    *reinterpret_cast<float2*>(s.sums[t_mine] + 2 * (c_mine + k)) = make_float2(sum_bias[k], sum_skip[k]);
  }
  __syncthreads();
  if (threadIdx.x < CH && job.first + threadIdx.x < a.d) {
    float bias = 0.0f, skip = 0.0f;
    for (int t = 0; t < BACK; ++t) bias += s.sums[t][2 * threadIdx.x], skip += s.sums[t][2 * threadIdx.x + 1];
    a.partial_d.row(chunk)[job.first + threadIdx.x] = bias;
    a.partial_d.row(chunk)[a.d + job.first + threadIdx.x] = skip;
  }
}

// The sums of all groups of channels, dB and dC, and of all chunks of all sequences, of parameters; each in order.
extern "C" __global__ void __launch_bounds__(THREADS) join(const __grid_constant__ Args a) {
  const i64 groups = (a.d + CH - 1) / CH, rows = a.batch * a.l, blocks = (rows * 8 + THREADS - 1) / THREADS;
  if (blockIdx.x < blocks) {
    const i64 i = i64(blockIdx.x) * THREADS + threadIdx.x, r = i / 8;
    if (r >= rows) return;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
    for (i64 group = 0; group < groups; ++group) {
      float4 one = reinterpret_cast<const float4*>(a.partial_bc)[group * rows * 8 + i];
      sum.x += one.x, sum.y += one.y, sum.z += one.z, sum.w += one.w;
    }
    const int n = threadIdx.x % 8;
    a.db.row(r)[n] = from_float<bf16>(sum.x), a.dc.row(r)[n] = from_float<bf16>(sum.y);
    a.db.row(r)[n + 8] = from_float<bf16>(sum.z), a.dc.row(r)[n + 8] = from_float<bf16>(sum.w);
    return;
  }
  i64 i = (blockIdx.x - blocks) * THREADS + threadIdx.x;
  const bool of_a = i < a.d * N;
  if (!of_a) i -= a.d * N;
  if (i >= 2 * a.d && !of_a) return;
  const Mat<float> from = of_a ? a.partial_a : a.partial_d;
  float* to = of_a ? a.da + i : i < a.d ? a.dbias + i : a.dskip + (i - a.d);
  if (!of_a && (i < a.d ? a.dbias : a.dskip) == nullptr) return;
  float sum = 0.0f;
#pragma unroll 4
  for (i64 part = 0; part < a.batch * a.chunks; ++part) sum += from.row(part)[i];
  *to += sum;
}

// What a chunk makes of a state of zeros (FORWARD), or of a state's gradient of zeros behind it, and what it multiplies
// the other by: from the far end of the chunk, Σ (product of the Ā in between) Δ_t B_t u_t, or C_t g_t, until nothing more
// gets through. Here a thread has four states of one channel.
template <bool FORWARD>
__device__ __forceinline__ void ends(const Args& a) {
  __shared__ __align__(16) float2 steps[TILE][CH];  // Δ, and Δ u or g
  __shared__ __align__(16) float factors[TILE][N];  // B or C
  __shared__ float bias[CH];
  __shared__ u8 resets[TILE];
  const Job job(a, FORWARD ? 0 : 1);
  const int channel = threadIdx.x / 4, state = threadIdx.x % 4 * 4;
  const bool live = job.first + channel < a.d;
  load_channels(a.delta_bias, a, job, bias);
  float a2[4], sum[4], product[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a2[i] = live ? LOG2_E * a.a[(job.first + channel) * N + state + i] : 0.0f;
    sum[i] = 0.0f, product[i] = 1.0f;
  }
  const int tiles = int((job.to - job.from + TILE - 1) / TILE);
  const int t_mine = threadIdx.x / 4, c_mine = threadIdx.x % 4 * 8;
  const bool c_live = job.first + c_mine < a.d, gated = GATED && !FORWARD;
  uint4 x, delta, z = make_uint4(0, 0, 0, 0);
  uint2 factor;
  auto load = [&](int tile) {
    i64 t = job.from + i64(FORWARD ? tiles - 1 - tile : tile) * TILE + t_mine, r = job.row * a.l + t;
    x = make_uint4(0, 0, 0, 0), delta = make_uint4(PADDING, PADDING, PADDING, PADDING), factor = make_uint2(0, 0);
    if (tile >= tiles || t >= job.end) return;
    factor = *reinterpret_cast<const uint2*>((FORWARD ? a.b : a.c).row(r) + state);
    if (!c_live) return;
    x = *reinterpret_cast<const uint4*>((FORWARD ? a.u : a.dy).row(r) + job.first + c_mine);
    delta = *reinterpret_cast<const uint4*>(a.delta.row(r) + job.first + c_mine);
    if (gated) z = *reinterpret_cast<const uint4*>(a.z.row(r) + job.first + c_mine);
  };
  load(0);
  __syncthreads();
  for (int tile = 0; tile < tiles; ++tile) {
    i64 t0 = job.from + i64(FORWARD ? tiles - 1 - tile : tile) * TILE;
    float xx[8], raw[8], dt[8], zz[8];
    widen8(x, xx);
    widen8(delta, raw);
    widen8(z, zz);
#pragma unroll
    for (int k = 0; k < 8; ++k) raw[k] += bias[c_mine + k];
    step_sizes<8>(a, raw, t0 + t_mine < job.end, dt);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      steps[t_mine][c_mine + k] = make_float2(dt[k], FORWARD ? dt[k] * xx[k] : gated ? silu(zz[k]) * xx[k] : xx[k]);
    }
    widen4(factor, xx);
    copy_floats<4>(xx, factors[t_mine] + state);
    if (SEGMENTS && threadIdx.x < TILE) {
      i64 t = t0 + threadIdx.x;
      resets[threadIdx.x] = t < job.end && a.resets[job.row * a.l + t] != 0;
    }
    __syncthreads();
    load(tile + 1);
#pragma unroll 8
    for (int k = 0; k < TILE; ++k) {
      int t = FORWARD ? TILE - 1 - k : k;
      float2 step = steps[t][channel];
      float f[4];
      copy_floats<4>(factors[t] + state, f);
      bool reset = SEGMENTS && resets[t];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float decay = reset ? 0.0f : fast_exp2(step.x * a2[i]);
        if (!FORWARD) product[i] *= decay;
        sum[i] += product[i] * (step.y * f[i]);
        if (FORWARD) product[i] *= decay;
      }
    }
    float most = fmaxf(fmaxf(fabsf(product[0]), fabsf(product[1])), fmaxf(fabsf(product[2]), fabsf(product[3])));
    if (__syncthreads_or(live && !(most < 0x1p-64f)) == 0) break;
  }
  if (!live) return;
  i64 at = ((job.row * a.chunks + job.chunk) * a.d + job.first + channel) * N + state;
  copy_floats<4>(sum, a.ends + at);
  copy_floats<4>(product, a.decays + at);
}
// For all chunks but the last, and for all but the first.
extern "C" __global__ void __launch_bounds__(THREADS) forward_ends(const __grid_constant__ Args a) { ends<true>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) backward_ends(const __grid_constant__ Args a) { ends<false>(a); }

// The states before all chunks, one after another; in REVERSE the gradients behind them, from the last.
template <bool REVERSE>
__device__ __forceinline__ void chain(const Args& a, const float* first) {
  const i64 at = i64(blockIdx.x) * THREADS + threadIdx.x, size = a.d * N;
  if (at >= a.batch * size) return;
  const i64 row = at / size;
  float h = first != nullptr ? first[at] : 0.0f;
#pragma unroll 4
  for (i64 k = 0; k < a.chunks; ++k) {
    i64 i = (row * a.chunks + (REVERSE ? a.chunks - 1 - k : k)) * size + at % size;
    a.starts[i] = h;
    if (k + 1 < a.chunks) h = a.decays[i] * h + a.ends[i];
  }
}
extern "C" __global__ void __launch_bounds__(THREADS) chain_forward(const __grid_constant__ Args a) {
  chain<false>(a, a.initial);
}
extern "C" __global__ void __launch_bounds__(THREADS) chain_backward(const __grid_constant__ Args a) {
  chain<true>(a, a.dlast);
}
