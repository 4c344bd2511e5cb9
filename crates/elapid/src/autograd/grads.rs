//! Gradients on their way back.

use elapid_kernels::RowsMut;

use super::Var;
use crate::params::ParamGrads;
use crate::{Result, Tensor};

/// The gradients of a tape's variables while [`Tape::backward`](super::Tape::backward) runs.
pub struct Grads {
    shapes: Vec<(usize, usize)>,
    slots: Vec<Option<Slot>>,
    /// Gradients of parameters that a recomputed part gave; see [`checkpoint`](super::checkpoint).
    pub(super) recomputed: ParamGrads,
}

/// One gradient. Columns that nobody wrote are 0.
struct Slot {
    data: Vec<f32>,
    /// Disjoint column ranges that hold something.
    written: Vec<(usize, usize)>,
}

/// How an operation gives the gradient of an input.
#[derive(Clone, Copy)]
pub enum Want<'a> {
    /// The operation stores it (`=`): all of it, whatever was there.
    Set(&'a Var),
    /// The operation adds to it (`+=`): it holds the sum so far.
    Add(&'a Var),
    /// The input is absent; the matrix handed out has no elements.
    Nothing,
}

impl<'a> Want<'a> {
    /// [`Want::Set`], or nothing for an absent input.
    pub fn set(var: Option<&'a Var>) -> Self {
        var.map_or(Want::Nothing, Want::Set)
    }

    /// [`Want::Add`], or nothing for an absent input.
    pub fn add(var: Option<&'a Var>) -> Self {
        var.map_or(Want::Nothing, Want::Add)
    }
}

/// Where the numbers of one [`Want`] go.
struct Target {
    /// The slot they end in; none if the variable is a constant, then they are thrown away.
    slot: Option<usize>,
    from: usize,
    cols: usize,
    /// Memory of their own, to be added to the slot afterwards; otherwise straight into the slot.
    own: Option<Vec<f32>>,
}

impl Grads {
    pub(super) fn new(shapes: Vec<(usize, usize)>) -> Self {
        let slots = shapes.iter().map(|_| None).collect();
        Self { shapes, slots, recomputed: ParamGrads::default() }
    }

    pub(super) fn has(&self, slot: usize) -> bool {
        self.slots[slot].is_some()
    }

    pub(super) fn forget(&mut self, slot: usize) {
        self.slots[slot] = None;
    }

    pub(super) fn put_whole(&mut self, slot: usize, data: Vec<f32>) {
        let cols = self.shapes[slot].1;
        self.slots[slot] = Some(Slot { data, written: vec![(0, cols)] });
    }

    pub(super) fn take_whole(&mut self, slot: usize) -> Option<Vec<f32>> {
        self.slots[slot].take().map(|slot| slot.data)
    }

    /// The gradient of an output, moved out; none if no gradient arrived there.
    pub fn take(&mut self, output: &Var) -> Option<Tensor> {
        let place = output.place.as_ref()?;
        let data = self.take_whole(place.slot)?;
        Some(Tensor::new(data, output.shape()))
    }

    /// [`take`](Self::take), with zeros where no gradient arrived.
    pub fn take_or_zeros(&mut self, output: &Var) -> Tensor {
        self.take(output).unwrap_or_else(|| Tensor::zeros(output.shape()))
    }

    /// Adds `gradient` to that of `var`; nothing for a constant.
    pub fn add(&mut self, var: &Var, gradient: &Tensor) {
        let added: Result<()> = self.write([Want::Add(var)], |[mut sum]| {
            let gradient = gradient.rows();
            for r in 0..sum.rows() {
                sum.row(r).iter_mut().zip(gradient.row(r)).for_each(|(sum, g)| *sum += g);
            }
            Ok(())
        });
        debug_assert!(added.is_ok());
    }

    /// Adds `gradient` to that of `var`, moving it there if it is the first and covers all.
    pub fn give(&mut self, var: &Var, gradient: Tensor) {
        let Some(place) = &var.place else { return };
        let whole = self.shapes[place.slot];
        if self.slots[place.slot].is_none() && gradient.len() == whole.0 * whole.1 {
            self.put_whole(place.slot, gradient.into_vec());
        } else {
            self.add(var, &gradient);
        }
    }

    /// Hands out the matrices that an operation writes its inputs' gradients to, and files what it wrote.
    ///
    /// # Errors
    /// What `write` returns.
    pub fn write<const N: usize>(
        &mut self,
        wants: [Want<'_>; N],
        write: impl FnOnce([RowsMut<'_>; N]) -> elapid_kernels::Result<()>,
    ) -> Result<()> {
        let mut targets = wants.map(|want| self.target(want));
        separate(&mut targets, &self.shapes);
        let mut opened = self.open(&targets);
        let matrices = lend(&mut targets, &mut opened, &self.shapes);
        write(matrices)?;
        self.close(targets, opened);
        Ok(())
    }

    fn target(&mut self, want: Want<'_>) -> Target {
        let (var, set) = match want {
            Want::Nothing => return Target { slot: None, from: 0, cols: 0, own: Some(Vec::new()) },
            Want::Set(var) => (var, true),
            Want::Add(var) => (var, false),
        };
        let Some(place) = &var.place else {
            let own = Some(vec![0.0; var.value.len()]);
            return Target { slot: None, from: 0, cols: var.value.cols(), own };
        };
        // A reshaped variable covers its slot whole; a column slice keeps the slot's rows.
        let (rows, slot_cols) = self.shapes[place.slot];
        let cols = if var.value.len() == rows * slot_cols { slot_cols } else { var.value.cols() };
        let taken = self.slots[place.slot]
            .as_ref()
            .is_some_and(|slot| slot.written.iter().any(|&(from, to)| from < place.from + cols && place.from < to));
        let own = (set && taken).then(|| vec![0.0; rows * cols]);
        Target { slot: Some(place.slot), from: place.from, cols, own }
    }

    /// Takes the slots that are written directly out of the table, made if they were not there.
    fn open(&mut self, targets: &[Target]) -> Vec<(usize, Slot)> {
        let mut opened: Vec<(usize, Slot)> = Vec::new();
        for target in targets.iter().filter(|target| target.own.is_none()) {
            let Some(index) = target.slot else { continue };
            let at = opened.iter().position(|(i, _)| *i == index).unwrap_or_else(|| {
                let (rows, cols) = self.shapes[index];
                let fresh = || Slot { data: vec![0.0; rows * cols], written: Vec::new() };
                opened.push((index, self.slots[index].take().unwrap_or_else(fresh)));
                opened.len() - 1
            });
            let range = (target.from, target.from + target.cols);
            let slot = &mut opened[at].1;
            if !slot.written.iter().any(|&(from, to)| from <= range.0 && range.1 <= to) {
                slot.written.push(range);
            }
        }
        opened
    }

    fn close(&mut self, targets: impl IntoIterator<Item = Target>, opened: Vec<(usize, Slot)>) {
        for (index, slot) in opened {
            self.slots[index] = Some(slot);
        }
        for target in targets {
            if let (Some(index), Some(own)) = (target.slot, target.own)
                && let Some(slot) = &mut self.slots[index]
            {
                let stride = self.shapes[index].1;
                for (r, part) in own.chunks_exact(target.cols.max(1)).enumerate() {
                    let sum = &mut slot.data[r * stride + target.from..][..target.cols];
                    sum.iter_mut().zip(part).for_each(|(sum, g)| *sum += g);
                }
            }
        }
    }
}

/// An operation may be given the same variable twice: the second then gets memory of its own.
fn separate(targets: &mut [Target], shapes: &[(usize, usize)]) {
    for i in 1..targets.len() {
        let (before, rest) = targets.split_at_mut(i);
        let target = &mut rest[0];
        let Some(slot) = target.slot.filter(|_| target.own.is_none()) else { continue };
        let overlaps = |other: &&mut Target| {
            other.own.is_none()
                && other.slot == Some(slot)
                && other.from < target.from + target.cols
                && target.from < other.from + other.cols
        };
        if before.iter_mut().any(|other| overlaps(&other)) {
            target.own = Some(vec![0.0; shapes[slot].0 * target.cols]);
        }
    }
}

/// One matrix a target: over its own memory, or over its columns of an opened slot.
fn lend<'a, const N: usize>(
    targets: &'a mut [Target; N],
    opened: &'a mut [(usize, Slot)],
    shapes: &[(usize, usize)],
) -> [RowsMut<'a>; N] {
    let mut lent: [Option<RowsMut<'a>>; N] = [const { None }; N];
    for (index, slot) in opened {
        let mut parts: Vec<(usize, usize, usize)> = targets
            .iter()
            .enumerate()
            .filter(|(_, target)| target.own.is_none() && target.slot == Some(*index))
            .map(|(i, target)| (target.from, target.cols, i))
            .collect();
        parts.sort_unstable();
        let mut rest = RowsMut::new(&mut slot.data, shapes[*index].1);
        let mut at = 0;
        for (from, cols, i) in parts {
            let (part, after) = rest.split_columns(from - at).1.split_columns(cols);
            lent[i] = Some(part);
            rest = after;
            at = from + cols;
        }
    }
    let mut i = 0;
    targets.each_mut().map(|target| {
        let direct = lent[i].take();
        i += 1;
        direct.unwrap_or_else(|| {
            let cols = target.cols;
            RowsMut::new(target.own.get_or_insert_default(), cols)
        })
    })
}
