//! Generation: reading a prompt into a state, and drawing one token after another.

use std::collections::VecDeque;

use elapid_kernels::sampling;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Layout;
use crate::decode::Decoder;
use crate::lm::{LanguageModel, Positions};
use crate::state::State;
use crate::{Device, Error, Result, Tensor};

pub use elapid_kernels::sampling::Params as Sampling;

/// Positions that are read at a time: memory does not grow with the prompt.
pub const PREFILL_CHUNK: usize = 512;

/// One sequence in the making: a model, a state, and the logits of the next token.
///
/// On a GPU prompts are read by the model and tokens are drawn by a [`Decoder`], so that of a step nothing but the token
/// comes back. Random numbers are other ones there: a seed draws the same tokens again on the same kind of device only.
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
pub struct Generator<'m> {
    model: &'m LanguageModel,
    state: State,
    /// Of the next token, `[1 v]`, where nothing was drawn since tokens were read.
    logits: Option<Tensor>,
    numbers: Vec<f32>,
    sampling: Sampling,
    seed: u64,
    rng: ChaCha8Rng,
    /// On a GPU, from the first token that is drawn.
    decoder: Option<Decoder<'m>>,
    /// Whether the state is the decoder's.
    decoding: bool,
    recent: VecDeque<u32>,
    scratch: sampling::Scratch,
    pending: Option<u32>,
    chunk: usize,
}

impl<'m> Generator<'m> {
    /// A sequence that has read nothing.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn new(model: &'m LanguageModel, sampling: Sampling, seed: u64) -> Result<Self> {
        Ok(Self::from_state(model, model.zero_state(1)?, sampling, seed))
    }

    /// A sequence that goes on from a state of one row. At least one token must be read before the next is drawn.
    pub fn from_state(model: &'m LanguageModel, state: State, sampling: Sampling, seed: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Self {
            model,
            state,
            logits: None,
            numbers: Vec::new(),
            sampling,
            seed,
            rng,
            decoder: None,
            decoding: false,
            recent: VecDeque::new(),
            scratch: sampling::Scratch::default(),
            pending: None,
            chunk: PREFILL_CHUNK,
        }
    }

    /// Reads a prompt `chunk` tokens at a time; the default is [`PREFILL_CHUNK`]. The result is the same.
    pub fn with_chunk(self, chunk: usize) -> Self {
        Self { chunk: chunk.max(1), ..self }
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
    /// If an id is not in the vocabulary.
    pub fn read(&mut self, tokens: &[u32]) -> Result<()> {
        self.catch_up()?;
        for part in tokens.chunks(self.chunk) {
            self.advance(part)?;
        }
        Ok(())
    }

    /// Draws the next token.
    ///
    /// # Errors
    /// If nothing was read yet, or the logits are not finite.
    pub fn next_token(&mut self) -> Result<u32> {
        let id = match self.model.device() {
            Device::Cpu => self.draw_here()?,
            Device::Cuda(_) => self.draw_on_device()?,
        };
        self.pending = Some(id);
        Ok(id)
    }

    fn draw_here(&mut self) -> Result<u32> {
        self.catch_up()?;
        let logits = self.logits.as_ref().ok_or_else(nothing_read)?;
        let recent = self.recent.make_contiguous();
        let uniform = self.rng.random::<f64>();
        Ok(sampling::sample(&self.sampling, logits.as_slice(), recent, uniform, &mut self.scratch)?)
    }

    fn draw_on_device(&mut self) -> Result<u32> {
        // A step of the decoder reads it.
        let read = self.pending.take();
        self.remember(read.as_slice());
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => none.insert(Decoder::new(self.model, 1)?.with_sampling(self.sampling, self.seed)?),
        };
        if self.decoding {
            decoder.step()?;
        } else {
            let logits = self.logits.take().ok_or_else(nothing_read)?;
            decoder.set_state(&self.state)?;
            decoder.set_recent(&[self.recent.make_contiguous()])?;
            decoder.start_from(&logits)?;
            self.decoding = true;
        }
        Ok(decoder.tokens()?[0])
    }

    /// The state after all that was read and drawn.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn into_state(mut self) -> Result<State> {
        self.catch_up()?;
        Ok(self.state)
    }

    /// Lays the sequence aside: the state without the token that was drawn last, and that token. A sequence from this
    /// state that reads the token goes on as this one would.
    pub fn suspend(self) -> Suspended {
        let state = match self.decoder {
            Some(decoder) if self.decoding => decoder.into_state(),
            _ => self.state,
        };
        Suspended { state, recent: self.recent.into(), pending: self.pending }
    }

    /// Logits of the next token, `[v]`; empty before anything was read.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn logits(&mut self) -> Result<&[f32]> {
        self.catch_up()?;
        self.numbers = self.logits.as_ref().map_or(Ok(Vec::new()), Tensor::to_vec)?;
        Ok(&self.numbers)
    }

    /// The last drawn token is read only when something depends on it.
    fn catch_up(&mut self) -> Result<()> {
        if let Some(decoder) = self.decoder.as_ref().filter(|_| self.decoding) {
            self.state = decoder.state()?;
            self.decoding = false;
        }
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
        self.recent.extend(&tokens[tokens.len().saturating_sub(sampling::RECENT)..]);
        self.recent.drain(..self.recent.len().saturating_sub(sampling::RECENT));
    }
}

fn nothing_read() -> Error {
    Error::Argument("nothing to go on from: give at least one token of prompt".into())
}

/// A sequence laid aside: see [`Generator::suspend`].
#[derive(Debug, Clone)]
pub struct Suspended {
    /// The state after all that was read.
    pub state: State,
    /// The last tokens that were read, oldest first: for [`Generator::with_recent`].
    pub recent: Vec<u32>,
    /// The token that was drawn and not read yet.
    pub pending: Option<u32>,
}
