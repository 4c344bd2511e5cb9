//! States of whole models, layer by layer.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use elapid::state::LayerState;
use elapid::{LanguageModel, State};

use super::record::{Golden, Report};

/// Compares the states of a kind of layer: the file, its prefix `state.LAYER.`, and elapid's state; gives the names that it
/// compared.
type Compare = fn(&Golden<'_>, &str, &LayerState, &mut Report) -> Result<&'static [&'static str]>;

/// One line a kind of layer that has recorded states.
const KINDS: &[(&str, Compare)] = &[("mamba1", mamba1)];

/// Every recorded state has to be compared.
pub(super) fn check(golden: &Golden<'_>, model: &LanguageModel, state: &State, report: &mut Report) -> Result<()> {
    let mut left: BTreeSet<String> = golden.names_after("state.");
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

/// The reference keeps k raw inputs, channel by channel; elapid the k-1 that the next step needs, position by position.
fn mamba1(
    golden: &Golden<'_>,
    prefix: &str,
    state: &LayerState,
    report: &mut Report,
) -> Result<&'static [&'static str]> {
    let (conv, ssm) = (state.fixed(0)?.value(), state.fixed(1)?.value());
    let name = format!("{prefix}ssm");
    report.close(&name, &golden.floats(&name)?, &ssm.to_vec()?);
    let name = format!("{prefix}conv");
    let &[b, kept, d] = conv.shape() else { return Err(anyhow::anyhow!("{name}: {:?}", conv.shape())) };
    let (want, k) = (golden.floats(&name)?, kept + 1);
    ensure!(want.len() == b * d * k, "{name}: wanted {} elements, got {}", b * d * k, want.len());
    let at = |row: usize, t: usize, c: usize| want[(row * d + c) * k + t + 1];
    let want: Vec<f64> = (0..b)
        .flat_map(|row| (0..kept).flat_map(move |t| (0..d).map(move |c| (row, t, c))))
        .map(|(row, t, c)| at(row, t, c))
        .collect();
    if kept > 0 {
        report.close(&name, &want, &conv.to_vec()?);
    }
    Ok(&["conv", "ssm"])
}
