//! Labelled sequences, and the batches made of them.

use elapid::models::{Form, Sequence};
use elapid::{Layout, State};

use super::{Array, ArraySpec, Inputs, Kind};
use crate::tasks::Split;
use crate::{Error, Result};

/// The positions of an example.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// `[l]`.
    Tokens(Vec<u32>),
    /// `[l f]`.
    Values(Vec<f32>),
}

/// A sequence and its label.
#[derive(Debug, Clone, PartialEq)]
pub struct Example<L> {
    /// The sequence.
    pub positions: Positions,
    /// The label.
    pub label: L,
}

/// The example with this number in a split; always the same.
type Make<L> = dyn Fn(Split, u64) -> Example<L> + Send + Sync;

/// A set of labelled sequences of one length.
pub struct Labelled<L> {
    /// Values per position, and classes or values per label.
    pub form: Form,
    /// Positions per sequence.
    pub length: usize,
    /// Number of token ids; not used where positions are values.
    pub vocab: usize,
    /// Examples by number. Held out are the numbers below [`held_out`](Self::held_out).
    pub make: Box<Make<L>>,
    /// Examples that a validation reads.
    pub held_out: u64,
}

impl<L> Labelled<L> {
    /// The arrays of a batch of `b` rows, the input first.
    pub(super) fn input(&self, b: usize) -> ArraySpec {
        match self.form.features {
            None => ArraySpec { name: "tokens", kind: Kind::U32, shape: vec![b, self.length] },
            Some(features) => ArraySpec { name: "values", kind: Kind::F32, shape: vec![b, self.length, features] },
        }
    }

    /// Examples from number `first` on, as an input array and their labels.
    pub(super) fn rows(&self, split: Split, first: u64, b: usize) -> Result<(Array, Vec<L>)> {
        let (mut tokens, mut values, mut labels) = (Vec::new(), Vec::new(), Vec::with_capacity(b));
        for row in 0..b as u64 {
            let Example { positions, label } = (self.make)(split, first.wrapping_add(row));
            let (len, wanted) = match (positions, self.form.features) {
                (Positions::Tokens(row), None) => {
                    tokens.extend_from_slice(&row);
                    (row.len(), self.length)
                }
                (Positions::Values(row), Some(features)) => {
                    values.extend_from_slice(&row);
                    (row.len(), self.length * features)
                }
                _ => (0, self.length),
            };
            if len != wanted {
                let got = format!("{len} in example {}", first.wrapping_add(row));
                return Err(Error::Argument { argument: "an example", wanted: format!("{wanted} elements"), got });
            }
            labels.push(label);
        }
        let array = if self.form.features.is_some() { Array::F32(values) } else { Array::U32(tokens) };
        Ok((array, labels))
    }

    /// The held-out examples in parts: the first number and the length of each.
    pub(super) fn parts(&self, b: usize) -> impl Iterator<Item = (u64, usize)> + use<L> {
        let (all, b) = (self.held_out, b.max(1) as u64);
        (0..all.div_ceil(b)).map(move |part| (part * b, (all - part * b).min(b) as usize))
    }
}

/// The input of a batch for a model.
pub(super) fn sequence<'a>(batch: &Inputs<'a>, form: Form) -> Result<Sequence<'a>> {
    Ok(match form.features {
        None => Sequence::Tokens(batch.ids(0)?),
        Some(_) => Sequence::Values(batch.tensor(0)?),
    })
}

/// The model's outputs at the last position of each of `b` rows, `[b n]`.
pub(super) fn answers(
    model: &elapid::models::SequenceModel,
    input: &Array,
    (b, l): (usize, usize),
    state: &State,
) -> Result<Vec<f32>> {
    let sequence = match input {
        Array::U32(tokens) => Sequence::Tokens(tokens.into()),
        Array::F32(values) => {
            Sequence::Values(elapid::Tensor::new(values.clone(), &[b, l, values.len() / (b * l).max(1)]))
        }
        Array::I32(_) => return Err(elapid::Error::Argument("targets for an input".into()).into()),
    };
    let core = elapid::models::Model::core(model);
    let (answers, _) = model.answers(&core.inference(Layout::new(b, l)), sequence, state)?;
    let (n, all) = (answers.value().cols(), answers.value().to_vec()?);
    Ok((0..b).flat_map(|row| all[((row + 1) * l - 1) * n..][..n].iter().copied()).collect())
}
