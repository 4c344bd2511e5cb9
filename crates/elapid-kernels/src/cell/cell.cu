// Recurrent cells. T is the dtype of activations and matrices, KIND the cell, in the order of `Kind`. All states and sums are f32.
//
//   for each position (backward: last to first):
//     product of what the position before left with the recurrent matrix, SLICES threads for each channel
//     __syncthreads
//     the nonlinearities, one thread for each channel and row
//     __syncthreads
//
// RESIDENT: a block has all channels of a head and keeps the head's matrix in shared memory, so that one launch is a whole
// sequence. Otherwise a block has CHANNELS channels, reads its columns of the matrix from memory, and a launch is one position:
// what other blocks read goes through memory, in two places by turns. The order of a sum depends on SLICES alone.
//
// A block has ROWS rows of the batch. A thread is (slice, channel); it does the nonlinearities of the rows slice, slice + SLICES,
// ... of its channel at every position, so that their states stay in registers.

#define GATES (KIND == 3 ? 3 : KIND == 2 || KIND == 4 ? 4 : 1)
#define STATES (KIND == 2 ? 2 : KIND == 4 ? 4 : 1)
// Of every position `saved` has what the nonlinearities read, then the states after it but h.
#define READS (KIND == 3 ? 4 : GATES)
#define SAVED (READS + STATES - 1)
#define MINE ((ROWS + SLICES - 1) / SLICES)

struct Args {
  Mat<T> x;       // [b l (gate d)]
  Mat<T> y;       // [b l d]
  Mat<T> dy;      // [b l d]
  Mat<T> dx;      // [b l (gate d)]
  Mat<T> dq;      // [b l (head gate w)]: the gradient of U h
  Mat<T> before;  // [b l d]: h before each position
  const T* matrix;        // [head w (gate w)]; in the backward [head (gate w) w]
  const float* bias;      // [(gate d)], may be absent
  const float* initial;   // [b s d], may be absent
  float* states;          // [2 b s d]; in the backward the gradient of the state after a position, [b s d]
  float* last;            // [b s d]; in the backward the gradient of the initial state, may be absent
  float* saved;           // [b l SAVED d], in the forward it may be absent
  float* passed;          // [2 b (head gate w)]: the backward's dq of the position after
  const u32* lengths;
  const u8* resets;
  i64 b;
  i64 l;
  i64 from;  // positions of this launch; the backward goes down to `from`, -1 being the initial state
  i64 to;
  i32 d;
  i32 w;         // channels of a head
  i32 channels;  // of a block, a multiple of 32
};

__device__ __forceinline__ i64 length_of(const Args& a, i64 row) {
  return !a.lengths || i64(a.lengths[row]) > a.l ? a.l : i64(a.lengths[row]);
}
// Whether the state before a position of the row counts as 0.
__device__ __forceinline__ bool is_reset(const Args& a, i64 row, i64 t) {
  return a.resets && a.resets[row * a.l + t] != 0 && t < length_of(a, row);
}

__device__ __forceinline__ float sigm(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float dtanh(float x) {
  float t = tanhf(x);
  return 1.0f - t * t;
}
__device__ __forceinline__ float log_sigmoid(float x) { return fminf(x, 0.0f) - log1pf(expf(-fabsf(x))); }

// The state after a position, from what is read and the state before.
__device__ __forceinline__ void advance(const float* read, float* state) {
#if KIND == 0
  state[0] = tanhf(read[0]);
#elif KIND == 1
  state[0] = read[0] < 0.0f ? 0.0f : read[0];
#elif KIND == 2
  state[1] = sigm(read[1]) * state[1] + sigm(read[0]) * tanhf(read[2]);
  state[0] = sigm(read[3]) * tanhf(state[1]);
#elif KIND == 3
  float z = sigm(read[1]), n = tanhf(read[2] + sigm(read[0]) * read[3]);
  state[0] = n + z * (state[0] - n);
#else
  float i = read[0], decayed = log_sigmoid(read[1]) + state[3];
  float m = state[2] == 0.0f ? i : fmaxf(i, decayed);
  float gate_i = expf(i - m), gate_f = expf(fminf(decayed - m, 0.0f));
  state[1] = gate_f * state[1] + gate_i * tanhf(read[2]);
  state[2] = gate_f * state[2] + gate_i;
  state[3] = m;
  state[0] = sigm(read[3]) * state[1] / state[2];
#endif
}

// The gradients of what is read, to `dread`, and of the state before without its part through U h, to `d`, which has that of the
// state after. `before` and `after` are the states.
__device__ __forceinline__ void retreat(const float* read, const float* before, const float* after, float* d, float* dread) {
#if KIND == 0
  dread[0] = d[0] * dtanh(read[0]);
  d[0] = 0.0f;
#elif KIND == 1
  dread[0] = read[0] > 0.0f ? d[0] : 0.0f;
  d[0] = 0.0f;
#elif KIND == 2
  float i = sigm(read[0]), f = sigm(read[1]), g = tanhf(read[2]), o = sigm(read[3]), c = tanhf(after[1]);
  float dc = d[1] + d[0] * o * (1.0f - c * c);
  dread[0] = dc * g * i * (1.0f - i);
  dread[1] = dc * before[1] * f * (1.0f - f);
  dread[2] = dc * i * (1.0f - g * g);
  dread[3] = d[0] * c * o * (1.0f - o);
  d[0] = 0.0f, d[1] = dc * f;
#elif KIND == 3
  float r = sigm(read[0]), z = sigm(read[1]), rest = sigm(-read[1]), n = tanhf(read[2] + r * read[3]);
  float inner = d[0] * rest * (1.0f - n * n);
  dread[0] = inner * read[3] * r * (1.0f - r);
  dread[1] = d[0] * (before[0] - n) * z * rest;
  dread[2] = inner;
  dread[3] = inner * r;
  d[0] *= z;
#else
  float decayed = log_sigmoid(read[1]) + before[3];
  bool of_input = before[2] == 0.0f || read[0] >= decayed;
  float m = of_input ? read[0] : decayed;
  float gate_i = expf(read[0] - m), gate_f = expf(fminf(decayed - m, 0.0f));
  float z = tanhf(read[2]), o = sigm(read[3]), ratio = after[1] / after[2], dratio = d[0] * o / after[2];
  dread[3] = d[0] * ratio * o * (1.0f - o);
  float dc = d[1] + dratio, dn = d[2] - dratio * ratio;
  float di = (dc * z + dn) * gate_i, df = decayed > m ? 0.0f : (dc * before[1] + dn * before[2]) * gate_f;
  float dm = d[3] - di - df;
  if (of_input) {
    di += dm;
  } else {
    df += dm;
  }
  dread[0] = di;
  dread[1] = df * sigm(-read[1]);
  dread[2] = dc * gate_i * (1.0f - z * z);
  d[0] = 0.0f, d[1] = dc * gate_f, d[2] = dn * gate_f, d[3] = df;
#endif
}

// Which part of the work a thread has.
struct Place {
  int head, slice, lane, channel;  // the channel counts in its head
  bool real;                       // whether there is such a channel
  i64 first;                       // the first row
  __device__ __forceinline__ Place(const Args& a) {
    int tiles = (a.w + a.channels - 1) / a.channels;
    head = blockIdx.x / tiles;
    slice = threadIdx.x / a.channels, lane = threadIdx.x - slice * a.channels;
    channel = (blockIdx.x - head * tiles) * a.channels + lane;
    real = channel < a.w;
    first = i64(blockIdx.y) * ROWS;
  }
};

// Sums over `inner` of a row of `vector` `[ROWS inner]` times the matrix `[inner (vectors w)]`, `vectors` for each channel: each
// slice's part to `parts` `[slice row vector channel]`.
template <int VECTORS>
__device__ __forceinline__ void product(
    const Args& a, const Place& place, const float* vector, const T* matrix, int inner, float* parts) {
  float sums[ROWS][VECTORS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = 0.0f;
  if (place.real) {
    i64 columns = i64(VECTORS) * a.w;
#pragma unroll 4
    for (int k = place.slice; k < inner; k += SLICES) {
      const T* row = matrix + k * columns + place.channel;
      float m[VECTORS];
#pragma unroll
      for (int v = 0; v < VECTORS; ++v) m[v] = to_float(row[i64(v) * a.w]);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        float x = vector[r * inner + k];
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) sums[r][v] += x * m[v];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      parts[((place.slice * ROWS + r) * VECTORS + v) * a.channels + place.lane] = sums[r][v];
    }
}

template <int VECTORS>
__device__ __forceinline__ float joined(const Args& a, const Place& place, const float* parts, int r, int v) {
  float sum = 0.0f;
#pragma unroll
  for (int slice = 0; slice < SLICES; ++slice) {
    sum += parts[((slice * ROWS + r) * VECTORS + v) * a.channels + place.lane];
  }
  return sum;
}

// The head's matrix, in shared memory if it stays there.
__device__ __forceinline__ const T* matrix_of(const Args& a, const Place& place, T* shared) {
  i64 count = i64(GATES) * a.w * a.w;
  const T* matrix = a.matrix + place.head * count;
#if RESIDENT
  for (i64 i = threadIdx.x; i < count; i += blockDim.x) shared[i] = matrix[i];
  return shared;
#else
  return matrix;
#endif
}

extern "C" __global__ void __launch_bounds__(512) forward(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) float memory[];
  Place place(a);
  float *h = memory, *parts = h + ROWS * a.w;
  const T* matrix = matrix_of(a, place, reinterpret_cast<T*>(parts + SLICES * ROWS * GATES * a.channels));
  int at = place.head * a.w + place.channel;
  i64 all = a.b * STATES * a.d;
  const float* in = a.states + (a.from & 1) * all;
  float* out = a.to == a.l ? a.last : a.states + (a.to & 1) * all;

  float own[MINE][STATES];
#pragma unroll
  for (int i = 0; i < MINE; ++i) {
    int r = place.slice + i * SLICES;
    i64 row = place.first + r;
    bool there = place.real && r < ROWS && row < a.b;
#pragma unroll
    for (int s = 0; s < STATES; ++s) own[i][s] = there ? in[(row * STATES + s) * a.d + at] : 0.0f;
  }
  for (int i = threadIdx.x; i < ROWS * a.w; i += blockDim.x) {
    int r = i / a.w;
    i64 row = place.first + r;
    bool there = row < a.b && !is_reset(a, row, a.from);
    h[i] = there ? in[row * STATES * a.d + place.head * a.w + (i - r * a.w)] : 0.0f;
  }
  __syncthreads();

  for (i64 t = a.from; t < a.to; ++t) {
    product<GATES>(a, place, h, matrix, a.w, parts);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < MINE; ++i) {
      int r = place.slice + i * SLICES;
      i64 row = place.first + r;
      if (!place.real || r >= ROWS || row >= a.b) continue;
      i64 position = row * a.l + t;
      if (t >= length_of(a, row)) {
        a.y.row(position)[at] = from_float<T>(0.0f);
        continue;
      }
      if (is_reset(a, row, t)) {
#pragma unroll
        for (int s = 0; s < STATES; ++s) own[i][s] = 0.0f;
      }
      float read[READS];
#pragma unroll
      for (int gate = 0; gate < GATES; ++gate) {
        float q = joined<GATES>(a, place, parts, r, gate) + (a.bias ? a.bias[gate * a.d + at] : 0.0f);
        float x = to_float(a.x.row(position)[gate * a.d + at]);
#if KIND == 3
        if (gate == 2) {
          read[2] = x, read[3] = q;
        } else {
          read[gate] = x + q;
        }
#else
        read[gate] = x + q;
#endif
      }
      advance(read, own[i]);
      a.y.row(position)[at] = from_float<T>(own[i][0]);
      if (a.saved) {
        float* saved = a.saved + position * SAVED * a.d + at;
#pragma unroll
        for (int v = 0; v < READS; ++v) saved[i64(v) * a.d] = read[v];
#pragma unroll
        for (int s = 1; s < STATES; ++s) saved[i64(READS + s - 1) * a.d] = own[i][s];
      }
      // The product of all threads is done.
      if (t + 1 < a.to) h[r * a.w + place.channel] = is_reset(a, row, t + 1) ? 0.0f : own[i][0];
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < MINE; ++i) {
    int r = place.slice + i * SLICES;
    i64 row = place.first + r;
    if (!place.real || r >= ROWS || row >= a.b) continue;
#pragma unroll
    for (int s = 0; s < STATES; ++s) out[(row * STATES + s) * a.d + at] = own[i][s];
  }
}

extern "C" __global__ void __launch_bounds__(512) backward(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) float memory[];
  Place place(a);
  int inner = GATES * a.w;
  float *dq = memory, *parts = dq + ROWS * inner;
  const T* matrix = matrix_of(a, place, reinterpret_cast<T*>(parts + SLICES * ROWS * a.channels));
  int at = place.head * a.w + place.channel;
  i64 columns = i64(GATES) * a.d, head = i64(place.head) * inner;
  // dq of position t is at place t & 1: where this launch begins, and where the next one goes on.
  const float* in = a.passed + (a.to & 1) * a.b * columns;
#if !RESIDENT
  float* out = a.passed + (a.from & 1) * a.b * columns;
#endif

  float own[MINE][STATES];
#pragma unroll
  for (int i = 0; i < MINE; ++i) {
    int r = place.slice + i * SLICES;
    i64 row = place.first + r;
    bool there = place.real && r < ROWS && row < a.b;
#pragma unroll
    for (int s = 0; s < STATES; ++s) own[i][s] = there ? a.states[(row * STATES + s) * a.d + at] : 0.0f;
  }
  for (int i = threadIdx.x; i < ROWS * inner; i += blockDim.x) {
    int r = i / inner;
    i64 row = place.first + r;
    dq[i] = row < a.b ? in[row * columns + head + (i - r * inner)] : 0.0f;
  }
  __syncthreads();

  for (i64 t = a.to - 1; t >= a.from; --t) {
    product<1>(a, place, dq, matrix, inner, parts);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < MINE; ++i) {
      int r = place.slice + i * SLICES;
      i64 row = place.first + r;
      if (!place.real || r >= ROWS || row >= a.b) continue;
      // Now the gradient of the state after t, with all that reads it.
      own[i][0] += joined<1>(a, place, parts, r, 0);
      if (t < 0) continue;
      i64 position = row * a.l + t;
      bool padding = t >= length_of(a, row), reset = !padding && is_reset(a, row, t);
      float dread[4] = {0.0f, 0.0f, 0.0f, 0.0f}, before[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      if (!padding) {
        float read[READS], after[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        const float* saved = a.saved + position * SAVED * a.d + at;
#pragma unroll
        for (int v = 0; v < READS; ++v) read[v] = saved[i64(v) * a.d];
#pragma unroll
        for (int s = 1; s < STATES; ++s) after[s] = saved[i64(READS + s - 1) * a.d];
        if (!reset && t > 0) {
          before[0] = to_float(a.y.row(position - 1)[at]);
          const float* earlier = saved - i64(SAVED) * a.d;
#pragma unroll
          for (int s = 1; s < STATES; ++s) before[s] = earlier[i64(READS + s - 1) * a.d];
        } else if (!reset && a.initial) {
#pragma unroll
          for (int s = 0; s < STATES; ++s) before[s] = a.initial[(row * STATES + s) * a.d + at];
        }
        own[i][0] += to_float(a.dy.row(position)[at]);
        retreat(read, before, after, own[i], dread);
        if (reset) {
#pragma unroll
          for (int s = 0; s < STATES; ++s) own[i][s] = 0.0f;
        }
      }
      a.before.row(position)[at] = from_float<T>(before[0]);
#pragma unroll
      for (int gate = 0; gate < GATES; ++gate) {
        float of_q = dread[KIND == 3 && gate == 2 ? 3 : gate];
        a.dx.row(position)[gate * a.d + at] = from_float<T>(dread[gate]);
        a.dq.row(position)[head + gate * a.w + place.channel] = from_float<T>(of_q);
        // The product of all threads is done.
        float passed = reset ? 0.0f : of_q;
#if RESIDENT
        dq[r * inner + gate * a.w + place.channel] = passed;
#else
        out[row * columns + head + gate * a.w + place.channel] = passed;
#endif
      }
    }
    __syncthreads();
  }
  float* to = a.from < 0 ? a.last : a.states;
#pragma unroll
  for (int i = 0; i < MINE; ++i) {
    int r = place.slice + i * SLICES;
    i64 row = place.first + r;
    if (!place.real || r >= ROWS || row >= a.b) continue;
#pragma unroll
    for (int s = 0; s < STATES; ++s) to[(row * STATES + s) * a.d + at] = own[i][s];
  }
}

// `last`, of every head `[(gate w) w]`, transposed: [w (gate w)]. Tiles of 32 by 32 through shared memory, 32 by 8 threads.
extern "C" __global__ void __launch_bounds__(256) transpose(const __grid_constant__ Args a) {
  __shared__ float tile[32][33];
  i64 rows = i64(GATES) * a.w, head = i64(blockIdx.z) * rows * a.w;
  const T* from = a.matrix + head;
  T* to = reinterpret_cast<T*>(a.last) + head;
  i64 r0 = i64(blockIdx.y) * 32, c0 = i64(blockIdx.x) * 32;
  for (int i = threadIdx.y; i < 32; i += 8) {
    i64 r = r0 + i, c = c0 + threadIdx.x;
    if (r < rows && c < a.w) tile[i][threadIdx.x] = to_float(from[r * a.w + c]);
  }
  __syncthreads();
  for (int i = threadIdx.y; i < 32; i += 8) {
    i64 c = c0 + i, r = r0 + threadIdx.x;
    if (r < rows && c < a.w) to[c * rows + r] = from_float<T>(tile[threadIdx.x][i]);
  }
}
