//! How new parameters are initialised.

use std::fmt;
use std::sync::Arc;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Result;

/// How a new parameter is initialised.
#[derive(Clone)]
pub enum Init {
    /// The same value everywhere.
    Constant(f32),
    /// Uniform in ±bound.
    Uniform(f32),
    /// Normal with mean 0 and this standard deviation.
    Normal(f32),
    /// The elements that a function of the random generator and the shape appends, for initialisations in the file of a
    /// family.
    Drawn(Arc<Drawing>),
}

/// Draws the elements of a parameter of a shape, row after row.
type Drawing = dyn Fn(&mut Draw, &[usize], &mut Vec<f32>) + Send + Sync;

impl fmt::Debug for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant(value) => write!(f, "Constant({value})"),
            Self::Uniform(bound) => write!(f, "Uniform({bound})"),
            Self::Normal(std) => write!(f, "Normal({std})"),
            Self::Drawn(_) => f.write_str("Drawn"),
        }
    }
}

impl Init {
    /// PyTorch's default for linear and convolution layers, weights and biases: uniform in ±1/√fan_in.
    pub fn fan_in(inputs: usize) -> Self {
        Self::Uniform(1.0 / (inputs as f32).sqrt())
    }

    /// softplus⁻¹(Δ) with Δ log-uniform in `min` to `max`, at least `floor`: the bias of Mamba's step sizes (Gu and Dao 2023,
    /// section 3.6).
    pub fn step_sizes(min: f32, max: f32, floor: f32) -> Self {
        Self::drawn(move |draw, _, _| {
            let dt = (draw.uniform() * (max.ln() - min.ln()) + min.ln()).exp().max(floor);
            dt + (-(-dt).exp_m1()).ln()
        })
    }

    /// An initialisation by a function of the random generator and an element's row and column; the sizes after the first of
    /// a parameter `[rows ..]` are merged into columns.
    pub fn drawn(draw: impl Fn(&mut Draw, usize, usize) -> f32 + Send + Sync + 'static) -> Self {
        Self::Drawn(Arc::new(move |random, shape, values| {
            let (rows, cols) = (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product());
            values.extend(
                (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))).map(|(i, j)| draw(random, i, j)),
            );
        }))
    }

    /// The elements of a parameter. They depend only on the seed and the name, so adding a parameter does not change the
    /// others.
    ///
    /// # Errors
    /// If there is too little memory.
    pub fn values(&self, name: &str, shape: &[usize], seed: u64) -> Result<Vec<f32>> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(name.as_bytes());
        let mut draw = Draw(ChaCha8Rng::from_seed(*hasher.finalize().as_bytes()));
        let count: usize = shape.iter().product();
        let mut values = elapid_kernels::with_room(count)?;
        match self {
            Self::Constant(value) => values.resize(count, *value),
            Self::Uniform(bound) => values.extend((0..count).map(|_| draw.symmetric() * bound)),
            Self::Normal(std) => values.extend((0..count).map(|_| draw.normal() * std)),
            Self::Drawn(function) => function(&mut draw, shape, &mut values),
        }
        Ok(values)
    }
}

/// The random generator of one parameter.
pub struct Draw(ChaCha8Rng);

impl Draw {
    /// Uniform in 0 to 1, 1 excluded.
    pub fn uniform(&mut self) -> f32 {
        self.0.random::<f32>()
    }

    /// Uniform in -1 to 1.
    pub fn symmetric(&mut self) -> f32 {
        self.uniform() * 2.0 - 1.0
    }

    /// From the standard normal distribution.
    pub fn normal(&mut self) -> f32 {
        normal(&mut self.0)
    }
}

/// A sample of the standard normal distribution (Box and Muller 1958).
fn normal(rng: &mut impl Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    (radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inits_have_their_range_and_spread() {
        let uniform = Init::Uniform(0.5).values("w", &[10_000], 1).unwrap();
        assert!(uniform.iter().all(|x| x.abs() <= 0.5) && uniform.iter().any(|x| *x > 0.45));
        let normal = Init::Normal(0.02).values("w", &[100, 100], 1).unwrap();
        let std = (normal.iter().map(|x| x * x).sum::<f32>() / 1e4).sqrt();
        assert!((std - 0.02).abs() < 5e-4, "{std}");
        let drawn = Init::drawn(|_, i, j| (10 * i + j) as f32).values("w", &[2, 3], 1).unwrap();
        assert_eq!(drawn, [0.0, 1.0, 2.0, 10.0, 11.0, 12.0]);
    }

    #[test]
    fn values_depend_on_seed_and_name_alone() {
        let draw = |name, seed| Init::Uniform(1.0).values(name, &[8], seed).unwrap();
        assert_eq!(draw("a", 1), draw("a", 1));
        assert_ne!(draw("a", 1), draw("b", 1));
        assert_ne!(draw("a", 1), draw("a", 2));
    }
}
