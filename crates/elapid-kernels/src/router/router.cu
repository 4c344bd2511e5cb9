// The router of a mixture of experts. T is the dtype of logits; a warp works on a position, and keeps its scores in shared memory.

#define WARPS 4
#define MOST 1024
#define ALL 0xffffffffu

struct Args {
  Mat<T> logits, dlogits;
  Mat<float> weights, dweights;
  float* correction;
  float* factors;  // [m 2]
  u32* picked;  // [m k]
  float* spread;  // [2 experts]
  float* partial;  // [blocks experts]
  float* logs;  // [m]
  double* squares;  // [blocks]
  float* mean;  // [1]
  const float* dmean;  // [1]
  i64 m;
  float scale;
  i32 experts, k, groups, top_groups, correct_logits, sigmoid, renormalise, blocks;
};

// Scores of a position.
__device__ __forceinline__ void scores_of(const Args& a, i64 r, bool sigmoid_of_each, float* scores) {
  int lane = threadIdx.x % 32;
  const T* logits = a.logits.row(r);
  if (sigmoid_of_each) {
    for (int e = lane; e < a.experts; e += 32) scores[e] = 1.0f / (1.0f + expf(-to_float(logits[e])));
    __syncwarp();
    return;
  }
  float most = __int_as_float(0xff800000);
  for (int e = lane; e < a.experts; e += 32) most = fmaxf(most, to_float(logits[e]));
  most = warp_max(most);
  float sum = 0.0f;
  for (int e = lane; e < a.experts; e += 32) {
    float x = expf(to_float(logits[e]) - most);
    scores[e] = x;
    sum += x;
  }
  sum = 1.0f / warp_sum(sum);
  for (int e = lane; e < a.experts; e += 32) scores[e] *= sum;
  __syncwarp();
}

// The place of the largest of `count` values, of equal ones the first; all lanes get it.
__device__ __forceinline__ int largest(const float* values, int count) {
  float best = __int_as_float(0xff800000);
  int at = 0x7fffffff;
  for (int e = threadIdx.x % 32; e < count; e += 32) {
    if (values[e] > best || at == 0x7fffffff) best = values[e], at = e;
  }
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) {
    float other = __shfl_xor_sync(ALL, best, lane);
    int there = __shfl_xor_sync(ALL, at, lane);
    if (there != 0x7fffffff && (at == 0x7fffffff || other > best || (other == best && there < at))) best = other, at = there;
  }
  return at;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) forward(const __grid_constant__ Args a) {
  __shared__ float all_scores[WARPS][MOST], all_choices[WARPS][MOST];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float *scores = all_scores[warp], *choice = all_choices[warp];
  for (i64 r = i64(blockIdx.x) * WARPS + warp; r < a.m; r += i64(gridDim.x) * WARPS) {
    scores_of(a, r, a.sigmoid, scores);
    for (int e = lane; e < a.experts; e += 32) {
      float x = a.correct_logits ? to_float(a.logits.row(r)[e]) : scores[e];
      choice[e] = x + (a.correction ? a.correction[e] : 0.0f);
    }
    __syncwarp();
    if (a.top_groups < a.groups) {
      // Groups that are out lose their choices. A group is as good as its best, or its two best.
      int size = a.experts / a.groups;
      for (int out = a.groups - a.top_groups; out > 0; --out) {
        float least = __int_as_float(0x7f800000);
        int at = -1;
        for (int g = lane; g < a.groups; g += 32) {
          float one = __int_as_float(0xff800000), two = one;
          for (int e = g * size; e < (g + 1) * size; ++e) {
            float x = choice[e];
            if (x > one) two = one, one = x;
            else two = fmaxf(two, x);
          }
          if (one == __int_as_float(0xff800000)) continue;
          float good = a.correction && size > 1 ? one + two : one;
          if (good <= least) least = good, at = g;
        }
#pragma unroll
        for (int step = 16; step > 0; step >>= 1) {
          float other = __shfl_xor_sync(ALL, least, step);
          int there = __shfl_xor_sync(ALL, at, step);
          if (there >= 0 && (at < 0 || other < least || (other == least && there > at))) least = other, at = there;
        }
        for (int e = at * size + lane; e < (at + 1) * size; e += 32) choice[e] = __int_as_float(0xff800000);
        __syncwarp();
      }
    }
    float sum = 0.0f;
    for (int j = 0; j < a.k; ++j) {
      int e = largest(choice, a.experts);
      __syncwarp();
      if (lane == 0) {
        choice[e] = __int_as_float(0xff800000);
        a.picked[r * a.k + j] = e;
      }
      sum += scores[e];
      __syncwarp();
    }
    float factor = a.renormalise ? a.scale / sum : a.scale;
    for (int j = lane; j < a.k; j += 32) a.weights.row(r)[j] = factor * scores[a.picked[r * a.k + j]];
    __syncwarp();
  }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) backward(const __grid_constant__ Args a) {
  __shared__ float all_scores[WARPS][MOST], all_gradients[WARPS][MOST];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float *scores = all_scores[warp], *dscores = all_gradients[warp];
  for (i64 r = i64(blockIdx.x) * WARPS + warp; r < a.m; r += i64(gridDim.x) * WARPS) {
    scores_of(a, r, a.sigmoid, scores);
    for (int e = lane; e < a.experts; e += 32) dscores[e] = 0.0f;
    __syncwarp();
    float sum = 0.0f, shared = 0.0f;
    for (int j = lane; j < a.k; j += 32) {
      float p = scores[a.picked[r * a.k + j]];
      sum += p;
      shared += p * a.dweights.row(r)[j];
    }
    sum = warp_sum(sum), shared = warp_sum(shared);
    float factor = a.renormalise ? a.scale / sum : a.scale;
    shared = a.renormalise ? shared / sum : 0.0f;
    for (int j = lane; j < a.k; j += 32) dscores[a.picked[r * a.k + j]] = factor * (a.dweights.row(r)[j] - shared);
    __syncwarp();
    float mean = 0.0f;
    for (int e = lane; e < a.experts; e += 32) mean += dscores[e] * scores[e];
    mean = warp_sum(mean);
    for (int e = lane; e < a.experts; e += 32) {
      float p = scores[e], d = dscores[e];
      a.dlogits.row(r)[e] = from_float<T>(a.sigmoid ? d * p * (1.0f - p) : p * (d - mean));
    }
    __syncwarp();
  }
}

// Sums of probabilities over the positions of a block, in their order.
extern "C" __global__ void __launch_bounds__(32 * WARPS) sum(const __grid_constant__ Args a) {
  __shared__ float scores[WARPS][MOST];
  int warp = threadIdx.x / 32;
  i64 each = (a.m + gridDim.x - 1) / gridDim.x;
  i64 from = blockIdx.x * each, to = from + each < a.m ? from + each : a.m;
  float sums[MOST / (32 * WARPS)] = {};
  for (i64 r = from; r < to; r += WARPS) {
    bool there = r + warp < to;
    if (there) scores_of(a, r + warp, false, scores[warp]);
    __syncthreads();
    int count = to - r < WARPS ? int(to - r) : WARPS;
#pragma unroll
    for (int i = 0; i < MOST / (32 * WARPS); ++i) {
      int e = threadIdx.x + i * 32 * WARPS;
      if (e >= a.experts) break;
      for (int w = 0; w < count; ++w) sums[i] += scores[w][e];
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < MOST / (32 * WARPS); ++i) {
    int e = threadIdx.x + i * 32 * WARPS;
    if (e < a.experts) a.partial[i64(blockIdx.x) * a.experts + e] = sums[i];
  }
}

// Joins the sums of all `blocks` blocks of `sum`, and counts the picks of an expert: a block per expert.
extern "C" __global__ void __launch_bounds__(256) join(const __grid_constant__ Args a) {
  __shared__ u32 counts[8];
  int e = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  i64 all = a.m * a.k;
  u32 count = 0;
  for (i64 i = threadIdx.x; i < all; i += 256) count += a.picked[i] == u32(e);
  count = __reduce_add_sync(ALL, count);
  if (lane == 0) counts[warp] = count;
  __syncthreads();
  if (threadIdx.x != 0) return;
  u32 total = 0;
  for (int w = 0; w < 8; ++w) total += counts[w];
  float p = 0.0f, part = 1.0f / float(a.m);
  for (int block = 0; block < a.blocks; ++block) p += a.partial[i64(block) * a.experts + e];
  a.spread[e] = float(total) * part;
  a.spread[a.experts + e] = p * part;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) spread_backward(const __grid_constant__ Args a) {
  __shared__ float all_scores[WARPS][MOST];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float* p = all_scores[warp];
  const float* dp = a.spread + a.experts;
  float part = 1.0f / float(a.m);
  for (i64 r = i64(blockIdx.x) * WARPS + warp; r < a.m; r += i64(gridDim.x) * WARPS) {
    scores_of(a, r, false, p);
    float mean = 0.0f;
    for (int e = lane; e < a.experts; e += 32) mean += p[e] * dp[e];
    mean = warp_sum(mean);
    for (int e = lane; e < a.experts; e += 32) a.dlogits.row(r)[e] = from_float<T>(p[e] * (dp[e] - mean) * part);
    __syncwarp();
  }
}

// log Σ exp(logits) of each position, and the sum of their squares over the positions of a block. Every block has the positions
// that are `gridDim` groups of WARPS apart, a warp one of a group.
extern "C" __global__ void __launch_bounds__(32 * WARPS) z_squares(const __grid_constant__ Args a) {
  __shared__ double sums[WARPS];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  double sum = 0.0;
  for (i64 r = i64(blockIdx.x) * WARPS + warp; r < a.m; r += i64(gridDim.x) * WARPS) {
    const T* logits = a.logits.row(r);
    float most = __int_as_float(0xff800000);
    for (int e = lane; e < a.experts; e += 32) most = fmaxf(most, to_float(logits[e]));
    most = warp_max(most);
    float all = 0.0f;
    for (int e = lane; e < a.experts; e += 32) all += expf(to_float(logits[e]) - most);
    float log = most + logf(warp_sum(all));
    if (lane == 0) a.logs[r] = log;
    sum += double(log) * double(log);
  }
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  sum = 0.0;
  for (int w = 0; w < WARPS; ++w) sum += sums[w];
  a.squares[blockIdx.x] = sum;
}

// The mean of the squares, from the sums of all blocks in their order.
extern "C" __global__ void z_mean(const __grid_constant__ Args a) {
  double sum = 0.0;
  for (int block = 0; block < a.blocks; ++block) sum += a.squares[block];
  *a.mean = a.m > 0 ? float(sum / double(a.m)) : 0.0f;
}

extern "C" __global__ void __launch_bounds__(256) z_backward(const __grid_constant__ Args a) {
  i64 all = a.m * a.experts;
  float factor = 2.0f * *a.dmean / float(a.m);
  for (i64 i = i64(blockIdx.x) * 256 + threadIdx.x; i < all; i += i64(gridDim.x) * 256) {
    i64 r = i / a.experts, e = i - r * a.experts;
    float log = a.logs[r];
    a.dlogits.row(r)[e] = from_float<T>(factor * log * expf(to_float(a.logits.row(r)[e]) - log));
  }
}

#define TURNS 100
#define CHANGE 1e-3f
#define LEAST 1e-30f

// Balances experts over positions, by one block. A turn: a warp finds the sum of a position over experts, then a thread that of an
// expert over some of the positions; `factors` has the largest logit of a position and its sum.
extern "C" __global__ void __launch_bounds__(1024) sinkhorn(const __grid_constant__ Args a) {
  __shared__ float factor[MOST], sums[1024], changes[32];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int parts = 1024 / a.experts, part = threadIdx.x / a.experts, own = threadIdx.x - part * a.experts;
  for (int e = threadIdx.x; e < a.experts; e += 1024) a.correction[e] = 0.0f, factor[e] = 1.0f;
  for (i64 r = warp; r < a.m; r += 32) {
    float most = __int_as_float(0xff800000);
    for (int e = lane; e < a.experts; e += 32) most = fmaxf(most, to_float(a.logits.row(r)[e]));
    most = warp_max(most);
    if (lane == 0) a.factors[2 * r] = most;
  }
  for (int turn = 0; turn < TURNS; ++turn) {
    __syncthreads();
    for (i64 r = warp; r < a.m; r += 32) {
      float most = a.factors[2 * r], all = 0.0f;
      for (int e = lane; e < a.experts; e += 32) all += expf(2.0f * (to_float(a.logits.row(r)[e]) - most)) * factor[e];
      all = warp_sum(all);
      if (lane == 0) a.factors[2 * r + 1] = 1.0f / (all + LEAST);
    }
    __syncthreads();
    float sum = 0.0f;
    if (part < parts) {
      for (i64 r = part; r < a.m; r += parts)
        sum += expf(2.0f * (to_float(a.logits.row(r)[own]) - a.factors[2 * r])) * a.factors[2 * r + 1];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    float change = 0.0f;
    if (part == 0) {
      sum = LEAST;
      for (int p = 0; p < parts; ++p) sum += sums[p * a.experts + own];
      float next = 0.5f * logf(float(a.m) / float(a.experts) / sum);
      change = fabsf(next - a.correction[own]);
      a.correction[own] = next;
      factor[own] = expf(2.0f * next);
    }
    change = warp_max(change);
    if (lane == 0) changes[warp] = change;
    __syncthreads();
    change = warp_max(changes[lane]);
    if (change <= CHANGE) return;
  }
}
