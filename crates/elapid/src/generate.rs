//! Generation: reading a prompt into a state, and drawing one token after another.

use std::collections::VecDeque;

use elapid_kernels::sampling;

use crate::Layout;
use crate::decode::{Decoder, Draws, History, Next, Row, Speculation};
use crate::lm::{LanguageModel, Positions};
use crate::state::State;
use crate::{Device, Error, Result, Tensor};

pub use elapid_kernels::sampling::Params as Sampling;

/// Positions that are read at a time: memory does not grow with the prompt.
pub const PREFILL_CHUNK: usize = 512;

/// One sequence in the making: a model, a state, and the logits of the next token.
///
/// Prompts are read by the model, tokens drawn by a [`Decoder`] of one row: a seed draws the same numbers on every device.
///
/// ```
/// # use elapid::{embedded, generate::{Generator, Sampling}};
/// # fn main() -> elapid::Result<()> {
/// let model = embedded::model()?;
/// let mut sequence = Generator::new(&model, Sampling::default(), 0)?;
/// sequence.read(b"ROMEO:".map(u32::from).as_slice())?;
/// let text: Vec<u8> = (0..20).map(|_| sequence.next_token().map(|id| id as u8)).collect::<Result<_, _>>()?;
/// assert_eq!(text.len(), 20);
/// # Ok(())
/// # }
/// ```
pub struct Generator {
    model: LanguageModel,
    /// Where no row of the decoder has it.
    state: State,
    /// Of the next token, `[1 v]`, where nothing was drawn since tokens were read.
    logits: Option<Tensor>,
    values: Vec<f32>,
    sampling: Sampling,
    seed: u64,
    sample: u64,
    /// From the first token that is drawn.
    decoder: Option<Decoder>,
    /// The decoder's row, while it has the state.
    row: Option<Row>,
    recent: VecDeque<u32>,
    generated: Vec<u32>,
    pending: Option<u32>,
    chunk: usize,
    /// Guesses a pass; 0 for one token at a time.
    guesses: usize,
    history: History,
    /// In place of the decoder, while it has the state.
    speculation: Option<Box<Speculation>>,
    passes: u64,
}

impl Generator {
    /// A sequence that has read nothing.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn new(model: &LanguageModel, sampling: Sampling, seed: u64) -> Result<Self> {
        Ok(Self::from_state(model, model.zero_state(1)?, sampling, seed))
    }

    /// A sequence that goes on from a state of one row. At least one token must be read before the next is drawn.
    pub fn from_state(model: &LanguageModel, state: State, sampling: Sampling, seed: u64) -> Self {
        Self {
            model: model.clone(),
            state,
            logits: None,
            values: Vec::new(),
            sampling,
            seed,
            sample: 0,
            decoder: None,
            row: None,
            recent: VecDeque::new(),
            generated: Vec::new(),
            pending: None,
            chunk: PREFILL_CHUNK,
            guesses: 0,
            history: History::default(),
            speculation: None,
            passes: 0,
        }
    }

    /// A sequence that goes on where another was suspended, as if it had not been; the sampling and the seed are those of
    /// the other one.
    pub fn resume(model: &LanguageModel, suspended: Suspended, sampling: Sampling, seed: u64) -> Self {
        let Suspended { state, recent, generated, pending, sample } = suspended;
        let recent = recent.into();
        Self { recent, generated, pending, sample, ..Self::from_state(model, state, sampling, seed) }
    }

    /// Reads a prompt `chunk` tokens at a time; the default is [`PREFILL_CHUNK`]. The result is the same.
    pub fn with_chunk(self, chunk: usize) -> Self {
        Self { chunk: chunk.max(1), ..self }
    }

    /// Draws several tokens a pass where the text repeats itself: up to `guesses` are taken from what followed the last three
    /// tokens before, and kept as long as they are what is drawn. The tokens are those of drawing one after another (with
    /// layers whose chunks round differently, [`Split::Rounded`](crate::layer::Split::Rounded), up to that rounding). On a
    /// GPU it changes nothing.
    pub fn with_guesses(self, guesses: usize) -> Self {
        Self { guesses: if self.model.device() == Device::Cpu { guesses } else { 0 }, ..self }
    }

    /// Passes over the model that drew tokens, where they are guessed; else 0.
    pub fn passes(&self) -> u64 {
        self.passes + self.speculation.as_ref().map_or(0, |speculation| speculation.passes())
    }

    /// Tells a sequence that goes on from a state what was read before, oldest first: the repetition penalty looks back
    /// at it.
    pub fn with_recent(mut self, tokens: &[u32]) -> Self {
        self.remember(tokens);
        self
    }

    /// Reads tokens, whatever their number, in memory that does not depend on it.
    ///
    /// # Errors
    /// If an id is not in the vocabulary, or a layer of the model is not causal.
    pub fn read(&mut self, tokens: &[u32]) -> Result<()> {
        self.model.check_continues()?;
        self.catch_up()?;
        for part in tokens.chunks(self.chunk) {
            self.advance(part)?;
        }
        if self.guesses > 0 {
            self.history.extend(tokens);
        }
        Ok(())
    }

    /// Draws the next token.
    ///
    /// # Errors
    /// If nothing was read yet, or the logits are not finite.
    pub fn next_token(&mut self) -> Result<u32> {
        let id = self.draw()?;
        self.pending = Some(id);
        Ok(id)
    }

    fn draw(&mut self) -> Result<u32> {
        let pending = self.pending;
        let id = if self.guesses > 0 { self.draw_guessing()? } else { self.draw_one()? };
        self.logits = None;
        // The step has read it.
        self.remember(pending.as_slice());
        if self.sampling.counts() {
            self.generated.push(id);
        }
        Ok(id)
    }

    fn draw_guessing(&mut self) -> Result<u32> {
        if let Some(speculation) = &mut self.speculation {
            return speculation.next(&self.model);
        }
        self.model.check_continues()?;
        let (recent, generated) = (&*self.recent.make_contiguous(), &self.generated[..]);
        let draws = Draws { sampling: self.sampling, seed: self.seed, sample: self.sample, recent, generated };
        let next = next(self.pending, self.logits.as_ref())?;
        let how = (self.guesses, std::mem::take(&mut self.history));
        let (mut speculation, drawn) = Speculation::begin(&self.model, how, &self.state, next, &draws)?;
        let id = drawn.map_or_else(|| speculation.next(&self.model), Ok)?;
        self.speculation = Some(Box::new(speculation));
        Ok(id)
    }

    fn draw_one(&mut self) -> Result<u32> {
        let pending = self.pending;
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => none.insert(Decoder::new(&self.model, 1)?),
        };
        let row = if let Some(row) = self.row {
            decoder.step()?;
            row
        } else {
            let (recent, generated) = (&*self.recent.make_contiguous(), &self.generated[..]);
            let draws = Draws { sampling: self.sampling, seed: self.seed, sample: self.sample, recent, generated };
            let row = decoder.admit(&self.state, next(pending, self.logits.as_ref())?, &draws)?;
            self.row = Some(row);
            if pending.is_some() {
                decoder.step()?;
            }
            row
        };
        decoder.token(row)
    }

    /// The state after all that was read and drawn.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn into_state(mut self) -> Result<State> {
        self.catch_up()?;
        Ok(self.state)
    }

    /// Lays the sequence aside: the state without the token that was drawn last, and that token. [`resume`](Self::resume)
    /// goes on with it.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn suspend(mut self) -> Result<Suspended> {
        self.take_state()?;
        let Self { state, recent, generated, pending, sample, .. } = self;
        Ok(Suspended { state, recent: recent.into(), generated, pending, sample })
    }

    /// Another sequence that goes on from here by itself and draws as sample `sample` of the seed.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn fork(&self, sample: u64) -> Result<Self> {
        let (state, history) = match (&self.speculation, &self.decoder, self.row) {
            (Some(speculation), ..) => speculation.clone().into_state(&self.model)?,
            (None, Some(decoder), Some(row)) => (decoder.state(row)?, self.history.clone()),
            _ => (self.state.clone(), self.history.clone()),
        };
        Ok(Self {
            guesses: self.guesses,
            history,
            logits: self.logits.clone(),
            recent: self.recent.clone(),
            generated: self.generated.clone(),
            pending: self.pending,
            sample,
            chunk: self.chunk,
            ..Self::from_state(&self.model, state, self.sampling, self.seed)
        })
    }

    fn take_state(&mut self) -> Result<()> {
        if let Some(speculation) = self.speculation.take() {
            self.passes += speculation.passes();
            (self.state, self.history) = speculation.into_state(&self.model)?;
        }
        if let (Some(decoder), Some(row)) = (&mut self.decoder, self.row) {
            self.state = decoder.release(row)?;
            self.row = None;
        }
        Ok(())
    }

    /// Logits of the next token, `[v]`; empty before anything was read.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn logits(&mut self) -> Result<&[f32]> {
        self.catch_up()?;
        self.values = self.logits.as_ref().map_or(Ok(Vec::new()), Tensor::to_vec)?;
        Ok(&self.values)
    }

    /// The last drawn token is read only when something depends on it.
    fn catch_up(&mut self) -> Result<()> {
        self.take_state()?;
        self.pending.take().map_or(Ok(()), |id| self.advance(&[id]))
    }

    fn advance(&mut self, tokens: &[u32]) -> Result<()> {
        let cx = self.model.inference(Layout::new(1, tokens.len()));
        let (logits, state) = self.model.logits(&cx, tokens, &self.state, Positions::Last)?;
        self.logits = Some(logits.value().clone());
        self.state = state;
        self.remember(tokens);
        Ok(())
    }

    fn remember(&mut self, tokens: &[u32]) {
        let tokens = &tokens[tokens.len().saturating_sub(sampling::RECENT)..];
        self.recent.drain(..(self.recent.len() + tokens.len()).saturating_sub(sampling::RECENT));
        // Once for all tokens.
        self.recent.reserve(sampling::RECENT - self.recent.len());
        self.recent.extend(tokens);
    }
}

/// What a row that goes on reads next.
fn next(pending: Option<u32>, logits: Option<&Tensor>) -> Result<Next<'_>> {
    let nothing = || Error::Argument("nothing to go on from: give at least one token of prompt".into());
    pending.map(Next::Token).or(logits.map(Next::Logits)).ok_or_else(nothing)
}

/// A sequence laid aside: see [`Generator::suspend`].
#[derive(Debug, Clone)]
pub struct Suspended {
    /// The state after all that was read.
    pub state: State,
    /// The last tokens that were read, oldest first: for [`Generator::with_recent`].
    pub recent: Vec<u32>,
    /// What was generated, if the sampling counts it, the pending token included.
    pub generated: Vec<u32>,
    /// The token that was drawn and not read yet.
    pub pending: Option<u32>,
    /// Which of the samples of its seed it is.
    pub sample: u64,
}
