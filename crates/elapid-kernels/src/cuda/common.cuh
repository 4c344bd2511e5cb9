// Shared by all kernels. This text is put before each source; NVRTC needs no toolkit header for it.
//
// Letters of shapes are those of the contracts: b batch, l length, d channels, n state size, k width, m rows, v
// vocabulary. Sizes and offsets are 64 bits wide wherever they are multiplied.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

struct bf16 {
  u16 bits;
};

// A matrix of rows that are `stride` elements apart: a column slice of a packed projection is one.
template <typename T>
struct Mat {
  T* data;
  i64 stride;
  __device__ __forceinline__ T* row(i64 r) const { return data + r * stride; }
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

// Two floats to bf16, rounded to nearest even; `lo` is the one at the lower address.
__device__ __forceinline__ u32 pack_bf16(float lo, float hi) {
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(hi), "f"(lo));
  return packed;
}
__device__ __forceinline__ float low_bf16(u32 packed) { return __uint_as_float(packed << 16); }
__device__ __forceinline__ float high_bf16(u32 packed) { return __uint_as_float(packed & 0xffff0000u); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return bf16{u16(pack_bf16(x, 0.0f) & 0xffffu)};
}

// Eight contiguous values, 16-byte aligned: 16 bytes of bf16, 32 of f32.
__device__ __forceinline__ void load8(const float* from, float* x) {
  float4 a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
__device__ __forceinline__ void widen8(uint4 p, float* x) {
  x[0] = low_bf16(p.x), x[1] = high_bf16(p.x), x[2] = low_bf16(p.y), x[3] = high_bf16(p.y);
  x[4] = low_bf16(p.z), x[5] = high_bf16(p.z), x[6] = low_bf16(p.w), x[7] = high_bf16(p.w);
}
__device__ __forceinline__ void load8(const bf16* from, float* x) { widen8(*reinterpret_cast<const uint4*>(from), x); }
__device__ __forceinline__ void store8(float* to, const float* x) {
  reinterpret_cast<float4*>(to)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}
__device__ __forceinline__ void store8(bf16* to, const float* x) {
  uint4 packed = make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
  *reinterpret_cast<uint4*>(to) = packed;
}

// 2^x, on the special function unit: relative error below 2^-22.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float fast_log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float fast_rcp(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f

// 1 / (1 + e^-x)
__device__ __forceinline__ float sigmoid(float x) { return fast_rcp(1.0f + fast_exp2(-LOG2_E * x)); }
__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// log(1 + e^x), with a small relative error for very negative x too; above 20 it is x, as in PyTorch.
__device__ __forceinline__ float softplus(float x) {
  float e = fast_exp2(LOG2_E * x);
  float small = e * (1.0f - e * (0.5f - e * (0.33333333f - 0.25f * e)));
  float y = e < 0.03f ? small : LN_2 * fast_log2(1.0f + e);
  return x > 20.0f ? x : y;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
  return x;
}

// Programmatic dependent launch: `wait_for_previous` returns when everything that the previous launch wrote can be read;
// `let_next_start` allows the next launch to begin. Both do nothing if the launch did not request it.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
