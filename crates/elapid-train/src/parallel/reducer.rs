//! Averaging gradients over GPUs while the backward pass still runs.

use std::sync::Arc;

use elapid::params::{ParamId, Params};
use elapid::{Error, Result};
use elapid_kernels::cuda::Buffer;
use elapid_kernels::cuda::nccl::{Communicator, Mark};

use super::buckets::Buckets;

/// Values per bucket: 25 MiB, large enough to saturate a link, small relative to a model.
const BUCKET: usize = 25 << 18;

/// Sums gradients over ranks bucket by bucket, each on the communicator's stream as soon as the device has passed its mark
/// in the backward pass.
pub(crate) struct Reducer {
    communicator: Arc<Communicator>,
    buckets: Buckets<ParamId>,
    /// The mark at which each bucket is complete.
    marks: Vec<Mark>,
    /// The mark at which everything is.
    end: Mark,
}

impl Reducer {
    /// For the gradients of parameters that are trained on a GPU.
    pub(crate) fn new(communicator: Arc<Communicator>, params: &Params) -> Result<Self> {
        let (Some(flat), Some(gpu)) = (params.flat(), params.device().gpu()) else {
            return Err(Error::Argument("wanted parameters on a GPU".into()));
        };
        let placed = params.iter().zip(&flat.offsets).filter(|((_, param), _)| param.traits.trainable);
        let starts: Vec<(ParamId, usize)> = placed.map(|((id, _), &at)| (id, at)).collect();
        let buckets = Buckets::new(&starts, flat.trained, BUCKET);
        let marks = buckets.ranges().iter().map(|_| Ok(Mark::new(gpu)?)).collect::<Result<_>>()?;
        Ok(Self { communicator, buckets, marks, end: Mark::new(gpu)? })
    }

    /// Before a backward pass.
    pub(crate) fn begin(&mut self) {
        self.buckets.begin();
    }

    /// Marks this point in the device's work as the one where the gradient of a parameter is complete.
    pub(crate) fn is_final(&mut self, id: ParamId) -> Result<()> {
        match self.buckets.complete(id) {
            Some(bucket) => Ok(self.marks[bucket].pass()?),
            None => Ok(()),
        }
    }

    /// After a backward pass: parameters that it did not reach keep their gradients.
    pub(crate) fn end(&mut self) -> Result<()> {
        Ok(self.buckets.incomplete().try_for_each(|bucket| self.marks[bucket].pass())?)
    }

    /// Asks for the sums of all gradients and of the loss over ranks, after a backward pass or a graph that has one. What
    /// is asked of the device next waits for them. The order is the same at every rank, whatever was complete first.
    pub(crate) fn reduce(&self, grads: &Arc<Buffer>, loss: &Arc<Buffer>) -> Result<()> {
        for (range, mark) in self.buckets.ranges().iter().zip(&self.marks) {
            self.communicator.after(mark)?;
            self.communicator.all_reduce(grads, range.start, range.len())?;
        }
        self.end.pass()?;
        self.communicator.after(&self.end)?;
        self.communicator.all_reduce(loss, 0, 1)?;
        Ok(self.communicator.join()?)
    }
}
