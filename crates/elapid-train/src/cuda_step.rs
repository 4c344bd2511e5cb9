//! A training step on a GPU: captured once as a CUDA graph and replayed for every batch; its loss is read some steps later.
//!
//! A step is [`begin`](CudaStep::begin), [`run`](CudaStep::run) for each of its batches, the optimiser's
//! [`enqueue`](crate::optim::AdamW::enqueue), and [`end`](CudaStep::end). None of them waits for the device unless it is
//! several steps behind.

use std::sync::Arc;

use elapid::Layout;
use elapid::autograd::{Tape, Var};
use elapid::config::PositionKind;
use elapid::models::Model;
use elapid::ops::{First, Seeds};
use elapid::params::ParamGrads;
use elapid::{DType, Device, State, Tensor};
use elapid_kernels::cuda::{Buffer, Gpu, Graph, MemoryUse, Pinned, elementwise};

use crate::objectives::{Array, ArraySpec, Batch, Inputs, Kind, ObjectiveOf};
use crate::parallel::Reducer;
use crate::{Error, Result};

/// Calls that run eagerly before one is captured: they compile kernels and allocate memory.
const WARM_UP: u32 = 2;
/// Steps that may be submitted before the first of them is done.
pub(crate) const AHEAD: usize = 4;

/// Forward and backward over batches of one shape.
pub struct CudaStep<M: Model> {
    gpu: Gpu,
    objective: Arc<ObjectiveOf<M>>,
    specs: Vec<ArraySpec>,
    /// The batch's arrays.
    arrays: Vec<Arc<Buffer>>,
    resets: Option<Arc<Buffer>>,
    /// What dropout follows from: the seed, and the number of the batch's first row, `[1]` u64.
    seed: u64,
    first: Arc<Buffer>,
    /// The state before the batch; with streams, the state after the previous batch.
    state: State,
    carries: bool,
    /// Sum of the losses of a step's batches, `[1]`.
    loss: Tensor,
    graph: Option<Graph>,
    /// Sums gradients and losses over ranks, if there are several.
    reducer: Option<Reducer>,
    runs: u32,
    staging: Vec<Staging>,
    turn: usize,
}

/// Pinned host memory for one batch in transfer, and for one step's results.
struct Staging {
    arrays: Vec<Staged>,
    resets: Pinned<u8>,
    first: Pinned<u64>,
    results: Pinned<f32>,
}

/// Pinned host memory for one array.
enum Staged {
    U32(Pinned<u32>),
    I32(Pinned<i32>),
    F32(Pinned<f32>),
}

impl Staged {
    fn new(gpu: Gpu, spec: &ArraySpec) -> Result<Self> {
        let made = match spec.kind {
            Kind::U32 => Pinned::new(gpu, spec.len()).map(Self::U32),
            Kind::I32 => Pinned::new(gpu, spec.len()).map(Self::I32),
            Kind::F32 => Pinned::new(gpu, spec.len()).map(Self::F32),
        };
        Ok(made?)
    }

    /// Copies an array of this kind and length once the last one was read, and submits the copy to the device.
    fn send(&mut self, array: &Array, to: &Buffer) -> Result<()> {
        let sent = match (self, array) {
            (Self::U32(staged), Array::U32(array)) if staged.len() == array.len() => {
                staged.write()?.copy_from_slice(array);
                staged.send(to)
            }
            (Self::I32(staged), Array::I32(array)) if staged.len() == array.len() => {
                staged.write()?.copy_from_slice(array);
                staged.send(to)
            }
            (Self::F32(staged), Array::F32(array)) if staged.len() == array.len() => {
                staged.write()?.copy_from_slice(array);
                staged.send(to)
            }
            _ => return Err(elapid::Error::Argument("a batch that does not match its objective".into()).into()),
        };
        Ok(sent?)
    }
}

/// Results of a step, possibly not computed yet.
pub struct Pending {
    turn: usize,
}

impl<M: Model> CudaStep<M> {
    /// A step over the batches of an objective, `parts` of them; random numbers follow from `seed`.
    ///
    /// # Errors
    /// If the state is carried by a model with positions: the graph would begin at the same ones every time. If the device
    /// fails, or has too little memory.
    pub fn new(gpu: Gpu, objective: Arc<ObjectiveOf<M>>, model: &M, parts: usize, seed: u64) -> Result<Self> {
        let ((b, l), specs) = (objective.shape(), objective.arrays());
        let positions = model.core().config().stack.model.positions;
        let state = own(&model.core().zero_state(b)?)?;
        if objective.carries() && (positions != PositionKind::None || state.has_caches()) {
            return Err(Error::Argument {
                argument: "data.mode",
                wanted: "\"windows\" on a GPU for a model with positions or attention".into(),
                got: "\"streams\"; or use --device cpu".into(),
            });
        }
        let alloc = |bytes| -> Result<Arc<Buffer>> { Ok(Arc::new(gpu.alloc(bytes)?)) };
        let staging = |_| -> Result<Staging> {
            Ok(Staging {
                arrays: specs.iter().map(|spec| Staged::new(gpu, spec)).collect::<Result<_>>()?,
                resets: Pinned::new(gpu, b * l)?,
                first: Pinned::new(gpu, 1)?,
                results: Pinned::new(gpu, 3)?,
            })
        };
        Ok(Self {
            gpu,
            arrays: specs.iter().map(|spec| alloc(spec.len() * spec.kind.bytes())).collect::<Result<_>>()?,
            resets: objective.resets().then(|| alloc(b * l)).transpose()?,
            seed,
            first: alloc(size_of::<u64>())?,
            state,
            carries: objective.carries(),
            loss: Tensor::zeros_on(Device::Cuda(gpu), DType::F32, &[1])?,
            graph: None,
            reducer: None,
            runs: 0,
            staging: (0..(AHEAD + 1) * parts).map(staging).collect::<Result<_>>()?,
            turn: 0,
            objective,
            specs,
        })
    }

    /// Clears the sums of a step.
    ///
    /// # Errors
    /// If the device fails, or has too little memory.
    pub fn begin(&mut self, grads: &mut ParamGrads) -> Result<()> {
        self.gpu.zero(self.loss.mat_mut())?;
        Ok(grads.zero()?)
    }

    /// The state before the next batch.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The state after the last batch, if it is carried from batch to batch.
    pub(crate) fn carried(&self) -> Option<&State> {
        self.carries.then_some(&self.state)
    }

    /// Sets the state to continue from.
    ///
    /// # Errors
    /// If the device fails, or has too little memory.
    pub fn set_state(&mut self, state: &State) -> Result<()> {
        Ok(copy(self.gpu, state, &self.state)?)
    }

    /// Sums gradients and losses over ranks from here on; see [`reduce`](Self::reduce).
    pub(crate) fn reduce_by(&mut self, reducer: Reducer) {
        self.reducer = Some(reducer);
    }

    /// After the last batch of a step: submits the sums over ranks, which start while its backward still runs.
    pub(crate) fn reduce(&self, grads: &ParamGrads) -> Result<()> {
        match (&self.reducer, grads.flat()) {
            (Some(reducer), Some(sums)) => Ok(reducer.reduce(sums, self.loss.buffer().0)?),
            _ => Ok(()),
        }
    }

    /// Forward and backward over a batch and its number, whose loss has weight `share`; gradients are added to `grads`.
    ///
    /// # Errors
    /// If the device fails or has too little memory; if the batch does not match the objective's arrays.
    pub fn run(
        &mut self,
        model: &M,
        grads: &mut ParamGrads,
        (number, batch): (u64, &Batch),
        share: f32,
        recompute: bool,
    ) -> Result<()> {
        self.stage(number, batch)?;
        if let Some(graph) = &self.graph {
            return Ok(graph.launch()?);
        }
        self.runs += 1;
        if self.runs <= WARM_UP || std::env::var_os("ELAPID_NO_GRAPH").is_some() {
            return self.forward_backward(model, grads, share, recompute);
        }
        let gpu = self.gpu;
        let (graph, ()) = gpu.capture(|| self.forward_backward(model, grads, share, recompute))?;
        graph.launch()?;
        self.graph = Some(graph);
        Ok(())
    }

    /// Uploads a batch to where the graph reads it.
    fn stage(&mut self, number: u64, batch: &Batch) -> Result<()> {
        self.turn = (self.turn + 1) % self.staging.len();
        let staging = &mut self.staging[self.turn];
        if batch.arrays.len() != self.arrays.len() {
            return Err(elapid::Error::Argument("a batch whose arrays do not match its objective".into()).into());
        }
        for ((staged, array), to) in staging.arrays.iter_mut().zip(&batch.arrays).zip(&self.arrays) {
            staged.send(array, to)?;
        }
        staging.first.write()?[0] = number * batch.b as u64;
        staging.first.send(&self.first)?;
        if let Some(resets) = &self.resets {
            match &batch.resets {
                Some(given) => staging.resets.write()?.copy_from_slice(given),
                None => staging.resets.write()?.fill(0),
            }
            staging.resets.send(resets)?;
        }
        Ok(())
    }

    fn forward_backward(&mut self, model: &M, grads: &mut ParamGrads, share: f32, recompute: bool) -> Result<()> {
        let (b, l) = self.objective.shape();
        let layout = Layout::new(b, l);
        let layout = match &self.resets {
            Some(resets) => layout.with_device_resets(resets.clone()),
            None => layout,
        };
        let tape = Arc::new(Tape::new());
        let seeds = Seeds { seed: self.seed, first: First::Device(self.first.clone()) };
        let cx = model.core().training(&tape, layout).with_seeds(seeds);
        let inputs = Inputs::device(&self.specs, &self.arrays);
        let (loss, next) = self.objective.loss(model, &cx, &inputs, &self.state, recompute)?;
        let sides = cx.take_side_losses()?;
        let sides = sides.iter().map(|(side, weight)| (side, weight * share));
        let losses: Vec<(&Var, f32)> = [(&loss, share)].into_iter().chain(sides).collect();
        match &mut self.reducer {
            None => tape.backward(&losses, grads, &mut |_| Ok(()))?,
            Some(reducer) => {
                reducer.begin();
                tape.backward(&losses, grads, &mut |id| reducer.is_final(id))?;
                reducer.end()?;
            }
        }
        elementwise::add(&self.gpu, loss.value().mat(), self.loss.mat_mut())?;
        if self.carries { Ok(copy(self.gpu, &next.detach(), &self.state)?) } else { Ok(()) }
    }

    /// Submits the download of the step's results: the sum of its losses, and the gradients' norm from the optimiser.
    ///
    /// # Errors
    /// If the device fails, or has too little memory.
    pub fn end(&mut self, norm: &Buffer) -> Result<Pending> {
        let results = &mut self.staging[self.turn].results;
        results.receive(0, self.loss.buffer().0, 1)?;
        results.receive(1, norm, 2)?;
        Ok(Pending { turn: self.turn })
    }

    /// Sum of losses, norm of the gradients, and whether it was finite; waits for the step.
    ///
    /// # Errors
    /// If the device fails, or has too little memory.
    pub fn results(&self, pending: &Pending) -> Result<(f32, f32, bool)> {
        let results = self.staging[pending.turn].results.read()?;
        Ok((results[0], results[1], results[2] == 1.0))
    }

    /// Memory of the captured graph.
    pub fn graph_memory(&self) -> MemoryUse {
        self.graph.as_ref().map(Graph::memory).unwrap_or_default()
    }

    /// Launches of a forward and backward; 0 before one was captured.
    pub fn launches(&self) -> u64 {
        self.graph.as_ref().map_or(0, Graph::launches)
    }
}

/// The same values in unshared memory.
fn own(state: &State) -> elapid::Result<State> {
    state.select(&(0..state.rows()).collect::<Vec<_>>())
}

/// Copies the values of one state into the memory of another.
fn copy(gpu: Gpu, from: &State, to: &State) -> elapid::Result<()> {
    for ((_, from), (_, to)) in from.tensors().zip(to.tensors()) {
        gpu.copy(from.mat(), to.clone().mat_mut())?;
    }
    Ok(())
}
