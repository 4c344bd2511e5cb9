//! A training step on a GPU: recorded once as a graph, launched for every batch, its loss read some steps later.
//!
//! A step is [`begin`](CudaStep::begin), [`run`](CudaStep::run) for each of its batches, the optimiser's
//! [`enqueue`](crate::optim::AdamW::enqueue), and [`end`](CudaStep::end). None of them waits for the device, unless it is
//! several steps behind.

use std::sync::Arc;

use elapid::Layout;
use elapid::autograd::Tape;
use elapid::ops::{Ids, Targets};
use elapid::params::ParamGrads;
use elapid::{DType, Device, LanguageModel, Result, State, Tensor};
use elapid_kernels::cuda::{Buffer, Event, Gpu, Graph, MemoryUse, Pinned, elementwise};

use crate::data::Batch;
use crate::parallel::Reducer;

/// Calls that run as they are before one is recorded: kernels are compiled and memory is found in them.
const WARM_UP: u32 = 2;
/// Steps that may be asked for before the first of them is done.
pub(crate) const AHEAD: usize = 4;

/// Forward and backward over batches of one shape.
pub struct CudaStep {
    gpu: Gpu,
    b: usize,
    l: usize,
    tokens: Arc<Buffer>,
    targets: Arc<Buffer>,
    resets: Option<Arc<Buffer>>,
    /// The state before the batch; streams leave theirs here.
    state: State,
    carries: bool,
    /// Label smoothing.
    smoothing: f32,
    /// Sum of the losses of a step's batches, `[1]`.
    loss: Tensor,
    graph: Option<Graph>,
    /// Sums gradients and losses over ranks, if there are several.
    reducer: Option<Reducer>,
    runs: u32,
    staging: Vec<Staging>,
    turn: usize,
}

/// Memory of the host for one batch on its way, and for one step's results.
struct Staging {
    tokens: Pinned<u32>,
    targets: Pinned<i32>,
    resets: Pinned<u8>,
    results: Pinned<f32>,
    /// When the device has read the batch.
    read: Event,
    /// When the results are there.
    done: Event,
}

/// Results of a step that may not be there yet.
pub struct Pending {
    turn: usize,
}

impl CudaStep {
    /// A step over batches of `b` rows of `l` positions, with document borders if `packed`, the state carried from
    /// batch to batch if `carries`.
    ///
    /// # Errors
    /// If the device fails, or has too little memory.
    pub fn new(
        gpu: Gpu,
        model: &LanguageModel,
        (b, l): (usize, usize),
        packed: bool,
        carries: bool,
        parts: usize,
    ) -> Result<Self> {
        let n = b * l;
        let staging = |_| -> Result<Staging> {
            Ok(Staging {
                tokens: Pinned::new(gpu, n)?,
                targets: Pinned::new(gpu, n)?,
                resets: Pinned::new(gpu, n)?,
                results: Pinned::new(gpu, 3)?,
                read: gpu.event()?,
                done: gpu.event()?,
            })
        };
        Ok(Self {
            gpu,
            b,
            l,
            tokens: Arc::new(gpu.alloc(n * size_of::<u32>())?),
            targets: Arc::new(gpu.alloc(n * size_of::<i32>())?),
            resets: packed.then(|| gpu.alloc(n).map(Arc::new)).transpose()?,
            state: own(&model.zero_state(b)?)?,
            carries,
            smoothing: 0.0,
            loss: Tensor::zeros_on(Device::Cuda(gpu), DType::F32, &[1])?,
            graph: None,
            reducer: None,
            runs: 0,
            staging: (0..(AHEAD + 1) * parts).map(staging).collect::<Result<_>>()?,
            turn: 0,
        })
    }

    /// With label smoothing: see [`Targets::smoothed`].
    #[must_use]
    pub fn smoothed(self, part: f32) -> Self {
        Self { smoothing: part, ..self }
    }

    /// Clears what a step adds up.
    ///
    /// # Errors
    /// If the device fails, or has too little memory.
    pub fn begin(&mut self, grads: &mut ParamGrads) -> Result<()> {
        self.gpu.zero(self.loss.mat_mut())?;
        grads.zero()
    }

    /// The state before the next batch.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Goes on from a state.
    ///
    /// # Errors
    /// If the device fails, or has too little memory.
    pub fn set_state(&mut self, state: &State) -> Result<()> {
        copy(self.gpu, state, &self.state)
    }

    /// Sums gradients and losses over ranks from here on; see [`reduce`](Self::reduce).
    pub(crate) fn reduce_by(&mut self, reducer: Reducer) {
        self.reducer = Some(reducer);
    }

    /// After the last batch of a step: asks for the sums over ranks, which begin while its backward still runs.
    pub(crate) fn reduce(&self, grads: &ParamGrads) -> Result<()> {
        match (&self.reducer, grads.flat()) {
            (Some(reducer), Some(sums)) => reducer.reduce(sums, self.loss.buffer().0),
            _ => Ok(()),
        }
    }

    /// Forward and backward over a batch whose loss counts `share`; gradients are added to `grads`.
    ///
    /// # Errors
    /// If the device fails, or has too little memory.
    pub fn run(
        &mut self,
        model: &LanguageModel,
        grads: &mut ParamGrads,
        batch: &Batch,
        share: f32,
        checkpointed: bool,
    ) -> Result<()> {
        self.turn = (self.turn + 1) % self.staging.len();
        let staging = &mut self.staging[self.turn];
        staging.read.wait()?;
        staging.tokens.copy_from_slice(&batch.tokens);
        staging.targets.copy_from_slice(&batch.targets);
        self.gpu.write_pinned(&self.tokens, &staging.tokens)?;
        self.gpu.write_pinned(&self.targets, &staging.targets)?;
        if let Some(resets) = &self.resets {
            match &batch.resets {
                Some(given) => staging.resets.copy_from_slice(given),
                None => staging.resets.fill(0),
            }
            self.gpu.write_pinned(resets, &staging.resets)?;
        }
        staging.read.record()?;
        if let Some(graph) = &self.graph {
            return Ok(graph.launch()?);
        }
        self.runs += 1;
        if self.runs <= WARM_UP || std::env::var_os("ELAPID_NO_GRAPH").is_some() {
            return self.forward_backward(model, grads, share, checkpointed);
        }
        let gpu = self.gpu;
        let (graph, ()) = gpu.capture(|| self.forward_backward(model, grads, share, checkpointed))?;
        graph.launch()?;
        self.graph = Some(graph);
        Ok(())
    }

    fn forward_backward(
        &mut self,
        model: &LanguageModel,
        grads: &mut ParamGrads,
        share: f32,
        checkpointed: bool,
    ) -> Result<()> {
        let layout = Layout::new(self.b, self.l);
        let layout = match &self.resets {
            Some(resets) => layout.with_device_resets(resets.clone()),
            None => layout,
        };
        let tape = Arc::new(Tape::new());
        let cx = model.training(&tape, layout);
        let targets = Targets::on_device(self.targets.clone()).smoothed(self.smoothing);
        let (loss, next) = model.loss(&cx, Ids::Device(self.tokens.clone()), targets, &self.state, checkpointed)?;
        match &mut self.reducer {
            None => tape.backward(&[(&loss.mean, share)], grads, &mut |_| Ok(()))?,
            Some(reducer) => {
                reducer.begin();
                tape.backward(&[(&loss.mean, share)], grads, &mut |id| reducer.is_final(id))?;
                reducer.end()?;
            }
        }
        elementwise::add(&self.gpu, loss.mean.value().mat(), self.loss.mat_mut())?;
        if self.carries { copy(self.gpu, &next.detach(), &self.state) } else { Ok(()) }
    }

    /// Asks for the results of the step: the sum of its losses, and what the optimiser says of the gradients' norm.
    ///
    /// # Errors
    /// If the device fails, or has too little memory.
    pub fn end(&mut self, norm: &Buffer) -> Result<Pending> {
        let staging = &self.staging[self.turn];
        self.gpu.download_later(self.loss.buffer().0, &staging.results, 0, 1)?;
        self.gpu.download_later(norm, &staging.results, 1, 2)?;
        staging.done.record()?;
        Ok(Pending { turn: self.turn })
    }

    /// Sum of losses, norm of the gradients, and whether that was finite; waits for the step.
    ///
    /// # Errors
    /// If the device fails, or has too little memory.
    pub fn results(&self, pending: &Pending) -> Result<(f32, f32, bool)> {
        let staging = &self.staging[pending.turn];
        staging.done.wait()?;
        Ok((staging.results[0], staging.results[1], staging.results[2] == 1.0))
    }

    /// Memory of the recorded work.
    pub fn graph_memory(&self) -> MemoryUse {
        self.graph.as_ref().map(Graph::memory).unwrap_or_default()
    }

    /// Launches of a forward and backward; 0 before one was recorded.
    pub fn launches(&self) -> u64 {
        self.graph.as_ref().map_or(0, Graph::launches)
    }
}

/// The same numbers in memory that nothing else shares.
fn own(state: &State) -> Result<State> {
    state.select(&(0..state.rows()).collect::<Vec<_>>())
}

/// Writes the numbers of one state into the memory of another.
fn copy(gpu: Gpu, from: &State, to: &State) -> Result<()> {
    for ((_, from), (_, to)) in from.tensors().zip(to.tensors()) {
        gpu.copy(from.mat(), to.clone().mat_mut())?;
    }
    Ok(())
}
