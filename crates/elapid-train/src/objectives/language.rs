//! Predicting the next token of text.

use elapid::autograd::Var;
use elapid::config::ModelConfig;
use elapid::evaluate::{self, Summary};
use elapid::pass::Cx;
use elapid::{LanguageModel, Layout, State};

use super::{ArraySpec, Batch, Inputs, Kind, Objective, Validation};
use crate::Result;
use crate::data::{self, Sequential, Streams, TokenStream, Windows};
use crate::metrics::{self, Figure};

/// Positions of held-out text per forward pass; bounds the memory of a validation.
const POSITIONS: usize = 4096;

/// Where batches of text come from.
#[derive(Debug, Clone)]
pub enum Feed {
    /// Shuffled windows, each from a zero state.
    Windows(Windows),
    /// The text in order, with the state carried over.
    Streams(Streams),
    /// Always the same batch, for benchmarks.
    Same(data::Batch),
}

/// Text that training never sees.
#[derive(Debug, Clone)]
pub struct HeldOut {
    batches: Sequential,
    /// Whether the state is carried from batch to batch.
    carries: bool,
    /// Bytes of the text read, divided by its predicted tokens.
    bytes_per_token: f64,
}

impl HeldOut {
    /// Held-out text read in the way that training reads rows of `l`: windows, or in order with the state carried; packed or
    /// not.
    ///
    /// # Errors
    /// If the text is too short, or cannot be read.
    pub fn new(text: TokenStream, l: usize, carries: bool, pack: bool) -> Result<Self> {
        // In packed text, the first token of a document is not predicted.
        let given = if pack { text.documents(1..text.len()).count() as u64 } else { 0 };
        let predicted = text.len().saturating_sub(1 + given).max(1);
        let bytes_per_token = text.text_bytes()?.unwrap_or(0) as f64 / predicted as f64;
        let (b, l) = if carries { (1, l.min(evaluate::CHUNK)) } else { ((POSITIONS / l).max(1), l) };
        Ok(Self { batches: Sequential::new(text, b, l, pack)?, carries, bytes_per_token })
    }

    /// Number of tokens.
    pub fn tokens(&self) -> u64 {
        self.batches.tokens()
    }

    /// Nats per token.
    fn loss(&self, model: &LanguageModel) -> Result<f64> {
        let mut summary = Summary::default();
        let mut carried: Option<State> = None;
        for batch in (0..self.batches.len()).filter_map(|i| self.batches.batch(i).transpose()) {
            let batch = batch?;
            summary.tokens += batch.predictions();
            let layout = Layout { resets: batch.resets.map(Into::into), ..Layout::new(batch.b, batch.l) };
            let state = match carried.take() {
                Some(state) => state,
                None => model.zero_state(batch.b)?,
            };
            let cx = model.inference(layout);
            let (loss, next) = model.loss(&cx, &batch.tokens, &batch.targets, &state, false)?;
            summary.nats += loss.nll.to_vec()?.iter().map(|&nll| f64::from(nll)).sum::<f64>();
            carried = self.carries.then_some(next);
        }
        Ok(summary.loss())
    }
}

/// Predicting the next token of text.
#[derive(Debug, Clone)]
pub struct Language {
    /// The training data.
    pub feed: Feed,
    /// Rows per batch, and positions per row.
    pub shape: (usize, usize),
    /// Whether the state is reset where a document begins.
    pub pack: bool,
    /// Label smoothing: the share of every target that is spread over all tokens.
    pub smoothing: f32,
    /// The held-out data, if there is any.
    pub held_out: Option<HeldOut>,
}

impl Objective for Language {
    type Model = LanguageModel;

    fn model(&self, config: ModelConfig, seed: u64) -> Result<LanguageModel> {
        Ok(LanguageModel::new(config, seed)?)
    }

    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn arrays(&self) -> Vec<ArraySpec> {
        token_arrays(self.shape)
    }

    fn resets(&self) -> bool {
        self.pack || self.carries()
    }

    fn carries(&self) -> bool {
        matches!(self.feed, Feed::Streams(_))
    }

    fn batch(&self, index: u64) -> Result<Batch> {
        Ok(match &self.feed {
            Feed::Windows(windows) => windows.batch(index)?.into(),
            Feed::Streams(streams) => streams.batch(index)?.into(),
            Feed::Same(batch) => batch.clone().into(),
        })
    }

    fn loss(
        &self,
        model: &LanguageModel,
        cx: &Cx,
        batch: &Inputs<'_>,
        state: &State,
        recompute: bool,
    ) -> Result<(Var, State)> {
        token_loss(model, cx, batch, self.smoothing, state, recompute)
    }

    fn validate(&self, model: &LanguageModel, _step: u64) -> Result<Option<Validation>> {
        let Some(held_out) = &self.held_out else { return Ok(None) };
        let loss = held_out.loss(model)?;
        Ok(Some(Validation { loss, figures: self.figures_of(loss) }))
    }

    fn figures_of(&self, loss: f64) -> Vec<Figure> {
        let bits = |held_out: &HeldOut| loss / held_out.bytes_per_token / std::f64::consts::LN_2;
        self.held_out.iter().map(|held_out| (metrics::BITS_PER_BYTE, bits(held_out))).collect()
    }

    fn measure(&self) -> String {
        self.held_out
            .as_ref()
            .map_or_else(String::new, |held_out| format!("{} tokens of held-out text", held_out.tokens()))
    }

    fn first_non_finite(&self, model: &LanguageModel, batch: &Batch, state: &State) -> Result<Option<String>> {
        Ok(model.first_non_finite(&batch.layout(), batch.ids(TOKENS), state)?)
    }
}

/// Index of the tokens among the arrays of a batch of tokens.
pub(super) const TOKENS: usize = 0;
/// Index of the targets.
pub(super) const TARGETS: usize = 1;

/// The arrays of a batch of tokens.
pub(super) fn token_arrays((b, l): (usize, usize)) -> Vec<ArraySpec> {
    let array = |name, kind| ArraySpec { name, kind, shape: vec![b, l] };
    vec![array("tokens", Kind::U32), array("targets", Kind::I32)]
}

/// The loss of a batch of tokens.
pub(super) fn token_loss(
    model: &LanguageModel,
    cx: &Cx,
    batch: &Inputs<'_>,
    smoothing: f32,
    state: &State,
    recompute: bool,
) -> Result<(Var, State)> {
    let targets = batch.targets(TARGETS)?.smoothed(smoothing);
    let (loss, next) = model.loss(cx, batch.ids(TOKENS)?, targets, state, recompute)?;
    Ok((loss.mean, next))
}
