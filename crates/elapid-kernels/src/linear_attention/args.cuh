// Arguments of linear attention.
//
// T: type of the activations. DECAY: None, Head, HeadVarying, Key, KeyVarying, as Decay has them. D: type of a decay that varies.
// BONUS, NORM: whether there are a bonus and a normaliser.

#define BY_KEY (DECAY >= 3)
#define VARYING (DECAY == 2 || DECAY == 4)

struct Args {
  Mat<T> q, k, v, y, dy, dq, dk, dv;
  Mat<float> write, dwrite;
  Mat<D> decay, ddecay;
  // On tensor cores for a decay of each key: dy, or with a normaliser the gradient of what it divides, dy / d.
  Mat<T> dr;
  // [h] or [(h k)].
  const float* constant;
  const float *bonus, *skip;
  // [b h k columns].
  const float *initial, *dlast;
  float *last, *dinitial;
  const u32* lengths;
  const u8* resets;
  // [b h l]: what the normaliser divides by; the gradient of that.
  float *divisors, *ddivisors;
  // [b h segments k columns]: states after every SEGMENT positions and after the last.
  float* states;
  // [b l h k]: shares of heads; those of dk without w.
  float *dq_heads, *dk_heads, *ddecay_heads;
  // [b h k], [b h k], [b h v]: shares of rows, and the sums.
  float *dconstant_rows, *dbonus_rows, *dskip_rows;
  float *dconstant, *dbonus, *dskip;
  // On tensor cores, positions padded to whole chunks: [b h l], [b l]; [b h parts chunks k v] of a part of the values, the states before
  // each chunk and the gradients of those after it.
  float* sums;
  i32* starts;
  bf16 *before, *dafter;
  // [b h parts l] padded: shares of positions in the gradient of the decay and of w; [b h parts chunks]: of what passes a chunk.
  float *of_queries, *of_keys, *of_inter, *of_write, *of_pass;
  // For a decay of each key on tensor cores: [b h tiles chunks CHUNK keys] scaled queries or keys, [b h tiles chunks keys] decays of
  // chunks; keys of a tile.
  bf16* scaled;
  float* passes;
  // [b h segments keys values], [b h segments keys]: states at the ends of segments of a row, then before them; decays of segments.
  float *ends, *ends_passes;
  // [b h tiles chunks + 1 keys]: the normaliser's column of the states before every chunk and after the last; of their gradients after
  // every chunk.
  float *z, *dz;
  // Rows of dconstant_rows and dskip_rows.
  i64 shares;
  i64 l, chunks;
  float scale, eps;
  i32 b, heads, groups, keys, values, columns;
  // Whether skip and its gradient have a value for each channel.
  i32 skip_channels;
  // Parts of a value, and heads times parts of a group that a block works on.
  i32 parts, together;
  // Segments of a row that are walked at the same time.
  i32 segments;
};

__device__ __forceinline__ i64 row_length(const Args& a, int b) {
  i64 len = a.lengths ? a.lengths[b] : a.l;
  return len < a.l ? len : a.l;
}
__device__ __forceinline__ bool is_reset(const Args& a, i64 row) { return a.resets && a.resets[row]; }
__device__ __forceinline__ float write_weight(const Args& a, i64 row, int h) {
  return a.write.data ? a.write.row(row)[h] : 1.0f;
}
__device__ __forceinline__ float skip_weight(const Args& a, int h, int j) {
  return a.skip ? a.skip[a.skip_channels ? h * a.values + j : h] : 0.0f;
}
// g of a key, relative error below 2^-20 for what is not almost 0.
__device__ __forceinline__ float gate(float log) { return fast_exp2(LOG2_E * log); }
__device__ __forceinline__ float log_decay(const Args& a, i64 row, int h, int key) {
#if DECAY == 1
  return a.constant[h];
#elif DECAY == 2
  return to_float(a.decay.row(row)[h]);
#elif DECAY == 3
  return a.constant[h * a.keys + key];
#elif DECAY == 4
  return to_float(a.decay.row(row)[h * a.keys + key]);
#else
  return 0.0f;
#endif
}
