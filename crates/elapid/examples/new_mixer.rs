//! A layer of your own, complete. `cargo run --release -p elapid --example new_mixer`.
//!
//! The layer is a diagonal state space model that does not select: h_t = exp(Δ A) h_{t-1} + Δ x_t, y_t = h_t silu(z_t),
//! with Δ and A fixed for every channel (S4D-real with one state element, Gu et al. 2022).

use std::sync::Arc;

use elapid::Layout;
use elapid::autograd::Var;
use elapid::config::ModelConfig;
use elapid::layer::{At, Cost, Layer};
use elapid::linear::Linear;
use elapid::lm::Positions;
use elapid::ops::{Discretisation, ScanArgs, neg_exp, selective_scan};
use elapid::params::{Bias, Init, ParamBuilder, ParamId, Traits};
use elapid::pass::Cx;
use elapid::state::{LayerState, StateSpec};
use elapid::{LanguageModel, Result, Tensor};

/// Its parameters, and its size.
#[derive(Debug)]
struct Decaying {
    d: usize,
    in_proj: Linear,
    a_log: ParamId,
    dt_bias: ParamId,
    out_proj: Linear,
}

impl Decaying {
    fn new(at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<Self> {
        let d = at.d_model;
        // softplus⁻¹(Δ) with Δ log-uniform in 0.001 to 1.
        let dt = Init::drawn(|draw, _, _| {
            let dt = (draw.uniform() * 1000f32.ln()).exp() / 1000.0;
            dt + (-(-dt).exp_m1()).ln()
        });
        Ok(Self {
            d,
            in_proj: p.linear("in_proj", [2 * d, d], &Init::fan_in(d), Bias::No)?,
            a_log: p.param("A_log", &[d, 1], &Init::Constant(0.0), Traits::PRECISE)?,
            dt_bias: p.param("dt_bias", &[d], &dt, Traits::VECTOR)?,
            out_proj: p.linear("out_proj", [d, d], &Init::fan_in(d), Bias::No)?,
        })
    }
}

impl Layer for Decaying {
    fn forward(&self, cx: &Cx, x: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let [initial] = state.into_fixed()?; // [b d 1]
        let (b, l, d) = (cx.layout.b, cx.layout.l, self.d);
        let xz = self.in_proj.forward(cx, x)?; // [b l 2d]
        let ones: Var = Tensor::new(vec![1.0; b * l], &[b, l, 1]).into();
        let (y, h) = selective_scan(
            ScanArgs {
                u: xz.columns(0, d),
                delta: Tensor::zeros(&[b, l, d])?.into(),
                delta_bias: Some(cx.param(self.dt_bias)),
                a: neg_exp(&cx.param(self.a_log))?, // [d 1]
                b: ones.clone(),
                c: ones,
                skip: None,
                z: Some(xz.columns(d, d)),
                initial,
                rule: Discretisation::ExpEuler,
                in_place: cx.in_place(),
            },
            &cx.layout,
        )?;
        Ok((self.out_proj.forward(cx, &y)?, LayerState::of([h])))
    }

    fn state(&self) -> Vec<StateSpec> {
        vec![StateSpec::fixed("h", &[self.d, 1])]
    }

    fn cost(&self, _context: u64) -> Cost {
        let d = self.d as u64;
        Cost { flops: 6 * d * d + 19 * d, params: 3 * d * d + 2 * d, state: d, kept: 5 * d }
    }
}

fn main() -> Result<()> {
    let model = LanguageModel::build_with(
        ModelConfig::mamba1("48x3")?,
        &mut |wanted| wanted.init.values(wanted.name, wanted.shape, 1),
        |_, at, p| Ok(Arc::new(Decaying::new(at, p)?)),
    )?;

    // The contract of every layer: any split of a sequence gives the same bits.
    let tokens: Vec<u32> = (0..40).map(|i| i * 37 % 256).collect();
    let read = |parts: &[&[u32]]| -> Result<Vec<f32>> {
        let (mut state, mut logits) = (model.zero_state(1)?, Vec::new());
        for part in parts {
            let cx = model.inference(Layout::new(1, part.len()));
            let (last, next) = model.logits(&cx, *part, &state, Positions::Last)?;
            (state, logits) = (next, last.value().as_slice().to_vec());
        }
        Ok(logits)
    };
    assert_eq!(read(&[&tokens])?, read(&[&tokens[..13], &tokens[13..14], &tokens[14..]])?);
    println!("{} parameters; whole = parts, bit for bit", model.params().count());
    Ok(())
}
