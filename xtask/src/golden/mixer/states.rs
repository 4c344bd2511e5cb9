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
use super::subject::Subject;

/// Where a kind's states are in a file.
struct Kind {
    name: &'static str,
    /// The entries of a layer's state, in order.
    entries: &'static [Entry],
}

/// An entry of a layer's state.
struct Entry {
    /// Its names in the file.
    parts: &'static [&'static str],
    /// How it lies there.
    form: Form,
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// A tensor `[layer b d]` for each part of `[b part d]`.
    PerPart,
    /// One tensor `[part b d]`.
    Stacked,
    /// As elapid has it.
    Same,
}

/// One line a kind that has recorded states.
const KINDS: &[Kind] = &[
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
    let &[b, l, _] = x.shape() else { anyhow::bail!("x is no batch") };
    let pass = |tape: Option<Arc<Tape>>, x: Var, state: State| {
        let cx = Cx::new(params.clone(), tape, Layout::new(b, l));
        stack.forward(&cx, x, state, Carry::Keep, false, &mut |_, _| Ok(()))
    };
    let zero = stack.zero_state(b)?;
    let layers = zero.clone().tensors().count() / kind.entries.len();
    let (_, last) = pass(None, x.clone().into(), zero.clone())?;
    compare(golden, kind, "state.", &values(&last)?, layers, report)?;
    if golden.shape("init.y").is_err() {
        return Ok(());
    }
    let tape = Arc::new(Tape::new());
    let leaf = tape.leaf(x.clone());
    let shapes: Vec<Vec<usize>> = zero.tensors().map(|(_, x)| x.shape().to_vec()).collect();
    let read = |prefix: &str| -> Result<Vec<Tensor>> {
        (0..shapes.len()).map(|i| entry(golden, kind, prefix, i, &shapes[i])).collect()
    };
    let initial: Vec<Var> = read("init.state.")?.into_iter().map(|x| tape.leaf(x)).collect();
    let mut each = initial.chunks(kind.entries.len());
    let states = (0..layers).map(|_| LayerState::of(each.next().unwrap_or_default().iter().cloned())).collect();
    let (y, last) = pass(Some(tape.clone()), leaf.clone(), zero.with_layers(states)?)?;
    report.close("init.y", &golden.floats("init.y")?, &y.value().to_vec()?);
    compare(golden, kind, "init.final.", &values(&last)?, layers, report)?;
    let dy: Vec<f32> = golden.floats("dy")?.into_iter().map(|x| x as f32).collect();
    let mut outputs = vec![(y.clone(), Tensor::new(dy, y.shape()))];
    for (i, d) in read("init.dfinal.")?.into_iter().enumerate() {
        outputs.push((last.layer(i / kind.entries.len()).fixed(i % kind.entries.len())?.clone(), d));
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
    compare(golden, kind, "init.dstate.", &dinitial, layers, report)
}

fn values(state: &State) -> Result<Vec<Tensor>> {
    Ok(state.tensors().map(|(_, x)| x.clone()).collect())
}

/// Entry `i` of all layers' entries, in the order of layers, from the file.
fn entry(golden: &Golden<'_>, kind: &Kind, prefix: &str, i: usize, shape: &[usize]) -> Result<Tensor> {
    let (layer, entry) = (i / kind.entries.len(), &kind.entries[i % kind.entries.len()]);
    let read = |part: &str| -> Result<Vec<f32>> {
        Ok(golden.floats(&format!("{prefix}{part}"))?.into_iter().map(|x| x as f32).collect())
    };
    if entry.form == Form::Same {
        return Ok(Tensor::new(read(entry.parts[0])?, shape));
    }
    let &[b, parts, d] = shape else { anyhow::bail!("a state of shape {shape:?}") };
    let mut all = vec![0.0; b * parts * d];
    for part in 0..parts {
        let (name, at) = if entry.form == Form::Stacked { (entry.parts[0], part) } else { (entry.parts[part], layer) };
        let theirs = read(name)?;
        ensure!(theirs.len() >= (at + 1) * b * d, "{prefix}{name}: too short");
        for row in 0..b {
            all[(row * parts + part) * d..][..d].copy_from_slice(&theirs[(at * b + row) * d..][..d]);
        }
    }
    Ok(Tensor::new(all, shape))
}

fn compare(
    golden: &Golden<'_>,
    kind: &Kind,
    prefix: &str,
    got: &[Tensor],
    layers: usize,
    report: &mut Report,
) -> Result<()> {
    for (i, got) in got.iter().enumerate() {
        let want =
            entry(golden, kind, prefix, i, got.shape())?.to_vec()?.into_iter().map(f64::from).collect::<Vec<_>>();
        let name = kind.entries[i % kind.entries.len()].parts.join(", ");
        let layer = if layers > 1 { format!(" of layer {}", i / kind.entries.len()) } else { String::new() };
        report.close(&format!("{prefix}{name}{layer}"), &want, &got.to_vec()?);
    }
    Ok(())
}
