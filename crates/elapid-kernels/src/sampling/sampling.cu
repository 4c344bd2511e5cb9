// The next token of every row, a block a row. T is the format of logits.
//
// sample: best, least = extremes of the penalised logits
//         in order of ids (only min-p cuts):       id = where bits / 2^64 of the mass falls
//         best first (top-k or top-p cuts, too):   mass = the smallest of the mass of the best k, of the nucleus, and of
//                                                  what min-p leaves; id = where bits / 2^64 of it falls
//
// Masses are integers, in units of 2^-44 of the best token's: sums are exact, so that they are the same in any order and
// atomics may add them. A token of less than half a unit weighs nothing: all of them together are below 2^-26 of the mass.
// Nothing is sorted but the tokens near the place looked for (`descend`): a histogram over the logits' range says in
// which of 2048 bins it lies; the bin's tokens are sorted if they are a block's threads at most, else the bin is cut
// again, by the order of their bits, until they are few or all equal.

// How a row draws. On the device, so that a captured launch serves rows that come and go.
struct Draw {
  u64 seed;
  u64 sample;
  u64 position;      // how many tokens were read
  u16* counts;       // [v]: how often each token was generated; null without such a penalty
  u64 top_k;         // v for all
  double top_p;      // 1 for all
  double log_min_p;  // -inf for all
  float temperature;
  float repetition;
  float presence;
  float frequency;
  u64 active;  // 0: nobody's row
};

struct Args {
  Mat<T> logits;  // [b v]
  u32* ids;       // [b]
  Draw* draws;    // [b]
  u32* recent;    // [b RECENT]: token p of a row is in column p % RECENT
  i64 v;
};

#define THREADS 1024
#define WARPS (THREADS / 32)
#define BINS (2 * THREADS)
#define RECENT 256
#define ALL 0xffffffffu
#define MAX_FLOAT 3.40282347e38f

struct Shared {
  Draw draw;
  u64 mass[BINS];
  u64 list[THREADS];
  u64 sums[WARPS];
  u64 counts[WARPS];
  float best[WARPS];
  float least[WARPS];
  u32 who[WARPS];
  u32 count[BINS];
  u64 mass_before;
  u64 mass_found;
  u64 count_before;
  u32 found;
  u32 listed;
  u32 low;
  u32 high;
};
static_assert(sizeof(Shared) == 33784, "what a launch has before the bits of tokens");

// The larger logit, the smaller id of equals.
__device__ __forceinline__ void better(float& x, u32& id, float y, u32 other) {
  if (y > x || (y == x && other < id)) x = y, id = other;
}

__device__ __forceinline__ void best_of_warp(float& x, u32& id) {
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) {
    float y = __shfl_xor_sync(ALL, x, lane);
    u32 other = __shfl_xor_sync(ALL, id, lane);
    better(x, id, y, other);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) greedy(const __grid_constant__ Args a) {
  __shared__ float best[WARPS];
  __shared__ u32 who[WARPS];
  const T* row = a.logits.row(blockIdx.x);
  float x = -__int_as_float(0x7f800000);
  u32 id = ALL;
  bool finite = true;
  for (i64 j = threadIdx.x; j < a.v; j += THREADS) {
    float y = to_float(row[j]);
    better(x, id, y, u32(j));
    finite &= fabsf(y) <= MAX_FLOAT;
  }
  best_of_warp(x, id);
  if (threadIdx.x % 32 == 0) best[threadIdx.x / 32] = x, who[threadIdx.x / 32] = id;
  finite = __syncthreads_and(finite);
  if (threadIdx.x != 0) return;
  for (int w = 1; w < WARPS; ++w) better(x, id, best[w], who[w]);
  // A logit that is not finite leaves no likeliest token: an id that no vocabulary has.
  a.ids[blockIdx.x] = finite ? id : ALL;
}

// Ascending with the number.
__device__ __forceinline__ u32 key_of(float z) {
  u32 bits = __float_as_uint(z);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float of_key(u32 key) { return __uint_as_float(key >> 31 ? key ^ 0x80000000u : ~key); }

// A row of logits as it is sampled from.
struct Row {
  const T* logits;
  const u32* marked;  // null without a repetition penalty
  bool counted;       // whether there is a presence or frequency penalty
  const Draw* draw;
  int v;
  // Halves, so that no difference overflows.
  float top;          // half the best logit
  float temperature;  // half of it
  float range;        // what lies further below the top weighs nothing
  float scale;        // bins a unit

  __device__ __forceinline__ float at(int j) const {
    float z = to_float(logits[j]);
    // What is not finite stays so.
    if (marked && marked[j / 32] >> (j % 32) & 1 && fabsf(z) <= MAX_FLOAT) {
      z = fminf(fmaxf(z > 0.0f ? z / draw->repetition : z * draw->repetition, -MAX_FLOAT), MAX_FLOAT);
    }
    u32 count = counted ? draw->counts[j] : 0;
    if (count > 0 && fabsf(z) <= MAX_FLOAT) {
      // Rounded as on the CPU: no fused multiply-add.
      float penalty = __fadd_rn(__fmul_rn(draw->frequency, float(count)), draw->presence);
      z = fminf(fmaxf(__fsub_rn(z, penalty), -MAX_FLOAT), MAX_FLOAT);
    }
    return z + 0.0f;  // -0 is 0
  }
  __device__ __forceinline__ float below(float z) const { return fmaf(-0.5f, z, top); }
  __device__ __forceinline__ u64 weight(float z) const {
    return __float2ull_rn(expf(-below(z) / temperature) * 17592186044416.0f);
  }
  // -1 for what weighs nothing.
  __device__ __forceinline__ int bin(float z) const {
    float d = below(z);
    return d <= range ? min(int(d * scale), BINS - 1) : -1;
  }
};

// Calls f(j, logit j) for all tokens, several loads in flight.
template <typename F>
__device__ __forceinline__ void each(const Row& row, F f) {
  constexpr int N = 8;
  for (int base = threadIdx.x; base < row.v; base += N * THREADS) {
    float z[N];
#pragma unroll
    for (int i = 0; i < N; ++i) z[i] = base + i * THREADS < row.v ? row.at(base + i * THREADS) : 0.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (base + i * THREADS < row.v) f(base + i * THREADS, z[i]);
    }
  }
}

__device__ __forceinline__ u64 warp_total(u64 x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(ALL, x, lane);
  return x;
}
__device__ __forceinline__ u64 warp_prefix(u64 x) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    u64 y = __shfl_up_sync(ALL, x, by);
    if (lane >= by) x += y;
  }
  return x;
}

// What all threads before have of x, and in `total` what all have.
__device__ __forceinline__ u64 block_before(u64 x, u64* sums, u64& total) {
  u64 upto = warp_prefix(x);
  __syncthreads();
  if (threadIdx.x % 32 == 31) sums[threadIdx.x / 32] = upto;
  __syncthreads();
  u64 warps = warp_prefix(threadIdx.x % 32 < WARPS ? sums[threadIdx.x % 32] : 0);
  total = __shfl_sync(ALL, warps, 31);
  u64 before = __shfl_sync(ALL, warps, (threadIdx.x / 32 + 31) % 32);
  return (threadIdx.x < 32 ? 0 : before) + upto - x;
}

// The token that place `target` of the sum of f falls on, in order of ids. `targets` makes the place from the sum.
template <typename F, typename G>
__device__ u32 in_order(const Row& row, Shared& s, F f, G targets) {
  int from = 0, to = row.v, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  u64 target = 0;
  // Each warp sums a piece, then the piece that has the target is cut in turn.
  for (bool whole = true;; whole = false) {
    int piece = (to - from + WARPS - 1) / WARPS;
    int start = from + warp * piece, end = min(start + piece, to);
    u64 sum = 0;
#pragma unroll 8
    for (int j = start + lane; j < end; j += 32) sum += f(row.at(j));
    sum = warp_total(sum);
    __syncthreads();
    if (lane == 0) s.sums[warp] = sum;
    __syncthreads();
    u64 own = lane < WARPS ? s.sums[lane] : 0, upto = warp_prefix(own);
    if (whole) target = targets(__shfl_sync(ALL, upto, 31));
    // The sum is above the target, so that there is such a piece.
    int chosen = __ffs(__ballot_sync(ALL, upto > target)) - 1;
    target -= __shfl_sync(ALL, upto - own, chosen);
    from += chosen * piece, to = min(from + piece, to);
    if (piece == 1) return from;
  }
}

// The bin that place `target` falls on, by number of tokens if `by_count`, else by mass: s.found and what is before it.
__device__ __forceinline__ void find(Shared& s, bool by_count, u64 target) {
  int first = 2 * threadIdx.x;
  u64 mass[2] = {s.mass[first], s.mass[first + 1]}, count[2] = {s.count[first], s.count[first + 1]}, total;
  u64 mass_before = block_before(mass[0] + mass[1], s.sums, total);
  u64 count_before = block_before(count[0] + count[1], s.counts, total);
  for (int i = 0; i < 2; ++i) {
    u64 before = by_count ? count_before : mass_before, size = by_count ? count[i] : mass[i];
    if (before <= target && target - before < size) {
      s.found = first + i, s.mass_before = mass_before, s.count_before = count_before;
    }
    mass_before += mass[i], count_before += count[i];
  }
  __syncthreads();
}

// Number and mass of tokens in bins; those whose bin is negative are in none. What f gives of the mass is summed up.
template <typename B, typename F>
__device__ __forceinline__ void histogram(const Row& row, Shared& s, B bin, F f) {
  for (int i = threadIdx.x; i < BINS; i += THREADS) s.mass[i] = 0, s.count[i] = 0;
  __syncthreads();
  each(row, [&](int, float z) {
    int i = bin(z);
    if (i < 0) return;
    u64 weight = row.weight(z);
    atomicAdd(&s.count[i], 1u);
    atomicAdd(&s.mass[i], weight);
    f(z, weight);
  });
  __syncthreads();
}

// The token that place `target` falls on, best first, and the mass up to and with it. The place is by number if `by_count`,
// else by mass. `fresh` says whether the histogram is that of `Row::bin`.
__device__ u32 descend(const Row& row, Shared& s, bool by_count, u64 target, bool& fresh, u64& upto) {
  if (!fresh) histogram(row, s, [&](float z) { return row.bin(z); }, [](float, u64) {});
  fresh = true;
  find(s, by_count, target);
  int bin = s.found;
  u64 mass = s.mass_before;
  target -= by_count ? s.count_before : mass;
  u32 n = s.count[bin], low = 0, high = ALL;
  // A bin of too many: those of the keys low..=high.
  for (bool cut = false; n > THREADS; cut = true) {
    auto inside = [&](float z) {
      u32 key = key_of(z);
      return cut ? key >= low && key <= high : row.bin(z) == bin;
    };
    __syncthreads();
    if (threadIdx.x == 0) s.low = ALL, s.high = 0;
    __syncthreads();
    u32 least = ALL, most = 0;
    each(row, [&](int, float z) {
      if (inside(z)) least = min(least, key_of(z)), most = max(most, key_of(z));
    });
    atomicMin(&s.low, least);
    atomicMax(&s.high, most);
    __syncthreads();
    fresh = false, bin = -1, low = s.low, high = s.high;
    if (low == high) {
      u64 each_has = row.weight(of_key(low)), nth = by_count ? target : target / each_has;
      upto = mass + (nth + 1) * each_has;
      auto is = [&](float z) -> u64 { return key_of(z) == low; };
      return in_order(row, s, is, [&](u64) { return nth; });
    }
    int shift = max(0, 32 - __clz(high - low) - 11);
    auto digit = [&](float z) {
      u32 key = key_of(z);
      return key >= low && key <= high ? int((high - key) >> shift) : -1;
    };
    histogram(row, s, digit, [](float, u64) {});
    find(s, by_count, target);
    u32 found = s.found;
    mass += s.mass_before, target -= by_count ? s.count_before : s.mass_before, n = s.count[found];
    u32 width = (1u << shift) - 1;
    high -= found << shift, low = high - low > width ? high - width : low;
  }
  // The tokens as numbers that ascend from the best.
  if (threadIdx.x == 0) s.listed = 0;
  s.list[threadIdx.x] = ~0ull;
  __syncthreads();
  each(row, [&](int j, float z) {
    u32 key = key_of(z);
    if (bin >= 0 ? row.bin(z) == bin : key >= low && key <= high) {
      s.list[atomicAdd(&s.listed, 1u)] = u64(~key) << 32 | u32(j);
    }
  });
  __syncthreads();
  u32 me = threadIdx.x, size = 1;
  while (size < n) size *= 2;
  for (u32 k = 2; k <= size; k *= 2) {
    for (u32 j = k / 2; j > 0; j /= 2) {
      u32 other = me ^ j;
      if (other > me && other < size) {
        u64 x = s.list[me], y = s.list[other];
        if ((x > y) == ((me & k) == 0)) s.list[me] = y, s.list[other] = x;
      }
      __syncthreads();
    }
  }
  u64 token = s.list[me], total;
  u64 weight = me < n ? row.weight(of_key(~u32(token >> 32))) : 0;
  u64 before = block_before(weight, s.sums, total);
  if (me < n && (by_count ? me == target : before <= target && target - before < weight)) {
    s.found = u32(token), s.mass_found = mass + before + weight;
  }
  __syncthreads();
  upto = s.mass_found;
  return s.found;
}

// Sets the bits of the tokens that a row has read lately.
__device__ __forceinline__ void mark(const Args& a, u32* marked) {
  for (i64 i = threadIdx.x; i < (a.v + 31) / 32; i += THREADS) marked[i] = 0;
  __syncthreads();
  if (threadIdx.x < RECENT) {
    u32 id = a.recent[i64(blockIdx.x) * RECENT + threadIdx.x];
    if (id < a.v) atomicOr(&marked[id / 32], 1u << (id % 32));
  }
  __syncthreads();
}

// The best token and what belongs to its logit; the largest u32 if a logit is not finite.
__device__ __forceinline__ u32 survey(Row& row, Shared& s, float temperature) {
  float infinity = __int_as_float(0x7f800000), x = -infinity, least = infinity;
  u32 id = ALL;
  bool finite = true;
  each(row, [&](int j, float z) {
    better(x, id, z, u32(j));
    least = fminf(least, z);
    finite &= fabsf(z) <= MAX_FLOAT;
  });
  best_of_warp(x, id);
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) least = fminf(least, __shfl_xor_sync(ALL, least, lane));
  if (threadIdx.x % 32 == 0) s.best[threadIdx.x / 32] = x, s.least[threadIdx.x / 32] = least, s.who[threadIdx.x / 32] = id;
  if (!__syncthreads_and(finite)) return ALL;
  x = s.best[0], least = s.least[0], id = s.who[0];
  for (int w = 1; w < WARPS; ++w) better(x, id, s.best[w], s.who[w]), least = fminf(least, s.least[w]);
  row.top = 0.5f * x;
  row.temperature = 0.5f * temperature;
  // e^-32 is less than half a unit. Not 0, so that `scale` is a number.
  row.range = fmaxf(fminf(row.below(least), 32.0f * row.temperature), 1e-30f);
  row.scale = BINS / row.range;
  return id;
}

extern "C" __global__ void __launch_bounds__(THREADS) sample(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  // In shared memory, because registers are full.
  if (threadIdx.x == 0) s.draw = a.draws[blockIdx.x];
  __syncthreads();
  const Draw& d = s.draw;
  if (!d.active) {
    if (threadIdx.x == 0) a.ids[blockIdx.x] = 0;
    return;
  }
  uint4 words = philox(d.seed, d.sample, d.position);
  u64 bits = u64(words.x) << 32 | words.y;
  bool penalised = d.repetition != 1.0f;
  u32* marked = reinterpret_cast<u32*>(memory + sizeof(Shared));
  if (penalised) mark(a, marked);
  Row row = {a.logits.row(blockIdx.x), penalised ? marked : nullptr, d.counts != nullptr, &d, int(a.v)};
  u32 id = survey(row, s, d.temperature);
  if (id != ALL && d.temperature > 0.0f && d.top_k > 1) {
    // The smallest float that min-p leaves.
    float floor = __double2float_ru(2.0 * double(row.top) + double(d.temperature) * d.log_min_p);
    auto share = [&](u64 mass) { return __umul64hi(bits, mass); };
    if (d.top_k >= u64(a.v) && d.top_p >= 1.0) {
      id = in_order(row, s, [&](float z) { return z >= floor ? row.weight(z) : 0; }, share);
    } else {
      u64 all = 0, above = 0, count = 0, mass, mass_above;
      histogram(row, s, [&](float z) { return row.bin(z); }, [&](float z, u64 weight) {
        all += weight, above += z >= floor ? weight : 0, count += 1;
      });
      block_before(all, s.sums, mass);
      block_before(above, s.sums, mass_above);
      block_before(count, s.sums, count);
      bool fresh = true;
      if (d.top_k < count) descend(row, s, true, d.top_k - 1, fresh, mass);
      // A token is in the nucleus if what is before it is less than the limit.
      if (d.top_p < 1.0) descend(row, s, false, u64(ceil(d.top_p * double(mass))) - 1, fresh, mass);
      id = descend(row, s, false, share(min(mass, mass_above)), fresh, mass);
    }
  }
  if (threadIdx.x != 0) return;
  a.ids[blockIdx.x] = id;
  a.recent[i64(blockIdx.x) * RECENT + d.position % RECENT] = id;
  a.draws[blockIdx.x].position = d.position + 1;
  if (d.counts && id < a.v && d.counts[id] < 65535) d.counts[id] += 1;
}
