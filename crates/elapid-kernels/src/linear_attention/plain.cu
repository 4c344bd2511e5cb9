// Linear attention without tensor cores: the recurrence, one position after another, all in f32.
//
// A warp has its part of the state in registers and shares nothing: the forward and dv, sums over keys, have COLUMNS columns a warp
// with keys as lanes; dq and dk, sums over columns, have KEYS keys a warp with columns as lanes.
//
//   forward            S forward;     y = Sᵀ q
//   backward_queries   S forward;     dq = S dr
//   backward_keys      dS backward;   dk = dS v, and from q dq - k dk the gradient of the decay
//   backward_values    dS backward;   dv = dSᵀ k
//
// The gradient of log g at r is the sum of q dq - k dk over positions from r on, plus the products of state and gradient at the end
// of the document. The sum begins anew at the end of every SEGMENT positions, with the products there.
//
// KN: keys a lane; VN: columns a lane.

#define COLUMNS 4
#define KEYS 4
#define WARPS 4
#define THREADS (WARPS * 32)
// SEGMENT of cuda.rs.
#define SEGMENT 256

// What a warp works on: `tile` of `tiles` of a head.
struct Unit {
  int b, h, tile, g;
  i64 len, row, state;
  __device__ __forceinline__ bool find(const Args& a, int tiles) {
    i64 unit = i64(blockIdx.x) * WARPS + (threadIdx.x >> 5);
    tile = int(unit % tiles), unit /= tiles;
    h = int(unit % a.heads), unit /= a.heads;
    if (unit >= a.b) return false;
    b = int(unit), g = h / (a.heads / a.groups);
    len = row_length(a, b), row = b * a.l;
    state = (i64(b) * a.heads + h) * a.keys * a.columns;
    return true;
  }
};

// dr, the gradient of Sᵀ q without the factor of products.
__device__ __forceinline__ float read_gradient(const Args& a, const Unit& u, i64 t, int column) {
  i64 at = (i64(u.b) * a.heads + u.h) * a.l + t;
  if (NORM && column == a.values) return a.ddivisors[at];
  float dy = to_float(a.dy.row(u.row + t)[u.h * a.values + column]);
  return NORM ? dy / a.divisors[at] : dy;
}
__device__ __forceinline__ float value(const Args& a, const Unit& u, i64 t, int column) {
  if (NORM && column == a.values) return 1.0f;
  return to_float(a.v.row(u.row + t)[u.h * a.values + column]);
}

extern "C" __global__ void __launch_bounds__(THREADS) forward(const __grid_constant__ Args a) {
  Unit u;
  if (!u.find(a, (a.values + COLUMNS - 1) / COLUMNS)) return;
  int lane = threadIdx.x & 31, first = u.tile * COLUMNS;
  // The normaliser's column is every warp's.
  constexpr int ALL = COLUMNS + NORM;
  int column[ALL];
#pragma unroll
  for (int c = 0; c < ALL; ++c) column[c] = c < COLUMNS ? first + c : a.values;
  float s[KN][ALL], bonus[KN], g[KN];
#pragma unroll
  for (int n = 0; n < KN; ++n) {
    int i = lane + 32 * n;
    bool there = i < a.keys;
    bonus[n] = BONUS && there ? a.bonus[u.h * a.keys + i] : 0.0f;
    g[n] = there && !VARYING ? gate(log_decay(a, 0, u.h, i)) : 1.0f;
#pragma unroll
    for (int c = 0; c < ALL; ++c) {
      bool in = there && (c >= COLUMNS || column[c] < a.values);
      s[n][c] = in && a.initial ? a.initial[u.state + i64(i) * a.columns + column[c]] : 0.0f;
    }
  }
  auto store = [&](float* to) {
#pragma unroll
    for (int n = 0; n < KN; ++n)
#pragma unroll
      for (int c = 0; c < ALL; ++c) {
        int i = lane + 32 * n;
        bool mine = c < COLUMNS ? column[c] < a.values : u.tile == 0;
        if (i < a.keys && mine) to[i64(i) * a.columns + column[c]] = s[n][c];
      }
  };
  i64 segments = (a.l + SEGMENT - 1) / SEGMENT;
  for (i64 t = 0; t < u.len; ++t) {
    i64 row = u.row + t;
    bool fresh = is_reset(a, row);
    float w = write_weight(a, row, u.h), v[ALL], sum[ALL];
#pragma unroll
    for (int c = 0; c < ALL; ++c) {
      v[c] = c >= COLUMNS ? 1.0f : column[c] < a.values ? to_float(a.v.row(row)[u.h * a.values + column[c]]) : 0.0f;
      sum[c] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < KN; ++n) {
      int i = lane + 32 * n;
      bool there = i < a.keys;
      float q = there ? to_float(a.q.row(row)[u.g * a.keys + i]) : 0.0f;
      float k = there ? w * to_float(a.k.row(row)[u.g * a.keys + i]) : 0.0f;
      if (VARYING) g[n] = there ? gate(log_decay(a, row, u.h, i)) : 1.0f;
#pragma unroll
      for (int c = 0; c < ALL; ++c) {
        float before = fresh ? 0.0f : s[n][c], written = k * v[c];
        s[n][c] = g[n] * before + written;
        sum[c] += q * (BONUS ? before + bonus[n] * written : s[n][c]);
      }
    }
#pragma unroll
    for (int c = 0; c < ALL; ++c) sum[c] = a.scale * warp_sum(sum[c]);
    float divisor = NORM ? sum[ALL - 1] + a.eps : 1.0f;
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      if (lane == c && column[c] < a.values) {
        float y = (NORM ? sum[c] / divisor : sum[c]) + skip_weight(a, u.h, column[c]) * v[c];
        a.y.row(row)[u.h * a.values + column[c]] = from_float<T>(y);
      }
    }
    if (NORM && a.divisors && u.tile == 0 && lane == 0) a.divisors[(i64(u.b) * a.heads + u.h) * a.l + t] = divisor;
    bool ends = (t + 1) % SEGMENT == 0 || t + 1 == u.len;
    if (a.states && ends) store(a.states + u.state * segments + t / SEGMENT * a.keys * a.columns);
  }
  store(a.last + u.state);
  for (i64 t = u.len; t < a.l; ++t) {
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      if (lane == c && column[c] < a.values) a.y.row(u.row + t)[u.h * a.values + column[c]] = from_float<T>(0.0f);
    }
  }
}

// The gradient of what the normaliser divides by; a warp has one head of a position.
extern "C" __global__ void __launch_bounds__(THREADS) divisors(const __grid_constant__ Args a) {
  i64 unit = i64(blockIdx.x) * WARPS + (threadIdx.x >> 5), row = unit / a.heads;
  int h = int(unit % a.heads), lane = threadIdx.x & 31;
  if (row >= a.b * a.l || row % a.l >= row_length(a, int(row / a.l))) return;
  i64 at = (row / a.l * a.heads + h) * a.l + row % a.l;
  float sum = 0.0f;
  for (int j = lane; j < a.values; j += 32) {
    int column = h * a.values + j;
    float y = to_float(a.y.row(row)[column]) - skip_weight(a, h, j) * to_float(a.v.row(row)[column]);
    sum += to_float(a.dy.row(row)[column]) * y;
  }
  sum = warp_sum(sum);
  if (lane == 0) a.ddivisors[at] = -sum / a.divisors[at];
}

// KEYS keys of a state, columns as lanes.
struct Keys {
  float s[KEYS][VN];
  __device__ __forceinline__ void load(const Args& a, const float* from, int first) {
#pragma unroll
    for (int i = 0; i < KEYS; ++i)
#pragma unroll
      for (int n = 0; n < VN; ++n) {
        int j = (threadIdx.x & 31) + 32 * n;
        bool there = from && first + i < a.keys && j < a.columns;
        s[i][n] = there ? from[i64(first + i) * a.columns + j] : 0.0f;
      }
  }
};

extern "C" __global__ void __launch_bounds__(THREADS) backward_queries(const __grid_constant__ Args a) {
  Unit u;
  if (!u.find(a, (a.keys + KEYS - 1) / KEYS)) return;
  int lane = threadIdx.x & 31, first = u.tile * KEYS;
  Keys state;
  state.load(a, a.initial ? a.initial + u.state : nullptr, first);
  for (i64 t = 0; t < u.len; ++t) {
    i64 row = u.row + t;
    bool fresh = is_reset(a, row);
    float w = write_weight(a, row, u.h), v[VN], dr[VN];
#pragma unroll
    for (int n = 0; n < VN; ++n) {
      int j = lane + 32 * n;
      v[n] = j < a.columns ? value(a, u, t, j) : 0.0f, dr[n] = j < a.columns ? read_gradient(a, u, t, j) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < KEYS; ++i) {
      if (first + i >= a.keys) continue;
      float k = w * to_float(a.k.row(row)[u.g * a.keys + first + i]), sum = 0.0f;
      float g = gate(log_decay(a, row, u.h, first + i));
#pragma unroll
      for (int n = 0; n < VN; ++n) {
        float before = fresh ? 0.0f : state.s[i][n];
        state.s[i][n] = g * before + k * v[n];
        sum += dr[n] * (BONUS ? before : state.s[i][n]);
      }
      sum = a.scale * warp_sum(sum);
      // With a bonus, the own write's share is for backward_keys to add.
      if (lane == 0) a.dq_heads[(row * a.heads + u.h) * a.keys + first + i] = sum;
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) backward_keys(const __grid_constant__ Args a) {
  Unit u;
  if (!u.find(a, (a.keys + KEYS - 1) / KEYS)) return;
  int lane = threadIdx.x & 31, first = u.tile * KEYS;
  Keys ds;
  ds.load(a, a.dlast ? a.dlast + u.state : nullptr, first);
  i64 segments = (a.l + SEGMENT - 1) / SEGMENT;
  float ddecay[KEYS], constant[KEYS], dbonus[KEYS];
#pragma unroll
  for (int i = 0; i < KEYS; ++i) ddecay[i] = constant[i] = dbonus[i] = 0.0f;
  for (i64 t = u.len - 1; t >= 0; --t) {
    i64 row = u.row + t;
    bool fresh = is_reset(a, row);
    if (a.states && ((t + 1) % SEGMENT == 0 || t + 1 == u.len)) {
      const float* end = a.states + u.state * segments + t / SEGMENT * a.keys * a.columns;
#pragma unroll
      for (int i = 0; i < KEYS; ++i) {
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < VN; ++n) {
          int j = lane + 32 * n;
          if (first + i < a.keys && j < a.columns) sum += end[i64(first + i) * a.columns + j] * ds.s[i][n];
        }
        ddecay[i] = warp_sum(sum);
      }
    }
    float w = write_weight(a, row, u.h), v[VN], dr[VN], own = 0.0f;
#pragma unroll
    for (int n = 0; n < VN; ++n) {
      int j = lane + 32 * n;
      v[n] = j < a.columns ? value(a, u, t, j) : 0.0f;
      dr[n] = j < a.columns ? a.scale * read_gradient(a, u, t, j) : 0.0f;
      own += v[n] * dr[n];
    }
    if (BONUS) own = warp_sum(own);
#pragma unroll
    for (int i = 0; i < KEYS; ++i) {
      int key = first + i;
      if (key >= a.keys) continue;
      float q = to_float(a.q.row(row)[u.g * a.keys + key]), k = to_float(a.k.row(row)[u.g * a.keys + key]);
      float g = gate(log_decay(a, row, u.h, key)), sum = 0.0f;
#pragma unroll
      for (int n = 0; n < VN; ++n) {
        float after = ds.s[i][n] + (BONUS ? 0.0f : q * dr[n]);
        sum += after * v[n];
        ds.s[i][n] = fresh ? 0.0f : g * after + (BONUS ? q * dr[n] : 0.0f);
      }
      sum = warp_sum(sum);
      i64 at = (row * a.heads + u.h) * a.keys + key;
      float dq = a.dq_heads[at];
      ddecay[i] += (BONUS ? 0.0f : q * dq) - w * k * sum;
      float found = fresh ? 0.0f : ddecay[i];
      ddecay[i] = fresh ? 0.0f : ddecay[i] + (BONUS ? q * dq : 0.0f);
      constant[i] += found;
      float bonus = BONUS ? a.bonus[u.h * a.keys + key] : 0.0f;
      dbonus[i] += w * q * k * own;
      if (lane == 0) {
        a.dk_heads[at] = sum + bonus * q * own;
        if (BONUS) a.dq_heads[at] = dq + bonus * w * k * own;
        if (DECAY == 2 && a.ddecay_heads) a.ddecay_heads[at] = found;
        if (DECAY == 4 && a.ddecay.data) a.ddecay.row(row)[u.h * a.keys + key] = from_float<D>(found);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < KEYS; ++i) {
    int key = first + i;
    if (key >= a.keys) continue;
    i64 at = (i64(u.b) * a.heads + u.h) * a.keys + key;
    if (lane == 0 && a.dconstant_rows) a.dconstant_rows[at] = constant[i];
    if (lane == 0 && a.dbonus_rows) a.dbonus_rows[at] = dbonus[i];
#pragma unroll
    for (int n = 0; n < VN; ++n) {
      int j = lane + 32 * n;
      if (a.dinitial && j < a.columns) a.dinitial[u.state + i64(key) * a.columns + j] = ds.s[i][n];
    }
    if (DECAY == 4 && a.ddecay.data && lane == 0) {
      for (i64 t = u.len; t < a.l; ++t) a.ddecay.row(u.row + t)[u.h * a.keys + key] = from_float<D>(0.0f);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) backward_values(const __grid_constant__ Args a) {
  Unit u;
  if (!u.find(a, (a.values + COLUMNS - 1) / COLUMNS)) return;
  int lane = threadIdx.x & 31, first = u.tile * COLUMNS;
  float ds[KN][COLUMNS], bonus[KN], dskip[COLUMNS];
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) dskip[c] = 0.0f;
#pragma unroll
  for (int n = 0; n < KN; ++n) {
    int i = lane + 32 * n;
    bonus[n] = BONUS && i < a.keys ? a.bonus[u.h * a.keys + i] : 0.0f;
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      bool there = a.dlast && i < a.keys && first + c < a.values;
      ds[n][c] = there ? a.dlast[u.state + i64(i) * a.columns + first + c] : 0.0f;
    }
  }
  for (i64 t = u.len - 1; t >= 0; --t) {
    i64 row = u.row + t;
    bool fresh = is_reset(a, row);
    float w = write_weight(a, row, u.h), dr[COLUMNS], sum[COLUMNS];
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      dr[c] = first + c < a.values ? a.scale * read_gradient(a, u, t, first + c) : 0.0f, sum[c] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < KN; ++n) {
      int i = lane + 32 * n;
      bool there = i < a.keys;
      float q = there ? to_float(a.q.row(row)[u.g * a.keys + i]) : 0.0f;
      float k = there ? to_float(a.k.row(row)[u.g * a.keys + i]) : 0.0f;
      float g = there ? gate(log_decay(a, row, u.h, i)) : 1.0f;
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
        float after = ds[n][c] + (BONUS ? 0.0f : q * dr[c]);
        sum[c] += k * (after + (BONUS ? bonus[n] * q * dr[c] : 0.0f));
        ds[n][c] = fresh ? 0.0f : g * after + (BONUS ? q * dr[c] : 0.0f);
      }
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      float dv = w * warp_sum(sum[c]);
      if (first + c < a.values) {
        int column = u.h * a.values + first + c;
        float dy = to_float(a.dy.row(row)[column]);
        dskip[c] += dy * to_float(a.v.row(row)[column]);
        if (lane == c) a.dv.row(row)[column] = from_float<T>(dv + skip_weight(a, u.h, first + c) * dy);
      }
    }
  }
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
    if (lane != c || first + c >= a.values) continue;
    int column = u.h * a.values + first + c;
    if (a.dskip_rows) a.dskip_rows[i64(u.b) * a.heads * a.values + column] = dskip[c];
    for (i64 t = u.len; t < a.l; ++t) a.dv.row(u.row + t)[column] = from_float<T>(0.0f);
  }
}
