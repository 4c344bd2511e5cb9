//! The linear recurrent unit (Orvieto et al. 2023, arXiv 2303.06349): x_t = λ x_{t-1} + γ ⊙ B u_t, y_t = Re(C x_t) + D ⊙ u_t, with
//! λ = exp(-exp(ν_log) + i exp(θ_log)) and γ = exp(γ_log), then a gate. γ begins as √(1 - |λ|²).
//!
//! No official code is public; the one compared with is `lru/model.py` of NicolasZucchet/minimal-LRU (`LRU`, `SequenceLayer`).

use super::diagonal::{Activation, Diagonal, Spec};
use crate::Result;
use crate::layer::At;
use crate::ops::SystemForm;
use crate::params::{Init, ParamBuilder};
use crate::settings::{Auto, Problem, Size};

crate::settings! {
    /// The linear recurrent unit.
    pub struct Settings {
        /// States N, complex; "auto" is d_model.
        d_state: Auto<Size> = Auto::Auto,
        /// What becomes of the output y, with g = gelu(y): "none", "gelu" (g), "half_glu1" (g times the sigmoid of W g), "half_glu2" (y times
        /// it) or "full_glu" (V g times it).
        activation: Activation = Activation::FullGlu,
        /// Initial absolute values of λ: spread evenly over the area of the ring from this radius ...
        @init r_min: f32 = 0.0,
        /// ... to this one.
        @init r_max: f32 = 1.0,
        /// Initial angles of λ: uniform from 0 to this.
        @init max_phase: f32 = std::f32::consts::TAU,
        /// Factor of the learning rate of λ, γ and B, which have no weight decay.
        @init lr_factor: f32 = 0.5,
    }
}

impl Settings {
    fn n(&self, d_model: usize) -> usize {
        self.d_state.or(Size::new(d_model)).get()
    }

    /// The same settings with what "auto" stands for.
    pub(super) fn resolved(&self, at: &At<'_>) -> Self {
        Self { d_state: Auto::Is(Size::new(self.n(at.d_model))), ..self.clone() }
    }

    pub(super) fn check(&self, _at: &At<'_>) -> Result<(), Problem> {
        if !(0.0..1.0).contains(&self.r_min) {
            return Err(Problem::value("r_min", "0 to less than 1", self.r_min));
        }
        if !(self.r_max > 0.0 && self.r_max <= 1.0 && self.r_max >= self.r_min) {
            let wanted = format!("above 0, at most 1, and at least r_min, which is {}", self.r_min);
            return Err(Problem::value("r_max", wanted, self.r_max));
        }
        Problem::unless_positive("max_phase", self.max_phase)?;
        Problem::unless_positive("lr_factor", self.lr_factor)
    }

    pub(super) fn build(&self, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<Diagonal> {
        let (d, n) = (at.d_model, self.n(at.d_model));
        let (min, max) = (f64::from(self.r_min).powi(2), f64::from(self.r_max).powi(2));
        // |λ|² of mode i: the quantiles of the reference's uniform distribution, so that ν and γ, drawn apart, agree.
        let square = move |i: usize| min + (i as f64 + 0.5) / n as f64 * (max - min);
        let phase = self.max_phase;
        let spec = Spec {
            form: SystemForm::Lru,
            n,
            params: [
                ("nu_log", Init::drawn(move |_, i, _| (-0.5 * square(i).ln()).ln() as f32)),
                ("theta_log", Init::drawn(move |draw, _, _| (phase * (1.0 - draw.uniform())).ln())),
                ("gamma_log", Init::drawn(move |_, i, _| (0.5 * (-square(i)).ln_1p()) as f32)),
            ],
            b: Init::Normal((2.0 * d as f32).powf(-0.5)),
            c: Init::Normal((n as f32).powf(-0.5)),
            factor: 1.0,
            bidirectional: false,
            activation: self.activation,
            lr: self.lr_factor,
        };
        Diagonal::build(spec, at, p)
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        // A state that decays within a few positions.
        let plain = Self { r_min: 0.3, r_max: 0.9, ..Self::default() };
        let narrow =
            Self { d_state: Auto::Is(Size::new(5)), activation: Activation::None, max_phase: 0.3, ..plain.clone() };
        vec![plain, narrow]
    }
}
