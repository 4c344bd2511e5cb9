//! y = x Wᵀ + b.

use elapid_kernels::linear as kernel;

use crate::autograd::{Var, Want, record};
use crate::{Result, Tensor};

/// y = x Wᵀ + b, with x `[.. k]`, W `[n k]`, b `[n]`, y `[.. n]`.
///
/// On the tape the product is the fastest one. Without it every element is summed, on the processor, in an order that
/// depends on k alone, so that a sequence gives the same bits whole, in chunks, and one token at a time.
///
/// # Errors
/// If shapes do not fit.
pub fn linear(x: &Var, weight: &Var, bias: Option<&Var>) -> Result<Var> {
    let n = weight.value().row_count();
    let mut shape = x.shape().to_vec();
    *shape.last_mut().unwrap_or(&mut 1) = n;
    let recorded = x.wants_grad() || weight.wants_grad();
    let y = match x.value().gpu() {
        None => Tensor::filled(&shape, |y| {
            let bias = bias.map(|b| b.value().as_slice());
            let product = if recorded { kernel::forward } else { kernel::forward_invariant };
            product(x.value().rows(), weight.value().rows(), bias, y)
        })?,
        Some(gpu) => {
            let mut y = Tensor::uninit(gpu, x.value().dtype(), &shape)?;
            let bias = bias.map(|b| b.value().flat());
            kernel::cuda::forward(&gpu, x.value().mat(), weight.value().mat(), bias, y.mat_mut())?;
            y
        }
    };
    let inputs: Vec<&Var> = [x, weight].into_iter().chain(bias).collect();
    let (x, weight, bias) = (x.clone(), weight.clone(), bias.cloned());
    let [y] = record(&inputs, [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        let Some(gpu) = dy.gpu() else {
            if x.wants_grad() {
                grads.accumulate(&x, |dx, adds| kernel::backward_input(dy.rows(), weight.value().rows(), dx, adds))?;
            }
            if weight.wants_grad() {
                grads.write([Want::Add(&weight)], |[dw]| kernel::backward_weight(dy.rows(), x.value().rows(), dw))?;
            }
            if let Some(bias) = &bias {
                grads.write([Want::Add(bias)], |[db]| kernel::backward_bias(dy.rows(), db.into_slice()))?;
            }
            return Ok(());
        };
        if x.wants_grad() {
            grads.accumulate_cuda(&x, |dx, adds| {
                kernel::cuda::backward_input(&gpu, dy.mat(), weight.value().mat(), dx, adds)
            })?;
        }
        if weight.wants_grad() {
            grads.write_cuda([Want::Add(&weight)], |[dw]| {
                dw.map_or(Ok(()), |dw| kernel::cuda::backward_weight(&gpu, dy.mat(), x.value().mat(), dw))
            })?;
        }
        if let Some(bias) = bias.as_ref().filter(|bias| bias.wants_grad()) {
            grads.write_cuda([Want::Add(bias)], |[db]| {
                db.map_or(Ok(()), |db| kernel::cuda::backward_bias(&gpu, dy.mat(), db))
            })?;
        }
        Ok(())
    });
    Ok(y)
}
