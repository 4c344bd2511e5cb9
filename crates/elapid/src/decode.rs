//! Decoding on a GPU: one position of every row at a time, without the host.
//!
//! A step reads tokens that lie on the device, moves the state on in place and leaves the next tokens where the next step
//! reads them: the likeliest ones, or such as are drawn there. Where there is a fused step (`fused`: a Mamba-1 model
//! in bf16 with few rows moves on in one launch) it is launched, and tokens are drawn in another launch; otherwise the
//! operations are captured once as a graph.

use std::sync::Arc;

use elapid_kernels::cuda::{Buffer, Gpu, Graph, Mat};
use elapid_kernels::sampling;
use elapid_kernels::sampling::cuda::History;

use crate::Layout;
use crate::fused::{self, FusedStep};
use crate::generate::Sampling;
use crate::lm::{LanguageModel, Positions};
use crate::ops::Ids;
use crate::pass::Steps;
use crate::state::State;
use crate::{DType, Device, Error, Result, Tensor};

/// Calls that run as they are before one is captured: kernels are compiled in them.
const WARM_UP: u32 = 2;

/// Rows of tokens in the making, each with its own state.
pub struct Decoder<'m> {
    model: &'m LanguageModel,
    gpu: Gpu,
    rows: usize,
    ids: Arc<Buffer>,
    state: State,
    fused: Option<Box<dyn FusedStep>>,
    steps: Arc<Steps>,
    draw: Option<Draw>,
    graph: Option<(Graph, Tensor)>,
    logits: Option<Tensor>,
    runs: u32,
}

/// How tokens are drawn that are not the likeliest.
struct Draw {
    sampling: Sampling,
    seed: u64,
    history: History,
}

impl<'m> Decoder<'m> {
    /// A decoder of `rows` rows that have read nothing, for a model on a GPU.
    ///
    /// # Errors
    /// If the model is on the processor, or the device has too little memory.
    pub fn new(model: &'m LanguageModel, rows: usize) -> Result<Self> {
        let mut decoder = Self::by_operations(model, rows)?;
        decoder.fused = fused::plan(model, &decoder.state, &decoder.ids)?;
        Ok(decoder)
    }

    /// [`new`](Self::new), but that steps are the model's operations one after another, whatever the model: what a step in
    /// one launch is compared with.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn by_operations(model: &'m LanguageModel, rows: usize) -> Result<Self> {
        let Device::Cuda(gpu) = model.device() else {
            return Err(Error::Argument(
                "a decoder is for a model on a GPU: move it there by `LanguageModel::to`".into(),
            ));
        };
        let ids = Arc::new(gpu.upload(&vec![0u32; rows])?);
        let state = model.zero_state(rows)?.own()?;
        let steps = Arc::default();
        Ok(Self { model, gpu, rows, ids, state, fused: None, steps, draw: None, graph: None, logits: None, runs: 0 })
    }

    /// Draws tokens; without it, or at temperature 0 and without a penalty, they are the likeliest ones.
    ///
    /// The random number of a token depends on the seed, the row and how many tokens were read (the state's position): rows
    /// that go on from a state have the numbers that they would have had without the stop.
    ///
    /// # Errors
    /// If a parameter is out of its range, or the device has too little memory.
    pub fn with_sampling(mut self, sampling: Sampling, seed: u64) -> Result<Self> {
        sampling::check_params(&sampling)?;
        let greedy = sampling.temperature == 0.0 && sampling.repetition_penalty == 1.0;
        let draw = |history| Draw { sampling, seed, history };
        self.draw = if greedy { None } else { Some(draw(History::new(self.gpu, self.rows)?)) };
        (self.graph, self.runs) = (None, 0);
        self.set_recent(&vec![&[][..]; self.rows])?;
        Ok(self)
    }

    /// Goes on from a state; which tokens were read before it is not known ([`set_recent`](Self::set_recent)).
    ///
    /// # Errors
    /// If it has another number of rows, or is of another model.
    pub fn set_state(&mut self, state: &State) -> Result<()> {
        self.state.write(state)?;
        self.set_recent(&vec![&[][..]; self.rows])
    }

    /// Says what every row has read last, oldest first: the repetition penalty looks back at it.
    ///
    /// # Errors
    /// If there are not as many rows, or an id is not in the vocabulary.
    pub fn set_recent(&mut self, rows: &[&[u32]]) -> Result<()> {
        for row in rows {
            elapid_kernels::embedding::check_ids(row, self.model.config().padded_vocab_size())?;
        }
        let Some(draw) = &self.draw else { return Ok(()) };
        draw.history.set(self.state.position(), rows)?;
        // A step reads a token before it draws.
        Ok(draw.history.set_position(self.state.position() + 1)?)
    }

    /// The state after all that was read.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn state(&self) -> Result<State> {
        self.state.own()
    }

    /// Sets the tokens that are read next, one a row.
    ///
    /// # Errors
    /// If their number is another, or one is not in the vocabulary.
    pub fn start(&mut self, tokens: &[u32]) -> Result<()> {
        let v = self.model.config().padded_vocab_size();
        if tokens.len() != self.rows {
            return Err(Error::Argument(format!("{} tokens for {} rows", tokens.len(), self.rows)));
        }
        elapid_kernels::embedding::check_ids(tokens, v)?;
        if let Some(draw) = &self.draw {
            draw.history.set_tokens(self.state.position(), tokens)?;
        }
        Ok(self.gpu.write(&self.ids, 0, tokens)?)
    }

    /// Chooses the tokens that are read next from logits `[b v]`: those that the model gave when it read what the state
    /// has read, instead of tokens to [`start`](Self::start) with.
    ///
    /// # Errors
    /// If the logits do not fit, or the device fails.
    pub fn start_from(&mut self, logits: &Tensor) -> Result<()> {
        let shape = (self.rows, self.model.config().padded_vocab_size());
        if logits.gpu() != Some(self.gpu) || (logits.row_count(), logits.cols()) != shape {
            let shape = logits.shape();
            return Err(Error::Argument(format!("logits {shape:?} of {} for {} rows", logits.device(), self.rows)));
        }
        if let Some(draw) = &self.draw {
            draw.history.set_position(self.state.position())?;
        }
        self.choose(logits.mat())
    }

    /// Reads one token of every row and chooses the next; does not wait.
    ///
    /// # Errors
    /// If the device fails, or has too little memory.
    pub fn step(&mut self) -> Result<()> {
        self.state.advance();
        if let Some(step) = &self.fused {
            self.runs += 1;
            step.launch()?;
            // The step has chosen the likeliest.
            let v = self.model.config().padded_vocab_size();
            return if self.draw.is_some() { self.choose(step.logits().mat(self.rows, v, DType::F32)) } else { Ok(()) };
        }
        if let Some((graph, _)) = &self.graph {
            return Ok(graph.launch()?);
        }
        self.runs += 1;
        if self.runs <= WARM_UP {
            self.logits = Some(self.advance()?);
            return Ok(());
        }
        let gpu = self.gpu;
        let (graph, logits) = gpu.capture(|| self.advance())?;
        graph.launch()?;
        self.graph = Some((graph, logits));
        Ok(())
    }

    fn advance(&self) -> Result<Tensor> {
        let cx = self.model.inference(Layout::new(self.rows, 1)).stepping(&self.steps);
        let (logits, next) = self.model.logits(&cx, Ids::Device(self.ids.clone()), &self.state, Positions::Last)?;
        self.state.write_values(&next)?;
        self.choose(logits.value().mat())?;
        Ok(logits.value().clone())
    }

    /// From logits `[b v]` to ids.
    fn choose(&self, logits: Mat<'_>) -> Result<()> {
        match &self.draw {
            None => sampling::cuda::greedy(&self.gpu, logits, &self.ids)?,
            Some(Draw { sampling, seed, history }) => {
                sampling::cuda::sample(&self.gpu, sampling, *seed, logits, history, &self.ids)?;
            }
        }
        Ok(())
    }

    /// [`state`](Self::state), without a copy.
    pub(crate) fn into_state(self) -> State {
        self.state
    }

    /// The tokens that were chosen last, one a row; waits for the device.
    ///
    /// # Errors
    /// If the device failed, or a row's logits were not numbers.
    pub fn tokens(&self) -> Result<Vec<u32>> {
        let ids: Vec<u32> = self.gpu.download(&self.ids, 0, self.rows)?;
        match ids.iter().position(|&id| id == u32::MAX) {
            None => Ok(ids),
            Some(row) => Err(Error::NonFinite { what: format!("the logits of row {row}"), place: 0 }),
        }
    }

    /// Logits `[b v]` of the last step, if there was one; waits for the device.
    ///
    /// # Errors
    /// If the device failed.
    pub fn logits(&self) -> Result<Option<Vec<f32>>> {
        if let Some(step) = &self.fused {
            let numbers = self.rows * self.model.config().padded_vocab_size();
            return Ok(if self.runs > 0 { Some(self.gpu.download(step.logits(), 0, numbers)?) } else { None });
        }
        let logits = self.graph.as_ref().map(|(_, logits)| logits).or(self.logits.as_ref());
        logits.map(Tensor::to_vec).transpose()
    }

    /// Launches of a step; 0 before one was captured, where that is done.
    pub fn launches(&self) -> u64 {
        match &self.fused {
            Some(step) => step.launches() + u64::from(self.draw.is_some()),
            None => self.graph.as_ref().map_or(0, |(graph, _)| graph.launches()),
        }
    }
}
