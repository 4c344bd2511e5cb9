// The selective scan of bf16 activations with 16 states and Ā = exp(Δ A), on tensor cores.
//
// A scan on a multiprocessor is bound, in this order, by shared-memory bandwidth, instructions and exponentials. B_t u_t,
// C_t g_t, C_t h_t and the sums over channels are products of small matrices, and one instruction of a warp computes each of
// them for 128 states:
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
// Factors are truncated to the 10 mantissa bits of tf32. B and C have 8; Δ u is rounded first, and so is g in the backward.
// States and their gradients are truncated where they are summed, but not where they are carried on, so the errors are below
// those of bf16.
//
// GATED: whether there is a z. SEGMENTS: whether there are resets.

#define THREADS 128
#define CH 32
#define N 16
#define TILE 32
#define SAVE 8
// Correction for the mean error of truncating the last 13 bits of a value.
#define UNCUT 1.000352f

// The work of a block: 32 channels of one chunk of one sequence.
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
// Copies 16 bytes from global to shared memory, or zeros; complete after `copies_done`.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool there) {
  u32 at = u32(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copies_done() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ __forceinline__ float masked(float x, u32 mask) { return __uint_as_float(__float_as_uint(x) & mask); }
// Rounds to the nearest tf32 value, except for the bits that `mma` does not read.
__device__ __forceinline__ float rounded(float x) { return __uint_as_float(__float_as_uint(x) + 0x1000u); }
__device__ __forceinline__ float nearest(float x) { return masked(rounded(x), 0xffffe000u); }

__device__ __forceinline__ void widen4(uint2 p, float* x) {
  x[0] = low_bf16(p.x), x[1] = high_bf16(p.x), x[2] = low_bf16(p.y), x[3] = high_bf16(p.y);
}
template <int K>
__device__ __forceinline__ void copy_floats(const float* from, float* to) {
#pragma unroll
  for (int i = 0; i < K; i += 4) *reinterpret_cast<float4*>(to + i) = *reinterpret_cast<const float4*>(from + i);
}

// Advances by `rows` rows; one multiply-add.
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

// Two outputs times silu(z), with one reciprocal for both; exponents are bounded so that their product stays finite.
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

// Row stride of shared memory in values, chosen so that a warp's reads hit different banks.
#define ROW 40    // of channels
#define ROW_N 24  // of states
