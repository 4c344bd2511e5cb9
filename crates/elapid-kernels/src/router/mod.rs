//! The router of a mixture of experts (Shazeer et al. 2017; Switch, Fedus et al. 2022): scores of experts for each position, the
//! few that are picked, and their weights.
//!
//! The scores are the softmax of the logits over all experts, or their sigmoids. Of equal scores the first expert is picked. The
//! pick has no gradient, the weights have.

mod args;
pub(crate) mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::cuda::Result;
use crate::error;
use crate::view::Shaped;
use crate::{Array, DType, View, ViewMut};

use args::CHECK;
pub use args::{Indices, MOST, Router};

/// Picks the experts of each position `[m k]`, the best first, and writes their weights.
///
/// `logits` `[m experts]`, `correction` `[experts]` f32, added to the scores or the logits for the pick alone, `weights` `[m k]` f32 (=).
///
/// # Errors
/// If shapes, dtypes or devices differ, there are fewer experts than are picked or more than [`MOST`], groups do not divide them,
/// or a device failed.
pub fn forward<'a>(
    router: &Router,
    logits: impl Into<View<'a>>,
    correction: Option<View<'a>>,
    weights: impl Into<ViewMut<'a>>,
) -> Result<Indices> {
    let (logits, weights) = (logits.into(), weights.into());
    check(router, &logits)?;
    let (m, experts) = logits.shape();
    CHECK.matrix("weights", &weights, (m, router.top_k))?;
    CHECK.dtype("weights", &weights, DType::F32)?;
    if let Some(correction) = &correction {
        CHECK.flat("correction", correction, experts)?;
        CHECK.dtype("correction", correction, DType::F32)?;
    }
    match weights {
        ViewMut::Host(weights) => {
            let correction = correction.map(|x| CHECK.host_flat("correction", x)).transpose()?;
            Ok(Indices::Host(naive::forward(router, CHECK.host("logits", logits)?, correction, weights)))
        }
        ViewMut::Device(weights) => {
            let gpu = weights.gpu();
            let correction = correction.map(|x| CHECK.device("correction", x, gpu)).transpose()?;
            let logits = CHECK.device("logits", logits, gpu)?;
            Ok(Indices::Device(cuda::forward(router, logits, correction, weights)?))
        }
    }
}

/// The gradient of the logits through the weights.
///
/// `picked` as [`forward`] returned it, `dweights` `[m k]` f32, `dlogits` `[m experts]` (=) of the dtype of the logits.
///
/// # Errors
/// As [`forward`].
pub fn backward<'a>(
    router: &Router,
    logits: impl Into<View<'a>>,
    picked: Array<'a, u32>,
    dweights: impl Into<View<'a>>,
    dlogits: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (logits, dweights, dlogits) = (logits.into(), dweights.into(), dlogits.into());
    check(router, &logits)?;
    let (m, experts) = logits.shape();
    CHECK.that(
        picked.len() == m * router.top_k,
        "picked",
        || format!("{m} times top_k"),
        || picked.len().to_string(),
    )?;
    CHECK.matrix("dweights", &dweights, (m, router.top_k))?;
    CHECK.dtype("dweights", &dweights, DType::F32)?;
    CHECK.matrix("dlogits", &dlogits, (m, experts))?;
    CHECK.dtype("dlogits", &dlogits, logits.dtype())?;
    match dlogits {
        ViewMut::Host(dlogits) => {
            let (logits, dweights) = (CHECK.host("logits", logits)?, CHECK.host("dweights", dweights)?);
            let picked = CHECK.host_array("picked", picked)?;
            let known = picked.iter().all(|&e| (e as usize) < experts);
            CHECK.that(known, "picked", || format!("experts below {experts}"), || "others".into())?;
            naive::backward(router, logits, picked, dweights, dlogits);
            Ok(())
        }
        ViewMut::Device(dlogits) => {
            let gpu = dlogits.gpu();
            let (logits, dweights) = (CHECK.device("logits", logits, gpu)?, CHECK.device("dweights", dweights, gpu)?);
            cuda::backward(router, logits, CHECK.device_array("picked", picked, gpu)?, dweights, dlogits)
        }
    }
}

/// How positions spread over experts: row 0 of `spread` `[2 experts]` f32 (=) has the picks of each expert per position, row 1
/// its mean probability, by the softmax whatever the scores. Both are parts of the load-balancing loss (Switch, equation 4).
///
/// Picks that are no expert's are left out.
///
/// # Errors
/// As [`forward`].
pub fn spread<'a>(logits: impl Into<View<'a>>, picked: Array<'a, u32>, spread: impl Into<ViewMut<'a>>) -> Result<()> {
    let (logits, spread) = (logits.into(), spread.into());
    let (m, experts) = logits.shape();
    check(&Router::top(1), &logits)?;
    CHECK.matrix("spread", &spread, (2, experts))?;
    CHECK.dtype("spread", &spread, DType::F32)?;
    let whole = m > 0 && picked.len().is_multiple_of(m);
    CHECK.that(whole, "picked", || format!("as many for each of {m} positions"), || picked.len().to_string())?;
    match spread {
        ViewMut::Host(spread) => {
            naive::spread(CHECK.host("logits", logits)?, CHECK.host_array("picked", picked)?, spread);
            Ok(())
        }
        ViewMut::Device(spread) => {
            let gpu = spread.gpu();
            cuda::spread(CHECK.device("logits", logits, gpu)?, CHECK.device_array("picked", picked, gpu)?, spread)
        }
    }
}

/// The gradient of the logits through the mean probabilities, the second row of [`spread`].
///
/// `dspread` `[2 experts]` f32, `dlogits` `[m experts]` (=) of the dtype of the logits.
///
/// # Errors
/// As [`forward`].
pub fn spread_backward<'a>(
    logits: impl Into<View<'a>>,
    dspread: impl Into<View<'a>>,
    dlogits: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (logits, dspread, dlogits) = (logits.into(), dspread.into(), dlogits.into());
    check(&Router::top(1), &logits)?;
    CHECK.matrix("dspread", &dspread, (2, logits.shape().1))?;
    CHECK.dtype("dspread", &dspread, DType::F32)?;
    CHECK.matrix("dlogits", &dlogits, logits.shape())?;
    CHECK.dtype("dlogits", &dlogits, logits.dtype())?;
    match dlogits {
        ViewMut::Host(dlogits) => {
            let (logits, dspread) = (CHECK.host("logits", logits)?, CHECK.host("dspread", dspread)?);
            naive::spread_backward(logits, dspread.row(1), dlogits);
            Ok(())
        }
        ViewMut::Device(dlogits) => {
            let gpu = dlogits.gpu();
            cuda::spread_backward(CHECK.device("logits", logits, gpu)?, CHECK.device("dspread", dspread, gpu)?, dlogits)
        }
    }
}

/// What to add to the logits so that picks are spread evenly over experts (Sinkhorn iterations; Clark et al. 2022,
/// arXiv 2202.01169, section 3.2): with c = exp(2 logits), positions i and experts j, factors d0ᵢ and d1ⱼ such that the sums of
/// d0ᵢ cᵢⱼ d1ⱼ are 1 / m for each i and 1 / experts for each j. The largest of a row is where logitⱼ + ½ ln d1ⱼ is largest. It
/// ends when no correction changes by more than 0.001, after 100 turns at most. (Megatron's and BlackMamba's ends when d1 changes
/// by less than 1e-4 in absolute terms, which for thousands of positions is after one turn.)
///
/// `logits` `[m experts]`, `correction` `[experts]` f32 (=): ½ ln d1, up to a constant; 0 without positions.
///
/// # Errors
/// As [`forward`].
pub fn sinkhorn<'a>(logits: impl Into<View<'a>>, correction: impl Into<ViewMut<'a>>) -> Result<()> {
    let (logits, correction) = (logits.into(), correction.into());
    check(&Router::top(1), &logits)?;
    CHECK.flat("correction", &correction, logits.shape().1)?;
    CHECK.dtype("correction", &correction, DType::F32)?;
    let none = logits.shape().0 == 0;
    match correction {
        ViewMut::Host(mut correction) if none => {
            correction.fill(0.0);
            Ok(())
        }
        ViewMut::Device(correction) if none => correction.gpu().zero(correction),
        ViewMut::Host(correction) => {
            naive::sinkhorn(CHECK.host("logits", logits)?, correction.into_slice());
            Ok(())
        }
        ViewMut::Device(correction) => {
            let gpu = correction.gpu();
            cuda::sinkhorn(CHECK.device("logits", logits, gpu)?, correction)
        }
    }
}

/// The z loss, which keeps logits small (ST-MoE, Zoph et al. 2022, equation 5): the mean over positions of log² Σₑ exp(logitₑ).
///
/// `logits` `[m experts]`, `logs` `[m]` f32 (=): the logarithms, `mean` `[1]` f32 (=), 0 without positions.
///
/// # Errors
/// As [`forward`].
pub fn z_loss<'a>(
    logits: impl Into<View<'a>>,
    logs: impl Into<ViewMut<'a>>,
    mean: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (logits, logs, mean) = (logits.into(), logs.into(), mean.into());
    check(&Router::top(1), &logits)?;
    CHECK.flat("logs", &logs, logits.shape().0)?;
    CHECK.flat("mean", &mean, 1)?;
    match logs {
        ViewMut::Host(logs) => {
            let (logits, mean) = (CHECK.host("logits", logits)?, CHECK.host_flat_mut("mean", mean)?);
            mean[0] = naive::z_loss(logits, logs.into_slice());
            Ok(())
        }
        ViewMut::Device(logs) => {
            let gpu = logs.gpu();
            cuda::z_loss(CHECK.device("logits", logits, gpu)?, logs, CHECK.device_mut("mean", mean, gpu)?)
        }
    }
}

/// The gradient of the logits from that of the mean: dlogit = 2 dmean / m · log · exp(logit - log).
///
/// `logs` as [`z_loss`] left them, `dmean` `[1]` f32, `dlogits` `[m experts]` (=) of the dtype of the logits.
///
/// # Errors
/// As [`forward`].
pub fn z_loss_backward<'a>(
    logits: impl Into<View<'a>>,
    logs: impl Into<View<'a>>,
    dmean: impl Into<View<'a>>,
    dlogits: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (logits, logs, dmean, dlogits) = (logits.into(), logs.into(), dmean.into(), dlogits.into());
    let (m, experts) = logits.shape();
    check(&Router::top(1), &logits)?;
    CHECK.flat("logs", &logs, m)?;
    CHECK.flat("dmean", &dmean, 1)?;
    CHECK.matrix("dlogits", &dlogits, (m, experts))?;
    CHECK.dtype("dlogits", &dlogits, logits.dtype())?;
    match dlogits {
        ViewMut::Host(dlogits) => {
            let (logits, logs) = (CHECK.host("logits", logits)?, CHECK.host_flat("logs", logs)?);
            naive::z_loss_backward(logits, logs, CHECK.host_flat("dmean", dmean)?[0], dlogits);
            Ok(())
        }
        ViewMut::Device(dlogits) => {
            let gpu = dlogits.gpu();
            let (logits, logs) = (CHECK.device("logits", logits, gpu)?, CHECK.device("logs", logs, gpu)?);
            cuda::z_loss_backward(logits, logs, CHECK.device("dmean", dmean, gpu)?, dlogits)
        }
    }
}

fn check(router: &Router, logits: &View<'_>) -> error::Result<()> {
    let (_, experts) = logits.shape();
    let &Router { top_k, groups, top_groups, .. } = router;
    let few = (1..=MOST).contains(&experts);
    CHECK.that(few, "logits", || format!("1 to {MOST} experts"), || experts.to_string())?;
    let grouped = groups > 0 && experts.is_multiple_of(groups) && (1..=groups).contains(&top_groups);
    CHECK.that(
        grouped,
        "groups",
        || format!("a divisor of {experts} experts"),
        || format!("{top_groups} of {groups}"),
    )?;
    let most = experts / groups * top_groups;
    CHECK.that((1..=most).contains(&top_k), "top_k", || format!("1 to {most}"), || top_k.to_string())
}
