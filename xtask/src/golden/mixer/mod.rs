//! Single layers: files with inputs, parameters, outputs, gradients, and outputs step by step.
//!
//! A parameter's name is that of the layer, or begins with `layers.` where a file has several layers. A file whose input is
//! narrower than its layers is compared with zeros in the columns that it lacks, which changes nothing.
//!
//! The layer is picked by the class in the metadata's `source`, or by the keys of its `config` where that is a reference
//! written for the files; every key of `config` is read, and an unknown one is an error.

mod attention;
mod columns;
mod convolution;
mod diagonal;
mod experts;
mod griffin;
mod matrix;
mod recurrent;
mod ssd;
mod states;
mod subject;
mod xpos;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use elapid::autograd::{Tape, Var};
use elapid::config::{ModelSettings, Named, Placement, StackConfig};
use elapid::formats::stored::Stored;
use elapid::layer::Layers;
use elapid::ops::NormKind;
use elapid::params::{ParamBuilder, ParamGrads, Params};
use elapid::pass::Cx;
use elapid::settings::{Auto, Size};
use elapid::stack::{Carry, Stack};
use elapid::{Layout, State, Tensor};
use safetensors::SafeTensors;
use serde_json::{Map, Value};

use self::columns::{compare_gradients, full, last, with_columns};
use self::subject::{Class, Keys, Subject};
use super::record::{Golden, Report};

/// One line a class.
const CLASSES: &[Class] = &[
    attention::CLASS,
    attention::ROLLING,
    attention::SLIDING,
    attention::GRIFFIN,
    convolution::BASE_CONV,
    convolution::GATED_CONV,
    experts::TOKEN_CHOICE,
    experts::BLACK_MAMBA,
    recurrent::RNN,
    recurrent::LSTM,
    recurrent::GRU,
    recurrent::SLSTM,
    matrix::LINEAR_ATTENTION,
    matrix::BASED,
    matrix::RETENTION,
    matrix::GLA,
    matrix::HGRN2,
    matrix::MAMBA2,
    griffin::RG_LRU,
    griffin::BLOCK,
    diagonal::LRU,
    diagonal::LRU_LAYER,
    diagonal::S5,
    diagonal::S5_LAYER,
];

/// Checks the file at `path`.
pub(super) fn check(path: &Path, report: &mut Report) -> Result<()> {
    let bytes = std::fs::read(path)?;
    let golden = Golden(SafeTensors::deserialize(&bytes).context("not a safetensors file")?);
    let (_, header) = SafeTensors::read_metadata(&bytes)?;
    let notes = header.metadata().clone().unwrap_or_default();
    let source = notes.get("source").context("no `source` in the metadata")?;
    let config: Map<String, Value> = serde_json::from_str(notes.get("config").context("no `config` in the metadata")?)?;
    if xpos::matches(source) {
        let mut keys = Keys { left: config };
        xpos::check(&golden, &mut keys, report)?;
        return keys.all_read();
    }
    if ssd::matches(source) {
        let mut keys = Keys { left: config };
        ssd::check(&golden, &mut keys, report)?;
        return keys.all_read();
    }
    let class = CLASSES.iter().find(|class| (class.matches)(source, &config));
    let Some(class) = class else { bail!("elapid has no layer for `{source}` yet") };
    let mut keys = Keys { left: config };
    let subject = (class.subject)(&mut keys)?;
    keys.all_read()?;
    // A reference that scales its states is less exact than ours, which does not.
    let unscaled = notes.get("max_diff").and_then(|all| serde_json::from_str::<Map<String, Value>>(all).ok());
    let unscaled = unscaled.and_then(|all| all.get("no scales at all")?.as_f64());
    let tolerance = report.tolerance;
    report.tolerance += 2.0 * unscaled.unwrap_or(0.0);
    let compared = match class.also {
        Some(also) if !also(&golden, &subject, report)? => Ok(()),
        _ => compare(&golden, &subject, report),
    };
    report.tolerance = tolerance;
    compared
}

fn compare(golden: &Golden<'_>, subject: &Subject, report: &mut Report) -> Result<()> {
    let shape = golden.shape("x")?;
    ensure!(shape.len() == 3 && shape[2] <= subject.d, "x: wanted [b, l, {}], got {shape:?}", subject.d);
    let (b, l, width) = (shape[0], shape[1], shape[2]);
    let (params, stack) = build(golden, subject)?;
    let params = Arc::new(params);
    let x = Tensor::new(with_columns(&golden.singles("x")?, width, subject.d), &[b, l, subject.d]);

    let tape = Arc::new(Tape::new());
    let leaf = tape.leaf(x.clone());
    let resets = golden.resets()?;
    let layout = Layout { resets: resets.clone().map(Into::into), ..Layout::new(b, l) };
    let cx = Cx::new(params.clone(), Some(tape.clone()), layout);
    let (y, _) = stack.forward(&cx, leaf.clone(), stack.zero_state(b)?, Carry::Keep, false, &mut |_, _| Ok(()))?;
    report.close("y", &golden.floats("y")?, &y.value().to_vec()?);

    let mut grads = ParamGrads::of(&params)?;
    let dy = Tensor::new(golden.singles("dy")?, y.shape());
    let mut others = tape.backward_from(&[(&y, dy)], &mut grads)?;
    let dx = others.take(&leaf)?.context("no gradient of x")?;
    report.close("dx", &golden.floats("dx")?, &with_columns(&dx.to_vec()?, subject.d, width));
    compare_gradients(golden, subject, &params, &grads, "", report)?;
    if golden.shape("step.y").is_ok() {
        let steps = steps(&stack, &params, &x, stack.zero_state(b)?, resets.as_deref())?;
        report.close("step.y", &golden.floats("step.y")?, &steps);
    }
    states::check(golden, subject, &params, &stack, &x, report)
}

/// The stack of the layer alone: no norm and no residual stream, unless the file has them.
fn build(golden: &Golden<'_>, subject: &Subject) -> Result<(Params, Stack)> {
    let named =
        subject.params.iter().filter_map(|(name, _)| name.strip_prefix("layers.")?.split('.').next()?.parse().ok());
    let (d_model, n_layer) = (Size::new(subject.d), Size::new(named.max().map_or(1, |last: usize| last + 1)));
    let layers = vec!["it".to_owned()];
    let norm_eps = subject.norm.map_or(1e-5, |(_, eps)| eps);
    let model = ModelSettings { d_model, n_layer, layers, norm: NormKind::None, norm_eps, ..ModelSettings::default() };
    let placement = match subject.norm {
        None => Placement { keep: 0.0, ..Placement::default() },
        Some((place, _)) => Placement { place, norm: Auto::Is(NormKind::Layer), ..Placement::default() },
    };
    let named: BTreeMap<_, _> = [("it".to_owned(), Named { layer: subject.layer.clone(), placement })].into();
    let config = StackConfig { model, named };
    config.check("model").map_err(|problem| anyhow::anyhow!("`{}`: {}", problem.field, problem.what))?;
    let mut source = |wanted: elapid::params::Wanted<'_>| -> elapid::Result<Vec<f32>> {
        let read = || -> Result<Vec<f32>> {
            let found = subject.params.iter().find(|(name, _)| full(name) == wanted.name);
            let (_, stored) = found.with_context(|| format!("no place for `{}`", wanted.name))?;
            if matches!(stored, Stored::Absent) {
                return Ok(wanted.init.values(wanted.name, wanted.shape, 0)?);
            }
            stored.read(wanted.shape, &mut |theirs, shape| {
                let name = golden.kept("param.", "input.", theirs);
                let there = golden.shape(&name)?;
                let fits =
                    there.len() == shape.len() && there.split_last().map(|x| x.1) == shape.split_last().map(|x| x.1);
                ensure!(fits && last(&there) <= last(shape), "{name}: wanted {shape:?}, got {there:?}");
                Ok(with_columns(&golden.singles(&name)?, last(&there), last(shape)))
            })
        };
        read().map_err(|error| elapid::Error::Argument(format!("{error:#}")))
    };
    let mut params = Params::default();
    let stack = Stack::build(&config, &mut ParamBuilder::new(&mut params, &mut source), |name, at, p| {
        config.build(name, at, p)
    })?;
    Ok((params, stack))
}

/// Outputs of one position at a time.
fn steps(stack: &Stack, params: &Arc<Params>, x: &Tensor, mut state: State, resets: Option<&[u8]>) -> Result<Vec<f32>> {
    let &[b, l, d] = x.shape() else { bail!("x is no batch") };
    let mut all = vec![0.0; b * l * d];
    for t in 0..l {
        let at: Vec<f32> = (0..b).flat_map(|row| x.as_slice()[(row * l + t) * d..][..d].to_vec()).collect();
        let at: Var = Tensor::new(at, &[b, 1, d]).into();
        let resets = resets.map(|resets| (0..b).map(|row| resets[row * l + t]).collect::<Vec<_>>().into());
        let cx = Cx::new(params.clone(), None, Layout { resets, ..Layout::new(b, 1) });
        let (y, next) = stack.forward(&cx, at, state, Carry::Keep, false, &mut |_, _| Ok(()))?;
        state = next;
        for (row, y) in y.value().to_vec()?.chunks(d).enumerate() {
            all[(row * l + t) * d..][..d].copy_from_slice(y);
        }
    }
    Ok(all)
}
