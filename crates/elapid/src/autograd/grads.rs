//! Gradients in the backward pass.

use std::sync::Arc;

use elapid_kernels::{ViewMut, cuda, elementwise};

use super::slots::{Form, Grads, Slot};
use super::var::{Place, Var};
use crate::{Device, Result, Tensor};

/// How an operation writes the gradient of an input.
#[derive(Clone, Copy)]
pub enum Want<'a> {
    /// The operation stores it (`=`): all of it, whatever was there. That of a constant is thrown away.
    Set(&'a Var),
    /// The operation adds to it (`+=`): it holds the sum so far. That of a constant is thrown away.
    Add(&'a Var),
    /// Nobody wants it: no matrix is handed out.
    Nothing,
}

impl<'a> Want<'a> {
    /// [`Want::Set`] for an operation that can leave it out: nothing for an absent input or a constant.
    pub fn set(var: Option<&'a Var>) -> Self {
        var.filter(|var| var.wants_grad()).map_or(Want::Nothing, Want::Set)
    }

    /// [`Want::Add`] for an operation that can leave it out: nothing for an absent input or a constant.
    pub fn add(var: Option<&'a Var>) -> Self {
        var.filter(|var| var.wants_grad()).map_or(Want::Nothing, Want::Add)
    }
}

impl Form {
    /// The columns of the gradient that belong to `var`: a reshaped variable covers all of it, a column slice keeps its
    /// rows.
    fn cols_of(&self, var: &Var) -> usize {
        if var.value.len() == self.rows * self.cols { self.cols } else { var.value.cols() }
    }
}

/// The destination of one [`Want`].
struct Target {
    /// The slot of the gradient; none if the variable is a constant, and then it is discarded.
    slot: Option<usize>,
    from: usize,
    cols: usize,
    /// Whether the operation adds to the existing gradient.
    adds: bool,
    /// A temporary, to be added to the slot afterwards; none if it is written straight into the slot.
    own: Option<Tensor>,
}

impl Grads {
    /// The slot of a variable's gradient; none for a constant and for a variable of another pass.
    fn place<'v>(&self, var: &'v Var) -> Option<&'v Place> {
        var.place.as_ref().filter(|place| Arc::ptr_eq(&place.alive, &self.alive))
    }

    /// The gradient of an output, moved out; none if no gradient arrived there.
    ///
    /// # Errors
    /// If a device failed.
    pub fn take(&mut self, output: &Var) -> Result<Option<Tensor>> {
        let Some(gradient) = self.take_seed(output)? else { return Ok(None) };
        let value = output.value();
        match value.gpu() {
            // A seed: filled in by a kernel, which a captured graph may have, where a copy from the host may not be.
            Some(gpu) if gradient.device() == Device::Cpu && gradient.len() == 1 => {
                let mut filled = Tensor::uninit(gpu, value.dtype(), output.shape())?;
                elementwise::fill(filled.view_mut(), gradient.as_slice()[0])?;
                Ok(Some(filled))
            }
            _ => Ok(Some(gradient)),
        }
    }

    /// [`take`](Self::take) for a loss: a seed stays on the CPU, where its weight is read without waiting for a device.
    pub(crate) fn take_seed(&mut self, output: &Var) -> Result<Option<Tensor>> {
        let Some(place) = self.place(output) else { return Ok(None) };
        Ok(self.take_whole(place.slot)?.map(|data| data.reshape(output.shape())))
    }

    /// [`take`](Self::take), with zeros where no gradient arrived.
    ///
    /// # Errors
    /// If a device failed.
    pub fn take_or_zeros(&mut self, output: &Var) -> Result<Tensor> {
        match self.take(output)? {
            Some(gradient) => Ok(gradient),
            None => Tensor::zeros_on(output.value.device(), output.value.dtype(), output.shape()),
        }
    }

    /// Adds `gradient` to that of `var`; nothing for a constant.
    ///
    /// # Errors
    /// If a device failed.
    pub fn add(&mut self, var: &Var, gradient: &Tensor) -> Result<()> {
        self.add_by(var, |sum| {
            let (rows, cols) = sum.shape();
            elementwise::add(gradient.reshape(&[rows, cols]).view(), sum)
        })
    }

    /// Adds `gradient` to that of `var`, moving it there if it is the first and covers all.
    ///
    /// # Errors
    /// If a device failed.
    pub fn give(&mut self, var: &Var, gradient: Tensor) -> Result<()> {
        let Some(place) = self.place(var) else { return Ok(()) };
        let form = self.forms[place.slot];
        let fits = gradient.len() == form.rows * form.cols && gradient.dtype() == form.dtype;
        if self.slots[place.slot].is_none() && fits {
            self.put_whole(place.slot, gradient.reshape(&[form.rows, form.cols]));
            return Ok(());
        }
        self.add(var, &gradient)
    }

    /// Hands out the matrices that an operation writes its inputs' gradients to, and files what it wrote. What nobody
    /// wants has no matrix.
    ///
    /// # Errors
    /// What `write` returns.
    pub fn write<const N: usize>(
        &mut self,
        wants: [Want<'_>; N],
        write: impl FnOnce([Option<ViewMut<'_>>; N]) -> cuda::Result<()>,
    ) -> Result<()> {
        // A reshaped variable has its gradient in the shape that its source has.
        let shape = |want: &Want<'_>| match want {
            Want::Set(var) | Want::Add(var) => Some((var.value.row_count(), var.value.cols())),
            Want::Nothing => None,
        };
        let mut shapes = wants.each_ref().map(shape).into_iter();
        let mut targets = self.targets(wants)?;
        let mut opened = self.open(&targets)?;
        write(lend(&mut targets, &mut opened).map(|matrix| {
            let (matrix, shape) = (matrix, shapes.next().flatten());
            matrix.map(|matrix| match shape {
                Some((rows, cols)) if matrix.shape() != (rows, cols) => matrix.reshaped(rows, cols),
                _ => matrix,
            })
        }))?;
        self.close(targets, opened)
    }

    /// Hands out the matrix of one gradient to an operation that adds to it (`+=`). For a constant the operation is not
    /// called.
    ///
    /// # Errors
    /// What `write` returns.
    pub fn add_by(&mut self, var: &Var, write: impl FnOnce(ViewMut<'_>) -> cuda::Result<()>) -> Result<()> {
        self.write([Want::add(Some(var))], |[matrix]| matrix.map_or(Ok(()), write))
    }

    /// Hands out the matrix of one gradient to an operation that stores it (`=`). For a constant the operation is not
    /// called.
    ///
    /// # Errors
    /// What `write` returns.
    pub fn set_by(&mut self, var: &Var, write: impl FnOnce(ViewMut<'_>) -> cuda::Result<()>) -> Result<()> {
        self.write([Want::set(Some(var))], |[matrix]| matrix.map_or(Ok(()), write))
    }

    /// Hands out the matrix of one gradient to an operation that can store as well as add, and tells it which: it adds
    /// (`+=`) where something is there already, so that no temporary and no pass for the sum is needed. For a constant the
    /// operation is not called.
    ///
    /// # Errors
    /// What `write` returns.
    pub fn accumulate(&mut self, var: &Var, write: impl FnOnce(ViewMut<'_>, bool) -> cuda::Result<()>) -> Result<()> {
        let Some(place) = self.place(var) else { return Ok(()) };
        let cols = self.forms[place.slot].cols_of(var);
        let adds = self.holds(place.slot, place.from, place.from + cols);
        let want = if adds { Want::Add(var) } else { Want::Set(var) };
        self.write([want], |[matrix]| matrix.map_or(Ok(()), |matrix| write(matrix, adds)))
    }

    fn targets<const N: usize>(&self, wants: [Want<'_>; N]) -> Result<[Target; N]> {
        let mut targets = wants.map(|_| Target { slot: None, from: 0, cols: 0, adds: false, own: None });
        for (target, want) in targets.iter_mut().zip(wants) {
            *target = self.target(want)?;
        }
        self.separate(&mut targets)?;
        Ok(targets)
    }

    fn target(&self, want: Want<'_>) -> Result<Target> {
        let (var, adds) = match want {
            Want::Nothing => return Ok(Target { slot: None, from: 0, cols: 0, adds: false, own: None }),
            Want::Set(var) => (var, false),
            Want::Add(var) => (var, true),
        };
        let Some(place) = self.place(var) else {
            let form = Form::of(&var.value);
            return Ok(Target { slot: None, from: 0, cols: form.cols, adds, own: Some(form.matrix(form.cols)?) });
        };
        let form = self.forms[place.slot];
        let cols = form.cols_of(var);
        let taken = self.holds(place.slot, place.from, place.from + cols);
        let own = (!adds && taken).then(|| form.matrix(cols)).transpose()?;
        Ok(Target { slot: Some(place.slot), from: place.from, cols, adds, own })
    }

    /// Whether something was written to columns `from..to` of a gradient.
    fn holds(&self, slot: usize, from: usize, to: usize) -> bool {
        self.slots[slot].as_ref().is_some_and(|slot| slot.written.iter().any(|&(start, end)| start < to && from < end))
    }

    /// An operation may have the same variable twice; the second then gets a temporary.
    fn separate(&self, targets: &mut [Target]) -> Result<()> {
        for i in 1..targets.len() {
            let (before, rest) = targets.split_at_mut(i);
            let target = &mut rest[0];
            let Some(slot) = target.slot.filter(|_| target.own.is_none()) else { continue };
            let overlaps = |other: &Target| {
                other.own.is_none()
                    && other.slot == Some(slot)
                    && other.from < target.from + target.cols
                    && target.from < other.from + other.cols
            };
            if before.iter().any(overlaps) {
                let mut own = self.forms[slot].matrix(target.cols)?;
                if let Some(gpu) = own.gpu().filter(|_| target.adds) {
                    gpu.zero(own.mat_mut())?;
                }
                target.own = Some(own);
            }
        }
        Ok(())
    }

    /// Takes the slots that are written directly out of the table, creating missing ones.
    fn open(&mut self, targets: &[Target]) -> Result<Vec<(usize, Slot)>> {
        let mut opened: Vec<(usize, Slot)> = Vec::new();
        for target in targets.iter().filter(|target| target.own.is_none()) {
            let Some(index) = target.slot else { continue };
            let at = match opened.iter().position(|(i, _)| *i == index) {
                Some(at) => at,
                None => {
                    let slot = match self.slots[index].take() {
                        Some(slot) => slot,
                        None => Slot { data: self.forms[index].matrix(self.forms[index].cols)?, written: Vec::new() },
                    };
                    opened.push((index, slot));
                    opened.len() - 1
                }
            };
            let (slot, end) = (&mut opened[at].1, target.from + target.cols);
            match target.adds {
                true => slot.fill(target.from, end)?,
                // Nothing was written here; otherwise it would have a temporary.
                false => slot.written.push((target.from, end)),
            }
        }
        Ok(opened)
    }

    fn close(&mut self, targets: impl IntoIterator<Item = Target>, opened: Vec<(usize, Slot)>) -> Result<()> {
        for (index, slot) in opened {
            self.slots[index] = Some(slot);
        }
        for target in targets {
            let (Some(index), Some(own)) = (target.slot, target.own) else { continue };
            let Some(slot) = &mut self.slots[index] else { continue };
            elementwise::add(own.view(), slot.data.view_mut().columns(target.from, target.cols))?;
        }
        Ok(())
    }
}

/// One matrix a target: over its own memory, or over its columns of an opened slot.
fn lend<'a, const N: usize>(targets: &'a mut [Target; N], opened: &'a mut [(usize, Slot)]) -> [Option<ViewMut<'a>>; N] {
    let mut lent: [Option<ViewMut<'a>>; N] = [const { None }; N];
    for (index, slot) in opened {
        let mut parts: Vec<(usize, usize, usize)> = targets
            .iter()
            .enumerate()
            .filter(|(_, target)| target.own.is_none() && target.slot == Some(*index))
            .map(|(i, target)| (target.from, target.cols, i))
            .collect();
        parts.sort_unstable();
        let mut rest = slot.data.view_mut();
        let mut at = 0;
        for (from, cols, i) in parts {
            let (part, after) = rest.split_columns(from - at).1.split_columns(cols);
            lent[i] = Some(part);
            rest = after;
            at = from + cols;
        }
    }
    for (lent, target) in lent.iter_mut().zip(targets) {
        if let Some(own) = &mut target.own {
            *lent = Some(own.view_mut());
        }
    }
    lent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Tape;
    use crate::autograd::var::lock;

    fn counted(rows: usize, cols: usize) -> Tensor {
        Tensor::new((0..rows * cols).map(|i| i as f32).collect(), &[rows, cols])
    }

    /// The gradients of a tape that nothing was recorded on, in the middle of its backward pass.
    fn grads_of(tape: &Tape) -> Grads {
        let inner = std::mem::take(&mut *lock(&tape.inner));
        Grads::new(inner.slots, inner.alive)
    }

    #[test]
    fn what_nobody_wants_is_not_asked_for() {
        let tape = Tape::new();
        let (leaf, constant) = (tape.leaf(counted(2, 3)), Var::from(counted(2, 3)));
        let mut grads = grads_of(&tape);
        let wants = [Want::set(Some(&leaf)), Want::set(Some(&constant)), Want::add(Some(&constant)), Want::add(None)];
        grads
            .write(wants, |matrices| {
                assert_eq!(matrices.each_ref().map(Option::is_some), [true, false, false, false]);
                Ok(())
            })
            .unwrap();
        grads.add_by(&constant, |_| panic!("the gradient of a constant")).unwrap();
        grads.accumulate(&constant, |_, _| panic!("the gradient of a constant")).unwrap();
        // An operation that cannot leave it out gets memory to throw away.
        let written = |[matrix]: [Option<ViewMut<'_>>; 1]| {
            assert_eq!(matrix.map(|matrix| matrix.shape()), Some((2, 3)));
            Ok(())
        };
        grads.write([Want::Set(&constant)], written).unwrap();
    }

    #[test]
    fn a_slot_goes_from_absent_to_whole() {
        let tape = Tape::new();
        let leaf = tape.leaf(counted(2, 4));
        let mut grads = grads_of(&tape);
        let store = |cols: &Var, value: f32, grads: &mut Grads| {
            grads
                .accumulate(cols, |matrix, adds| {
                    let ViewMut::Host(mut rows) = matrix else { unreachable!("on the CPU") };
                    for r in 0..rows.rows() {
                        rows.row(r).iter_mut().for_each(|x| *x = if adds { *x + value } else { value });
                    }
                    Ok(())
                })
                .unwrap();
        };
        // Columns 1 and 2 are stored, then 2 and 3 added to, of which 3 was absent.
        store(&leaf.columns(1, 2), 1.0, &mut grads);
        store(&leaf.columns(2, 2), 10.0, &mut grads);
        assert_eq!(grads.take(&leaf).unwrap().unwrap().as_slice(), [[0.0, 1.0, 11.0, 10.0]; 2].concat());
        assert!(grads.take(&leaf).unwrap().is_none());
        // The same variable twice in one operation: the second in a temporary, added afterwards.
        let wants = [Want::Set(&leaf), Want::Set(&leaf), Want::Add(&leaf)];
        grads
            .write(wants, |matrices| {
                for (value, matrix) in [1.0, 2.0, 4.0].into_iter().zip(matrices) {
                    let Some(ViewMut::Host(mut rows)) = matrix else { unreachable!("on the CPU") };
                    rows.fill(value);
                }
                Ok(())
            })
            .unwrap();
        assert_eq!(grads.take(&leaf).unwrap().unwrap().as_slice(), [7.0; 8]);
    }

    /// On the CPU clones of a gradient are copied when one is added to.
    #[test]
    fn a_gradient_given_twice_is_two() {
        let tape = Tape::new();
        let (a, b) = (tape.leaf(counted(2, 2)), tape.leaf(counted(2, 2)));
        let mut grads = grads_of(&tape);
        let gradient = counted(2, 2);
        grads.give(&a, gradient.clone()).unwrap();
        grads.give(&b, gradient.clone()).unwrap();
        grads.give(&a, gradient).unwrap();
        assert_eq!(grads.take(&a).unwrap().unwrap().as_slice(), [0.0, 2.0, 4.0, 6.0]);
        assert_eq!(grads.take(&b).unwrap().unwrap().as_slice(), [0.0, 1.0, 2.0, 3.0]);
    }
}
