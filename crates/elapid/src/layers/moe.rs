//! A mixture of experts (Shazeer et al. 2017; Switch, Fedus et al. 2022): a router picks some of many feed-forwards for each
//! position. y = Σⱼ wⱼ Eⱼ(x), and beside them perhaps an expert that all positions share.

use crate::Result;
use crate::autograd::Var;
use crate::layer::{At, Cost, Layer};
use crate::linear::Linear;
use crate::ops::{
    self, Experts, Picked, Router, add_scaled, balance, glu, linear, map, mixture, route, sinkhorn, sort, spread,
    z_loss,
};
use crate::params::{Bias, Init, ParamBuilder, ParamId, Traits};
use crate::pass::Cx;
use crate::settings::{Auto, Count, Problem, Size};
use crate::state::LayerState;

use super::mlp::Activation;

crate::settings! {
    /// A mixture of experts in the place of a feed-forward.
    pub struct Settings {
        /// Number of experts.
        experts: Size = Size::new(8),
        /// Experts of each position.
        top_k: Size = Size::new(2),
        /// Width inside an expert, or "auto": as a feed-forward of this kind has.
        width: Auto<Size> = Auto::Auto,
        /// The activation: "silu", "gelu", "gelu-tanh", "relu", "squared-relu".
        activation: Activation = Activation::Silu,
        /// Whether a second projection of the input gates the activation.
        gate: bool = true,
        /// Scores of experts: "softmax" over all, or "sigmoid" of each.
        router: Scores = Scores::Softmax,
        /// Whether the router has a bias.
        router_bias: bool = false,
        /// Neighbouring experts are in so many groups, ...
        groups: Size = Size::new(1),
        /// ... of which a position picks from so many (DeepSeek-V2, section 2.2.2).
        top_groups: Size = Size::new(1),
        /// Whether a vector is added to the scores for the pick alone (DeepSeek-V3). Training leaves it as it is.
        correction_bias: bool = false,
        /// Whether training picks experts so that a batch's positions are spread evenly over them, by Sinkhorn iterations
        /// (Clark et al. 2022; BlackMamba). Generation picks the best.
        sinkhorn: bool = false,
        /// Whether the weights of the picked experts are divided by their sum.
        renormalise: bool = true,
        /// Factor of the weights.
        routed_scale: f32 = 1.0,
        /// Width of an expert that all positions share; 0: there is none.
        shared_width: Count = Count::new(0),
        /// Whether a sigmoid of the input weighs the shared expert.
        shared_gate: bool = false,
        /// Weight of the load-balancing loss in training (Switch, section 2.2), such as 0.01; 0: none.
        balance: f32 = 0.0,
        /// What is balanced: each "layer" by itself (Switch), or all layers of the "model" together (transformers).
        balance_over: Over = Over::Layer,
        /// Weight of the router's z loss in training (ST-MoE, eq. 5), such as 0.001; 0: none.
        z_loss: f32 = 0.0,
        /// In training an expert takes at most this many times its even share of a batch's positions, such as 1.25; the others go
        /// past it in the residual stream. 0: all it is picked for.
        capacity: f32 = 0.0,
    }
}

/// Scores of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names of functions")]
pub enum Scores {
    Softmax,
    Sigmoid,
}

/// What is balanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Over {
    /// Each layer by itself.
    Layer,
    /// All layers together.
    Model,
}

/// The parameters of one mixture.
#[derive(Debug)]
pub struct Moe {
    d_model: usize,
    width: usize,
    router: Router,
    /// `[experts]`, added to the scores for the pick.
    correction: Option<ParamId>,
    sinkhorn: bool,
    balance: (f32, Over),
    z_loss: f32,
    capacity: f32,
    /// `[experts d]`.
    logits: Linear,
    /// `[experts 2 width d]` with a gate, else `[experts width d]`.
    up: ParamId,
    /// `[experts d width]`.
    down: ParamId,
    experts: usize,
    activation: ops::Function,
    gate: bool,
    shared: Option<Shared>,
}

/// An expert that all positions share.
#[derive(Debug)]
struct Shared {
    width: usize,
    up: Linear,
    down: Linear,
    /// `[1 d]`.
    gate: Option<Linear>,
}

impl Settings {
    fn width(&self, d_model: usize) -> usize {
        let auto = if self.gate { (8 * d_model).div_ceil(3).next_multiple_of(8) } else { 4 * d_model };
        self.width.or(Size::new(auto)).get()
    }

    /// The same settings with what "auto" stands for.
    pub(super) fn resolved(&self, at: &At<'_>) -> Self {
        let top_groups = self.top_groups.min(self.groups);
        Self { width: Auto::Is(Size::new(self.width(at.d_model))), top_groups, ..self.clone() }
    }

    pub(super) fn check(&self, _at: &At<'_>) -> Result<(), Problem> {
        if self.top_k > self.experts {
            return Err(Problem::value("top_k", format!("at most experts, which is {}", self.experts), self.top_k));
        }
        let (experts, groups) = (self.experts.get(), self.groups.get());
        if !experts.is_multiple_of(groups) {
            return Err(Problem::value("groups", format!("a divisor of experts, which is {experts}"), groups));
        }
        let from = experts / groups * self.top_groups.get().min(groups);
        if self.top_k.get() > from {
            return Err(Problem::value("top_k", format!("at most {from}, the experts of top_groups"), self.top_k));
        }
        if self.sinkhorn && self.correction_bias {
            return Err(Problem::value("sinkhorn", "false where correction_bias moves the picks", self.sinkhorn));
        }
        for (field, x) in [("balance", self.balance), ("z_loss", self.z_loss), ("capacity", self.capacity)] {
            Problem::unless_not_negative(field, x)?;
        }
        Problem::unless_positive("routed_scale", self.routed_scale)
    }

    pub(super) fn build(&self, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<Moe> {
        let (d, width, experts) = (at.d_model, self.width(at.d_model), self.experts.get());
        let rows = |width: usize| if self.gate { 2 * width } else { width };
        let shared = |p: &mut ParamBuilder<'_>| -> Result<Option<Shared>> {
            let width = self.shared_width.get();
            if width == 0 {
                return Ok(None);
            }
            let gate = match self.shared_gate {
                true => Some(p.linear("shared_gate", [1, d], &Init::fan_in(d), Bias::No)?),
                false => None,
            };
            p.scope("shared", |p| {
                let up = p.linear("up", [rows(width), d], &Init::fan_in(d), Bias::No)?;
                let down = p.linear("down", [d, width], &at.into_stream(width), Bias::No)?;
                Ok(Some(Shared { width, up, down, gate }))
            })
        };
        Ok(Moe {
            d_model: d,
            width,
            router: Router {
                top_k: self.top_k.get(),
                groups: self.groups.get(),
                top_groups: self.top_groups.min(self.groups).get(),
                correct_logits: false,
                sigmoid: self.router == Scores::Sigmoid,
                renormalise: self.renormalise,
                scale: self.routed_scale,
            },
            correction: match self.correction_bias {
                true => Some(p.param("router.correction", &[experts], &Init::Constant(0.0), Traits::BUFFER)?),
                false => None,
            },
            sinkhorn: self.sinkhorn,
            balance: (self.balance, self.balance_over),
            z_loss: self.z_loss,
            capacity: self.capacity,
            logits: p.linear("router", [experts, d], &Init::fan_in(d), Bias::zeros(self.router_bias))?,
            up: p.param("experts.up", &[experts, rows(width), d], &Init::fan_in(d), Traits::MATRIX)?,
            down: p.param("experts.down", &[experts, d, width], &at.into_stream(width), Traits::MATRIX)?,
            experts,
            activation: self.activation.function(),
            gate: self.gate,
            shared: shared(p)?,
        })
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        let plain = Self { experts: Size::new(5), width: Auto::Is(Size::new(7)), ..Self::default() };
        let switch = Self {
            top_k: Size::new(1),
            renormalise: false,
            gate: false,
            activation: Activation::Relu,
            ..plain.clone()
        };
        let shared = Self {
            router: Scores::Sigmoid,
            routed_scale: 2.5,
            top_k: Size::new(3),
            shared_width: Count::new(6),
            shared_gate: true,
            router_bias: true,
            ..plain.clone()
        };
        let grouped = Self {
            experts: Size::new(6),
            groups: Size::new(3),
            top_groups: Size::new(2),
            correction_bias: true,
            ..plain.clone()
        };
        vec![plain, switch, shared, grouped]
    }
}

impl Moe {
    /// The losses of the router, in training.
    fn add_losses(&self, cx: &Cx, logits: &Var, picked: &Picked) -> Result<()> {
        match self.balance {
            (0.0, _) => {}
            (weight, Over::Layer) => cx.side_loss(balance(&[spread(logits, picked)?])?, weight),
            (weight, Over::Model) => cx.balanced_together(spread(logits, picked)?, weight),
        }
        if self.z_loss > 0.0 {
            cx.side_loss(z_loss(logits)?, self.z_loss);
        }
        Ok(())
    }
}

impl Layer for Moe {
    fn forward(&self, cx: &Cx, x: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let logits = self.logits.forward(cx, x)?; // [b l experts]
        let balanced = self.sinkhorn && cx.trains();
        let correction = if balanced { Some(sinkhorn(&logits)?) } else { self.correction.map(|id| cx.param(id)) };
        let router = Router { correct_logits: balanced, ..self.router };
        let (picked, weights) = route(&logits, router, correction.as_ref())?; // [b l k]
        let capacity = if cx.trains() { self.capacity } else { 0.0 };
        if cx.trains() {
            self.add_losses(cx, &logits, &picked)?;
        }
        let order = sort(&picked, &self.router, self.experts, capacity)?;
        let (up, down) = (cx.param(self.up), cx.param(self.down));
        let experts = Experts { up, down, activation: self.activation, gate: self.gate };
        let y = mixture(x, &order, &weights, &experts)?; // [b l d]
        let Some(shared) = &self.shared else { return Ok((y, state)) };
        let up = shared.up.forward(cx, x)?;
        let inner = if self.gate { glu(self.activation, &up)? } else { map(self.activation, &up)? }; // [b l w]
        let inner = match &shared.gate {
            None => inner,
            Some(gate) => ops::weighed(&inner, &map(ops::Function::Sigmoid, &gate.forward(cx, x)?)?)?,
        };
        let shared = linear(&inner, &cx.param(shared.down.weight()), None)?; // [b l d]
        Ok((add_scaled(&y, 1.0, &shared, 1.0)?, state))
    }

    fn cost(&self, _context: u64) -> Cost {
        let (d, w, e, k) = (self.d_model as u64, self.width as u64, self.experts as u64, self.router.top_k as u64);
        let matrices = |w: u64| if self.gate { 3 * d * w } else { 2 * d * w };
        let rows = |w: u64| if self.gate { 2 * w } else { w };
        let shared = self.shared.as_ref().map_or(0, |shared| shared.width as u64);
        let gate = self.shared.as_ref().and_then(|shared| shared.gate.as_ref()).map_or(0, |_| d);
        let biases = self.logits.bias().map_or(0, |_| e) + self.correction.map_or(0, |_| e);
        Cost {
            flops: 2 * (d * e + k * matrices(w) + matrices(shared) + gate) + 8 * (k * w + shared) + 2 * k * d + biases,
            params: d * e + e * matrices(w) + matrices(shared) + gate + biases,
            state: 0,
            kept: e + 2 * k + rows(shared) + shared,
        }
    }
}
