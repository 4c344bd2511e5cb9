// Philox4x32-10 (Salmon et al. 2011): the four words of the counter (group, sample) under a key.
__device__ __forceinline__ uint4 philox(u64 key, u64 sample, u64 group) {
  u32 c0 = u32(group), c1 = u32(group >> 32), c2 = u32(sample), c3 = u32(sample >> 32);
  u32 k0 = u32(key), k1 = u32(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    u64 p = u64(0xd2511f53u) * c0, q = u64(0xcd9e8d57u) * c2;
    c0 = u32(q >> 32) ^ c1 ^ k0, c1 = u32(q);
    c2 = u32(p >> 32) ^ c3 ^ k1, c3 = u32(p);
    k0 += 0x9e3779b9u, k1 += 0xbb67ae85u;
  }
  return make_uint4(c0, c1, c2, c3);
}
