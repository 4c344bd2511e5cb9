// A layer of Mamba-1, as its kernels for one row and for several see it.

struct Layer {
  const float* norm;        // [d]
  const bf16* in_proj;      // [2 ed, d]
  const float* conv;        // [ed, k]
  const float* conv_bias;   // [ed], may be absent
  const bf16* x_proj;       // [r + 2 n, ed]; transposed for one row
  const bf16* dt_proj;      // [ed, r]
  const float* dt_bias;     // [ed]
  const float* a_log;       // [ed, n]
  const float* skip;        // [ed]
  const bf16* out_proj;     // [d, ed]; transposed for one row
  float* conv_state;        // [batch, k - 1, ed]
  float* ssm_state;         // [batch, ed, n]
};

// Asks for what this block needs of a layer, but for the weights of products: `convolved` are its channels of the
// convolution, `scanned` those of the scan.
template <typename Args>
__device__ __forceinline__ void ask_for(const Args& a, const Layer& layer, int batch, Part convolved, Part scanned) {
  if (i64(blockIdx.x) * 32 < a.d) ask(layer.norm + blockIdx.x * 32, min(32, a.d - int(blockIdx.x) * 32));
  ask(layer.conv + i64(convolved.first) * a.k, convolved.rows * a.k);
  if (layer.conv_bias != nullptr) ask(layer.conv_bias + convolved.first, convolved.rows);
  ask(layer.dt_bias + scanned.first, scanned.rows);
  ask(layer.skip + scanned.first, scanned.rows);
  ask(layer.a_log + i64(scanned.first) * a.n, scanned.rows * a.n);
  for (int m = 0; m < batch; ++m) {
    for (int j = 0; j + 1 < a.k; ++j) {
      ask(layer.conv_state + (i64(m) * (a.k - 1) + j) * a.ed + convolved.first, convolved.rows);
    }
    ask(layer.ssm_state + (i64(m) * a.ed + scanned.first) * a.n, scanned.rows * a.n);
  }
}

// What earlier positions add to the convolution, to `conv` [channels, batch], and what multiplies the current one, to `tap`
// [channels]; their window moves on, but for its last place. Nobody else has a part in it, so it need not wait for other
// blocks.
template <typename Args>
__device__ __forceinline__ void convolve(
    const Args& a, const Layer& layer, int batch, Part own, float* conv, float* tap
) {
#pragma unroll 1
  for (int i = other(); i >= 0 && i < own.rows * batch; i += OTHERS) {
    const int row = batch == 1 ? i : i % own.rows, m = batch == 1 ? 0 : i / own.rows, c = own.first + row;
    float* window = layer.conv_state + m * (a.k - 1) * a.ed + c;
    const float* w = layer.conv + c * a.k;
    float sum = layer.conv_bias != nullptr ? layer.conv_bias[c] : 0.0f;
#pragma unroll 4
    for (int j = 0; j + 1 < a.k; ++j) {
      float x = window[j * a.ed];
      sum += w[j] * x;
      if (j > 0) window[(j - 1) * a.ed] = x;
    }
    conv[row * batch + m] = sum;
    if (m == 0) tap[row] = w[a.k - 1];
  }
}
