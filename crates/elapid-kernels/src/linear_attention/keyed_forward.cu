// The forward on tensor cores for a decay of each key: `starts` where there are resets, `prepare_keys`, `walk`, `outputs`.

extern "C" __global__ void __launch_bounds__(THREADS) starts(const __grid_constant__ Args a) {
  i64 b = i64(blockIdx.x) * WARPS + (threadIdx.x >> 5);
  if (b < a.b) find_starts(a, int(b));
}
extern "C" __global__ void __launch_bounds__(THREADS) prepare_keys(const __grid_constant__ Args a) { prepare<false>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) walk(const __grid_constant__ Args a) { walk_segment<false, false>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) walk_ends(const __grid_constant__ Args a) { walk_segment<false, true>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) walk_starts(const __grid_constant__ Args a) { start_segments<false>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) outputs(const __grid_constant__ Args a) { answer<true>(a); }
