//! Rows of a table.

use std::sync::Arc;

use elapid_kernels::cuda::{Buffer, Gpu};
use elapid_kernels::embedding as kernel;

use crate::autograd::{Var, Want, record};
use crate::{Error, Result, Tensor};

/// Token ids, on the CPU or already on a GPU.
#[derive(Debug, Clone)]
pub enum Ids<'a> {
    /// On the host.
    Host(&'a [u32]),
    /// u32 in a GPU's memory, checked by the caller.
    Device(Arc<Buffer>),
}

impl<'a> From<&'a [u32]> for Ids<'a> {
    fn from(ids: &'a [u32]) -> Self {
        Self::Host(ids)
    }
}

impl<'a, const N: usize> From<&'a [u32; N]> for Ids<'a> {
    fn from(ids: &'a [u32; N]) -> Self {
        Self::Host(ids)
    }
}

impl<'a> From<&'a Vec<u32>> for Ids<'a> {
    fn from(ids: &'a Vec<u32>) -> Self {
        Self::Host(ids)
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

    fn host(&self) -> Result<&[u32]> {
        match self {
            Self::Host(ids) => Ok(ids),
            Self::Device(_) => Err(Error::Argument("ids on a GPU for an embedding on the CPU".into())),
        }
    }

    /// On a GPU, checked against a vocabulary of `v` if they come from the host.
    fn device(&self, gpu: Gpu, v: usize) -> Result<Arc<Buffer>> {
        match self {
            Self::Device(ids) => Ok(ids.clone()),
            Self::Host(ids) => {
                kernel::check_ids(ids, v)?;
                Ok(Arc::new(gpu.upload(ids)?))
            }
        }
    }
}

/// The rows `ids` of `table` `[v d]`, as `[b l d]`.
///
/// # Errors
/// If an id is not in the table.
pub fn embedding<'a>(ids: impl Into<Ids<'a>>, table: &Var, (b, l): (usize, usize)) -> Result<Var> {
    let (ids, shape) = (ids.into(), [b, l, table.value().cols()]);
    let Some(gpu) = table.value().gpu() else {
        let ids = ids.host()?;
        let y = Tensor::filled(&shape, |y| kernel::forward(ids, table.value().rows(), y))?;
        let (kept, ids) = (table.clone(), ids.to_vec());
        let [y] = record(&[table], [y], move |grads, [y]| {
            let Some(dy) = grads.take(y)? else { return Ok(()) };
            grads.write_rows([Want::Add(&kept)], |[dtable]| kernel::backward(&ids, dy.rows(), dtable))
        });
        return Ok(y);
    };
    let ids = ids.device(gpu, table.value().row_count())?;
    let mut y = Tensor::uninit(gpu, table.value().dtype(), &shape)?;
    kernel::cuda::forward(&gpu, &ids, table.value().mat(), y.mat_mut())?;
    let kept = table.clone();
    let [y] = record(&[table], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.write_cuda([Want::Add(&kept)], |[dtable]| match dtable {
            Some(dtable) => kernel::cuda::backward(&gpu, &ids, dy.mat(), dtable),
            None => Ok(()),
        })
    });
    Ok(y)
}
