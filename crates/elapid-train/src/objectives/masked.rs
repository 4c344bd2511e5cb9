//! Predicting masked tokens of a text.

use elapid::autograd::Var;
use elapid::config::ModelConfig;
use elapid::pass::Cx;
use elapid::{LanguageModel, State, evaluate};
use rand::RngExt;

use super::language::{TOKENS, token_arrays, token_loss};
use super::objective::random;
use super::{Array, ArraySpec, Batch, Inputs, Objective, Validation};
use crate::data::{self, IGNORE, Sequential, Windows};
use crate::{Error, Result, metrics};

/// Predicting selected tokens of a text at their own positions (Devlin et al. 2018, section 3.1): of the selected tokens, 80
/// % are replaced by a mask, 10 % by another token, and 10 % stay.
#[derive(Debug, Clone)]
pub struct Masked {
    /// The training data.
    pub windows: Windows,
    /// Rows per batch, and positions per row.
    pub shape: (usize, usize),
    /// Number of token ids of the text. The next id is the mask.
    pub vocab: u32,
    /// Share of the tokens that are selected.
    pub share: f64,
    /// Random seed of the masks.
    pub seed: u64,
    /// The held-out data, if there is any; its masks are the same at every validation.
    pub held_out: Option<Sequential>,
}

impl Masked {
    /// Number of token ids including the mask: the vocabulary that a model needs.
    pub fn ids(&self) -> usize {
        self.vocab as usize + 1
    }

    /// The text of a batch with masks, and the selected tokens as targets.
    fn mask(&self, batch: data::Batch, purpose: &str, index: u64) -> Batch {
        let mut random = random(self.seed, purpose, index);
        let data::Batch { mut tokens, targets: next, resets, b, l, .. } = batch;
        let mut targets = vec![IGNORE; b * l];
        for (i, token) in tokens.iter_mut().enumerate() {
            let (asked, how, other): (f64, f64, u32) = (random.random(), random.random(), random.random());
            // The padding of a last row predicts nothing.
            if next[i] == IGNORE || asked >= self.share {
                continue;
            }
            targets[i] = *token as i32;
            match how {
                how if how < 0.8 => *token = self.vocab,
                how if how < 0.9 => *token = other % self.vocab,
                _ => {}
            }
        }
        Batch { b, l, resets, arrays: vec![Array::U32(tokens), Array::I32(targets)] }
    }
}

impl Objective for Masked {
    type Model = LanguageModel;

    fn model(&self, config: ModelConfig, seed: u64) -> Result<LanguageModel> {
        if config.padded_vocab_size() < self.ids() {
            let (wanted, got) = (format!("{} ids, the mask among them", self.ids()), config.padded_vocab_size());
            return Err(Error::Argument { argument: "the vocabulary", wanted, got: got.to_string() });
        }
        Ok(LanguageModel::new(config, seed)?)
    }

    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn arrays(&self) -> Vec<ArraySpec> {
        token_arrays(self.shape)
    }

    fn batch(&self, index: u64) -> Result<Batch> {
        Ok(self.mask(self.windows.batch(index)?, "train", index))
    }

    fn loss(
        &self,
        model: &LanguageModel,
        cx: &Cx,
        batch: &Inputs<'_>,
        state: &State,
        recompute: bool,
    ) -> Result<(Var, State)> {
        token_loss(model, cx, batch, 0.0, state, recompute)
    }

    fn validate(&self, model: &LanguageModel, _step: u64) -> Result<Option<Validation>> {
        let Some(held_out) = &self.held_out else { return Ok(None) };
        let (mut asked, mut right, mut nats) = (0u64, 0u64, 0.0);
        for index in 0..held_out.len() {
            let Some(batch) = held_out.batch(index)? else { break };
            let batch = self.mask(batch, "held out", index);
            let Some(Array::I32(targets)) = batch.arrays.get(1) else { break };
            let at: Vec<u32> = (0..targets.len() as u32).filter(|&at| targets[at as usize] != IGNORE).collect();
            let cx = model.inference(batch.layout());
            let (logits, _) = model.logits_at(&cx, batch.ids(TOKENS), &model.zero_state(batch.b)?, &at)?;
            let wanted: Vec<i32> = at.iter().map(|&at| targets[at as usize]).collect();
            for (answer, target) in evaluate::answers(&logits, &wanted)?.iter().zip(wanted) {
                asked += 1;
                right += u64::from(answer.likeliest == target as u32);
                nats += f64::from(answer.nll);
            }
        }
        let figures = vec![(metrics::ACCURACY, right as f64 / asked as f64)];
        Ok(Some(Validation { loss: nats / asked as f64, figures }))
    }

    fn measure(&self) -> String {
        format!("{} of the tokens masked", self.share)
    }

    fn first_non_finite(&self, model: &LanguageModel, batch: &Batch, state: &State) -> Result<Option<String>> {
        Ok(model.first_non_finite(&batch.layout(), batch.ids(TOKENS), state)?)
    }
}
