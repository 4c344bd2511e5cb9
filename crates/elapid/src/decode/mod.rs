//! Decoding: one position of many rows at a time. Rows come and go while others go on.
//!
//! A row is a sequence with a state, a token that it reads next, and its own sampling settings, seed and position. On the
//! CPU a step is one pass over the admitted rows, and a row has the bits that it has alone (`batch`). On a GPU rows are
//! places in buffers of fixed address, so that a step can be captured once and replayed (`slab`).

mod batch;
mod draws;
mod row;
mod slab;
mod speculation;

use elapid_kernels::Rows;
use elapid_kernels::answers::Answer;

use crate::lm::LanguageModel;
use crate::state::State;
use crate::{DType, Device, Error, Result};

use batch::Batch;
pub use draws::Draws;
pub use row::{Next, Row};
use slab::Slab;
pub(crate) use speculation::{History, Speculation};

/// Rows of tokens in the making, each with its own state.
///
/// ```
/// # use elapid::{decode::{Decoder, Draws, Next}, embedded};
/// # fn main() -> elapid::Result<()> {
/// let model = embedded::model()?;
/// let mut decoder = Decoder::new(&model, 8)?;
/// let start = model.zero_state(1)?;
/// let first = decoder.admit(&start, Next::Token(u32::from(b'A')), &Draws { seed: 1, ..Draws::default() })?;
/// decoder.step()?;
/// let second = decoder.admit(&start, Next::Token(u32::from(b'B')), &Draws::default())?;
/// decoder.step()?;
/// assert_eq!(decoder.tokens()?.iter().map(|(row, _)| *row).collect::<Vec<_>>(), [first, second]);
/// assert_eq!(decoder.release(first)?.position(), 2);
/// # Ok(())
/// # }
/// ```
pub struct Decoder {
    model: LanguageModel,
    capacity: usize,
    /// In the order of admission.
    rows: Vec<Admitted>,
    /// Rows that were admitted so far.
    admissions: u64,
    engine: Engine,
}

/// A row and its place: on the CPU in the batch, on a GPU in the slab.
#[derive(Debug, Clone, Copy)]
struct Admitted {
    row: Row,
    place: usize,
}

enum Engine {
    Cpu(Box<Batch>),
    Gpu(Box<Slab>),
}

impl Decoder {
    /// A decoder that holds up to `rows` rows at a time, and none yet.
    ///
    /// On a GPU a step costs the same however many of them are admitted.
    ///
    /// # Errors
    /// If `rows` is 0, a layer of the model is not causal, or the device has too little memory.
    pub fn new(model: &LanguageModel, rows: usize) -> Result<Self> {
        Self::build(model, rows, true)
    }

    /// [`new`](Self::new), but that a step on a GPU is the model's operations one after another, whatever the model: what
    /// a step in one launch is compared with.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn by_operations(model: &LanguageModel, rows: usize) -> Result<Self> {
        Self::build(model, rows, false)
    }

    fn build(model: &LanguageModel, capacity: usize, fused: bool) -> Result<Self> {
        if capacity == 0 {
            return Err(Error::Argument("a decoder of 0 rows; give at least 1".into()));
        }
        model.check_continues()?;
        let engine = match model.device() {
            Device::Cpu if model.state_dtype() != DType::F32 => {
                return Err(Error::Argument(format!("states in {} are for a GPU", model.state_dtype())));
            }
            Device::Cpu => Engine::Cpu(Box::default()),
            Device::Cuda(gpu) => Engine::Gpu(Box::new(Slab::new(model, gpu, capacity, fused)?)),
        };
        Ok(Self { model: model.clone(), capacity, rows: Vec::new(), admissions: 0, engine })
    }

    /// Its model.
    pub fn model(&self) -> &LanguageModel {
        &self.model
    }

    /// Rows that it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The admitted rows, in the order of their admission.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = Row> + '_ {
        self.rows.iter().map(|admitted| admitted.row)
    }

    /// Admits a sequence that goes on from a state of one row.
    ///
    /// Its tokens depend on the state, `next` and `draws` alone, not on other rows; on the CPU to the bit.
    ///
    /// # Errors
    /// If all rows are taken; if the state has another number of rows or is of another model; if the logits do not fit or
    /// are not finite (on a GPU [`tokens`](Self::tokens) tells that); if a setting is out of its range or an id not in the
    /// vocabulary; if the device has too little memory. Nothing is admitted then.
    pub fn admit(&mut self, state: &State, next: Next<'_>, draws: &Draws<'_>) -> Result<Row> {
        if self.rows.len() == self.capacity {
            return Err(Error::Argument(format!("all {} rows are taken; release one first", self.capacity)));
        }
        let v = self.model.config().padded_vocab_size();
        draws.check(v)?;
        if state.rows() != 1 || !state.fits(&self.model.stack().spec) {
            let reason = format!("a row begins with one row of its model; got {} of it or another", state.rows());
            return Err(Error::State { path: None, reason });
        }
        match next {
            Next::Token(id) => elapid_kernels::embedding::check_ids(&[id], v)?,
            Next::Logits(logits) if logits.len() == v => {}
            Next::Logits(logits) => {
                return Err(Error::Argument(format!("logits {:?} for a vocabulary of {v}", logits.shape())));
            }
        }
        let state = state.to(self.model.device())?;
        let place = match &mut self.engine {
            Engine::Cpu(batch) => batch.admit(state, next, draws, v)?,
            Engine::Gpu(slab) => {
                let free = (0..self.capacity).find(|place| self.rows.iter().all(|row| row.place != *place));
                let place = free.ok_or_else(|| Error::Argument("no row is free".into()))?;
                slab.admit(place, &state, next, draws)?;
                place
            }
        };
        let row = Row(self.admissions);
        self.admissions += 1;
        self.rows.push(Admitted { row, place });
        Ok(row)
    }

    /// Reads one token of every admitted row and draws the next; does not wait for a GPU. Without rows it does nothing.
    ///
    /// On the CPU a step allocates nothing after the first ones, but for the page that a cache of keys or values needs every
    /// [`PAGE`](crate::state::PAGE) positions.
    ///
    /// # Errors
    /// If the device fails, or has too little memory; the rows are lost then. A row whose logits are not finite fails alone:
    /// [`token`](Self::token) tells it.
    pub fn step(&mut self) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        match &mut self.engine {
            Engine::Cpu(batch) => elapid_kernels::team(|| batch.step(&self.model)),
            Engine::Gpu(slab) => slab.step(&self.model),
        }
    }

    /// The token that each admitted row reads next, in the order of admission: the last one drawn, or that it was admitted
    /// with. Waits for a GPU.
    ///
    /// # Errors
    /// If the device failed, or a row's logits were not finite; it is named.
    pub fn tokens(&self) -> Result<Vec<(Row, u32)>> {
        match &self.engine {
            Engine::Cpu(_) => self.rows.iter().map(|&Admitted { row, .. }| Ok((row, self.token(row)?))).collect(),
            Engine::Gpu(slab) => {
                let ids = slab.ids()?;
                self.rows.iter().map(|&Admitted { row, place }| Ok((row, drawn(row, ids[place])?))).collect()
            }
        }
    }

    /// The token that one row reads next; see [`tokens`](Self::tokens).
    ///
    /// # Errors
    /// If there is no such row, the device failed, or the row's logits were not finite.
    pub fn token(&self, row: Row) -> Result<u32> {
        let place = self.place(row)?;
        match &self.engine {
            Engine::Cpu(batch) => batch.token(place).ok_or_else(|| non_finite(row)),
            Engine::Gpu(slab) => drawn(row, slab.id(place)?),
        }
    }

    /// Logits `[v]` of a row in the last step, if it took part in one; waits for a GPU.
    ///
    /// # Errors
    /// If there is no such row, or the device failed.
    pub fn logits(&self, row: Row) -> Result<Option<Vec<f32>>> {
        let place = self.place(row)?;
        match &self.engine {
            Engine::Cpu(batch) => Ok(batch.logits(place).map(<[f32]>::to_vec)),
            Engine::Gpu(slab) => slab.logits(place),
        }
    }

    /// What the logits of the last step answer to a wanted token of each row; waits for a GPU, which copies no logits.
    ///
    /// # Errors
    /// If there is no such row, it took part in no step, a token is not in the vocabulary, or the device failed.
    pub(crate) fn answers(&self, wanted: &[(Row, u32)]) -> Result<Vec<Answer>> {
        let unread = |row| Error::Argument(format!("row {row} took part in no step yet"));
        match &self.engine {
            Engine::Cpu(batch) => {
                let answer = |&(row, id)| {
                    let logits = batch.logits(self.place(row)?).ok_or_else(|| unread(row))?;
                    Ok(elapid_kernels::answers::forward(Rows::new(logits, logits.len()), &[id as i32])?[0])
                };
                wanted.iter().map(answer).collect()
            }
            Engine::Gpu(slab) => {
                let mut targets = vec![0; self.capacity];
                for &(row, id) in wanted {
                    targets[self.place(row)?] = id as i32;
                }
                let answers = slab.answers(&targets)?;
                let of = |&(row, _)| answers[self.place(row)?].ok_or_else(|| unread(row));
                wanted.iter().map(of).collect()
            }
        }
    }

    /// Rows read these tokens next, whatever was drawn. What was drawn stays among their recent tokens.
    ///
    /// # Errors
    /// If there is no such row, a token is not in the vocabulary, or the device failed.
    pub(crate) fn read_next(&mut self, next: &[(Row, u32)]) -> Result<()> {
        let v = self.model.config().padded_vocab_size();
        let places = next.iter().map(|&(row, _)| self.place(row)).collect::<Result<Vec<_>>>()?;
        let ids: Vec<u32> = next.iter().map(|&(_, id)| id).collect();
        elapid_kernels::embedding::check_ids(&ids, v)?;
        let next = places.into_iter().zip(ids);
        match &mut self.engine {
            Engine::Cpu(batch) => {
                next.for_each(|(place, id)| batch.read_next(place, id));
                Ok(())
            }
            Engine::Gpu(slab) => slab.read_next(next),
        }
    }

    /// The state of a row after all that it read: without the token that it reads next.
    ///
    /// # Errors
    /// If there is no such row, or the device has too little memory.
    pub fn state(&self, row: Row) -> Result<State> {
        let place = self.place(row)?;
        match &self.engine {
            Engine::Cpu(batch) => batch.state(place),
            Engine::Gpu(slab) => slab.state(place),
        }
    }

    /// Ends a row: its state, as [`state`](Self::state) returns it. The other rows go on.
    ///
    /// # Errors
    /// As [`state`](Self::state); the row stays then.
    pub fn release(&mut self, row: Row) -> Result<State> {
        let place = self.place(row)?;
        let state = match &mut self.engine {
            Engine::Cpu(batch) => {
                let state = batch.release(place)?;
                self.rows.iter_mut().filter(|other| other.place > place).for_each(|other| other.place -= 1);
                state
            }
            Engine::Gpu(slab) => slab.release(place)?,
        };
        self.rows.retain(|other| other.row != row);
        Ok(state)
    }

    /// Launches of a step on a GPU; 0 before one was captured, where that is done, and on the CPU.
    pub fn launches(&self) -> u64 {
        match &self.engine {
            Engine::Cpu(_) => 0,
            Engine::Gpu(slab) => slab.launches(),
        }
    }

    fn place(&self, row: Row) -> Result<usize> {
        let found = self.rows.iter().find(|admitted| admitted.row == row);
        found.map(|admitted| admitted.place).ok_or_else(|| Error::Argument(format!("row {row} is not in this decoder")))
    }
}

/// A token as a GPU leaves it: the largest u32 where logits were not finite.
fn drawn(row: Row, id: u32) -> Result<u32> {
    if id == u32::MAX { Err(non_finite(row)) } else { Ok(id) }
}

fn non_finite(row: Row) -> Error {
    Error::NonFinite { what: format!("the logits of row {row}"), place: 0 }
}
