// The forward on tensor cores for a decay of each key: `starts` where there are resets, `prepare_keys`, `walk`, `walk_sums` with a
// normaliser, `outputs`.

extern "C" __global__ void __launch_bounds__(THREADS) starts(const __grid_constant__ Args a) {
  i64 b = i64(blockIdx.x) * WARPS + (threadIdx.x >> 5);
  if (b < a.b) find_starts(a, int(b));
}
extern "C" __global__ void __launch_bounds__(THREADS) prepare_keys(const __grid_constant__ Args a) { prepare<false>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) walk(const __grid_constant__ Args a) { walk_segment<false, false>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) walk_ends(const __grid_constant__ Args a) { walk_segment<false, true>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) walk_starts(const __grid_constant__ Args a) { start_segments<false>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) outputs(const __grid_constant__ Args a) { answer<true>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) walk_sums(const __grid_constant__ Args a) { walk_column<false>(a); }

// Copies rows of q and k whose keys are not a multiple of 16, or not at multiples of 16 bytes, into rows of KEYS for each group.
extern "C" __global__ void __launch_bounds__(THREADS) pad(const __grid_constant__ Args a) {
  i64 at = i64(blockIdx.x) * THREADS + threadIdx.x, row = at / (a.groups * KEYS);
  int column = int(at % (a.groups * KEYS)), g = column / KEYS, i = column % KEYS;
  if (row >= a.b * a.l) return;
  bool there = i < a.keys;
  a.q.row(row)[column] = there ? a.dq.row(row)[g * a.keys + i] : bf16{0};
  a.k.row(row)[column] = there ? a.dk.row(row)[g * a.keys + i] : bf16{0};
}
