//! Choosing the next token from logits `[v]`.
//!
//! In this order: repetition penalty (Keskar et al. 2019, arXiv 1909.05858: a logit is divided by it if positive,
//! multiplied if not, once for each distinct recent id), presence and frequency penalties (as OpenAI defines them: a logit
//! less `presence` if the token was generated before, and less `frequency` for each time; the prompt is not counted),
//! temperature, top-k, top-p (Holtzman et al. 2020, arXiv 1904.09751: the smallest set of best tokens with that much of the
//! mass, at least one), min-p (tokens of at least that share of the best one's probability). Of equal logits the smaller id
//! comes first everywhere.

mod cpu;
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod naive;
mod params;
pub mod philox;
#[cfg(test)]
mod tests;

use crate::error::{Check, Result};

pub use params::{Params, Past, Scratch};

/// Tokens that the repetition penalty looks back at in generation.
pub const RECENT: usize = 256;

/// The id of the largest logit, the first of equals.
///
/// # Errors
/// If there are no logits, or one is not finite; the error has the id.
pub fn greedy(logits: &[f32]) -> Result<u32> {
    check_logits(logits)?;
    Ok(cpu::greedy(logits))
}

/// The id that `uniform`, a number in `[0, 1)`, falls on.
///
/// `logits` `[v]`; `past` holds what the penalties look at.
///
/// # Errors
/// If there are no logits, one is not finite (the error has the id), a recent id is not below `v`, there are counts of
/// another number of tokens, or a parameter or `uniform` is out of its range.
pub fn sample(params: &Params, logits: &[f32], past: Past<'_>, uniform: f64, scratch: &mut Scratch) -> Result<u32> {
    let check = Check("sampling");
    check_params(params)?;
    check.that((0.0..1.0).contains(&uniform), "uniform", || "in [0, 1)".into(), || uniform.to_string())?;
    check_logits(logits)?;
    if let Some(id) = past.recent.iter().find(|&&id| id as usize >= logits.len()) {
        check.that(false, "recent", || format!("ids below {}", logits.len()), || id.to_string())?;
    }
    if !past.counts.is_empty() {
        check.len("counts", past.counts.len(), logits.len())?;
    }
    Ok(cpu::sample(params, logits, past, uniform, scratch))
}

/// Whether every parameter is in its range.
///
/// # Errors
/// If one is not.
pub fn check_params(params: &Params) -> Result<()> {
    let check = Check("sampling");
    let Params { temperature, top_p, min_p, repetition_penalty, .. } = *params;
    let finite = |x: f32| x.is_finite() && x >= 0.0;
    check.that(finite(temperature), "temperature", || "at least 0".into(), || temperature.to_string())?;
    check.that(top_p > 0.0 && top_p <= 1.0, "top_p", || "in (0, 1]".into(), || top_p.to_string())?;
    check.that((0.0..=1.0).contains(&min_p), "min_p", || "in [0, 1]".into(), || min_p.to_string())?;
    let penalty = repetition_penalty;
    check.that(finite(penalty) && penalty > 0.0, "repetition_penalty", || "above 0".into(), || penalty.to_string())?;
    for (name, penalty) in
        [("presence_penalty", params.presence_penalty), ("frequency_penalty", params.frequency_penalty)]
    {
        check.that(penalty.is_finite(), name, || "finite".into(), || penalty.to_string())?;
    }
    Ok(())
}

fn check_logits(logits: &[f32]) -> Result<()> {
    let check = Check("sampling");
    check.that(!logits.is_empty(), "logits", || "at least one".into(), || "none".into())?;
    match crate::adamw::first_non_finite(logits) {
        None => Ok(()),
        Some(id) => check.that(false, "logits", || "finite values".into(), || format!("{} for id {id}", logits[id])),
    }
}
