//! States of single layers: the one after the run from zeros, and a run from a recorded state with its gradients.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use elapid::autograd::{Tape, Var};
use elapid::params::{ParamGrads, Params};
use elapid::pass::Cx;
use elapid::stack::{Carry, Stack};
use elapid::state::LayerState;
use elapid::{Layout, State, Tensor};

use super::super::record::{Golden, Report};
use super::columns::{self, compare_gradients, with_columns};
use super::diagonal;
use super::matrix;
use super::subject::Subject;

/// Where a kind's states are in a file.
struct Kind {
    name: &'static str,
    /// The entries of a layer's state, in order.
    entries: &'static [Entry],
}

/// An entry of a layer's state.
#[derive(Clone, Copy)]
struct Entry {
    /// Its names in the file.
    parts: &'static [&'static str],
    /// How it lies there.
    form: Form,
}

#[derive(Clone, Copy)]
enum Form {
    /// A tensor `[layer b d]` for each part of `[b part d]`.
    PerPart,
    /// One tensor `[part b d]`.
    Stacked,
    /// As elapid has it.
    Same,
    /// What this makes of all parts that are there, for a shape.
    By(fn(&[Vec<f32>], &[usize]) -> Vec<f32>),
    /// RetNet's: `[b h v k]`, divided by the root of a scale of each head.
    Scaled,
}

/// One line a kind that has recorded states.
const KINDS: &[Kind] = &[
    Kind { name: "base_conv", entries: &[Entry { parts: &["conv"], form: Form::Same }] },
    Kind { name: "gated_conv", entries: &[Entry { parts: &["conv"], form: Form::Same }] },
    Kind {
        name: "linear_attention",
        entries: &[Entry { parts: &["ssm", "norm", "kv", "k"], form: Form::By(matrix::attention) }],
    },
    Kind { name: "hgrn2", entries: &[Entry { parts: &["ssm"], form: Form::Same }] },
    Kind { name: "gla", entries: &[Entry { parts: &["ssm"], form: Form::Same }] },
    Kind { name: "retnet", entries: &[Entry { parts: &["kv"], form: Form::Scaled }] },
    Kind {
        name: "mamba2",
        entries: &[
            Entry { parts: &["conv"], form: Form::By(matrix::window) },
            Entry { parts: &["ssm"], form: Form::By(matrix::swapped) },
        ],
    },
    Kind {
        name: "rg_lru",
        entries: &[Entry { parts: &["conv"], form: Form::Same }, Entry { parts: &["h"], form: Form::Same }],
    },
    Kind { name: "lru", entries: &[Entry { parts: &["ssm"], form: Form::By(diagonal::conjugates) }] },
    Kind { name: "s5", entries: &[Entry { parts: &["ssm"], form: Form::By(diagonal::conjugates) }] },
    Kind { name: "rnn", entries: &[Entry { parts: &["h"], form: Form::PerPart }] },
    Kind { name: "gru", entries: &[Entry { parts: &["h"], form: Form::PerPart }] },
    Kind { name: "lstm", entries: &[Entry { parts: &["h", "c"], form: Form::PerPart }] },
    Kind {
        name: "slstm",
        entries: &[Entry { parts: &["conv"], form: Form::Same }, Entry { parts: &["slstm"], form: Form::Stacked }],
    },
];

/// Compares states where the kind is in the table and the file has some.
pub(super) fn check(
    golden: &Golden<'_>,
    subject: &Subject,
    params: &Arc<Params>,
    stack: &Stack,
    x: &Tensor,
    report: &mut Report,
) -> Result<()> {
    let Some(kind) = KINDS.iter().find(|kind| kind.name == subject.layer.kind()) else { return Ok(()) };
    if golden.names_after("state.").is_empty() {
        return Ok(());
    }
    let &[b, l, _] = x.shape() else { anyhow::bail!("x is no batch") };
    let pass = |tape: Option<Arc<Tape>>, x: Var, state: State| {
        let cx = Cx::new(params.clone(), tape, Layout::new(b, l));
        stack.forward(&cx, x, state, Carry::Keep, false, &mut |_, _| Ok(()))
    };
    let zero = stack.zero_state(b)?;
    // A layer has some of them by its settings.
    let there = |entry: &&Entry| entry.parts.iter().any(|part| golden.shape(&format!("state.{part}")).is_ok());
    let entries: Vec<Entry> = kind.entries.iter().filter(there).copied().collect();
    let entries = entries.as_slice();
    let layers = zero.clone().tensors().count() / entries.len();
    let first = Layout { resets: golden.resets()?.map(Into::into), ..Layout::new(b, l) };
    let cx = Cx::new(params.clone(), None, first);
    let (_, last) = stack.forward(&cx, x.clone().into(), zero.clone(), Carry::Keep, false, &mut |_, _| Ok(()))?;
    compare(golden, entries, "state.", &values(&last)?, layers, report)?;
    if golden.shape("init.y").is_err() {
        return Ok(());
    }
    let tape = Arc::new(Tape::new());
    let leaf = tape.leaf(x.clone());
    let shapes: Vec<Vec<usize>> = zero.tensors().map(|(_, x)| x.shape().to_vec()).collect();
    let read = |prefix: &str| -> Result<Vec<Tensor>> {
        (0..shapes.len()).map(|i| entry(golden, entries, prefix, i, &shapes[i])).collect()
    };
    let initial: Vec<Var> = read("init.state.")?.into_iter().map(|x| tape.leaf(x)).collect();
    let mut each = initial.chunks(entries.len());
    let states = (0..layers).map(|_| LayerState::of(each.next().unwrap_or_default().iter().cloned()));
    let (y, last) = pass(Some(tape.clone()), leaf.clone(), zero.having_read(subject.start).with_layers(states)?)?;
    report.close("init.y", &golden.floats("init.y")?, &y.value().to_vec()?);
    compare(golden, entries, "init.final.", &values(&last)?, layers, report)?;
    let dy: Vec<f32> = golden.floats("dy")?.into_iter().map(|x| x as f32).collect();
    let mut outputs = vec![(y.clone(), Tensor::new(dy, y.shape()))];
    for (i, d) in read("init.dfinal.")?.into_iter().enumerate() {
        outputs.push((last.layer(i / entries.len()).fixed(i % entries.len())?.clone(), d));
    }
    let outputs: Vec<(&Var, Tensor)> = outputs.iter().map(|(var, d)| (var, d.clone())).collect();
    let mut grads = ParamGrads::of(params)?;
    let mut others = tape.backward_from(&outputs, &mut grads)?;
    let dx = others.take(&leaf)?.context("no gradient of x")?.to_vec()?;
    let (want, width) = (golden.floats("init.dx")?, columns::last(&golden.shape("init.dx")?));
    report.close("init.dx", &want, &with_columns(&dx, subject.d, width));
    compare_gradients(golden, subject, params, &grads, "init.", report)?;
    let dinitial: Vec<Tensor> =
        initial.iter().map(|x| others.take(x)?.context("no gradient of a state")).collect::<Result<_>>()?;
    compare(golden, entries, "init.dstate.", &dinitial, layers, report)
}

fn values(state: &State) -> Result<Vec<Tensor>> {
    Ok(state.tensors().map(|(_, x)| x.clone()).collect())
}

/// Entry `i` of all layers' entries, in the order of layers, from the file.
fn entry(golden: &Golden<'_>, entries: &[Entry], prefix: &str, i: usize, shape: &[usize]) -> Result<Tensor> {
    let (layer, entry) = (i / entries.len(), &entries[i % entries.len()]);
    let read = |part: &str| -> Result<Vec<f32>> {
        Ok(golden.floats(&format!("{prefix}{part}"))?.into_iter().map(|x| x as f32).collect())
    };
    match entry.form {
        Form::Same => return Ok(Tensor::new(read(entry.parts[0])?, shape)),
        Form::By(of) => {
            let there = entry.parts.iter().filter(|part| golden.shape(&format!("{prefix}{part}")).is_ok());
            let theirs = there.map(|part| read(part)).collect::<Result<Vec<_>>>()?;
            ensure!(!theirs.is_empty(), "no `{prefix}{}`", entry.parts[0]);
            let ours = of(&theirs, shape);
            ensure!(
                ours.len() == shape.iter().product::<usize>(),
                "{prefix}{}: {} elements",
                entry.parts[0],
                ours.len()
            );
            return Ok(Tensor::new(ours, shape));
        }
        Form::Scaled => return Ok(Tensor::new(unscaled(golden, prefix, &read("kv")?, shape)?, shape)),
        Form::PerPart | Form::Stacked => {}
    }
    let &[b, parts, d] = shape else { anyhow::bail!("a state of shape {shape:?}") };
    let mut all = vec![0.0; b * parts * d];
    for part in 0..parts {
        let (name, at) =
            if matches!(entry.form, Form::Stacked) { (entry.parts[0], part) } else { (entry.parts[part], layer) };
        let theirs = read(name)?;
        ensure!(theirs.len() >= (at + 1) * b * d, "{prefix}{name}: too short");
        for row in 0..b {
            all[(row * parts + part) * d..][..d].copy_from_slice(&theirs[(at * b + row) * d..][..d]);
        }
    }
    Ok(Tensor::new(all, shape))
}

/// RetNet's states without their scales and without the factor of keys, which elapid gives to products; and gradients with respect
/// to those.
fn unscaled(golden: &Golden<'_>, prefix: &str, kv: &[f32], shape: &[usize]) -> Result<Vec<f32>> {
    let (of, gradient) = match prefix {
        "init.dfinal." => ("init.final.", true),
        "init.dstate." => ("init.state.", true),
        other => (other, false),
    };
    let roots: Vec<f32> = golden.floats(&format!("{of}scale"))?.into_iter().map(|x| x.sqrt() as f32).collect();
    let &[_, heads, k, v] = shape else { anyhow::bail!("a state of shape {shape:?}") };
    ensure!(roots.len() == heads, "{of}scale: {} for {heads} heads", roots.len());
    let mut all = matrix::swapped(&[kv.to_vec()], shape);
    for (i, head) in all.chunks_mut(k * v).enumerate() {
        let root = roots[i % heads] * (k as f32).sqrt();
        head.iter_mut().for_each(|x| *x = if gradient { *x / root } else { *x * root });
    }
    Ok(all)
}

fn compare(
    golden: &Golden<'_>,
    entries: &[Entry],
    prefix: &str,
    got: &[Tensor],
    layers: usize,
    report: &mut Report,
) -> Result<()> {
    for (i, got) in got.iter().enumerate() {
        let want =
            entry(golden, entries, prefix, i, got.shape())?.to_vec()?.into_iter().map(f64::from).collect::<Vec<_>>();
        let name = entries[i % entries.len()].parts.join(", ");
        let layer = if layers > 1 { format!(" of layer {}", i / entries.len()) } else { String::new() };
        report.close(&format!("{prefix}{name}{layer}"), &want, &got.to_vec()?);
    }
    Ok(())
}
