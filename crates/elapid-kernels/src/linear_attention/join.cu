// Sums of the shares of heads and rows, in their order.

#define THREADS 128

// dq and dk of a group: a thread has one key of a position.
extern "C" __global__ void __launch_bounds__(THREADS) join_heads(const __grid_constant__ Args a) {
  int each = a.heads / a.groups, width = a.groups * a.keys;
  i64 at = i64(blockIdx.x) * THREADS + threadIdx.x, row = at / width;
  if (row >= a.b * a.l) return;
  int column = int(at % width), g = column / a.keys, i = column % a.keys;
  float dq = 0.0f, dk = 0.0f;
  if (row % a.l < row_length(a, int(row / a.l))) {
    for (int h = g * each; h < (g + 1) * each; ++h) {
      i64 share = (row * a.heads + h) * a.keys + i;
      dq += a.dq_heads[share], dk += write_weight(a, row, h) * a.dk_heads[share];
    }
  }
  a.dq.row(row)[column] = from_float<T>(dq), a.dk.row(row)[column] = from_float<T>(dk);
}

// dw and the gradient of a decay that varies by head: a warp has one head of a position.
extern "C" __global__ void __launch_bounds__(THREADS) join_keys(const __grid_constant__ Args a) {
  i64 unit = i64(blockIdx.x) * (THREADS / 32) + (threadIdx.x >> 5), row = unit / a.heads;
  int h = int(unit % a.heads), lane = threadIdx.x & 31, g = h / (a.heads / a.groups);
  if (row >= a.b * a.l) return;
  bool there = row % a.l < row_length(a, int(row / a.l));
  float dwrite = 0.0f, ddecay = 0.0f;
  for (int i = lane; i < a.keys && there; i += 32) {
    i64 share = (row * a.heads + h) * a.keys + i;
    dwrite += to_float(a.k.row(row)[g * a.keys + i]) * a.dk_heads[share];
    if (a.ddecay_heads) ddecay += a.ddecay_heads[share];
  }
  dwrite = warp_sum(dwrite), ddecay = warp_sum(ddecay);
  if (lane > 0) return;
  if (a.dwrite.data) a.dwrite.row(row)[h] = dwrite;
  if (DECAY == 2 && a.ddecay.data) a.ddecay.row(row)[h] = from_float<D>(ddecay);
}

// Gradients of parameters: a warp has one element of a head.
extern "C" __global__ void __launch_bounds__(THREADS) join_rows(const __grid_constant__ Args a) {
  int unit = blockIdx.x * (THREADS / 32) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  // Adds `count` columns from `column` of rows `width` wide.
  auto add = [&](float* to, const float* rows, int at, i64 width, int column, int count) {
    float sum = 0.0f;
    for (int i = lane; i < a.b * count; i += 32) sum += rows[i / count * width + column + i % count];
    sum = warp_sum(sum);
    if (lane == 0) to[at] += sum;
  };
  i64 keys = i64(a.heads) * a.keys, values = i64(a.heads) * a.values;
  if (a.dconstant && BY_KEY && unit < keys) add(a.dconstant, a.dconstant_rows, unit, keys, unit, 1);
  if (a.dconstant && !BY_KEY && unit < a.heads) add(a.dconstant, a.dconstant_rows, unit, keys, unit * a.keys, a.keys);
  if (a.dbonus && unit < keys) add(a.dbonus, a.dbonus_rows, unit, keys, unit, 1);
  if (a.dskip && a.skip_channels && unit < values) add(a.dskip, a.dskip_rows, unit, values, unit, 1);
  if (a.dskip && !a.skip_channels && unit < a.heads) add(a.dskip, a.dskip_rows, unit, values, unit * a.values, a.values);
}
