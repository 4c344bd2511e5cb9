//! Rows of a table.

use std::borrow::Cow;
use std::sync::Arc;

use elapid_kernels::cuda::Buffer;
use elapid_kernels::packed::Packed;
use elapid_kernels::reuse::List;
use elapid_kernels::{Array, embedding as kernel};

use crate::autograd::{Var, record};
use crate::{Device, Error, Result, Tensor};

/// Token ids: on the host, or already on a GPU.
#[derive(Debug, Clone)]
pub enum Ids<'a> {
    /// In memory of the host.
    Host(Cow<'a, [u32]>),
    /// u32 in a GPU's memory, checked by the caller.
    Device(Arc<Buffer>),
}

impl<'a> From<&'a [u32]> for Ids<'a> {
    fn from(ids: &'a [u32]) -> Self {
        Self::Host(ids.into())
    }
}

impl<'a, const N: usize> From<&'a [u32; N]> for Ids<'a> {
    fn from(ids: &'a [u32; N]) -> Self {
        ids[..].into()
    }
}

impl<'a> From<&'a Vec<u32>> for Ids<'a> {
    fn from(ids: &'a Vec<u32>) -> Self {
        ids[..].into()
    }
}

impl Ids<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Host(ids) => ids.len(),
            Self::Device(ids) => ids.bytes() / size_of::<u32>(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where an operation on `device` reads them, to keep for its backward: checked against a vocabulary of `v` and
    /// uploaded, if they come from the host and go to a GPU.
    fn on(&self, device: Device, v: usize) -> Result<Placed> {
        match (self, device) {
            (Self::Host(ids), Device::Cpu) => Ok(Placed::Host(ids.iter().copied().collect())),
            (Self::Host(ids), Device::Cuda(gpu)) => {
                kernel::check_ids(ids, v)?;
                Ok(Placed::Device(Arc::new(gpu.upload(ids)?)))
            }
            (Self::Device(ids), Device::Cuda(_)) => Ok(Placed::Device(ids.clone())),
            (Self::Device(_), Device::Cpu) => {
                Err(Error::Argument("ids on a GPU for an embedding on the CPU: give those of the host".into()))
            }
        }
    }
}

/// Ids on the device of an operation.
enum Placed {
    Host(List<u32>),
    Device(Arc<Buffer>),
}

impl Placed {
    fn view(&self) -> Array<'_, u32> {
        match self {
            Self::Host(ids) => ids[..].into(),
            Self::Device(ids) => ids.as_ref().into(),
        }
    }
}

/// The rows `ids` of `table` `[v d]`, as `[b l d]`.
///
/// # Errors
/// If an id is not in the table.
pub fn embedding<'a>(ids: impl Into<Ids<'a>>, table: &Var, (b, l): (usize, usize)) -> Result<Var> {
    let value = table.value();
    let ids = ids.into().on(value.device(), value.row_count())?;
    if let (Some(packed), Placed::Host(ids)) = (value.packed(), &ids) {
        super::linear::check_no_gradients(packed, table.wants_grad())?;
        return packed_rows(ids, packed, (b, l)).map(Var::from);
    }
    let mut y = Tensor::output(value.device(), value.dtype(), &[b, l, value.cols()])?;
    kernel::forward(ids.view(), value.view(), y.view_mut())?;
    let kept = table.without_numbers();
    let [y] = record(&[table], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.add_by(&kept, |dtable| kernel::backward(ids.view(), dy.view(), dtable))
    });
    Ok(y)
}

fn packed_rows(ids: &[u32], table: &Packed, (b, l): (usize, usize)) -> Result<Tensor> {
    let (v, d) = table.shape();
    kernel::check_ids(ids, v)?;
    Tensor::filled(&[b, l, d], |mut y| {
        ids.iter().enumerate().for_each(|(i, &id)| table.read_row(id as usize, y.row(i)));
        Ok::<_, Error>(())
    })
}
