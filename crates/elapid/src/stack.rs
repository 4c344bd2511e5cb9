//! A sequence of sublayers: the placement of norms, the residual stream, and recomputation.
//!
//! Each sublayer (a mixer, a feed-forward) adds to one stream r of width `d_model`:
//!
//! | place | |
//! |---|---|
//! | before | r <- keep r + scale f(norm(r)) |
//! | sum | r <- norm(keep r + scale f(r)) |
//! | output | r <- keep r + scale norm(f(r)) |
//! | both | n = norm(r); r <- keep n + scale f(n) |
//!
//! In training f's output (in place "output" the norm of it) may be dropped in part before it is added: dropout of elements, and
//! stochastic depth, which leaves it out for rows of the batch.
//!
//! The stream is kept as a pending sum of x and r: the addition at the end of a sublayer is fused into the next norm, in one
//! pass over memory ([`ops::norm`]).

use std::sync::{Arc, Mutex, PoisonError};

use elapid_kernels::reuse::List;

use crate::autograd::{Var, checkpoint};
use crate::config::{Place, Placement, StackConfig, Wiring};
use crate::layer::{At, Layer, Promises};
use crate::ops::{self, Unit};
use crate::params::{Init, ParamBuilder, ParamId, Traits};
use crate::pass::{Cx, Side};
use crate::state::{LayerState, Spec, State};
use crate::{DType, Device, Error, Result};

/// A norm with its parameters.
#[derive(Debug, Clone)]
pub(crate) struct Norm {
    pub(crate) kind: ops::NormKind,
    pub(crate) weight: Option<ParamId>,
    pub(crate) bias: Option<ParamId>,
    pub(crate) eps: f32,
    width: usize,
}

/// A layer with its placement.
#[derive(Debug, Clone)]
pub(crate) struct Sublayer {
    pub(crate) norm: Norm,
    pub(crate) place: Place,
    pub(crate) scale: f32,
    pub(crate) keep: f32,
    /// Whether it reads the same stream as the previous sublayer: parallel wiring.
    pub(crate) parallel: bool,
    pub(crate) layer: Arc<dyn Layer>,
    drops: Drops,
}

/// What training drops of a sublayer's output.
#[derive(Debug, Clone, Copy)]
struct Drops {
    /// Its number from 1; 0 is the input of the first one.
    place: u64,
    /// The share of elements.
    elements: f32,
    /// The share of rows of the batch.
    rows: f32,
}

/// All sublayers of a model, and the norm after the last.
#[derive(Debug, Clone)]
pub struct Stack {
    pub(crate) sublayers: Vec<Sublayer>,
    pub(crate) norm_f: Norm,
    /// Of the input.
    drops: Drops,
    pub(crate) spec: Spec,
}

/// Whether the state after a pass is needed. If not, recomputation need not store what only the state holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carry {
    /// It is needed.
    Keep,
    /// It is not needed: the returned state is meaningless.
    Drop,
}

/// The pending sum keep r + scale x; without r it is x.
#[derive(Debug, Clone)]
struct Stream {
    x: Var,
    r: Option<Var>,
    scale: f32,
    keep: f32,
}

/// Called with the index of a sublayer and its output.
pub type Each<'a> = dyn FnMut(usize, &Var) -> Result<()> + 'a;

impl Norm {
    /// A norm of width `d`, its parameters under the builder's prefix.
    pub(crate) fn build(kind: ops::NormKind, eps: f32, d: usize, p: &mut ParamBuilder<'_>) -> Result<Self> {
        let start = Init::Constant(if kind == ops::NormKind::Rms1 { 0.0 } else { 1.0 });
        let (weight, bias) = (kind.has_weight(), kind.has_bias());
        let weight = weight.then(|| p.param("weight", &[d], &start, Traits::VECTOR)).transpose()?;
        let bias = bias.then(|| p.param("bias", &[d], &Init::Constant(0.0), Traits::VECTOR)).transpose()?;
        Ok(Self { kind, weight, bias, eps, width: d })
    }

    /// Columns that it is over.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Its parameters.
    pub(crate) fn params(&self) -> usize {
        self.width * (usize::from(self.weight.is_some()) + usize::from(self.bias.is_some()))
    }

    /// norm(x).
    pub(crate) fn apply(&self, cx: &Cx, x: &Var) -> Result<Var> {
        Ok(self.of(cx, &Stream::new(x.clone()))?.0)
    }

    /// The weight of a plain RMSNorm; none for any other norm.
    pub(crate) fn plain_rms(&self) -> Option<ParamId> {
        self.weight.filter(|_| self.kind == ops::NormKind::Rms)
    }

    /// (norm(s), s) of the stream s.
    fn of(&self, cx: &Cx, stream: &Stream) -> Result<(Var, Var)> {
        let (weight, bias) = (self.weight.map(|id| cx.param(id)), self.bias.map(|id| cx.param(id)));
        let norm = ops::Norm { kind: self.kind, weight: weight.as_ref(), bias: bias.as_ref(), eps: self.eps };
        ops::norm(&stream.x, stream.r.as_ref(), (stream.keep, stream.scale), &norm)
    }
}

impl Stream {
    fn new(x: Var) -> Self {
        Self { x, r: None, scale: 1.0, keep: 1.0 }
    }

    /// The sum itself, f32.
    fn sum(&self) -> Result<Var> {
        match &self.r {
            None => ops::cast(&self.x, DType::F32),
            Some(r) => ops::add_scaled(&ops::cast(r, DType::F32)?, self.keep, &self.x, self.scale),
        }
    }

    /// A sum in the format of activations, which layers read.
    fn activation(&self, sum: &Var) -> Result<Var> {
        ops::cast(sum, self.x.value().dtype())
    }

    fn vars(&self) -> impl Iterator<Item = Var> {
        [self.x.clone()].into_iter().chain(self.r.clone())
    }
}

impl Drops {
    /// x, of which training drops some.
    fn of(self, cx: &Cx, x: Var) -> Result<Var> {
        let x = cx.dropout(x, 2 * self.place, self.elements, Unit::Element)?;
        cx.dropout(x, 2 * self.place + 1, self.rows, Unit::Sample)
    }
}

impl Sublayer {
    /// The weight of the norm of a plain pre-norm sublayer; none for any other sublayer.
    pub(crate) fn plain_rms(&self) -> Option<ParamId> {
        let plain = self.place == Place::Before && (self.scale, self.keep) == (1.0, 1.0) && !self.parallel;
        self.norm.plain_rms().filter(|_| plain)
    }

    fn forward(&self, cx: &Cx, stream: &Stream, state: LayerState) -> Result<(Stream, LayerState)> {
        let next = |x: Var, r: Var| -> Result<Stream> {
            Ok(Stream { x: self.drops.of(cx, x)?, r: Some(r), scale: self.scale, keep: self.keep })
        };
        match self.place {
            Place::Before => {
                let (n, r) = self.norm.of(cx, stream)?;
                let (y, state) = self.layer.forward(cx, &n, state)?;
                Ok((next(y, r)?, state))
            }
            Place::Sum => {
                let r = stream.sum()?;
                let (y, state) = self.layer.forward(cx, &stream.activation(&r)?, state)?;
                Ok((Stream::new(self.norm.of(cx, &next(y, r)?)?.0), state))
            }
            Place::Output => {
                let r = stream.sum()?;
                let (y, state) = self.layer.forward(cx, &stream.activation(&r)?, state)?;
                Ok((next(self.norm.of(cx, &Stream::new(y))?.0, r)?, state))
            }
            Place::Both => {
                let (n, _) = self.norm.of(cx, stream)?;
                let (y, state) = self.layer.forward(cx, &n, state)?;
                Ok((next(y, n)?, state))
            }
        }
    }

    /// [`forward`](Self::forward) of a parallel sublayer: it reads `from`, the input stream of the previous sublayer, and
    /// adds to that sublayer's result.
    fn forward_beside(&self, cx: &Cx, from: &Stream, to: &Stream, state: LayerState) -> Result<(Stream, LayerState)> {
        let (n, _) = self.norm.of(cx, from)?;
        let (y, state) = self.layer.forward(cx, &n, state)?;
        Ok((Stream { x: self.drops.of(cx, y)?, r: Some(to.sum()?), scale: self.scale, keep: self.keep }, state))
    }
}

impl Stack {
    /// The stack of a configuration: `layers.N.{norm,mixer}`, and `{ffn_norm,ffn}` where there is a feed-forward, then
    /// `norm_f`, under the builder's prefix. Parameters of a shared name are under `shared.NAME`.
    ///
    /// # Errors
    /// If the source of parameters lacks one, or a setting is impossible.
    pub fn build(
        config: &StackConfig,
        p: &mut ParamBuilder<'_>,
        mut layer: impl FnMut(&str, &At<'_>, &mut ParamBuilder<'_>) -> Result<Arc<dyn Layer>>,
    ) -> Result<Self> {
        let model = &config.model;
        let d = model.d_model.get();
        let (mut sublayers, mut spec) = (Vec::new(), Vec::new());
        let mut places = 1..;
        for i in 0..model.n_layer.get() {
            let (at, (mixer, ffn)) = (config.at(i), config.layer(i));
            let uses = [(Some(mixer), "norm", "mixer"), (ffn, "ffn_norm", "ffn")];
            for (name, norm, place) in uses.into_iter().filter_map(|(name, norm, place)| Some((name?, norm, place))) {
                let placement = config.placement(name);
                let kind = placement.norm.or(model.norm);
                let sublayer = p.scope(&format!("layers.{i}"), |p| {
                    let norm = p.scope(norm, |p| Norm::build(kind, model.norm_eps, d, p))?;
                    let layer = match placement.share {
                        false => p.scope(place, |p| layer(name, &at, p))?,
                        true => p.shared_scope(name, |p| layer(name, &at, p))?,
                    };
                    let parallel = place == "ffn" && model.wiring == Wiring::Parallel;
                    let Placement { place, scale, keep, .. } = placement;
                    let place_of_drops = places.next().unwrap_or(0);
                    let drops = Drops { place: place_of_drops, elements: model.dropout, rows: model.drop_path_of(i) };
                    Ok(Sublayer { norm, place, scale, keep, parallel, layer, drops })
                })?;
                spec.push((format!("layers.{i}.{place}"), sublayer.layer.state()));
                sublayers.push(sublayer);
            }
        }
        let (kind, eps) = (model.norm_f.or(model.norm), model.norm_f_eps.or(model.norm_eps));
        let norm_f = p.scope("norm_f", |p| Norm::build(kind, eps, d, p))?;
        let drops = Drops { place: 0, elements: model.embedding_dropout, rows: 0.0 };
        Ok(Self { sublayers, norm_f, drops, spec: spec.into() })
    }

    /// The state of `b` sequences that have read nothing, on the CPU.
    ///
    /// # Errors
    /// If there is too little memory.
    pub fn zero_state(&self, b: usize) -> Result<State> {
        State::zeros(&self.spec, b, Device::Cpu)
    }

    /// The stream after the last sublayer and the last norm, from `x` `[b l d]`.
    ///
    /// # Errors
    /// If shapes do not fit, or a layer does not honour the layout.
    pub fn forward(
        &self,
        cx: &Cx,
        x: Var,
        mut state: State,
        carry: Carry,
        recompute: bool,
        each: &mut Each<'_>,
    ) -> Result<(Var, State)> {
        self.check_promises(cx)?;
        state.place_caches(x.value().device(), x.value().dtype())?;
        let cx = &cx.starting(state.starts());
        let mut stream = Stream::new(self.drops.of(cx, x)?);
        let mut layers = List::with_room(self.sublayers.len());
        let mut before = state.take_layers().into_iter();
        let mut at = 0;
        while at < self.sublayers.len() {
            let end = at + 1 + self.sublayers[at + 1..].iter().take_while(|sublayer| sublayer.parallel).count();
            let part = Part {
                sublayers: self.sublayers[at..end].iter().cloned().collect(),
                states: before.by_ref().take(end - at).collect(),
            };
            let recompute = recompute && cx.tape().is_some_and(|tape| tape.records());
            let (next, states) =
                if recompute { part.recomputed(cx, &stream, carry)? } else { part.forward(cx, &stream)? };
            stream = next;
            for mut state in states {
                state.settle();
                layers.push(state);
            }
            each(end - 1, &stream.x)?;
            at = end;
        }
        let (y, _) = self.norm_f.of(cx, &stream)?;
        Ok((y, state.after(layers, &cx.layout)))
    }

    /// The promises that all layers keep.
    pub fn promises(&self) -> Promises {
        let all = self.sublayers.iter().map(|sublayer| sublayer.layer.promises());
        all.fold(Promises::ALL, |all, one| Promises {
            split: all.split.max(one.split),
            resets: all.resets && one.resets,
            lengths: all.lengths && one.lengths,
        })
    }

    /// Whether a layer without a cache depends on positions.
    pub(crate) fn reads_positions(&self) -> bool {
        self.sublayers.iter().any(|sublayer| sublayer.layer.reads_positions())
    }

    /// Refuses a layout with resets or padding that a layer does not honour.
    fn check_promises(&self, cx: &Cx) -> Result<()> {
        for (sublayer, (place, _)) in self.sublayers.iter().zip(self.spec.iter()) {
            let promises = sublayer.layer.promises();
            let what = match () {
                () if cx.layout.has_resets() && !promises.resets => "resets its state inside a row",
                () if cx.layout.has_lengths() && !promises.lengths => "leaves out padding",
                () => continue,
            };
            let fix = "give rows of one document and one length";
            return Err(Error::Argument(format!("{place}: not a layer that {what}; {fix}")));
        }
        Ok(())
    }
}

/// The sublayers that read the same stream, one or several in parallel, with their states.
#[derive(Clone)]
struct Part {
    sublayers: List<Sublayer>,
    states: List<LayerState>,
}

impl Part {
    fn forward(self, cx: &Cx, stream: &Stream) -> Result<(Stream, List<LayerState>)> {
        let mut next = stream.clone();
        let mut after = List::with_room(self.states.len());
        for (sublayer, state) in self.sublayers.iter().zip(self.states) {
            let (stream, state) = match sublayer.parallel {
                false => sublayer.forward(cx, stream, state)?,
                true => sublayer.forward_beside(cx, stream, &next, state)?,
            };
            next = stream;
            after.push(state);
        }
        Ok((next, after))
    }

    /// [`forward`](Self::forward), with everything between the streams recomputed in the backward pass. The segment's inputs
    /// and outputs are the variables of the stream, the states, the conditioning of the pass, and side losses.
    fn recomputed(self, cx: &Cx, stream: &Stream, carry: Carry) -> Result<(Stream, List<LayerState>)> {
        let tape = cx.tape().ok_or_else(|| Error::Argument("recomputation without a tape".into()))?.clone();
        let mut inputs: Vec<Var> = stream.vars().collect();
        inputs.extend(self.states.iter().flat_map(LayerState::vars));
        inputs.extend(cx.captured().cloned());
        // The structure of the outputs besides their values, known from the first run.
        let form: Arc<Mutex<Option<Form>>> = Arc::default();
        let (part, outer, made, old) = (self, cx.clone(), form.clone(), stream.clone());
        let outputs = checkpoint(&tape, &inputs, move |tape, inputs| {
            let mut inputs = inputs.into_iter();
            let missing = || Error::Argument("a segment without its inputs".into());
            let x = inputs.next().ok_or_else(missing)?;
            let r = if old.r.is_some() { Some(inputs.next().ok_or_else(missing)?) } else { None };
            let stream = Stream { x, r, ..old.clone() };
            let states = part.states.iter().map(|state| state.with_vars(&mut inputs)).collect();
            let cx = outer.on(tape, &mut inputs);
            let (next, states) = Part { states, ..part.clone() }.forward(&cx, &stream)?;
            let sides = cx.take_sides();
            let mut outputs: Vec<Var> = next.vars().collect();
            if carry == Carry::Keep {
                outputs.extend(states.iter().flat_map(LayerState::vars));
            }
            outputs.extend(sides.iter().map(|side| side.value.clone()));
            let mut form = made.lock().unwrap_or_else(PoisonError::into_inner);
            form.get_or_insert(Form { stream: next, states, sides });
            Ok(outputs)
        })?;
        let form = form.lock().unwrap_or_else(PoisonError::into_inner).take();
        let form = form.ok_or_else(|| Error::Argument("a segment that did not run".into()))?;
        let mut outputs = outputs.into_iter();
        let mut next = |old: &Var| outputs.next().unwrap_or_else(|| old.detach());
        let (x, r) = (next(&form.stream.x), form.stream.r.as_ref().map(&mut next));
        let stream = Stream { x, r, ..form.stream };
        let states = match carry {
            Carry::Keep => form.states.iter().map(|state| state.with_vars(&mut outputs)).collect(),
            Carry::Drop => form.states,
        };
        for (side, value) in form.sides.into_iter().zip(outputs) {
            cx.add_side(Side { value, ..side });
        }
        Ok((stream, states))
    }
}

/// What a segment returns besides values.
struct Form {
    stream: Stream,
    states: List<LayerState>,
    sides: Vec<Side>,
}
