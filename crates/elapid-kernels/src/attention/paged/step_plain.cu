// A step in plain sums: any format and width. A block goes over its pages one by one, keys and values in turn in the same
// shared memory.

#define THREADS 128
#define STRIDE ((HK > HV ? HK : HV) | 1)

extern "C" __global__ void __launch_bounds__(THREADS) step(const __grid_constant__ Step s) {
  extern __shared__ __align__(16) float memory[];
  const Args& a = s.a;
  let_next_start();
  wait_for_previous();
  Part part(s);
  if (part.split >= part.active) return;
  int heads = part.heads(a), first = part.first_head(a), t = part.t, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  float *tile = memory, *q = tile + PAGE * STRIDE, *o = q + HB * HK, *p = o + HB * HV, *top = p + HB * PAGE, *sum = top + HB;
  float* by = sum + HB;
  for (int i = threadIdx.x; i < heads * HK; i += THREADS) q[i] = to_float(a.q.row(part.row)[first * HK + i]);
  for (int i = threadIdx.x; i < heads * HV; i += THREADS) o[i] = 0.0f;
  for (int i = threadIdx.x; i < heads; i += THREADS) top[i] = -INF, sum[i] = 0.0f;
  if (part.page(part.to - 1) == t / PAGE) {
    append(s, part, 0, THREADS);
    __threadfence();
  }
  __syncthreads();

  for (int i = part.from; i < part.to; ++i) {
    int page = part.page(i), s0 = page * PAGE, valid = min(t + 1 - s0, PAGE);
    u64 keys = s.keys.page(part.row, page), values = s.values.page(part.row, page);
    if (!keys || !values) continue;
    const T *k = reinterpret_cast<const T*>(keys) + i64(part.kv) * PAGE * HK;
    const T *v = reinterpret_cast<const T*>(values) + i64(part.kv) * PAGE * HV;
    for (int j = threadIdx.x; j < valid * HK; j += THREADS) tile[j / HK * STRIDE + j % HK] = to_float(k[j]);
    __syncthreads();
    for (int j = threadIdx.x; j < heads * PAGE; j += THREADS) {
      int h = j / PAGE, at = j % PAGE;
      float x = -INF;
      if (at < valid && sees(a, t, s0 + at)) {
        x = 0.0f;
        for (int c = 0; c < HK; ++c) x += q[h * HK + c] * tile[at * STRIDE + c];
        float gradient;
        x = score(a, x, alibi_slope(a, first + h), t - s0 - at, &gradient);
      }
      p[j] = x;
    }
    __syncthreads();
    for (int j = threadIdx.x; j < valid * HV; j += THREADS) tile[j / HV * STRIDE + j % HV] = to_float(v[j]);
    for (int h = warp; h < heads; h += THREADS / 32) {
      float *row = p + h * PAGE, before = top[h];
      float now = fmaxf(before, warp_max(fmaxf(row[lane], row[lane + 32]))), off = now == -INF ? 0.0f : now;
      float low = fast_exp2(row[lane] - off), high = fast_exp2(row[lane + 32] - off);
      row[lane] = low, row[lane + 32] = high;
      float all = warp_sum(low + high);
      if (lane == 0) by[h] = fast_exp2(before - off), sum[h] = sum[h] * by[h] + all, top[h] = now;
    }
    __syncthreads();
    for (int j = threadIdx.x; j < heads * HV; j += THREADS) {
      int h = j / HV, c = j - h * HV;
      float x = o[j] * by[h];
      for (int at = 0; at < valid; ++at) x += p[h * PAGE + at] * tile[at * STRIDE + c];
      o[j] = x;
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < heads * (HV + 2); i += THREADS) {
    int h = i / (HV + 2), col = i - h * (HV + 2);
    part.part(s, h, part.split)[col] = col < HV ? o[h * HV + col] : col == HV ? top[h] : sum[h];
  }
  if (is_last(s, part)) put_together<THREADS>(s, part);
}
