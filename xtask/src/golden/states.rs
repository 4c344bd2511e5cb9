//! States of whole models, layer by layer.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use elapid::state::LayerState;
use elapid::{LanguageModel, State, Tensor};

use super::record::{Golden, Report};

/// Compares the states of a kind of layer: the file, its prefix `state.LAYER.`, and elapid's state; gives the names that it
/// compared.
type Compare = fn(&Golden<'_>, &str, &LayerState, &mut Report) -> Result<&'static [&'static str]>;

/// One line a kind of layer that has recorded states.
const KINDS: &[(&str, Compare)] = &[("mamba1", mamba1), ("mamba2", mamba2), ("rg_lru", rg_lru)];

/// Every recorded state has to be compared; a file may have none.
pub(super) fn check(golden: &Golden<'_>, model: &LanguageModel, state: &State, report: &mut Report) -> Result<()> {
    let mut left: BTreeSet<String> = golden.names_after("state.");
    if left.is_empty() {
        return Ok(());
    }
    let stack = &model.config().stack;
    let mut sublayer = 0;
    for i in 0..model.config().n_layer() {
        let own = sublayer;
        sublayer += 1 + usize::from(stack.layer(i).1.is_some());
        let kind = stack.named.get(stack.layer(i).0).map(|named| named.layer.kind()).unwrap_or_default();
        let Some((_, compare)) = KINDS.iter().find(|(name, _)| *name == kind) else { continue };
        for name in compare(golden, &format!("state.{i}."), state.layer(own), report)? {
            left.remove(&format!("{i}.{name}"));
        }
    }
    ensure!(left.is_empty(), "states that elapid does not compare: {left:?}");
    Ok(())
}

fn mamba1(
    golden: &Golden<'_>,
    prefix: &str,
    state: &LayerState,
    report: &mut Report,
) -> Result<&'static [&'static str]> {
    let name = format!("{prefix}ssm");
    report.close(&name, &golden.floats(&name)?, &state.fixed(1)?.value().to_vec()?);
    conv(golden, &format!("{prefix}conv"), state.fixed(0)?.value(), report)?;
    Ok(&["conv", "ssm"])
}

/// The reference has the matrix of a head `[p n]`, elapid `[n p]`.
fn mamba2(
    golden: &Golden<'_>,
    prefix: &str,
    state: &LayerState,
    report: &mut Report,
) -> Result<&'static [&'static str]> {
    let (name, ssm) = (format!("{prefix}ssm"), state.fixed(1)?.value());
    let &[_, _, n, p] = ssm.shape() else { return Err(anyhow::anyhow!("{name}: {:?}", ssm.shape())) };
    let want = golden.floats(&name)?;
    ensure!(want.len() == ssm.len(), "{name}: wanted {} elements, got {}", ssm.len(), want.len());
    let heads = want.chunks(n * p);
    let want: Vec<f64> = heads.flat_map(|head| (0..n * p).map(move |at| head[at % p * n + at / p])).collect();
    report.close(&name, &want, &ssm.to_vec()?);
    conv(golden, &format!("{prefix}conv"), state.fixed(0)?.value(), report)?;
    Ok(&["conv", "ssm"])
}

fn rg_lru(
    golden: &Golden<'_>,
    prefix: &str,
    state: &LayerState,
    report: &mut Report,
) -> Result<&'static [&'static str]> {
    let name = format!("{prefix}lru");
    report.close(&name, &golden.floats(&name)?, &state.fixed(1)?.value().to_vec()?);
    conv(golden, &format!("{prefix}conv"), state.fixed(0)?.value(), report)?;
    Ok(&["conv", "lru"])
}

/// References keep the last k raw inputs of a convolution, or k-1, channel by channel; elapid the k-1 that the next step needs,
/// position by position.
fn conv(golden: &Golden<'_>, name: &str, conv: &Tensor, report: &mut Report) -> Result<()> {
    let &[b, kept, d] = conv.shape() else { return Err(anyhow::anyhow!("{name}: {:?}", conv.shape())) };
    let want = golden.floats(name)?;
    let k = if want.len() == b * d * kept { kept } else { kept + 1 };
    ensure!(want.len() == b * d * k, "{name}: wanted {} elements, got {}", b * d * k, want.len());
    let at = |row: usize, t: usize, c: usize| want[(row * d + c) * k + t + k - kept];
    let want: Vec<f64> = (0..b)
        .flat_map(|row| (0..kept).flat_map(move |t| (0..d).map(move |c| (row, t, c))))
        .map(|(row, t, c)| at(row, t, c))
        .collect();
    if kept > 0 {
        report.close(name, &want, &conv.to_vec()?);
    }
    Ok(())
}
