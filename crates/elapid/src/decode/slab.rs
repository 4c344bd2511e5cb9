//! Rows on a GPU: places in buffers of fixed address, all of them computed in every step.
//!
//! A step reads tokens that lie on the device, updates the states in place and leaves the next tokens where the next step
//! reads them. Where there is a fused step (`crate::fused`: a Mamba-1 model in bf16 with few rows takes a step in one
//! launch) it is launched, and tokens are drawn in a second launch unless every row takes the likeliest one; otherwise the
//! operations, the drawing among them, are captured once as a graph. How a row draws is in arrays on the device, so that
//! admitting and releasing rows changes no launch. A free place goes on from whatever it has; nobody reads it.

use std::sync::Arc;

use elapid_kernels::answers::{self, Answer};
use elapid_kernels::cuda::{Buffer, Gpu, Graph};
use elapid_kernels::sampling::cuda as sampling;

use crate::Layout;
use crate::fused::{self, FusedStep};
use crate::lm::{LanguageModel, Positions};
use crate::ops::Ids;
use crate::pass::Steps;
use crate::state::State;
use crate::{DType, Error, Result, Tensor};

use super::draws::Draws;
use super::row::Next;

/// Calls that run as they are before one is captured: kernels are compiled in them.
const WARM_UP: u32 = 2;
/// Pages of a row that tables begin with; they double, and the graph is captured anew, when a row has more.
const PAGES: usize = 64;

pub(super) struct Slab {
    gpu: Gpu,
    v: usize,
    /// `[rows]` u32: what rows read next.
    ids: Arc<Buffer>,
    state: State,
    /// `[rows]` u64: the position in its document that each row reads next, if that matters.
    positions: Option<Arc<Buffer>>,
    /// Pages that the tables of growing caches have place for.
    pages: usize,
    fused: Option<Box<dyn FusedStep>>,
    steps: Arc<Steps>,
    draws: sampling::Draws,
    places: Vec<Place>,
    graph: Option<(Graph, Tensor)>,
    logits: Option<Tensor>,
    runs: u32,
}

#[derive(Clone, Copy, Default)]
struct Place {
    /// Whether a row is here.
    taken: bool,
    /// Whether its tokens are not simply the likeliest.
    draws: bool,
    /// Whether it took part in a step since its admission.
    stepped: bool,
}

impl Slab {
    pub(super) fn new(model: &LanguageModel, gpu: Gpu, rows: usize, fused: bool) -> Result<Self> {
        let v = model.config().padded_vocab_size();
        let ids = Arc::new(gpu.upload(&vec![0u32; rows])?);
        let mut state = model.zero_state(rows)?.to(model.device())?.own()?;
        let dtype = model.state_dtype();
        if dtype != DType::F32 {
            state = state.matrices_in(dtype)?;
        }
        let fused = if fused { fused::plan(model, &state, &ids)? } else { None };
        if dtype != DType::F32 && fused.is_none() {
            let reason = format!(
                "states in {dtype} are for Mamba-2 in bf16, without options that its fused step lacks, and up to 128 rows"
            );
            return Err(Error::Argument(reason));
        }
        let moves = state.has_caches() || model.reads_positions();
        let positions = moves.then(|| gpu.upload(&vec![0u64; rows]).map(Arc::new)).transpose()?;
        if let Some(positions) = &positions {
            state.keep_in_place(gpu, model.dtype(), PAGES, positions)?;
        }
        let draws = sampling::Draws::new(gpu, rows, v)?;
        let (steps, places) = (Arc::default(), vec![Place::default(); rows]);
        let (graph, logits, runs, pages) = (None, None, 0, PAGES);
        Ok(Self { gpu, v, ids, state, positions, pages, fused, steps, draws, places, graph, logits, runs })
    }

    pub(super) fn admit(&mut self, place: usize, state: &State, next: Next<'_>, draws: &Draws<'_>) -> Result<()> {
        let Draws { sampling: params, seed, sample, recent, generated } = *draws;
        let (position, begins) = (state.position(), state.starts()[0]);
        let draw = sampling::Draw { params, seed, sample, position, recent, generated };
        self.state.write_row(place, state)?;
        if let Some(positions) = &self.positions {
            self.gpu.write(positions, place, &[begins])?;
        }
        match next {
            Next::Token(id) => {
                // A step reads the token before it draws.
                let recent: Vec<u32> = recent.iter().copied().chain([id]).collect();
                self.draws.set(place, &sampling::Draw { position: position + 1, recent: &recent, ..draw })?;
                self.gpu.write(&self.ids, place, &[id])?;
            }
            Next::Logits(logits) => {
                self.draws.set(place, &draw)?;
                let logits = logits.to(self.state_device(), logits.dtype())?.reshape(&[1, self.v]);
                sampling::sample_row(logits.mat(), &self.draws, place, &self.ids)?;
            }
        }
        self.places[place] = Place { taken: true, draws: !params.is_greedy(), stepped: false };
        Ok(())
    }

    fn state_device(&self) -> crate::Device {
        crate::Device::Cuda(self.gpu)
    }

    pub(super) fn step(&mut self, model: &LanguageModel) -> Result<()> {
        let taken: Vec<usize> = (0..self.places.len()).filter(|&place| self.places[place].taken).collect();
        let rows = taken.iter().copied();
        if let Some(positions) = &self.positions {
            let starts = self.state.starts();
            model.check_position(rows.clone().map(|row| starts[row]).max().unwrap_or(0))?;
            while !self.state.prepare(rows.clone())? {
                // The graph reads the tables of before.
                self.graph = None;
                self.pages *= 2;
                self.state.keep_in_place(self.gpu, model.dtype(), self.pages, positions)?;
            }
        }
        self.submit(model)?;
        // After the pass, which reads how far its rows were before it.
        self.state.advance(rows);
        self.places.iter_mut().for_each(|place| place.stepped = true);
        Ok(())
    }

    fn submit(&mut self, model: &LanguageModel) -> Result<()> {
        if let Some(step) = &self.fused {
            step.launch()?;
            // The step has chosen the likeliest.
            if self.any_draws() {
                let logits = step.logits().mat(self.places.len(), self.v, DType::F32);
                sampling::sample(logits, &self.draws, &self.ids)?;
            }
            return Ok(());
        }
        if let Some((graph, _)) = &self.graph {
            return Ok(graph.launch()?);
        }
        self.runs = self.runs.saturating_add(1);
        if self.runs <= WARM_UP {
            self.logits = Some(self.advance(model)?);
            return Ok(());
        }
        let gpu = self.gpu;
        let (graph, logits) = gpu.capture(|| self.advance(model))?;
        graph.launch()?;
        self.graph = Some((graph, logits));
        Ok(())
    }

    fn any_draws(&self) -> bool {
        self.places.iter().any(|place| place.draws)
    }

    fn advance(&self, model: &LanguageModel) -> Result<Tensor> {
        let layout = Layout::new(self.places.len(), 1);
        let layout = self.positions.iter().fold(layout, Layout::with_device_starts);
        let cx = model.inference(layout).stepping(&self.steps);
        let (logits, next) = model.logits(&cx, Ids::Device(self.ids.clone()), &self.state, Positions::Last)?;
        self.state.write_values(&next)?;
        sampling::sample(logits.value().mat(), &self.draws, &self.ids)?;
        if let Some(positions) = &self.positions {
            // Free places go on, but not beyond what an embedding of positions has.
            elapid_kernels::positions::advance(positions, self.places.len(), model.most_positions())?;
        }
        Ok(logits.value().clone())
    }

    /// What every place reads next; waits for the device.
    pub(super) fn ids(&self) -> Result<Vec<u32>> {
        Ok(self.gpu.download(&self.ids, 0, self.places.len())?)
    }

    pub(super) fn id(&self, place: usize) -> Result<u32> {
        Ok(self.gpu.download(&self.ids, place, 1)?[0])
    }

    pub(super) fn read_next(&mut self, next: impl Iterator<Item = (usize, u32)>) -> Result<()> {
        let mut ids = self.ids()?;
        next.for_each(|(place, id)| ids[place] = id);
        Ok(self.gpu.write(&self.ids, 0, &ids)?)
    }

    pub(super) fn logits(&self, place: usize) -> Result<Option<Vec<f32>>> {
        if !self.places[place].stepped {
            return Ok(None);
        }
        if let Some(step) = &self.fused {
            return Ok(Some(self.gpu.download(step.logits(), place * self.v, self.v)?));
        }
        self.captured().map(|logits| logits.narrow(place, 1).to_vec()).transpose()
    }

    /// Logits of the operations.
    fn captured(&self) -> Option<&Tensor> {
        self.graph.as_ref().map(|(_, logits)| logits).or(self.logits.as_ref())
    }

    /// What the logits of every place answer; none where there are none.
    pub(super) fn answers(&self, targets: &[i32]) -> Result<Vec<Option<Answer>>> {
        let answers = match (&self.fused, self.captured()) {
            (Some(step), _) => answers::forward(step.logits().mat(self.places.len(), self.v, DType::F32), targets)?,
            (None, Some(logits)) => answers::forward(logits.mat(), targets)?,
            (None, None) => return Ok(vec![None; self.places.len()]),
        };
        Ok(self.places.iter().zip(answers).map(|(place, answer)| place.stepped.then_some(answer)).collect())
    }

    pub(super) fn state(&self, place: usize) -> Result<State> {
        self.state.select(&[place])?.to(self.state_device())
    }

    pub(super) fn release(&mut self, place: usize) -> Result<State> {
        let state = self.state(place)?;
        self.draws.clear(place)?;
        self.state.forget_row(place);
        self.places[place] = Place::default();
        Ok(state)
    }

    pub(super) fn launches(&self) -> u64 {
        match &self.fused {
            Some(step) => step.launches() + u64::from(self.any_draws()),
            None => self.graph.as_ref().map_or(0, |(graph, _)| graph.launches()),
        }
    }
}
