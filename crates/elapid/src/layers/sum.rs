//! Several layers on one input, their outputs summed: y = Σ sᵢ fᵢ(rᵢ x). Side by side under one norm: attention and SSM
//! (Falcon-H1), attention and MLP (GPT-J), experts and a shared MLP.

use std::sync::Arc;

use crate::Result;
use crate::autograd::Var;
use crate::layer::{At, Cost, Layer, Promises};
use crate::ops::{add_scaled, scaled};
use crate::params::ParamBuilder;
use crate::pass::Cx;
use crate::settings::Problem;
use crate::state::{LayerState, StateSpec};

crate::settings! {
    /// Several layers on one input, their outputs summed.
    pub struct Settings {
        /// Their names, each with its settings in [model.layer.NAME].
        layers: Vec<String> = vec!["mamba1".into(), "mlp".into()],
        /// Factors of their outputs; []: all 1.
        scales: Vec<f32> = Vec::new(),
        /// Factors of what each reads; []: all 1.
        input_scales: Vec<f32> = Vec::new(),
    }
}

/// Layers side by side.
#[derive(Debug)]
pub struct Sum {
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    layer: Arc<dyn Layer>,
    scale: f32,
    input_scale: f32,
}

impl Settings {
    /// The same settings with what "auto" stands for: nothing here is "auto".
    pub(super) fn resolved(&self, _at: &At<'_>) -> Self {
        let full = |factors: &[f32]| if factors.is_empty() { vec![1.0; self.layers.len()] } else { factors.to_vec() };
        Self { scales: full(&self.scales), input_scales: full(&self.input_scales), ..self.clone() }
    }

    pub(super) fn check(&self, at: &At<'_>) -> Result<(), Problem> {
        let n = self.layers.len();
        if n == 0 {
            return Err(Problem::value("layers", "at least one name", "[]"));
        }
        for (field, factors) in [("scales", &self.scales), ("input_scales", &self.input_scales)] {
            if !(factors.is_empty() || factors.len() == n) {
                return Err(Problem::value(field, format!("{n} factors, one a layer, or []"), factors.len()));
            }
            if let Some(x) = factors.iter().find(|x| !x.is_finite()) {
                return Err(Problem::value(field, "finite numbers", x));
            }
        }
        let inside =
            at.inside().ok_or_else(|| Problem::value("layers", "no circle of names", self.layers.join(", ")))?;
        self.layers.iter().try_for_each(|name| at.layers.check(name, &inside))
    }

    pub(super) fn build(&self, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<Sum> {
        let inside = at.inside().ok_or_else(|| crate::Error::Argument("a circle of layers' names".into()))?;
        let Self { layers, scales, input_scales } = self.resolved(at);
        let mut parts = Vec::with_capacity(layers.len());
        for (i, (name, (scale, input_scale))) in layers.iter().zip(scales.into_iter().zip(input_scales)).enumerate() {
            let layer = p.scope(&i.to_string(), |p| at.layers.build(name, &inside, p))?;
            parts.push(Part { layer, scale, input_scale });
        }
        Ok(Sum { parts })
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        let layers = vec!["mamba1".into(), "attention".into(), "mlp".into()];
        vec![Self::default(), Self { layers, scales: vec![0.5, -1.0, 2.0], input_scales: vec![1.0, 0.7, 1.5] }]
    }
}

impl Layer for Sum {
    fn forward(&self, cx: &Cx, x: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let mut before = state.into_slots().into_iter();
        let (mut y, mut after): (Option<(Var, f32)>, _) = (None, Vec::new());
        for part in &self.parts {
            let own = LayerState::new(before.by_ref().take(part.layer.state().len()));
            let (term, own) = part.layer.forward(cx, &scaled(x, part.input_scale)?, own)?;
            after.extend(own.into_slots());
            y = Some(match y {
                None => (term, part.scale),
                Some((sum, scale)) => (add_scaled(&sum, scale, &term, part.scale)?, 1.0),
            });
        }
        let (y, scale) = y.unwrap_or_else(|| (x.clone(), 0.0)); // `check` wants at least one part
        Ok((scaled(&y, scale)?, LayerState::new(after)))
    }

    fn state(&self) -> Vec<StateSpec> {
        let named = |(i, part): (usize, &Part)| -> Vec<StateSpec> {
            let specs = part.layer.state().into_iter();
            specs.map(|spec| StateSpec { name: format!("{i}.{}", spec.name), ..spec }).collect()
        };
        self.parts.iter().enumerate().flat_map(named).collect()
    }

    fn cost(&self, context: u64) -> Cost {
        self.parts.iter().map(|part| part.layer.cost(context)).sum()
    }

    fn promises(&self) -> Promises {
        let all = self.parts.iter().map(|part| part.layer.promises());
        all.fold(Promises::ALL, |one, other| Promises {
            split: one.split.max(other.split),
            resets: one.resets && other.resets,
            lengths: one.lengths && other.lengths,
        })
    }

    fn reads_positions(&self) -> bool {
        self.parts.iter().any(|part| part.layer.reads_positions())
    }
}
