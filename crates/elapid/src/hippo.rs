//! HiPPO-LegS in the basis in which its normal part is diagonal (Gu et al. 2020, arXiv 2008.07669; as S4 and S5 begin with it).
//!
//! A + ½ r rᵀ with r_k = √(2k+1) is -½ I + K, where K_nk = ½ r_n r_k above the diagonal and -½ r_n r_k below. K v = iω v is a
//! recurrence: with w = r ⊙ v and t_k = w_0 + … + w_k - ½ Σ w it reads t_k = t_{k-1} (ix - 1) / (ix + 1), x = 2ω / (2k+1), from
//! t_{-1} = -½ Σ w to t_{n-1} = ½ Σ w. Each factor is -exp(-2i atan x), so ω is an eigenvalue if
//!
//! Σ_k atan(2ω / (2k+1)) = π (j - (n-1)/2) for a j of 0 to n-1,
//!
//! which rises with ω: one root for each j, found by bisection, and the eigenvector follows from t. No eigenvalue solver is needed.

use std::f64::consts::PI;

/// Eigenvalues and eigenvectors of the normal part.
#[derive(Debug)]
pub(crate) struct Modes {
    /// Imaginary parts of eigenvalues, ascending; all real parts are -½.
    pub(crate) frequencies: Vec<f64>,
    /// An eigenvector of n complex numbers, of length 1, for each.
    pub(crate) vectors: Vec<Vec<[f64; 2]>>,
}

impl Modes {
    /// The first `kept` modes of n: with n / 2 those of negative frequency, which have the others as conjugates.
    pub(crate) fn legs(n: usize, kept: usize) -> Self {
        let frequencies: Vec<f64> = (0..kept).map(|j| frequency(n, j)).collect();
        let vectors = frequencies.iter().map(|omega| vector(n, *omega)).collect();
        Self { frequencies, vectors }
    }
}

/// Root `j` by bisection, to the last bit.
fn frequency(n: usize, j: usize) -> f64 {
    let wanted = PI * (j as f64 - (n as f64 - 1.0) / 2.0);
    let sum = |omega: f64| (0..n).map(|k| (2.0 * omega / (2 * k + 1) as f64).atan()).sum::<f64>();
    let bound = (n * n + 1) as f64;
    let (mut low, mut high) = (-bound, bound);
    loop {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high || high - low < 1e-300 {
            return middle;
        }
        if sum(middle) < wanted { low = middle } else { high = middle }
    }
}

fn vector(n: usize, omega: f64) -> Vec<[f64; 2]> {
    let mut t = [1.0, 0.0];
    let mut v = Vec::with_capacity(n);
    for k in 0..n {
        let odd = (2 * k + 1) as f64;
        // (ix - 1) / (ix + 1) = (x² - 1 + 2ix) / (x² + 1).
        let x = 2.0 * omega / odd;
        let (re, im) = ((x * x - 1.0) / (x * x + 1.0), 2.0 * x / (x * x + 1.0));
        let next = [t[0] * re - t[1] * im, t[0] * im + t[1] * re];
        v.push([0, 1].map(|part| (next[part] - t[part]) / odd.sqrt()));
        t = next;
    }
    let length = v.iter().map(|[re, im]| re * re + im * im).sum::<f64>().sqrt();
    v.iter().map(|x| x.map(|x| x / length)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_those_of_the_normal_part() {
        for n in [1, 2, 3, 8, 33, 64] {
            let Modes { frequencies, vectors } = Modes::legs(n, n);
            assert!(frequencies.is_sorted(), "{n}");
            let root = |k: usize| ((2 * k + 1) as f64).sqrt();
            let scale = (n * n) as f64;
            for i in 0..n {
                for k in 0..n {
                    // V diag(iω) Vᴴ is K, and V Vᴴ the identity.
                    let (mut matrix, mut identity) = ([0.0; 2], [0.0; 2]);
                    for (omega, v) in frequencies.iter().zip(&vectors) {
                        let ([a, b], [c, d]) = (v[i], v[k]);
                        let product = [a * c + b * d, b * c - a * d];
                        identity = [identity[0] + product[0], identity[1] + product[1]];
                        matrix = [matrix[0] - omega * product[1], matrix[1] + omega * product[0]];
                    }
                    let sign = (i < k) as i8 - (i > k) as i8;
                    let want = 0.5 * f64::from(sign) * root(i) * root(k);
                    assert!((matrix[0] - want).abs() < 1e-13 * scale && matrix[1].abs() < 1e-13 * scale, "{n} {i} {k}");
                    let one = f64::from(u8::from(i == k));
                    assert!((identity[0] - one).abs() < 1e-12 && identity[1].abs() < 1e-12, "{n} {i} {k}");
                }
            }
        }
    }

    #[test]
    fn half_the_modes_are_negative() {
        let half = Modes::legs(16, 8);
        let all = Modes::legs(16, 16);
        assert!(half.frequencies.iter().all(|omega| *omega < 0.0));
        for (j, omega) in half.frequencies.iter().enumerate() {
            assert!((omega + all.frequencies[15 - j]).abs() < 1e-12 * omega.abs(), "{j}");
        }
    }
}
