//! Recorded tensors, and a report of what was compared with them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use elapid_kernels::testing::err_ratio;
use safetensors::{Dtype, SafeTensors};

pub(super) struct Report {
    /// Largest error ratio of forward values, states and gradients.
    pub(super) tolerance: f64,
    /// Error ratios that the reference itself has against float64, where it is known.
    pub(super) noise: BTreeMap<String, f64>,
    pub(super) missed: Vec<String>,
    pub(super) checked: usize,
}

impl Report {
    /// A forward value, a state or a gradient: within the tolerance, or within five times the reference's own noise.
    pub(super) fn close(&mut self, name: &str, want: &[f64], got: &[f32]) {
        let noise = self.noise.get(name).copied().unwrap_or_default();
        self.ratio(name, want, got, self.tolerance.max(5.0 * noise));
    }

    pub(super) fn ratio(&mut self, name: &str, want: &[f64], got: &[f32], tolerance: f64) {
        let ratio = err_ratio(want, got);
        self.line(name, ratio <= tolerance, format!("{ratio:.2e}"));
    }

    pub(super) fn line(&mut self, name: &str, holds: bool, figure: String) {
        println!("  {} {name:<55} {figure}", if holds { "ok  " } else { "MISS" });
        self.checked += 1;
        if !holds {
            self.missed.push(format!("{name} ({figure})"));
        }
    }
}

/// The recorded tensors.
pub(super) struct Golden<'a>(pub(super) SafeTensors<'a>);

impl Golden<'_> {
    /// What follows the prefix in the names that begin with it.
    pub(super) fn names_after(&self, prefix: &str) -> BTreeSet<String> {
        self.0.names().into_iter().filter_map(|name| name.strip_prefix(prefix)).map(str::to_owned).collect()
    }

    /// A name after the first prefix, or after the other one if that is there instead.
    pub(super) fn kept(&self, prefix: &str, other: &str, name: &str) -> String {
        let (one, other) = (format!("{prefix}{name}"), format!("{other}{name}"));
        if self.shape(&one).is_err() && self.shape(&other).is_ok() { other } else { one }
    }

    /// The shape of a tensor; of `NAME[i]`, that of a part of its first dimension.
    pub(super) fn shape(&self, name: &str) -> Result<Vec<usize>> {
        let (whole, part) = part_of(name)?;
        let shape = self.0.tensor(whole).with_context(|| format!("no tensor `{whole}`"))?.shape().to_vec();
        match part {
            None => Ok(shape),
            Some(i) if shape.first().is_some_and(|parts| i < *parts) => Ok(shape[1..].to_vec()),
            Some(_) => bail!("no `{name}`: the tensor is {shape:?}"),
        }
    }

    pub(super) fn floats(&self, name: &str) -> Result<Vec<f64>> {
        let (count, (whole, part)) = (self.shape(name)?.iter().product::<usize>(), part_of(name)?);
        let view = self.0.tensor(whole).with_context(|| format!("no tensor `{whole}`"))?;
        let data = view.data();
        let all: Vec<f64> = match view.dtype() {
            Dtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
            Dtype::F64 => data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            other => bail!("tensor `{name}` is {other:?}, wanted F32 or F64"),
        };
        Ok(part.map_or_else(|| all.clone(), |i| all[i * count..(i + 1) * count].to_vec()))
    }

    /// The same in f32.
    pub(super) fn singles(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.floats(name)?.into_iter().map(|x| x as f32).collect())
    }

    /// Where documents begin, `[b l]`, in a file that has positions in documents.
    pub(super) fn resets(&self) -> Result<Option<Vec<u8>>> {
        if self.shape("segment_pos").is_err() {
            return Ok(None);
        }
        Ok(Some(self.ids("segment_pos")?.into_iter().map(|position| u8::from(position == 0)).collect()))
    }

    pub(super) fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let view = self.0.tensor(name).with_context(|| format!("no tensor `{name}`"))?;
        let data = view.data();
        let ids: Vec<i64> = match view.dtype() {
            Dtype::I32 => data.as_chunks::<4>().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect(),
            Dtype::I64 => data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            other => bail!("tensor `{name}` is {other:?}, wanted I32 or I64"),
        };
        ids.into_iter().map(|id| u32::try_from(id).with_context(|| format!("{name}: id {id}"))).collect()
    }
}

/// The name of a tensor, and the number of the part of it that `NAME[i]` means.
fn part_of(name: &str) -> Result<(&str, Option<usize>)> {
    match name.strip_suffix(']').and_then(|name| name.split_once('[')) {
        None => Ok((name, None)),
        Some((whole, i)) => Ok((whole, Some(i.parse().with_context(|| format!("no part `{name}`"))?))),
    }
}
