//! xPos: the rotation alone, of one tensor as queries and as keys.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use elapid::autograd::Tape;
use elapid::ops::{Pairs, Rotary, Scaling, rotate};
use elapid::params::{ParamGrads, Params};
use elapid::{Layout, Tensor};

use super::subject::Keys;
use crate::golden::record::{Golden, Report};

pub(super) fn matches(source: &str) -> bool {
    source.ends_with("xpos_relative_position.py XPOS")
}

pub(super) fn check(golden: &Golden<'_>, keys: &mut Keys, report: &mut Report) -> Result<()> {
    let (b, l, c) = (keys.size("b")?, keys.size("l")?, keys.size("head_dim")?);
    let (base, offset) = (keys.real("scale_base")?, keys.size("offset")?);
    ensure!(golden.shape("x")? == [b, l, c], "x: wanted [{b}, {l}, {c}]");
    // What has grown is 1 in the middle of all positions.
    let centre = (l + offset).div_ceil(2) as f64;
    let plain = Rotary::new(c, c, 10000.0, Scaling::None, Pairs::Interleaved);
    let queries = Rotary { centre, ..plain.with_xpos(base) };
    let keys = queries.clone().inverse_growth();
    let layout = Layout { starts: Some(std::iter::repeat_n(offset as u64, b).collect()), ..Layout::new(b, l) };
    let tensor = |name: &str| -> Result<Tensor> {
        Ok(Tensor::new(golden.floats(name)?.into_iter().map(|x| x as f32).collect(), &[b, l, c]))
    };
    let mut turned = Vec::new();
    for (name, rotary) in [("q", queries), ("k", keys)] {
        let tape = Arc::new(Tape::new());
        let x = tape.leaf(tensor("x")?);
        let y = rotate(&x, &rotary, &layout)?;
        let values = y.value().to_vec()?;
        report.close(&format!("y.{name}"), &golden.floats(&format!("y.{name}"))?, &values);
        turned.push(values);
        let mut none = ParamGrads::of(&Params::default())?;
        let mut others = tape.backward_from(&[(&y, tensor(&format!("dy.{name}"))?)], &mut none)?;
        let dx = others.take(&x)?.context("no gradient of x")?;
        report.close(&format!("dx.{name}"), &golden.floats(&format!("dx.{name}"))?, &dx.to_vec()?);
    }
    let scores = turned[0].chunks(l * c).zip(turned[1].chunks(l * c)).flat_map(|(q, k)| {
        let product = |q: &[f32], k: &[f32]| q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>();
        q.chunks(c).flat_map(|q| k.chunks(c).map(|k| product(q, k)).collect::<Vec<_>>()).collect::<Vec<_>>()
    });
    report.close("scores", &golden.floats("scores")?, &scores.collect::<Vec<_>>());
    Ok(())
}
