// Shared by kernels whose blocks are all resident and synchronise between stages: the barrier, and the prefetching of
// weights.

#define WARPS 16                // that compute
#define CONSUMERS (WARPS * 32)
#define THREADS (CONSUMERS + 64)
#define PIECES 32               // of weights, on the way at most
#define RING (__CUDA_ARCH__ >= 900)

// Some of the outputs of a stage, or of the channels, in equal parts: this block's.
struct Part {
  int first, rows;
};
__device__ __forceinline__ int most(int outputs) { return (outputs + int(gridDim.x) - 1) / int(gridDim.x); }
__device__ __forceinline__ Part part_of(int outputs) {
  int each = most(outputs), first = min(int(blockIdx.x) * each, outputs);
  return Part{first, min(each, outputs - first)};
}

// A barrier of the computing warps.
__device__ __forceinline__ void sync() { asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory"); }

// A barrier of all blocks: `arrive` after writing what others need, `wait` before reading what others wrote.
struct Blocks {
  u32* counter;
  u32 times = 0;
  __device__ __forceinline__ void arrive() {
    sync();
    ++times;
    if (threadIdx.x == 0) {
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
    }
  }
  __device__ __forceinline__ void wait() const {
    if (threadIdx.x == 0) {
      u32 count;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
      } while (count < times * gridDim.x);
    }
    sync();
  }
};

// Threads that have something to do between arriving and waiting: not those of the warp that waits.
#define OTHERS (CONSUMERS - 32)
__device__ __forceinline__ int other() { return int(threadIdx.x) - 32; }

// Prefetches values into the L2; one warp.
__device__ __forceinline__ void ask(const float* from, int count) {
  if (count <= 0) return;
#pragma unroll 1
  for (int i = threadIdx.x % 32 * 32; i < count + 31; i += 1024) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from + min(i, count - 1)));
  }
}

// The warp that asks, for each layer while the one before is computed; and those that compute, when they begin it.
__device__ __forceinline__ void layer_begun() { asm volatile("bar.sync 2, %0;" ::"n"(CONSUMERS + 32) : "memory"); }
template <typename Layer, typename Ask>
__device__ __forceinline__ void ask_ahead(const Layer* layers, int count, Ask ask_for) {
  for (int layer = 0; layer < count; ++layer) {
    if (layer > 0) layer_begun();
    ask_for(layers[layer]);
  }
}

// Numbers that no block waits for, such as the weights of the next norm.
__device__ __forceinline__ void read_ahead(float* to, const float* from, int count) {
#pragma unroll 1
  for (int i = other() * 4; i >= 0 && i < count; i += OTHERS * 4) {
    *reinterpret_cast<float4*>(to + i) = *reinterpret_cast<const float4*>(from + i);
  }
}

// The last block resets the counters; by then no block reads them.
__device__ __forceinline__ void leave(u32* arrived) {
  if (threadIdx.x == 0 && atomicAdd(arrived + 1, 1u) == gridDim.x - 1) arrived[0] = arrived[1] = 0;
}

// Pieces of weights in shared memory, one after another, from the start again where one would not fit.
struct Ring {
  u64* full;    // [PIECES]: whether the copy of a piece has come
  u64* empty;   // [PIECES]: whether those that read it have
  u32* places;  // [PIECES]: where they are
  u32* ends;    // [PIECES]: where they end in the row of all
  char* at;
  int room;
  // Where what says all this lies, from the start of shared memory on; returns where it ends.
  __device__ __forceinline__ char* begin(char* shared) {
    full = reinterpret_cast<u64*>(shared);
    empty = full + PIECES;
    places = reinterpret_cast<u32*>(empty + PIECES);
    ends = places + PIECES;
    return reinterpret_cast<char*>(ends + PIECES);
  }
};

#if RING
__device__ __forceinline__ u32 address(const void* shared) { return u32(__cvta_generic_to_shared(shared)); }
__device__ __forceinline__ void wait_for(const u64* barrier, u32 parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}"
      ::"r"(address(barrier)), "r"(parity) : "memory");
}
// One thread, before all others: a piece is read by `readers` warps.
__device__ __forceinline__ void prepare(const Ring& ring, u32 readers) {
  for (int i = 0; i < PIECES; ++i) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(ring.full + i)) : "memory");
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(ring.empty + i)), "r"(readers) : "memory");
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Where the warp that copies puts pieces.
struct Filler {
  u64 once;  // weights are read once a step: what is read again shall stay in the L2
  // Bytes of the ring up to the last piece, with what was left out at its end, and up to the last that was read.
  u32 count = 0, bytes = 0, read = 0, freed = 0;
  int at = 0;
  __device__ __forceinline__ Filler() {
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
  }
  // All lanes: waits until there is room for a piece of `size` bytes, `incoming` of which are copied; returns its place.
  __device__ __forceinline__ int place(const Ring& ring, int size, int incoming) {
    if (at + size > ring.room) bytes += u32(ring.room - at), at = 0;
    const int here = at;
    at += size, bytes += u32(size);
    while (bytes - read > u32(ring.room) || count - freed >= PIECES) {
      wait_for(ring.empty + freed % PIECES, freed / PIECES % 2);
      read = ring.ends[freed % PIECES];
      ++freed;
    }
    // All lanes have read the end that is overwritten here.
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      ring.places[count % PIECES] = u32(here), ring.ends[count % PIECES] = bytes;
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                   ::"r"(address(ring.full + count % PIECES)), "r"(incoming) : "memory");
    }
    __syncwarp();
    ++count;
    return here;
  }
  // One lane: copies to the last place, or to a part of it.
  __device__ __forceinline__ void copy(const Ring& ring, int to, const void* from, int size) const {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
        ::"r"(address(ring.at + to)), "l"(from), "r"(size), "r"(address(ring.full + (count - 1) % PIECES)), "l"(once)
        : "memory");
  }
};
#endif

// The pieces, as the warps that compute see them.
struct Pieces {
  u32 count = 0;
#if RING
  // The last that was counted, once it has come.
  __device__ __forceinline__ const char* last(const Ring& ring) const {
    const u32 i = count - 1;
    wait_for(ring.full + i % PIECES, i / PIECES % 2);
    return ring.at + ring.places[i % PIECES];
  }
  // Each warp that reads it signals so.
  __device__ __forceinline__ void done(const Ring& ring) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address(ring.empty + (count - 1) % PIECES))
                   : "memory");
    }
  }
#endif
};

// The larger logit, the smaller id of equals.
__device__ __forceinline__ void better(float& x, u32& id, float y, u32 other) {
  if (y > x || (y == x && other < id)) x = y, id = other;
}
__device__ __forceinline__ void best_of_warp(float& x, u32& id) {
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) {
    float y = __shfl_xor_sync(0xffffffffu, x, lane);
    u32 other = __shfl_xor_sync(0xffffffffu, id, lane);
    better(x, id, y, other);
  }
}
// The best of all blocks, of each row: the tokens that the next launch reads.
__device__ __forceinline__ void choose(const float2* all, int batch, u32* ids) {
  for (int m = threadIdx.x / 32; m < batch; m += WARPS) {
    float x = -__int_as_float(0x7f800000);
    u32 id = 0xffffffffu;
    for (int i = threadIdx.x % 32; i < gridDim.x; i += 32) {
      float2 one = __ldcg(all + m * gridDim.x + i);
      better(x, id, one.x, __float_as_uint(one.y));
    }
    best_of_warp(x, id);
    // If all logits of a row are NaN there is no most likely token: an id outside every vocabulary.
    if (threadIdx.x % 32 == 0) ids[m] = id;
  }
}
