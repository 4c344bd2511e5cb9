//! S5 (Smith et al. 2023, arXiv 2208.04933): one diagonal system for all channels, x_t = λ̄ x_{t-1} + b̄ u_t and
//! y_t = 2 Re(C x_t) + D ⊙ u_t, from continuous time with a step size for each state, then a gate. λ, B and C begin as those of
//! HiPPO-N in blocks, in the basis in which it is diagonal; of conjugate modes one is kept.
//!
//! The official code is `s5/ssm.py` (`S5SSM`), `s5/ssm_init.py` and `s5/layers.py` (`SequenceLayer`) of lindermanlab/S5.

use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use super::diagonal::{Activation, Diagonal, Spec};
use super::mamba1::Rule;
use crate::Result;
use crate::hippo::Modes;
use crate::layer::At;
use crate::ops::{Discretisation, SystemForm};
use crate::params::{Draw, Init, ParamBuilder};
use crate::settings::{Auto, Problem, Size};

crate::settings! {
    /// S5.
    pub struct Settings {
        /// States P of the system; "auto" is d_model. With conj_sym half of them are kept.
        d_state: Auto<Size> = Auto::Auto,
        /// Blocks J of the matrix that λ begins as.
        @init blocks: Size = Size::new(8),
        /// What becomes of the output y, with g = gelu(y): "none", "gelu" (g), "half_glu1" (g times the sigmoid of W g), "half_glu2" (y times
        /// it) or "full_glu" (V g times it).
        activation: Activation = Activation::HalfGlu1,
        /// Discretisation: "zoh", "bilinear" or "exp-euler".
        discretisation: Rule = Rule(Discretisation::Zoh),
        /// Whether states are conjugate pairs, of which one is kept and the real part of the output counts twice.
        conj_sym: bool = true,
        /// Whether the real parts of λ are kept at most -1e-4.
        clip_eigs: bool = false,
        /// Whether a second scan runs in reverse. The layer is not causal then.
        bidirectional: bool = false,
        /// Factor of the step sizes: ½ for inputs sampled twice as often as in training.
        step_rescale: f32 = 1.0,
        /// Initial C: "trunc_standard_normal", "lecun_normal" or "complex_normal".
        @init c_init: CInit = CInit::TruncStandardNormal,
        /// Initial step sizes: log-uniform from this ...
        @init dt_min: f32 = 1e-3,
        /// ... to this.
        @init dt_max: f32 = 0.1,
        /// Factor of the learning rate of λ, the step sizes and B, which have no weight decay.
        @init lr_factor: f32 = 0.25,
    }
}

/// How C begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CInit {
    /// C V with parts of C normal of deviation 1/√P, without the tails beyond twice that.
    TruncStandardNormal,
    /// The same with 1/√(d_model P).
    LecunNormal,
    /// Normal parts of deviation √½ in the basis of the modes.
    ComplexNormal,
}

impl Settings {
    fn states(&self, d_model: usize) -> usize {
        self.d_state.or(Size::new(d_model)).get()
    }

    /// The same settings with what "auto" stands for.
    pub(super) fn resolved(&self, at: &At<'_>) -> Self {
        Self { d_state: Auto::Is(Size::new(self.states(at.d_model))), ..self.clone() }
    }

    pub(super) fn check(&self, at: &At<'_>) -> Result<(), Problem> {
        let (all, pair) = (self.states(at.d_model), if self.conj_sym { 2 } else { 1 });
        if !all.is_multiple_of(self.blocks.get().saturating_mul(pair)) {
            let of = if self.conj_sym { "a divisor of half of d_state" } else { "a divisor of d_state" };
            return Err(Problem::value("blocks", format!("{of}, which is {all}"), self.blocks));
        }
        let positive = [
            ("step_rescale", self.step_rescale),
            ("dt_min", self.dt_min),
            ("dt_max", self.dt_max),
            ("lr_factor", self.lr_factor),
        ];
        for (field, x) in positive {
            Problem::unless_positive(field, x)?;
        }
        match self.dt_min <= self.dt_max {
            true => Ok(()),
            false => Err(Problem::value("dt_min", format!("at most dt_max, which is {}", self.dt_max), self.dt_min)),
        }
    }

    pub(super) fn build(&self, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<Diagonal> {
        let (all, blocks) = (self.states(at.d_model), self.blocks.get());
        let n = if self.conj_sym { all / 2 } else { all };
        let basis = Basis { size: all / blocks, kept: n / blocks, blocks, modes: Arc::default() };
        let (of_lambda, of_b, of_c) = (basis.clone(), basis.clone(), basis);
        let (min, max) = (self.dt_min.ln(), self.dt_max.ln());
        let (c_init, scans) = (self.c_init, 1 + usize::from(self.bidirectional));
        let spec = Spec {
            form: SystemForm::S5 { rule: self.discretisation.0, rescale: self.step_rescale, clip: self.clip_eigs },
            n,
            params: [
                ("Lambda_re", Init::Constant(-0.5)),
                ("Lambda_im", Init::drawn(move |_, i, _| of_lambda.modes().frequencies[i % of_lambda.kept] as f32)),
                ("log_step", Init::drawn(move |draw, _, _| min + draw.uniform() * (max - min))),
            ],
            b: Init::Drawn(Arc::new(move |draw: &mut Draw, shape: &[usize], values: &mut Vec<f32>| {
                of_b.b(draw, shape[1], values);
            })),
            c: Init::Drawn(Arc::new(move |draw: &mut Draw, shape: &[usize], values: &mut Vec<f32>| {
                of_c.c(draw, c_init, (shape[0], scans), values);
            })),
            factor: if self.conj_sym { 2.0 } else { 1.0 },
            bidirectional: self.bidirectional,
            activation: self.activation,
            lr: self.lr_factor,
        };
        Diagonal::build(spec, at, p)
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        // A state that decays within a few positions.
        let plain = Self { blocks: Size::new(4), dt_min: 0.1, dt_max: 0.4, ..Self::default() };
        let whole = Self {
            d_state: Auto::Is(Size::new(6)),
            blocks: Size::new(2),
            activation: Activation::HalfGlu2,
            discretisation: Rule(Discretisation::Bilinear),
            conj_sym: false,
            c_init: CInit::LecunNormal,
            ..plain.clone()
        };
        let both = Self {
            activation: Activation::FullGlu,
            clip_eigs: true,
            bidirectional: true,
            c_init: CInit::ComplexNormal,
            ..plain.clone()
        };
        let bare = Self { activation: Activation::Gelu, step_rescale: 0.5, ..plain.clone() };
        vec![plain, whole, both, bare]
    }
}

/// The basis in which the normal part of HiPPO-LegS is diagonal, block by block.
#[derive(Debug, Clone)]
struct Basis {
    /// States of a block.
    size: usize,
    /// Modes kept of a block.
    kept: usize,
    blocks: usize,
    /// Of one block, computed at first use.
    modes: Arc<OnceLock<Modes>>,
}

impl Basis {
    fn modes(&self) -> &Modes {
        self.modes.get_or_init(|| Modes::legs(self.size, self.kept))
    }

    /// Vᴴ B for a real B `[P d]`, normal without tails and of deviation 1/√P, as `[2n d]`.
    fn b(&self, draw: &mut Draw, d: usize, values: &mut Vec<f32>) {
        let (size, n) = (self.size, self.kept * self.blocks);
        let std = ((size * self.blocks) as f64).powf(-0.5);
        let real: Vec<f64> = (0..size * self.blocks * d).map(|_| truncated(draw, std)).collect();
        for part in 0..2 {
            let sign = if part == 0 { 1.0 } else { -1.0 };
            for mode in 0..n {
                let (block, v) = (mode / self.kept, &self.modes().vectors[mode % self.kept]);
                let rows = real[block * size * d..].chunks(d);
                let mut sum = vec![0.0; d];
                for (v, row) in v.iter().zip(rows) {
                    sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += sign * v[part] * x);
                }
                values.extend(sum.iter().map(|x| *x as f32));
            }
        }
    }

    /// C V for a complex C `[d P]`, or a C in the basis itself: `[d 2n]`, real parts then imaginary ones, for each scan.
    fn c(&self, draw: &mut Draw, init: CInit, (d, scans): (usize, usize), values: &mut Vec<f32>) {
        let (size, n) = (self.size, self.kept * self.blocks);
        let all = size * self.blocks;
        let std = match init {
            CInit::TruncStandardNormal => (all as f64).powf(-0.5),
            CInit::LecunNormal => ((d * all) as f64).powf(-0.5),
            CInit::ComplexNormal => 0.0,
        };
        for _ in 0..d * scans {
            let row: Vec<[f64; 2]> = match init {
                CInit::ComplexNormal => {
                    (0..n).map(|_| [(); 2].map(|()| f64::from(draw.normal()) * 0.5_f64.sqrt())).collect()
                }
                _ => {
                    let row: Vec<[f64; 2]> = (0..all).map(|_| [(); 2].map(|()| truncated(draw, std))).collect();
                    (0..n).map(|mode| self.project(&row[mode / self.kept * size..][..size], mode % self.kept)).collect()
                }
            };
            values.extend([0, 1].into_iter().flat_map(|part| row.iter().map(move |x| x[part] as f32)));
        }
    }

    /// Σ_k c_k V_k of a mode.
    fn project(&self, c: &[[f64; 2]], mode: usize) -> [f64; 2] {
        let products = c.iter().zip(&self.modes().vectors[mode]);
        products.fold([0.0; 2], |[re, im], ([a, b], [x, y])| [re + a * x - b * y, im + a * y + b * x])
    }
}

/// JAX's `lecun_normal` and `truncated_normal`: without what is beyond two deviations, and scaled so that the deviation is `std`.
fn truncated(draw: &mut Draw, std: f64) -> f64 {
    loop {
        let x = f64::from(draw.normal());
        if x.abs() <= 2.0 {
            return x * std / 0.879_625_661_034_239_8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(init: &Init, shape: &[usize]) -> Vec<f32> {
        init.values("it", shape, 3).unwrap()
    }

    fn deviation(x: &[f32]) -> f64 {
        (x.iter().map(|x| f64::from(x * x)).sum::<f64>() / x.len() as f64).sqrt()
    }

    /// V Vᴴ B is B again where all modes are kept, and with half of them 2 Re(V Vᴴ B).
    #[test]
    fn b_is_real_in_the_basis_of_states() {
        let (size, blocks, d) = (8, 2, 3);
        let of = |kept: usize| {
            let basis = Basis { size, kept, blocks, modes: Arc::default() };
            let mut b = Vec::new();
            let init = {
                let basis = basis.clone();
                Init::Drawn(Arc::new(move |draw: &mut Draw, shape: &[usize], values: &mut Vec<f32>| {
                    basis.b(draw, shape[1], values);
                }))
            };
            b.extend(values(&init, &[2 * kept * blocks, d]));
            let back = |state: usize, column: usize| {
                let (block, at) = (state / size, state % size);
                (0..kept).fold([0.0; 2], |[re, im], mode| {
                    let [x, y] = basis.modes().vectors[mode][at];
                    let row = block * kept + mode;
                    let (p, q) = (f64::from(b[row * d + column]), f64::from(b[(kept * blocks + row) * d + column]));
                    [re + x * p - y * q, im + x * q + y * p]
                })
            };
            let states: Vec<[f64; 2]> =
                (0..size * blocks).flat_map(|s| (0..d).map(move |c| (s, c))).map(|(s, c)| back(s, c)).collect();
            states
        };
        let (whole, half) = (of(8), of(4));
        assert!(deviation(&whole.iter().map(|x| x[0] as f32).collect::<Vec<_>>()) > 0.1);
        for (whole, half) in whole.iter().zip(&half) {
            assert!(whole[1].abs() < 1e-6, "{whole:?}");
            assert!((whole[0] - 2.0 * half[0]).abs() < 1e-6, "{whole:?} {half:?}");
        }
    }

    #[test]
    fn c_has_the_deviation_of_its_kind() {
        let basis = Basis { size: 16, kept: 8, blocks: 4, modes: Arc::default() };
        let (d, states) = (40, 64.0_f64);
        let expected = [
            (CInit::TruncStandardNormal, states.powf(-0.5)),
            (CInit::LecunNormal, (40.0 * states).powf(-0.5)),
            (CInit::ComplexNormal, 0.5_f64.sqrt()),
        ];
        for (init, want) in expected {
            let basis = basis.clone();
            let drawn = Init::Drawn(Arc::new(move |draw: &mut Draw, shape: &[usize], values: &mut Vec<f32>| {
                basis.c(draw, init, (shape[0], 2), values);
            }));
            let c = values(&drawn, &[d, 2 * 64]);
            assert_eq!(c.len(), d * 128);
            assert!((deviation(&c) / want - 1.0).abs() < 0.05, "{init:?}: {} {want}", deviation(&c));
        }
    }

    #[test]
    fn settings_that_cannot_be_are_errors() {
        use crate::config::ModelConfig;
        use crate::layers::LayerConfig;
        let field = |settings: Settings| {
            let mut config = ModelConfig::mamba1("16x2").unwrap();
            config.stack.model.layers = vec!["s5".into()];
            let named = crate::config::Named { layer: LayerConfig::s5(settings), placement: Default::default() };
            config.stack.named = [("s5".to_owned(), named)].into();
            config.stack.check("model").err().map(|problem| problem.field)
        };
        let plain = Settings { blocks: Size::new(2), ..Settings::default() };
        let at = |name: &str| Some(format!("model.layer.s5.{name}"));
        assert_eq!(field(plain.clone()), None);
        assert_eq!(field(Settings { blocks: Size::new(16), ..plain.clone() }), at("blocks"));
        assert_eq!(field(Settings { blocks: Size::new(16), conj_sym: false, ..plain.clone() }), None);
        assert_eq!(field(Settings { dt_min: 0.5, ..plain.clone() }), at("dt_min"));
        assert_eq!(field(Settings { step_rescale: 0.0, ..plain }), at("step_rescale"));
    }
}
