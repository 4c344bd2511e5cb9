// AdamW over arrays that hold all parameters, and the norm of all gradients.

struct Args {
  float* w;
  const float* g;
  float* m;
  float* v;
  bf16* copy;
  const u8* decay;     // one for 256 numbers
  const float* factors;  // of the learning rate, one for 256 numbers; null: all 1
  const float* hyper;  // lr, beta1, beta2, eps, weight decay, clip, 1 - beta1^t, 1 - beta2^t
  float* norm;         // [2]: the norm, and 1 if it is finite
  double* partial;
  i64 count;  // a multiple of 256
  i32 blocks;
};

#define THREADS 256

extern "C" __global__ void __launch_bounds__(THREADS) squares(const __grid_constant__ Args a) {
  __shared__ double sums[THREADS];
  double sum = 0.0;
  for (i64 i = (i64(blockIdx.x) * THREADS + threadIdx.x) * 4; i < a.count; i += i64(gridDim.x) * THREADS * 4) {
    float4 g = *reinterpret_cast<const float4*>(a.g + i);
    sum += double(g.x) * g.x + double(g.y) * g.y + double(g.z) * g.z + double(g.w) * g.w;
  }
  sums[threadIdx.x] = sum;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) a.partial[blockIdx.x] = sums[0];
}

extern "C" __global__ void __launch_bounds__(THREADS) join(const __grid_constant__ Args a) {
  __shared__ double sums[THREADS];
  double sum = 0.0;
  for (int i = threadIdx.x; i < a.blocks; i += THREADS) sum += a.partial[i];
  sums[threadIdx.x] = sum;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) {
    double norm = sqrt(sums[0]);
    a.norm[0] = float(norm);
    a.norm[1] = norm <= 1.7e308 ? 1.0f : 0.0f;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) step(const __grid_constant__ Args a) {
  if (a.norm[1] != 1.0f) return;
  float lr = a.hyper[0], beta1 = a.hyper[1], beta2 = a.hyper[2], eps = a.hyper[3], clip = a.hyper[5];
  float rate = lr / a.hyper[6], root = rsqrtf(a.hyper[7]);
  float scale = clip > 0.0f && a.norm[0] > clip ? clip / (a.norm[0] + 1e-6f) : 1.0f;
  for (i64 i = (i64(blockIdx.x) * THREADS + threadIdx.x) * 4; i < a.count; i += i64(gridDim.x) * THREADS * 4) {
    float factor = a.factors ? a.factors[i / 256] : 1.0f;
    float shrink = 1.0f - (a.decay[i / 256] ? lr * factor * a.hyper[4] : 0.0f), step = rate * factor;
    float4 w4 = *reinterpret_cast<float4*>(a.w + i), m4 = *reinterpret_cast<float4*>(a.m + i);
    float4 v4 = *reinterpret_cast<float4*>(a.v + i), g4 = *reinterpret_cast<const float4*>(a.g + i);
    float w[4] = {w4.x, w4.y, w4.z, w4.w}, m[4] = {m4.x, m4.y, m4.z, m4.w};
    float v[4] = {v4.x, v4.y, v4.z, v4.w}, g[4] = {g4.x, g4.y, g4.z, g4.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      g[k] *= scale;
      m[k] = beta1 * m[k] + (1.0f - beta1) * g[k];
      v[k] = beta2 * v[k] + (1.0f - beta2) * g[k] * g[k];
      w[k] = w[k] * shrink - step * m[k] / (sqrtf(v[k]) * root + eps);
    }
    *reinterpret_cast<float4*>(a.w + i) = make_float4(w[0], w[1], w[2], w[3]);
    *reinterpret_cast<float4*>(a.m + i) = make_float4(m[0], m[1], m[2], m[3]);
    *reinterpret_cast<float4*>(a.v + i) = make_float4(v[0], v[1], v[2], v[3]);
    if (a.copy) *reinterpret_cast<uint2*>(a.copy + i) = make_uint2(pack_bf16(w[0], w[1]), pack_bf16(w[2], w[3]));
  }
}
