// The backward on tensor cores; see tensor.cuh.

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
  // Through memory, so that the compiler keeps them together.
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
        // The states recomputed.
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
            // In a separate accumulator, so that one position need not wait for the product of the previous one.
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
