//! One row for every position.

use elapid_kernels::cuda::elementwise;
use elapid_kernels::linear as kernel;

use crate::autograd::{Var, Want, record};
use crate::{Result, Tensor};

/// y = x at every position, x `[n]`, y `[.. n]` in the dtype and on the device of `like` `[.. d]`: a parameter in place of a
/// function of the input. dx is the sum over positions, in an order that depends only on their number.
///
/// # Errors
/// If a device has too little memory.
pub fn repeat(x: &Var, like: &Var) -> Result<Var> {
    let n = x.value().len();
    let mut shape = like.shape().to_vec();
    *shape.last_mut().unwrap_or(&mut 1) = n;
    let row = x.value().reshape(&[1, n]);
    let y = match like.value().gpu() {
        None => Tensor::filled(&shape, |mut y| {
            (0..y.rows()).for_each(|r| y.row(r).copy_from_slice(row.as_slice()));
            Ok::<(), crate::Error>(())
        })?,
        Some(gpu) => {
            let mut y = Tensor::uninit(gpu, like.value().dtype(), &shape)?;
            // u32 zeros: row 0 for every row.
            let first = Tensor::zeros_on(like.value().device(), crate::DType::F32, &[like.value().row_count()])?;
            elementwise::select_rows(&gpu, row.mat(), first.buffer().0, y.mat_mut())?;
            y
        }
    };
    let kept = x.clone();
    let [y] = record(&[x], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        match dy.gpu() {
            None => grads.write_rows([Want::Add(&kept)], |[dx]| kernel::backward_bias(dy.rows(), dx.into_slice())),
            Some(gpu) => grads.write_cuda([Want::Add(&kept)], |[dx]| {
                dx.map_or(Ok(()), |dx| kernel::cuda::backward_bias(&gpu, dy.mat(), dx))
            }),
        }
    });
    Ok(y)
}
