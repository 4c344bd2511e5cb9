//! Mamba-2's state space model alone, of which every head has its own B and C.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use elapid::autograd::{Tape, Var};
use elapid::ops::{Decay, LinearAttentionArgs, linear_attention};
use elapid::params::{ParamGrads, Params};
use elapid::{Layout, Tensor};

use super::matrix::swapped;
use super::subject::Keys;
use crate::golden::record::{Golden, Report};

pub(super) fn matches(source: &str) -> bool {
    source.ends_with("ssd_minimal_discrete")
}

pub(super) fn check(golden: &Golden<'_>, keys: &mut Keys, report: &mut Report) -> Result<()> {
    let (b, l) = (keys.size("b")?, keys.size("l")?);
    let (h, p, n) = (keys.size("heads")?, keys.size("headdim")?, keys.size("d_state")?);
    // How the reference computes.
    keys.take("block_len")?;
    ensure!(golden.shape("x")? == [b, l, h, p], "x: wanted [{b}, {l}, {h}, {p}]");
    let state = [b, h, n, p];
    for (prefix, start) in [("", false), ("init.", true)] {
        let tape = Arc::new(Tape::new());
        let leaf = |name: &str, cols: usize| -> Result<Var> {
            Ok(tape.leaf(Tensor::new(golden.singles(name)?, &[b, l, cols])))
        };
        let (x, a) = (leaf("x", h * p)?, leaf("input.A", h)?);
        let (keys, queries) = (leaf("input.B", h * n)?, leaf("input.C", h * n)?);
        let zeros = vec![0.0; b * h * n * p];
        let initial = if start { swapped(&[golden.singles("init.state.ssm")?], &state) } else { zeros };
        let initial = tape.leaf(Tensor::new(initial, &state));
        let args = LinearAttentionArgs {
            q: queries.clone(),
            k: keys.clone(),
            v: x.clone(),
            groups: h,
            heads: h,
            scale: 1.0,
            decay: Decay::HeadVarying(a.clone()),
            write: None,
            bonus: None,
            skip: None,
            normaliser: None,
            initial: initial.clone(),
            in_place: false,
        };
        let (y, last) = linear_attention(args, &Layout::new(b, l))?;
        report.close(&format!("{prefix}y"), &golden.floats(&format!("{prefix}y"))?, &y.value().to_vec()?);
        let of_state = |name: &str| -> Result<Vec<f32>> { Ok(swapped(&[golden.singles(name)?], &state)) };
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
        let name = if start { "init.final.ssm" } else { "state.ssm" };
        report.close(name, &wide(of_state(name)?), &last.value().to_vec()?);
        let mut outputs = vec![(&y, Tensor::new(golden.singles("dy")?, y.shape()))];
        if start {
            outputs.push((&last, Tensor::new(of_state("init.dfinal.ssm")?, &state)));
        }
        let mut none = ParamGrads::of(&Params::default())?;
        let mut grads = tape.backward_from(&outputs, &mut none)?;
        for (name, var) in [("dx", &x), ("dinput.A", &a), ("dinput.B", &keys), ("dinput.C", &queries)] {
            let name = format!("{prefix}{name}");
            let got = grads.take(var)?.with_context(|| format!("no `{name}`"))?;
            report.close(&name, &golden.floats(&name)?, &got.to_vec()?);
        }
        if start {
            let got = grads.take(&initial)?.context("no gradient of the state")?;
            report.close("init.dstate.ssm", &wide(of_state("init.dstate.ssm")?), &got.to_vec()?);
        }
    }
    Ok(())
}
