//! Decoding on a GPU: one position of every row at a time, the likeliest token each, without the host.
//!
//! A step reads tokens that lie on the device, moves the state on in place and leaves the next tokens where the next step
//! reads them. A Mamba-1 model in bf16 does so in one launch, if rows are few ([`mamba1_step`]); otherwise the operations
//! are captured once as a graph.

use std::sync::Arc;

use elapid_kernels::cuda::{Buffer, Gpu, Graph};
use elapid_kernels::{mamba1_step, sampling};

use crate::lm::{LanguageModel, Positions};
use crate::ops::{Ids, Layout};
use crate::state::State;
use crate::{Device, Error, Result, Tensor};

/// Calls that run as they are before one is captured: kernels are compiled in them.
const WARM_UP: u32 = 2;

/// Rows of tokens in the making, each with its own state.
pub struct Decoder<'m> {
    model: &'m LanguageModel,
    gpu: Gpu,
    rows: usize,
    ids: Arc<Buffer>,
    state: State,
    fused: Option<mamba1_step::cuda::Step>,
    graph: Option<(Graph, Tensor)>,
    logits: Option<Tensor>,
    runs: u32,
}

impl<'m> Decoder<'m> {
    /// A decoder of `rows` rows that have read nothing, for a model on a GPU.
    ///
    /// # Errors
    /// If the model is on the processor, or the device has too little memory.
    pub fn new(model: &'m LanguageModel, rows: usize) -> Result<Self> {
        let mut decoder = Self::by_operations(model, rows)?;
        decoder.fused = model.fused_step(&decoder.state, &decoder.ids)?;
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
        Ok(Self { model, gpu, rows, ids, state, fused: None, graph: None, logits: None, runs: 0 })
    }

    /// Goes on from a state.
    ///
    /// # Errors
    /// If it has another number of rows, or is of another model.
    pub fn set_state(&mut self, state: &State) -> Result<()> {
        self.state.write(state)
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
        Ok(self.gpu.write(&self.ids, 0, tokens)?)
    }

    /// Reads one token of every row and chooses the likeliest next; does not wait.
    ///
    /// # Errors
    /// If the device fails, or has too little memory.
    pub fn step(&mut self) -> Result<()> {
        self.state.position += 1;
        if let Some(step) = &self.fused {
            self.runs += 1;
            return Ok(step.launch()?);
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
        let cx = self.model.inference(Layout::new(self.rows, 1));
        let (logits, next) = self.model.logits(&cx, Ids::Device(self.ids.clone()), &self.state, Positions::Last)?;
        self.state.write_numbers(&next)?;
        sampling::cuda::greedy(&self.gpu, logits.value().mat(), &self.ids)?;
        Ok(logits.value().clone())
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
            Some(_) => 1,
            None => self.graph.as_ref().map_or(0, |(graph, _)| graph.launches()),
        }
    }
}
