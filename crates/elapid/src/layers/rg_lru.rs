//! The real-gated linear recurrent unit, and the recurrent block of Griffin around it (De et al. 2024, arXiv 2402.19427, section
//! 2.4): r_t = σ(W_a x_t + b_a), i_t = σ(W_x x_t + b_x), a_t = exp(-8 r_t softplus(Λ)), h_t = a_t h_{t-1} + √(1 - a_t²) i_t x_t,
//! where a document's first position has h = i x. In the block x is a short convolution of one projection, and another one,
//! through a GELU, multiplies h.
//!
//! The official code is `recurrentgemma/torch/layers.py` (`RGLRU`) and `modules.py` (`RecurrentBlock`).

use crate::Result;
use crate::autograd::Var;
use crate::layer::{At, Cost, Layer};
use crate::linear::Linear;
use crate::ops::{
    DiagonalScanArgs, Factors, Field, Function, add_scaled, block_linear, causal_conv1d, diagonal_scan, gated, repeat,
};
use crate::params::{Bias, Init, ParamBuilder, ParamId, Traits};
use crate::pass::Cx;
use crate::settings::{Auto, Problem, Size};
use crate::state::{LayerState, StateSpec};

crate::settings! {
    /// Griffin's recurrent block, or its RG-LRU alone.
    pub struct Settings {
        /// Channels of the recurrence; "auto" is d_model.
        width: Auto<Size> = Auto::Auto,
        /// Blocks of the gates' projections.
        heads: Size = Size::new(8),
        /// Whether the block is around it: projections, a convolution, and a gate. Else the recurrence reads the layer's input.
        block: bool = true,
        /// Taps of the causal convolution, including the current position.
        d_conv: Size = Size::new(4),
        /// Initial decays: the square root of uniform from the square of this ...
        @init a_min: f32 = 0.9,
        /// ... to that of this, to the power of 8 r.
        @init a_max: f32 = 0.999,
    }
}

/// The parameters of one layer.
#[derive(Debug)]
pub struct RgLru {
    d_model: usize,
    width: usize,
    heads: usize,
    block: Option<Block>,
    /// `[heads c c]` and `[width]`: of r, and of i.
    gates: [(ParamId, ParamId); 2],
    /// `[width]`.
    lambda: ParamId,
}

/// What is around the recurrence.
#[derive(Debug)]
struct Block {
    d_conv: usize,
    /// `[2 width d]`: the recurrence's input, and the gate.
    in_proj: Linear,
    /// Taps `[width 1 k]` and bias `[width]`.
    conv1d: (ParamId, ParamId),
    /// `[d width]`.
    out_proj: Linear,
}

impl Settings {
    fn width(&self, d_model: usize) -> usize {
        if self.block { self.width.or(Size::new(d_model)).get() } else { d_model }
    }

    /// The same settings with what "auto" stands for.
    pub(super) fn resolved(&self, at: &At<'_>) -> Self {
        let d_conv = if self.block { self.d_conv } else { Size::new(1) };
        Self { width: Auto::Is(Size::new(self.width(at.d_model))), d_conv, ..self.clone() }
    }

    pub(super) fn check(&self, at: &At<'_>) -> Result<(), Problem> {
        let width = self.width(at.d_model);
        if !width.is_multiple_of(self.heads.get()) {
            return Err(Problem::value("heads", format!("a divisor of width, which is {width}"), self.heads));
        }
        let inside = |x: f32| x > 0.0 && x < 1.0;
        for (field, x) in [("a_min", self.a_min), ("a_max", self.a_max)] {
            if !inside(x) {
                return Err(Problem::value(field, "a number between 0 and 1", x));
            }
        }
        match self.a_min <= self.a_max {
            true => Ok(()),
            false => Err(Problem::value("a_min", format!("at most a_max, which is {}", self.a_max), self.a_min)),
        }
    }

    pub(super) fn build(&self, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<RgLru> {
        let (d, width, heads, k) = (at.d_model, self.width(at.d_model), self.heads.get(), self.d_conv.get());
        let c = width / heads;
        let block = match self.block {
            false => None,
            true => {
                let in_proj = p.linear("in_proj", [2 * width, d], &Init::fan_in(d), Bias::zeros(true))?;
                let taps = Init::Normal((0.01 / k as f32).sqrt());
                let taps = p.param("conv1d.weight", &[width, 1, k], &taps, Traits::TAPS)?;
                let bias = p.param("conv1d.bias", &[width], &Init::Constant(0.0), Traits::VECTOR)?;
                let out_proj = p.linear("out_proj", [d, width], &at.into_stream(width), Bias::zeros(true))?;
                Some(Block { d_conv: k, in_proj, conv1d: (taps, bias), out_proj })
            }
        };
        let weight = Init::Normal((c as f32).powf(-0.5));
        let mut gate = |name: &str| -> Result<(ParamId, ParamId)> {
            let bias = Init::Constant(0.0);
            Ok((
                p.param(&format!("{name}_gate.weight"), &[heads, c, c], &weight, Traits::MATRIX)?,
                p.param(&format!("{name}_gate.bias"), &[width], &bias, Traits::VECTOR)?,
            ))
        };
        let gates = [gate("a")?, gate("input")?];
        let lambda = p.param("Lambda", &[width], &self.lambda(), Traits::PRECISE)?;
        Ok(RgLru { d_model: d, width, heads, block, gates, lambda })
    }

    /// Λ with softplus(Λ) = -ln a, as the official code has it.
    fn lambda(&self) -> Init {
        let (min, max) = (self.a_min.powi(2), self.a_max.powi(2));
        Init::drawn(move |draw, _, _| {
            let a = (min + draw.uniform() * (max - min)).sqrt();
            (-a.ln()).exp_m1().ln()
        })
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        // A state that decays within a few positions.
        let plain = Self { heads: Size::new(2), a_min: 0.4, a_max: 0.9, ..Self::default() };
        let bare = Self { block: false, ..plain.clone() };
        let narrow = Self { width: Auto::Is(Size::new(6)), heads: Size::new(3), d_conv: Size::new(2), ..plain.clone() };
        vec![plain, bare, narrow]
    }
}

impl Layer for RgLru {
    fn forward(&self, cx: &Cx, input: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let Some(block) = &self.block else {
            let [initial] = state.into_fixed()?; // [b w]
            let (h, last) = self.recurrence(cx, input, initial)?;
            return Ok((h, LayerState::of([last])));
        };
        let [window, initial] = state.into_fixed()?; // [b k-1 w], [b w]
        let packed = block.in_proj.forward(cx, input)?; // [b l 2w]
        let (x, gate) = (packed.columns(0, self.width), packed.columns(self.width, self.width));
        let (taps, bias) = (cx.param(block.conv1d.0), cx.param(block.conv1d.1));
        let (x, conv) = causal_conv1d(&x, &taps, Some(&bias), (&window, false), cx.in_place(), &cx.layout)?; // [b l w]
        let (h, last) = self.recurrence(cx, &x, initial)?;
        let y = gated(Function::GeluTanh, &gate, &h)?;
        Ok((block.out_proj.forward(cx, &y)?, LayerState::of([conv, last]))) // [b l d]
    }

    /// The first position of a document is not scaled.
    fn reads_positions(&self) -> bool {
        true
    }

    fn state(&self) -> Vec<StateSpec> {
        let h = StateSpec::fixed("h", &[self.width]);
        match &self.block {
            None => vec![h],
            Some(block) => vec![StateSpec::fixed("conv", &[block.d_conv - 1, self.width]), h],
        }
    }

    fn cost(&self, _context: u64) -> Cost {
        let [d, w, c] = [self.d_model, self.width, self.width / self.heads].map(|x| x as u64);
        let gates = 2 * w * c;
        let recurrence = Cost {
            flops: 2 * gates + 2 * w + 30 * w,
            params: gates + 3 * w,
            state: w,
            // The gates with and without their biases, and h.
            kept: 5 * w,
        };
        let Some(block) = &self.block else { return recurrence };
        let (k, products) = (block.d_conv as u64, 3 * w * d);
        let around = Cost {
            flops: 2 * products + 2 * w + d + 2 * w * k + w + 12 * w,
            params: products + 2 * w + d + w * k + w,
            state: w * (k - 1),
            // [x gate], the convolution, and the product.
            kept: 4 * w,
        };
        recurrence + around
    }
}

impl RgLru {
    fn recurrence(&self, cx: &Cx, x: &Var, initial: Var) -> Result<(Var, Var)> {
        let gate = |(weight, bias): (ParamId, ParamId)| -> Result<Var> {
            let product = block_linear(&[(x.clone(), cx.param(weight))])?; // [b l w]
            add_scaled(&product, 1.0, &repeat(&cx.param(bias), &product)?, 1.0)
        };
        let [recurrence, input] = self.gates;
        let args = DiagonalScanArgs {
            field: Field::Real,
            x: x.clone(),
            factors: Factors::RgLru(Box::new([gate(recurrence)?, gate(input)?, cx.param(self.lambda)])),
            initial,
            reverse: false,
            in_place: cx.in_place(),
        };
        diagonal_scan(args, &cx.layout.with_begins(x.value().device())?)
    }
}
