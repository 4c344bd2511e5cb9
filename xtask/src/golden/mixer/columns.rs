//! Parameters and gradients by name; rows of other widths.

use anyhow::{Context, Result};
use elapid::params::{ParamGrads, Params};

use super::subject::Subject;
use crate::golden::record::{Golden, Report};

/// The gradients of all parameters with those of the file, `grad.NAME` after `prefix`.
pub(super) fn compare_gradients(
    golden: &Golden<'_>,
    subject: &Subject,
    params: &Params,
    grads: &ParamGrads,
    prefix: &str,
    report: &mut Report,
) -> Result<()> {
    for (name, stored) in subject.params.iter().filter(|(_, stored)| !stored.names().is_empty()) {
        let id = params.find(&full(name)).with_context(|| format!("no parameter `{name}`"))?;
        let gradient = grads.get(id).with_context(|| format!("no gradient of `{name}`"))?.to_vec()?;
        stored.write(params.get(id).value.shape(), &gradient, &mut |theirs, shape, values| {
            let name = golden.kept(&format!("{prefix}grad."), &format!("{prefix}dinput."), theirs);
            let (from, to) = (last(shape), last(&golden.shape(&name)?));
            report.close(&name, &golden.floats(&name)?, &with_columns(&values, from, to));
            Ok::<(), anyhow::Error>(())
        })?;
    }
    Ok(())
}

pub(super) fn last(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1)
}

/// Rows of `from` columns as rows of `to`: cut, or followed by zeros.
pub(super) fn with_columns(values: &[f32], from: usize, to: usize) -> Vec<f32> {
    let row = |row: &[f32]| (0..to).map(|i| row.get(i).copied().unwrap_or(0.0)).collect::<Vec<f32>>();
    values.chunks_exact(from.max(1)).flat_map(row).collect()
}

pub(super) fn full(name: &str) -> String {
    if name.starts_with("layers.") { name.to_owned() } else { format!("layers.0.mixer.{name}") }
}
