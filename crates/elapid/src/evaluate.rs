//! Evaluation: the likelihood a model assigns to given tokens.
//!
//! Rows of any lengths are read in batches, in chunks of positions with the state carried, so memory depends on neither the
//! length nor the number of rows. The sizes of chunks and batches do not change any result.

use std::sync::Arc;

pub use elapid_kernels::answers::Answer;

use crate::Layout;
use crate::decode::{Decoder, Draws, Next, Row};
use crate::generate::Sampling;
use crate::lm::LanguageModel;
use crate::state::State;
use crate::{Error, Result, Tensor};

/// Default positions per row in a forward pass.
pub const CHUNK: usize = 512;

/// Positions over all rows in a forward pass; bounds the memory.
const POSITIONS: usize = 4096;

/// How rows are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// Positions per row in a forward pass, at least 1.
    pub chunk: usize,
    /// Rows per batch, at least 1.
    pub batch: usize,
}

impl Reader {
    /// Reads `chunk` positions per row at a time, and as many rows together as bounded memory allows.
    pub fn new(chunk: usize) -> Self {
        let chunk = chunk.max(1);
        Self { chunk, batch: (POSITIONS / chunk).max(1) }
    }

    /// -log p in nats of every token except the first of each row, given the tokens before it: lists one shorter than the
    /// rows (empty for an empty row). `progress` receives the number of newly predicted tokens.
    ///
    /// # Errors
    /// If an id is not in the vocabulary; the error has the row and the position.
    pub fn nll<R: AsRef<[u32]>>(
        &self,
        model: &LanguageModel,
        rows: &[R],
        mut progress: impl FnMut(usize),
    ) -> Result<Vec<Vec<f32>>> {
        let rows: Vec<&[u32]> = rows.iter().map(AsRef::as_ref).collect();
        check_ids(model, &rows)?;
        // Longest first, so that the unfinished rows are always the first of a batch.
        let mut order: Vec<usize> = (0..rows.len()).filter(|&i| rows[i].len() > 1).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(rows[i].len()));
        let longest = rows.iter().map(|row| row.len().saturating_sub(1)).max().unwrap_or(0);
        let (b, l) = (self.batch.min(rows.len()), self.chunk.min(longest));
        let losses = rows.iter().map(|row| row.len() as u128).sum();
        let needs = model.needs_of_pass(b, l, "the rows or the positions read together (--batch, --chunk)");
        needs.and("losses", losses, 4, "the number of tokens").check_on(model.device())?;
        let mut nll: Vec<Vec<f32>> = rows.iter().map(|row| Vec::with_capacity(row.len().saturating_sub(1))).collect();
        for batch in order.chunks(self.batch.max(1)) {
            let mut state = model.zero_state(batch.len())?;
            for from in (0..rows[batch[0]].len() - 1).step_by(self.chunk.max(1)) {
                let batch = &batch[..batch.partition_point(|&i| rows[i].len() - 1 > from)];
                if batch.len() < state.rows() {
                    state = state.select(&(0..batch.len()).collect::<Vec<_>>())?;
                }
                let parts: Vec<&[u32]> = batch
                    .iter()
                    .map(|&i| &rows[i][from..rows[i].len().min(from.saturating_add(self.chunk).saturating_add(1))])
                    .collect();
                let (found, next) = chunk_nll(model, &parts, &state)?;
                state = next;
                for (&i, found) in batch.iter().zip(&found) {
                    nll[i].extend_from_slice(found);
                }
                progress(found.iter().map(Vec::len).sum());
            }
        }
        Ok(nll)
    }
}

impl Default for Reader {
    fn default() -> Self {
        Self::new(CHUNK)
    }
}

/// [`Reader::nll`] through a [`Decoder`], a token of each of `batch` rows at a time: with what steps alone do, such as
/// states stored in bf16 ([`LanguageModel::with_states_in`]). Slow: every row's state is taken out and put back each step.
///
/// # Errors
/// As [`Reader::nll`], and those of [`Decoder::new`].
pub fn nll_by_steps<R: AsRef<[u32]>>(
    model: &LanguageModel,
    rows: &[R],
    batch: usize,
    mut progress: impl FnMut(usize),
) -> Result<Vec<Vec<f32>>> {
    let rows: Vec<&[u32]> = rows.iter().map(AsRef::as_ref).collect();
    check_ids(model, &rows)?;
    let mut nll = vec![Vec::new(); rows.len()];
    let order: Vec<usize> = (0..rows.len()).filter(|&i| rows[i].len() > 1).collect();
    // What would be drawn is not read: the likeliest costs nothing.
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    let (draws, zero) = (Draws { sampling, ..Draws::default() }, model.zero_state(1)?);
    // One decoder for all, as preparing its steps costs more than to clear its rows.
    let mut decoder = Decoder::new(model, batch.clamp(1, order.len().max(1)))?;
    for batch in order.chunks(batch.max(1)) {
        let mut reading = Vec::with_capacity(batch.len());
        for &i in batch {
            reading.push((i, decoder.admit(&zero, Next::Token(rows[i][0]), &draws)?));
        }
        for t in 1.. {
            decoder.step()?;
            progress(reading.len());
            let next: Vec<(Row, u32)> = reading.iter().map(|&(i, row)| (row, rows[i][t])).collect();
            for (&(i, _), answer) in reading.iter().zip(decoder.answers(&next)?) {
                nll[i].push(answer.nll);
            }
            decoder.read_next(&next)?;
            let (going, ended): (Vec<_>, Vec<_>) = reading.into_iter().partition(|&(i, _)| t + 1 < rows[i].len());
            for (_, row) in ended {
                decoder.release(row)?;
            }
            reading = going;
            if reading.is_empty() {
                break;
            }
        }
    }
    Ok(nll)
}

/// What each row of logits `[m v]` answers to its target, an id of 0 to v - 1. On a GPU it is found there.
///
/// # Errors
/// If there is not one target a row, a target is no id, or a device failed.
pub fn answers(logits: &Tensor, targets: &[i32]) -> Result<Vec<Answer>> {
    Ok(elapid_kernels::answers::forward(logits.view(), targets)?)
}

/// -log p in nats of every token except the first of each row, reading `chunk` positions at a time.
///
/// # Errors
/// As [`Reader::nll`].
pub fn nll_of_tokens(model: &LanguageModel, rows: &[Vec<u32>], chunk: usize) -> Result<Vec<Vec<f32>>> {
    Reader::new(chunk).nll(model, rows, |_| ())
}

/// Parts of `length` predicted tokens each, the last one shorter. Neighbours share a token, so every token except the very
/// first is predicted once.
pub fn windows(tokens: &[u32], length: usize) -> Vec<&[u32]> {
    let last = tokens.len().saturating_sub(1);
    (0..last).step_by(length.max(1)).map(|from| &tokens[from..=last.min(from.saturating_add(length.max(1)))]).collect()
}

/// Totals over many predictions.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Summary {
    /// Sum of the negative log-likelihoods of all predicted tokens, in nats.
    pub nats: f64,
    /// Number of predicted tokens.
    pub tokens: usize,
}

impl Summary {
    /// The totals of lists as returned by [`nll_of_tokens`].
    pub fn of(nll: &[Vec<f32>]) -> Self {
        let nats = nll.iter().flatten().map(|&x| f64::from(x)).sum();
        Self { nats, tokens: nll.iter().map(Vec::len).sum() }
    }

    /// Mean negative log-likelihood per token, in nats; NaN without tokens.
    pub fn loss(&self) -> f64 {
        self.nats / self.tokens as f64
    }

    /// e to the power of the loss.
    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }

    /// Bits per byte, if the predicted tokens stand for `bytes` bytes of text.
    pub fn bits_per_byte(&self, bytes: usize) -> f64 {
        self.nats / std::f64::consts::LN_2 / bytes as f64
    }
}

/// The predictions inside `parts` (each of at least 2 tokens, the longest first), and the state after them.
fn chunk_nll(model: &LanguageModel, parts: &[&[u32]], state: &State) -> Result<(Vec<Vec<f32>>, State)> {
    let (b, l) = (parts.len(), parts[0].len() - 1);
    let mut tokens = vec![0; b * l];
    let mut targets = vec![-1; b * l];
    for (r, part) in parts.iter().enumerate() {
        let len = part.len() - 1;
        tokens[r * l..][..len].copy_from_slice(&part[..len]);
        let next = part[1..].iter().map(|&id| id as i32);
        targets[r * l..][..len].iter_mut().zip(next).for_each(|(target, id)| *target = id);
    }
    let full = parts.iter().all(|part| part.len() == l + 1);
    let lengths = (!full).then(|| parts.iter().map(|part| (part.len() - 1) as u32).collect::<Arc<[u32]>>());
    let cx = model.inference(Layout { lengths, ..Layout::new(b, l) });
    let (loss, state) = model.loss(&cx, &tokens, &targets, state, false)?;
    let nll = loss.nll.to_vec()?;
    Ok((parts.iter().enumerate().map(|(r, part)| nll[r * l..][..part.len() - 1].to_vec()).collect(), state))
}

fn check_ids(model: &LanguageModel, rows: &[&[u32]]) -> Result<()> {
    // Targets are i32 and negative ones are ignored, so a larger id would silently be ignored.
    let v = model.config().padded_vocab_size().min(i32::MAX as usize);
    for (r, row) in rows.iter().enumerate() {
        if let Some(t) = row.iter().position(|&id| id as usize >= v) {
            let id = row[t];
            return Err(Error::Argument(format!(
                "row {r}, position {t}: token id {id} is not in the vocabulary of {v}"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;
    use crate::lm::Positions;

    fn model() -> LanguageModel {
        let config = ModelConfig { vocab_size: 11, ..ModelConfig::mamba1("16x2").unwrap() };
        LanguageModel::new(config, 3).unwrap()
    }

    fn rows() -> Vec<Vec<u32>> {
        [5, 0, 1, 23, 2, 9].iter().map(|&l| (0..l).map(|t| (t * 7 + l) % 11).collect()).collect()
    }

    #[test]
    fn nll_of_tokens_is_log_softmax_of_the_logits() {
        let model = model();
        let got = nll_of_tokens(&model, &rows(), 512).unwrap();
        for (row, got) in rows().iter().zip(&got) {
            assert_eq!(got.len(), row.len().saturating_sub(1));
            if row.is_empty() {
                continue;
            }
            let cx = model.inference(Layout::new(1, row.len()));
            let (logits, _) = model.logits(&cx, row, model.zero_state(1).unwrap(), Positions::All).unwrap();
            for (t, nll) in got.iter().enumerate() {
                let logits = logits.value().rows().row(t);
                let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
                let want = sum.ln() - f64::from(logits[row[t + 1] as usize]);
                assert!((want - f64::from(*nll)).abs() < 1e-5, "{want} {nll}");
            }
        }
    }

    #[test]
    fn neither_chunk_nor_batch_changes_a_number() {
        let model = model();
        let want = nll_of_tokens(&model, &rows(), 512).unwrap();
        for chunk in [1, 2, 3, 7, 22, 23] {
            for batch in [1, 2, 6] {
                let mut heard = 0;
                let got = Reader { chunk, batch }.nll(&model, &rows(), |more| heard += more).unwrap();
                assert_eq!(got, want, "chunk {chunk}, batch {batch}");
                assert_eq!(heard, 22 + 8 + 4 + 1);
            }
        }
    }

    #[test]
    fn steps_predict_what_passes_do() {
        let model = model();
        let want = nll_of_tokens(&model, &rows(), 512).unwrap();
        for batch in [1, 4, 9] {
            let mut heard = 0;
            let got = nll_by_steps(&model, &rows(), batch, |more| heard += more).unwrap();
            assert_eq!(heard, 22 + 8 + 4 + 1);
            for (got, want) in got.iter().zip(&want) {
                assert_eq!(got.len(), want.len());
                assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5), "{got:?} {want:?}");
            }
        }
        assert!(nll_by_steps(&model, &[vec![1, 11]], 1, |_| ()).is_err());
        assert!(nll_by_steps(&model, &[vec![1]], 1, |_| ()).unwrap()[0].is_empty());
    }

    #[test]
    fn an_id_outside_the_vocabulary_is_named() {
        for id in [11, u32::MAX] {
            let error = nll_of_tokens(&model(), &[vec![1, 2], vec![3, 4, id]], 512).unwrap_err().to_string();
            assert!(error.contains("row 1, position 2") && error.contains("vocabulary of 11"), "{error}");
        }
    }

    #[test]
    fn windows_predict_every_token_once() {
        let tokens: Vec<u32> = (0..10).collect();
        assert_eq!(windows(&tokens, 4), [&tokens[0..5], &tokens[4..9], &tokens[8..10]]);
        assert_eq!(windows(&tokens, 9), [&tokens[..]]);
        assert_eq!(windows(&tokens, usize::MAX), [&tokens[..]]);
        assert!(windows(&tokens[..1], 4).is_empty() && windows(&[], 4).is_empty());
    }

    #[test]
    fn summary_of_a_uniform_guess() {
        let summary = Summary::of(&[vec![2f32.ln(); 3], vec![], vec![2f32.ln()]]);
        assert_eq!(summary.tokens, 4);
        assert!((summary.perplexity() - 2.0).abs() < 1e-6);
        assert!((summary.bits_per_byte(8) - 0.5).abs() < 1e-6);
    }
}
