//! A mixer of one's own: everything it takes. `cargo run --release -p elapid --example new_mixer`.
//!
//! The mixer is a diagonal state space model that does not select: h_t = exp(Δ A) h_{t-1} + Δ x_t, y_t = h_t silu(z_t),
//! with Δ and A fixed for every channel (S4D-real with one state number, Gu et al. 2022).

use std::sync::Arc;

use elapid::autograd::Var;
use elapid::config::ModelConfig;
use elapid::lm::Positions;
use elapid::mixer::{Cost, Cx, Mixer, StateTensor};
use elapid::ops::{Layout, ScanArgs, linear, neg_exp, selective_scan};
use elapid::params::{Decay, Init, ParamBuilder, ParamId};
use elapid::{LanguageModel, Result, Tensor};
use elapid_kernels::selective_scan::Discretisation;

/// Its parameters, and its size.
#[derive(Debug)]
struct Decaying {
    d: usize,
    in_proj: ParamId,
    a_log: ParamId,
    dt_bias: ParamId,
    out_proj: ParamId,
}

impl Decaying {
    fn new(config: &ModelConfig, prefix: &str, params: &mut ParamBuilder<'_>) -> Result<Self> {
        let d = config.d_model;
        let matrix = Init::Uniform(1.0 / (d as f32).sqrt());
        let dt = Init::SoftplusInverseLogUniform { min: 1e-3, max: 1.0, floor: 1e-4 };
        Ok(Self {
            d,
            in_proj: params.param(format!("{prefix}.in_proj.weight"), &[2 * d, d], matrix, Decay::Yes)?,
            a_log: params.param(format!("{prefix}.A_log"), &[d, 1], Init::Constant(0.0), Decay::No)?,
            dt_bias: params.param(format!("{prefix}.dt_bias"), &[d], dt, Decay::No)?,
            out_proj: params.param(format!("{prefix}.out_proj.weight"), &[d, d], matrix, Decay::Yes)?,
        })
    }
}

impl Mixer for Decaying {
    fn forward(&self, cx: &Cx, x: &Var, state: &[Var]) -> Result<(Var, Vec<Var>)> {
        let (b, l, d) = (cx.layout.b, cx.layout.l, self.d);
        let xz = linear(x, &cx.param(self.in_proj), None)?; // [b l 2d]
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
                initial: state[0].clone(),
                rule: Discretisation::ExpEuler,
                in_place: cx.in_place(),
            },
            &cx.layout,
        )?;
        Ok((linear(&y, &cx.param(self.out_proj), None)?, vec![h]))
    }

    fn state(&self) -> Vec<StateTensor> {
        vec![StateTensor { name: "h", shape: vec![self.d, 1] }]
    }

    fn cost(&self) -> Cost {
        let d = self.d as u64;
        Cost { flops: 6 * d * d + 19 * d, params: 3 * d * d + 2 * d, state: d, kept: 5 * d }
    }
}

fn main() -> Result<()> {
    let model = LanguageModel::build_with(
        ModelConfig::mamba1("48x3")?,
        &mut |wanted| wanted.init.numbers(wanted.name, wanted.shape, 1),
        |config, prefix, params| Ok(Arc::new(Decaying::new(config, prefix, params)?)),
    )?;

    // The contract of every mixer: any split of a sequence gives the same bits.
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
