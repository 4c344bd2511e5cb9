// A diagonal system in discrete time, from the parameters of its modes: a block for each mode. T is the dtype of b-bar and of its
// gradient; RULE is that of S5 (0 exponential Euler, 1 zero-order hold, 2 bilinear), 3 the LRU.

#define THREADS 128

struct Args {
  const float *one, *two, *three;
  float *d_one, *d_two, *d_three;
  float* a;          // [2n], in the backward its gradient
  Mat<float> b, db;  // [2n d]: B, and its gradient
  Mat<T> out;        // [2n d]: b-bar, in the backward its gradient
  i64 n, d;
  double rescale, greatest;
};

struct Complex {
  double re, im;
};
__device__ __forceinline__ Complex plus(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
__device__ __forceinline__ Complex times(Complex a, Complex b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
__device__ __forceinline__ Complex by(Complex a, double x) { return {a.re * x, a.im * x}; }
__device__ __forceinline__ Complex over(Complex a, Complex b) {
  return by(times(a, {b.re, -b.im}), 1.0 / (b.re * b.re + b.im * b.im));
}
__device__ __forceinline__ Complex times_i(Complex a) { return {-a.im, a.re}; }
__device__ __forceinline__ double dot(Complex a, Complex b) { return a.re * b.re + a.im * b.im; }
__device__ __forceinline__ Complex complex_exp(Complex z) { return by({cos(z.im), sin(z.im)}, exp(z.re)); }

// a-bar, the factor of B, and their derivatives with respect to the three parameters.
struct Mode {
  Complex a, f, da[3], df[3];
};

// (exp(z) - 1) / z and its derivative.
__device__ void phi_of(Complex z, Complex& phi, Complex& dphi) {
  if (fmax(fabs(z.re), fabs(z.im)) >= 1e-2) {
    double half = sin(z.im / 2);
    Complex less = {expm1(z.re) * cos(z.im) - 2 * half * half, exp(z.re) * sin(z.im)};
    phi = over(less, z);
    dphi = over(plus(complex_exp(z), by(phi, -1.0)), z);
    return;
  }
  const double of[8] = {1, 2, 6, 24, 120, 720, 5040, 40320}, slope[8] = {2, 3, 8, 30, 144, 840, 5760, 45360};
  phi = dphi = {0.0, 0.0};
  for (int k = 7; k >= 0; --k) {
    phi = plus(times(phi, z), {1 / of[k], 0.0});
    dphi = plus(times(dphi, z), {1 / slope[k], 0.0});
  }
}

__device__ Mode mode_of(const Args& a, i64 i) {
  Mode m;
  Complex zero = {0.0, 0.0};
#if RULE == 3
  double nu = exp(double(a.one[i])), theta = exp(double(a.two[i])), gamma = exp(double(a.three[i]));
  m.a = complex_exp({-nu, theta});
  m.f = {gamma, 0.0};
  m.da[0] = by(m.a, -nu), m.da[1] = times_i(by(m.a, theta)), m.da[2] = zero;
  m.df[0] = m.df[1] = zero, m.df[2] = m.f;
#else
  double re = a.one[i], delta = exp(double(a.three[i])) * a.rescale;
  Complex lambda = {fmin(re, a.greatest), double(a.two[i])}, z = by(lambda, delta);
  Complex a_lambda, f_lambda, a_delta, f_delta;
#if RULE == 2
  Complex one = {1.0, 0.0}, half = by(z, 0.5), q = over(one, plus(one, by(half, -1.0))), square = times(q, q);
  m.a = times(plus(one, half), q);
  m.f = by(q, delta);
  a_lambda = by(square, delta), f_lambda = by(square, delta * delta * 0.5);
  a_delta = times(square, lambda), f_delta = square;
#else
  m.a = complex_exp(z);
  a_lambda = by(m.a, delta), a_delta = times(m.a, lambda);
#if RULE == 1
  Complex phi, dphi;
  phi_of(z, phi, dphi);
  m.f = by(phi, delta);
  f_lambda = by(dphi, delta * delta), f_delta = m.a;
#else
  m.f = {delta, 0.0};
  f_lambda = zero, f_delta = {1.0, 0.0};
#endif
#endif
  bool inside = re <= a.greatest;
  m.da[0] = inside ? a_lambda : zero, m.da[1] = times_i(a_lambda), m.da[2] = by(a_delta, delta);
  m.df[0] = inside ? f_lambda : zero, m.df[1] = times_i(f_lambda), m.df[2] = by(f_delta, delta);
#endif
  return m;
}

extern "C" __global__ void __launch_bounds__(THREADS) forward(const __grid_constant__ Args a) {
  __shared__ float factor[2];
  for (i64 i = blockIdx.x; i < a.n; i += gridDim.x) {
    if (threadIdx.x == 0) {
      Mode m = mode_of(a, i);
      a.a[i] = float(m.a.re), a.a[a.n + i] = float(-m.a.im);
      factor[0] = float(m.f.re), factor[1] = float(m.f.im);
    }
    __syncthreads();
    float re = factor[0], im = factor[1];
    const float *b_re = a.b.row(i), *b_im = a.b.row(a.n + i);
    T *to_re = a.out.row(i), *to_im = a.out.row(a.n + i);
    for (i64 c = threadIdx.x; c < a.d; c += THREADS) {
      to_re[c] = from_float<T>(re * b_re[c] - im * b_im[c]);
      to_im[c] = from_float<T>(-(re * b_im[c] + im * b_re[c]));
    }
    __syncthreads();
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) backward(const __grid_constant__ Args a) {
  __shared__ Mode mode;
  __shared__ float sums[2][THREADS / 32];
  for (i64 i = blockIdx.x; i < a.n; i += gridDim.x) {
    if (threadIdx.x == 0) mode = mode_of(a, i);
    __syncthreads();
    float re = float(mode.f.re), im = float(mode.f.im), df_re = 0.0f, df_im = 0.0f;
    const float *b_re = a.b.row(i), *b_im = a.b.row(a.n + i);
    const T *from_re = a.out.row(i), *from_im = a.out.row(a.n + i);
    float *to_re = a.db.row(i), *to_im = a.db.row(a.n + i);
    for (i64 c = threadIdx.x; c < a.d; c += THREADS) {
      // The gradient of f B is that of its conjugate with the other sign.
      float d_re = to_float(from_re[c]), d_im = -to_float(from_im[c]);
      to_re[c] += d_re * re + d_im * im;
      to_im[c] += d_im * re - d_re * im;
      df_re += d_re * b_re[c] + d_im * b_im[c];
      df_im += d_im * b_re[c] - d_re * b_im[c];
    }
    df_re = warp_sum(df_re), df_im = warp_sum(df_im);
    if (threadIdx.x % 32 == 0) sums[0][threadIdx.x / 32] = df_re, sums[1][threadIdx.x / 32] = df_im;
    __syncthreads();
    if (threadIdx.x == 0) {
      Complex df = {0.0, 0.0}, da = {a.a[i], -a.a[a.n + i]};
      for (int w = 0; w < THREADS / 32; ++w) df = plus(df, {sums[0][w], sums[1][w]});
      a.d_one[i] += float(dot(da, mode.da[0]) + dot(df, mode.df[0]));
      a.d_two[i] += float(dot(da, mode.da[1]) + dot(df, mode.df[1]));
      a.d_three[i] += float(dot(da, mode.da[2]) + dot(df, mode.df[2]));
    }
    __syncthreads();
  }
}
